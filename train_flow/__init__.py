"""Training of flows: ``python -m train_flow --config NAME-or-file --data-dir DIR``."""
