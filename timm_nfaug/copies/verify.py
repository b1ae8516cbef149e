"""Reads a set with copies back: files that are damaged, missing, or of nobody."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from .._utils.progress import progress
from .formats import tar_name
from .job import HIDDEN, TRAIN, Job, digest
from .plan import Plan
from .shards import Record, read_record


def read_back(job: Job, plan: Plan) -> tuple[int, list[str]]:
    """Reads all files of finished shards: their number, and the damaged ones.

    The shard of a damaged file counts as unfinished from then on.

    >>> read_back(Job("OUT", "DATA", copies=3), Plan([], "DATA", 0, 2))
    (0, [])
    """
    files, bad = 0, []
    with progress(len(plan), "NFA verify", "shards") as bar:
        for number in range(len(plan)):
            if (record := read_record(job.record(number))) is not None:
                files += len(record["files"])
                if found := damaged(job, record):
                    os.replace(job.record(number), job.damaged(number))
                    bad += found
            bar.update()
    return files, bad


def damaged(job: Job, record: Record) -> list[str]:
    """The files of a finished shard that are missing or not as they were written.

    >>> damaged(Job("no folder", "DATA", copies=3), {"files": {"train/a/0.png": "00"}})
    ['train/a/0.png']
    """
    return [name for name, known in record["files"].items() if digest(Path(job.out, name)) != known]


def strays(job: Job, plan: Plan, others: tuple[str, ...]) -> Iterator[str]:
    """Names in OUT that the set does not have; a training would read them.

    Args:
        others: names beside tar files that belong there.

    >>> import tempfile
    >>> list(strays(Job(tempfile.mkdtemp(), "DATA", copies=3), Plan([], "DATA", 0, 2), ()))
    []
    """
    out = Path(job.out)
    if job.format == "webdataset":
        tars = {tar_name(i) for i in range(len(plan))}
        yield from sorted({p.name for p in out.iterdir()} - tars - {HIDDEN, *others})
        return
    yield from sorted({p.name for p in out.iterdir()} - {TRAIN, HIDDEN})
    for folder, _, names in os.walk(out / TRAIN):
        own = Path(folder).relative_to(out / TRAIN)
        originals = os.listdir(Path(job.root, own)) if Path(job.root, own).is_dir() else []
        known, stems = set(originals), {os.path.splitext(name)[0] for name in originals}
        yield from (
            f"{TRAIN}/{own.as_posix()}/{name}"
            for name in names
            if name not in known and not _is_copy(job, name, stems)
        )


def _is_copy(job: Job, name: str, stems: set[str]) -> bool:
    found = re.fullmatch(rf"(.+)_nfa(\d+){re.escape(job.suffix)}", name)
    return found is not None and found[1] in stems and 1 <= int(found[2]) <= job.copies
