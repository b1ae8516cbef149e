"""NFA in the train.py of timm: which of its flags work, and how fast it is."""
