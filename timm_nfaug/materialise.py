"""Writes a dataset with moved copies of each image: ``timm-nfaug materialise --data-dir DIR --out OUT``.

The paper's protocol: every image and three augmented copies of it (Enescu & Sahbi, ACCV 2024). A
training then reads files, so that a slow space costs it nothing. A killed run goes on where
it was.
"""

import argparse
import dataclasses
import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from ._utils.files import locked, make_directory, write_atomically
from ._utils.notices import warn
from ._utils.progress import progress, say
from .commands.fit import _check_out
from .copies import settings
from .copies.formats import FORMATS, tar_name
from .copies.job import HIDDEN, TRAIN, Job, Shard
from .copies.on_ray import made_on_ray
from .copies.plan import (
    Plan,
    check_originals,
    check_settings,
    read_settings,
    touched,
    write_plan,
)  # fmt: skip
from .copies.shards import Record, read_record
from .copies.verify import read_back, strays
from .copies.workers import made_by_processes
from .data.cache import digest
from .data.source import cpus
from .hub import LINEAR
from .integration.classes import class_names
from .integration.folder import ImageFiles, training_set
from .space import AUTOENCODER_HELP, SPACE_HELP, SPACES

SHARD = 64  # images
INFO = "_info.json"  # that timm reads beside tar files
FEW = 10  # damaged files that are named


class _Set(NamedTuple):
    """A set with copies: finished shards, and those to be made."""

    job: Job
    plan: Plan
    totals: dict[str, int]  # of finished shards: images, bytes, unchanged
    missing: list[int]


def _images(args: argparse.Namespace) -> ImageFiles:
    """The images to be moved; refuses an OUT that is not for them before anything is made there."""
    dataset = training_set(args.data_dir)
    if not isinstance(dataset, ImageFiles):
        raise ValueError(f"--data-dir {args.data_dir} is no folder of images: unpack it first")
    _check_out(args.out, dataset)
    there = {p.name for p in args.out.iterdir()} if args.out.exists() else set()
    if args.verify and read_settings(Job(str(args.out), "", args.copies)) is None:
        raise FileNotFoundError(f"{args.out} holds no set of this command: nothing to verify")
    if there and HIDDEN not in there:
        raise ValueError(f"--out {args.out} holds {min(there)} already: name an empty directory")
    return dataset


def _open(args: argparse.Namespace, dataset: ImageFiles) -> _Set:
    """Begins a new OUT, or checks that an old one can go on with these flags and images."""
    root = str(Path(dataset.reader.root).resolve())
    given = {k: getattr(args, k) for k in ("copies", "seed", "format", "quality", "device")}
    job = Job(
        str(args.out.resolve()), root, autoencoder=settings.absolute(args.autoencoder), **given
    )
    plan = Plan(dataset.reader.samples, dataset.reader.root, args.seed, args.shard_images)
    augment, known = settings.start(args, dataset), read_settings(job)
    settings.check(augment, args, dataset)
    now = settings.settings_now(augment, args, class_names(dataset))
    if known is None:
        if args.format == "folder":
            plan.check_names(args.copies)
        if args.flow == LINEAR:
            augment = settings.fitted(augment, args.data_dir, dataset)
        augment.save_pretrained(job.hidden / "augmentation")
        known = now | {"flow": digest(augment.flow), "versions": settings.versions()}
        write_plan(plan, job, known)
    check_settings(str(args.out), {k: known.get(k) for k in now}, now)
    if known["versions"] != settings.versions():
        warn(
            f"{args.out} was begun with {known['versions']}, now it is {settings.versions()}: what "
            "is made now may differ by a level from what it would have been"
        )
    return _scanned(dataclasses.replace(job, flow=known["flow"]), plan)


def _scanned(job: Job, plan: Plan) -> _Set:
    """Finds which shards are finished, and that the images of these are as they were."""
    changed, missing = touched(plan, job), []
    totals = dict.fromkeys(("images", "bytes", "unchanged"), 0)
    for number in range(len(plan)):
        if (record := read_record(job.record(number))) is not None:
            check_originals(job, plan.shard(number), record["originals"], changed)
            _add(totals, record)
            continue
        missing.append(number)
        if (record := read_record(job.damaged(number))) is not None:
            shard = plan.shard(number)
            check_originals(job, shard, record["originals"], {i.index for i in shard.items})
    return _Set(job, plan, totals, missing)


def _add(totals: dict[str, int], record: Record) -> None:
    for key in totals:
        totals[key] += record[key]


def _made(found: _Set, args: argparse.Namespace) -> Iterator[Record]:
    """The records of missing shards, as they are made."""
    shutil.rmtree(found.job.scratch, ignore_errors=True)  # what killed processes left
    make_directory(found.job.scratch)
    shards: Iterator[Shard] = map(found.plan.shard, found.missing)
    if args.ray:
        return made_on_ray(found.job, shards, args.ray, args.gpus_per_task)
    processes = min(args.processes, max(len(found.missing), 1))
    return made_by_processes(found.job, shards, processes)


def _make(found: _Set, args: argparse.Namespace) -> str:
    """Makes the missing shards; returns what is to be said."""
    job, plan, totals = found.job, found.plan, found.totals
    images, start, before = len(plan.samples), time.monotonic(), totals["images"]
    _say_start(found, args)
    with progress(images, "NFA copies", "images", initial=before) as bar:
        for record in _made(found, args):
            if totals["images"] == before:
                _say_size(record, images, args.out)
            _add(totals, record)
            bar.update(record["images"])
    if args.format == "webdataset":
        text = _info(plan, args.copies)
        write_atomically(args.out / INFO, lambda p: p.write_text(text, encoding="utf-8"))
    shutil.rmtree(job.scratch, ignore_errors=True)
    if totals["unchanged"]:
        warn(
            f"{totals['unchanged']:,} of {images * args.copies:,} copies are as their images: their "
            "change was not finite, or their class has no modes"
        )
    return _summary(args, totals, totals["images"] - before, time.monotonic() - start)


def _say_start(found: _Set, args: argparse.Namespace) -> None:
    images, shards = len(found.plan.samples), len(found.plan)
    aug = read_settings(found.job)["aug"]  # type: ignore[index]
    where = f"Ray at {args.ray}" if args.ray else f"{args.device}, {args.processes} at a time"
    p = aug.partition("-p")[2].partition("-")[0]
    moved = "every copy is moved" if p == "1" else f"a copy is moved with probability {p}"
    done = f", {shards - len(found.missing):,} finished already" * (len(found.missing) < shards)
    say(
        f"NFA copies: {images:,} images, {args.copies} copies of each by {aug} ({moved}), "
        f"{shards:,} shards{done}; {where}"
    )


def _say_size(record: Record, images: int, out: Path) -> None:
    """Says how many bytes the set will take, by its first shard."""
    size, free = record["bytes"] * images / record["images"], shutil.disk_usage(out).free
    about = f"about {_bytes(size)} in all, {_bytes(free)} are free"
    say(f"NFA copies: {about}")
    if size > free:
        warn(
            f"{out} will take {about}: --quality 95 writes JPEG, and --format folder takes no space "
            "for originals on the same disk"
        )


def _bytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size > 1e9 else f"{size / 1e6:,.1f} MB"


def _info(plan: Plan, copies: int) -> str:
    """What timm's reader of tar files wants to know."""
    last = len(plan.samples) - (len(plan) - 1) * plan.images
    lengths = [plan.images * (1 + copies)] * (len(plan) - 1) + [last * (1 + copies)]
    train = {
        "name": TRAIN, "num_samples": sum(lengths), "shard_lengths": lengths,
        "filenames": [tar_name(i) for i in range(len(plan))],
    }  # fmt: skip
    return json.dumps({"splits": {TRAIN: train}}, indent=1)


def _summary(args: argparse.Namespace, totals: dict[str, int], made: int, seconds: float) -> str:
    images = totals["images"]
    data = f"--data-dir {args.out}"
    if args.format == "webdataset":
        data += " --dataset wds/ --train-split train"
    rate = f"{made * args.copies / seconds:,.1f} copies/s" if made else "nothing was left to do"
    return (
        f"{args.out}: {images:,} images and {images * args.copies:,} moved copies, "
        f"{_bytes(totals['bytes'])} ({rate})\nuse it: {data}"
    )


def _verify(found: _Set, args: argparse.Namespace) -> int:
    """Reads everything back and says what is damaged; 0 where nothing is."""
    job, plan = found.job, found.plan
    files, bad = read_back(job, plan)
    if args.format == "webdataset" and not found.missing:
        info = args.out / INFO
        if not info.exists() or info.read_text(encoding="utf-8") != _info(plan, args.copies):
            bad.append(INFO)
    stray = list(itertools.islice(strays(job, plan, (INFO,)), FEW))
    lines = [f"damaged: {args.out / name}" for name in bad[:FEW]]
    lines += [f"not of this set, delete it: {args.out / name}" for name in stray]
    lines.append(
        f"{args.out}: {files:,} files read back, {len(bad):,} damaged, {len(found.missing):,} of "
        f"{len(plan):,} shards not finished"
    )
    if bad or found.missing:
        lines.append("make them: the same command without --verify")
    print("\n".join(lines))
    return int(bool(bad or stray or found.missing))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "timm-nfaug materialise", description=__doc__.partition("\n\n")[0]
    )
    add, usual = parser.add_argument, "(default: %(default)s)"
    flow = "linear, the modes of these images; cosine; or a bundled name, a directory, a Hub id"
    add("--data-dir", required=True, help="folder with a folder of images a class, or with train/")
    add("--out", type=Path, required=True, help="directory for the set; not inside the data")
    add("--copies", type=int, default=3, help=f"moved versions of each image {usual}")
    add("--format", choices=FORMATS, default="folder", help=f"of the files {usual}")
    add("--quality", type=int, help="writes copies as JPEG of this quality (default: PNG)")
    add("--aug", default="nfa", metavar="NFA", help=f"settings, as nfa-s0.5-k32; p is 1 {usual}")
    add("--flow", default=LINEAR, metavar="NAME", help=f"{flow} {usual}")
    add("--space", choices=SPACES, help=SPACE_HELP)
    add("--autoencoder", metavar="NAME", help=AUTOENCODER_HELP)
    add("--size", type=int, help="side in pixels of the modes (default: 32; latent: the images')")
    add("--seed", type=int, default=0, help=usual)
    add("--device", help="cpu or cuda (default: cuda where there is one)")
    add("--processes", type=int, help="on CPUs (default: one a core)")
    add("--ray", metavar="ADDRESS", help="make shards on a Ray cluster: auto, local, HOST:PORT")
    add("--gpus-per-task", type=float, default=0.0, help=f"of --ray, such as 0.25 {usual}")
    add("--shard-images", type=int, default=SHARD, help=f"images that are made together {usual}")
    add("--verify", action="store_true", help="read the set back and say what is damaged")
    return parser


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_args(argv)
    for name in ("copies", "shard_images", "processes"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} takes at least 1, got {getattr(args, name)}")
    if args.quality is not None and not 1 <= args.quality <= 100:
        parser.error(f"--quality takes 1 to 100, got {args.quality}")
    if args.gpus_per_task < 0 or (args.gpus_per_task and not args.ray):
        parser.error(f"--gpus-per-task {args.gpus_per_task:g} is for --ray, and at least 0")
    cuda = args.gpus_per_task > 0 if args.ray else torch.cuda.is_available()
    args.device = args.device or ("cuda" if cuda else "cpu")
    if args.device not in ("cpu", "cuda"):
        parser.error(f"--device takes cpu or cuda, got {args.device}")
    if args.device == "cuda" and args.processes not in (None, 1):
        parser.error("--processes is for CPUs: one process keeps a GPU busy")
    args.processes = args.processes or (1 if args.device == "cuda" else cpus())
    return args


def main(argv: list[str] | None = None) -> int:
    """Makes the set that command-line arguments ask for; 1 where --verify finds it damaged.

    >>> main(["--data-dir", "no folder", "--out", "out"])
    Traceback (most recent call last):
    SystemExit: 2
    """
    args = _parse(argv)
    try:
        dataset = _images(args)
        make_directory(args.out / HIDDEN)
        with locked(args.out / HIDDEN, wait=False):
            found = _open(args, dataset)
            if args.verify:
                return _verify(found, args)
            print(_make(found, args))
    except (ValueError, OSError, ImportError, Warning) as e:  # Warning: python -W error
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
