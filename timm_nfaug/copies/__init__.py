"""Moved copies of a dataset on disk: what `timm_nfaug.materialise` runs, shard by shard."""
