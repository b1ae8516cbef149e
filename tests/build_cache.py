"""Builds a cache of made-up digits: what tests and benchmarks kill in the middle.

Run: python -m tests.build_cache FOLDER [--images N] [--workers N] [--shard N]
"""

import argparse
from pathlib import Path

import torch

import timm_nfaug as nfa
from timm_nfaug.data import store


def build(folder: Path | str, images: int = 512, workers: int = 1, shard: int = 32) -> nfa.NFACache:
    """The cache in `folder`, resumed if it is there: the same bytes at every run."""
    store.SHARD = shard
    torch.set_num_threads(1)
    levels = torch.randint(0, 256, (images, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    base = [(image, i % 10) for i, image in enumerate(levels.to(torch.uint8))]
    augment = nfa.NFAugment.from_pretrained("conv_p4_tiny.digits", modes=4, labels="given")
    return nfa.NFACache.build(augment, base, folder, workers=workers)


def contents(folder: Path | str) -> dict[str, bytes]:
    """The bytes of its arrays and the checksums in its index, by file."""
    cache = nfa.NFACache(folder)
    found = {p.name: p.read_bytes() for p in sorted(Path(folder).glob("*.npy"))}
    return {**found, "shards": repr(sorted(cache.index["shards"].items())).encode()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    for name, default in (("images", 512), ("workers", 1), ("shard", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    print(len(build(**vars(parser.parse_args()))), "images")
