"""Benchmarks: every figure of the README, one script a claim; the results are the JSON files in results/."""
