"""What the package computed before its internals were moved; see `cases`, `facts` and `make`."""
