"""Generation: what flows of every objective sample."""
