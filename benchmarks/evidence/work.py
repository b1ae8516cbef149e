"""One training of the evidence, in a process that has loaded the images of its cell once."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cifar.testing import test
from benchmarks.cifar.training import cpu_time, train
from benchmarks.core.common import environment, require_val, today
from benchmarks.evidence.arms import ENTRIES, LINEAR, Flow
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.data import load, training_images
from timm_nfaug._utils.processes import end_with_parent
from timm_nfaug.autoencoder import load_autoencoder
from timm_nfaug.hub import bundled_flows
from train_flow.data import find_splits


@dataclass(frozen=True)
class Place:
    """Where a cell is filled: what lies where on this machine, and what it runs on.

    Attributes:
        data_dir: ImageFolder tree with train/ and val/.
        flows: directory with the flows that do not come with the package, NAME/flow.
        autoencoder: of the arms that move latents.
        weights: file of the pretrained weights that the cell's recipe names.
        workers: processes that run policies on single images ahead of a training.
        command: that the record shows.
    """

    data_dir: Path
    flows: Path | None = None
    autoencoder: str = ""
    weights: Path | None = None
    device: str = "cpu"
    threads: int = 1
    workers: int = 0
    command: str = ""

    def flow(self, cell: Cell, arm: str) -> Flow | None:
        """The flow of an arm with where it lies; None for an arm without one."""
        if not ENTRIES[arm].flow:
            return None
        flow = cell.flows[arm]
        own = self.flows / flow.name / "flow" if self.flows else None
        where = str(own) if own and own.is_dir() else flow.name
        autoencoder = flow.autoencoder and self.autoencoder
        return dataclasses.replace(flow, where=where, autoencoder=autoencoder)

    def seen(self, cell: Cell, arm: str) -> dict[str, str]:
        """Which autoencoder an arm moves the latents of, for its record; nothing for other arms."""
        flow = self.flow(cell, arm)
        if flow is None or not flow.autoencoder:
            return {}
        return {"autoencoder": digest_of(flow.autoencoder)}

    def lacks(self, cell: Cell, arm: str) -> str:
        """What an arm needs and is not there; nothing where it can run."""
        if not ENTRIES[arm].flow:
            return ""
        if arm not in cell.flows:
            return "the cell has no flow for it"
        flow = self.flow(cell, arm)
        assert flow is not None
        if cell.flows[arm].autoencoder and not flow.autoencoder:
            return "it moves latents: give --autoencoder"
        bundled = flow.name == LINEAR or flow.name in bundled_flows()
        if not bundled and not Path(flow.where).is_dir():
            return f"no {flow.name}/flow in --flows; train it as docs/evidence.md says"
        return ""

    def recipe(self, cell: Cell, values: dict[str, Any]) -> Any:
        """The recipe of a run, with the file of its weights."""
        names = {f.name for f in dataclasses.fields(cell.recipe)}
        recipe = dataclasses.replace(cell.recipe, **{k: v for k, v in values.items() if k in names})
        return dataclasses.replace(recipe, weights=str(self.weights)) if self.weights else recipe


@functools.cache
def digest_of(autoencoder: str) -> str:
    """The hash of an autoencoder's weights, which are read once in a process."""
    return load_autoencoder(autoencoder).digest()


class Worker:
    """Trains and tests the classifiers of one cell."""

    def __init__(self, cell: Cell, place: Place):
        torch.set_num_threads(place.threads)
        self.cell, self.place = cell, place
        # of the code that was imported, whatever is committed later
        self.environment = environment()
        self.pool, self.splits = load(cell, place.data_dir)

    def execute(self, run: dict) -> dict:
        """Trains and tests one classifier, and completes its record."""
        cell, place, seed, values = self.cell, self.place, run["seed"], run["settings"]
        entry, device = ENTRIES[run["arm"]], torch.device(place.device)
        recipe = place.recipe(cell, values)
        data = training_images(self.pool, cell, seed).to(device)
        wall, cpu = time.perf_counter(), cpu_time()
        settings = {k: values[k] for k in entry.grid[0]}
        arm = entry.make(data, settings, place.flow(cell, run["arm"]))
        fit = {"flow_seconds": time.perf_counter() - wall, "flow_cpu_seconds": cpu_time() - cpu}
        model, cost = train(data, arm, recipe, seed, place.workers)
        corrupted = cell.corrupted if run["split"] == "test" else 0
        images, e = self.splits[run["split"]].to(device), self.environment
        cpu_name = f"{e['machine']['cpu']}, {place.threads} threads"
        machine = e["machine"]["gpu"] if device.type == "cuda" else cpu_name
        return run | {
            "metrics": test(model, images, recipe.bf16, corrupted, views=recipe.views),
            "training_images": len(data), **cost, **fit,
            "device": machine, "versions": e["versions"], "commit": e["commit"], "dirty": e["dirty"],
            "date": today(), "command": place.command, **place.seen(cell, run["arm"]),
        }  # fmt: skip


_workers: list[Worker] = []  # the one of a process that trains


def start(cell: Cell, place: Place) -> None:
    """Starts a process that trains, which ends with the one that started it."""
    end_with_parent()
    _workers.append(Worker(cell, place))


def execute(run: dict) -> dict:
    """`Worker.execute` in a process that `start` has prepared."""
    return _workers[-1].execute(run)


def add_place(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a `Place`."""
    add = parser.add_argument
    add("--data-dir", required=True, type=Path, help="ImageFolder tree with train/ and val/")
    add("--flows", type=Path, help="directory with flows that the package has not, NAME/flow")
    add("--autoencoder", default="", help="of the arms that move latents, e.g. FILE.py:FUNCTION")
    add("--weights", type=Path, help="file of pretrained weights")
    add("--device", default="cpu")
    add("--threads", type=int, default=1)
    add("--workers", type=int, default=0, help="processes of each training for PIL policies")


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of how trainings run side by side, and where they are recorded."""
    add = parser.add_argument
    add("--jobs", type=int, default=1, help="trainings at once, each in a process of its own")
    add("--time-limit", type=float, default=float("inf"), help="seconds")
    add("--record", type=Path, help="file of runs, which are appended")


def place_of(args: argparse.Namespace, command: str) -> Place:
    """The place that flags name; raises SystemExit for data that lacks a split."""
    try:
        require_val(find_splits(args.data_dir)[1], args.data_dir)
    except (ValueError, OSError) as e:
        raise SystemExit(f"error: {e}") from None
    names = {f.name for f in dataclasses.fields(Place)} & set(vars(args))
    return Place(command=command, **{name: getattr(args, name) for name in names})
