"""Writes down what the package computes now: ``python -m tests.golden.make``.

Run it only where a change of behaviour is meant, and say so in the commit. Flows, cache and
checkpoint are made where they are missing and never rewritten: they are files of an older version.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from . import cases, facts, fixtures, jobs
from .inputs import HERE

VALUES, FACTS = HERE / "values.npz", HERE / "facts.json"


def main() -> None:
    fixtures.write_missing()
    arrays = {k: v for name in cases.CASES for k, v in cases.compute(name).items()}
    found = {name: facts.compute(name) for name in facts.FACTS}
    with tempfile.TemporaryDirectory() as folder:
        more, found["jobs"] = jobs.results(Path(folder))
    np.savez_compressed(VALUES, **arrays, **more)
    FACTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(f"{len(arrays) + len(more)} arrays, {VALUES.stat().st_size} bytes; {len(found)} facts")


if __name__ == "__main__":
    main()
