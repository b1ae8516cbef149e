"""Analyses: what flows, modes, tangents and moves are like, apart from any comparison of trainings."""
