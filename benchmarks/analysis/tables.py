"""The tables of the analyses, as the pages show them."""

from __future__ import annotations

import functools
from collections.abc import Callable

from benchmarks.analysis import drift, latent_flows, latent_modes
from benchmarks.analysis import flow_objectives as objectives
from benchmarks.analysis import flow_pareto as pareto
from benchmarks.analysis import leak as leaked
from benchmarks.analysis import linearity as linear
from benchmarks.analysis import proposition as bound
from benchmarks.analysis import shrinkage as shrunk
from benchmarks.analysis import tangents as pictures
from benchmarks.core.common import RESULTS, markdown_table
from benchmarks.core.pages import result, source

STUDIES = ("latent_modes", "latent_sides", "latent_transfer_cifar10", "latent_transfer_photos")


def reports() -> list[str]:
    """Lists the records of benchmarks.analysis.flow_report."""
    return sorted(p.stem for p in RESULTS.glob("flow_*.*.json"))


def flows() -> str:
    rows = [["flow", "data", "bits/dim", "class accuracy", "round trip", "file"]]
    for name in reports():
        record = result(name)
        r = record["results"]
        exact = [f"{r['bits_per_dim']:.3f}", f"{100 * r['class_accuracy']:.1f}%"]
        size = [f"{r['round_trip_max']:.0e}", f"{r['file_bytes'] / 1e6:.1f} MB"]
        rows.append([f"`{r['flow']}`", record["data"], *exact, *size])
    return f"{markdown_table(rows)}\n\n{source(*reports())}"


def moves() -> str:
    rows = [["flow", "modes", "strength", "mean move (levels)", "largest move (range 2)"]]
    for name in reports():
        r = result(name)["results"]
        for kind, by_strength in r["moves"].items():
            for strength, m in by_strength.items():
                size = f"{m['mean_move_levels']:.1f}", f"{m['largest_move']:.2f}"
                rows.append([f"`{r['flow']}`", kind, strength, *size])
    return markdown_table(rows)


def flow_objectives() -> str:
    r = result("flow_objectives")
    steps, s, seeds = r["results"][0]["steps"], r["settings"], ", ".join(map(str, r["seeds"]))
    what = f"`{s['flow']}`, {steps} steps of batch {s['batch_size']}"
    head = f"{r['data']}; {what}, one value for each of the seeds {seeds}."
    return (
        f"{head}\n\n{markdown_table(objectives.table(r['results']))}\n\n{source('flow_objectives')}"
    )


def flow_pareto() -> str:
    r = result("flow_pareto")
    s, cells = r["settings"], pareto.table(r["results"]["rows"])
    how = f"{s['steps']} steps, seed 0, {s['threads']} thread"
    head = f"{r['data']}; {how}. Claim: {r['claim']}."
    return f"{head}\n\n{markdown_table(cells)}\n\n{source('flow_pareto')}"


def linearity() -> str:
    r = result("linearity")
    head = f"{r['data']}, {r['settings']['modes']} modes."
    return (
        f"{head}\n\n{markdown_table(linear.table(r['results']['rows']))}\n\n{source('linearity')}"
    )


def shrinkage() -> str:
    parts = []
    for name in ("shrinkage", "shrinkage_tiny"):
        r = result(name)
        seeds, modes = ", ".join(map(str, r["seeds"])), r["settings"]["modes"]
        head = f"{r['data']}, {modes} modes, root mean square over classes and the seeds {seeds}."
        parts += [head, markdown_table(shrunk.table(r["results"]["rows"])), source(name)]
    return "\n\n".join(parts)


def leak() -> str:
    r = result("leak")
    seeds, s = ", ".join(map(str, r["seeds"])), r["settings"]
    head = f"{r['data']}, {s['epochs']} epochs, mean of the seeds {seeds}; chance is {s['chance']:.0f}%."
    return f"{head}\n\n{markdown_table(leaked.table(r['results']['rows']))}\n\n{source('leak')}"


def latent_drift(name: str = "latent_drift") -> str:
    r = result(name)
    rows, right = r["results"]["rows"], r["results"]["clean_top1"]
    how = f"{r['settings']['modes']} modes, latents of {r['settings']['size']} px"
    head = f"{r['data']}; {how}; the classifier has {right:.1f}% of them right."
    cells = drift.table(rows), drift.equal_table(rows)
    return "\n\n".join([head, *map(markdown_table, cells), source(name)])


def latent_study(name: str) -> str:
    r = result(name)
    cells = latent_modes.table(r["results"]["rows"])
    return f"{r['data']}.\n\n{markdown_table(cells)}\n\n{source(name)}"


def flows_over_latents() -> str:
    r = result("latent_flows")
    cells = latent_flows.table(r["results"]["rows"])
    return f"{r['data']}.\n\n{markdown_table(cells)}\n\n{source('latent_flows')}"


def tangents() -> str:
    r = result("tangents")
    found = r["results"]["median_at_step_1"][pictures.DEFAULT]
    claim = f"Claim: {r['claim']}. Found: {found:.2f}."
    head = f"{r['data']}, `{r['settings']['flow']}`. {claim} Of the steps the best is shown."
    cells = pictures.table(r["results"]["rows"])
    return "\n\n".join([head, markdown_table(cells), source("tangents")])


def proposition() -> str:
    found = result("proposition")["results"]
    m = found["image_margin"]
    images = f"`{m['flow']}`, {m['images']} held-out digits, {m['dimensions']} dimensions"
    least = m["smallest_margin"]
    note = (
        f"On images ({images}) the condition is fulfilled with {least:.0f} nats to spare at least: "
        f"there the right side exceeds the left by a factor above e^{2 * least:.0f}, and the bound says nothing."
    )
    return f"{markdown_table(bound.table(found))}\n\n{note}\n\n{source('proposition')}"


TABLES: dict[str, Callable[[], str]] = {
    "flows": flows,
    "moves": moves,
    "flow_objectives": flow_objectives,
    "flow_pareto": flow_pareto,
    "linearity": linearity,
    "shrinkage": shrinkage,
    "leak": leak,
    "latent_drift": latent_drift,
    "latent_flows": flows_over_latents,
    "drift_cifar10": functools.partial(latent_drift, "drift_cifar10"),
    **{name: functools.partial(latent_study, name) for name in STUDIES},
    "tangents": tangents,
    "proposition": proposition,
}
