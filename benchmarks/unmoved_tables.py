"""Tables of the suites that have no tables.py of their own yet."""

from __future__ import annotations

from statistics import fmean

from benchmarks.analysis import flow_pareto as paretos
from benchmarks.analysis import label_drift as drift
from benchmarks.analysis import linearity as linearities
from benchmarks.analysis import shrinkage as shrinkages
from benchmarks.analysis import tangents as tangent_errors
from benchmarks.cifar.tables import tangents_paired
from benchmarks.core.common import RESULTS, markdown_table
from benchmarks.core.pages import result, source
from benchmarks.speed import flow_batches as batch_sizes
from benchmarks.speed import flow_memory as memory
from benchmarks.speed import flow_speed as speed
from benchmarks.speed import throughput as throughputs
from benchmarks.timm import matrix
from benchmarks.timm import train as trainings


def flows() -> str:
    names = sorted(p.stem for p in RESULTS.glob("flow_*.*.json"))
    rows = [["flow", "data", "bits/dim", "class accuracy", "round trip", "file"]]
    for name in names:
        r = result(name)["results"]
        rows.append([
            f"`{r['flow']}`", result(name)["data"], f"{r['bits_per_dim']:.3f}", f"{100 * r['class_accuracy']:.1f}%",
            f"{r['round_trip_max']:.0e}", f"{r['file_bytes'] / 1e6:.1f} MB",
        ])  # fmt: skip
    return f"{markdown_table(rows)}\n\n{source(*names)}"


def moves() -> str:
    rows = [["flow", "modes", "strength", "mean move (levels)", "largest move (range 2)"]]
    names = sorted(p.stem for p in RESULTS.glob("flow_*.*.json"))
    for name in names:
        r = result(name)["results"]
        for kind, by_strength in r["moves"].items():
            for strength, m in by_strength.items():
                rows.append(
                    [
                        f"`{r['flow']}`",
                        kind,
                        strength,
                        f"{m['mean_move_levels']:.1f}",
                        f"{m['largest_move']:.2f}",
                    ]
                )
    return markdown_table(rows)


def flow_speed() -> str:
    return (
        f"{markdown_table(speed.table(result('flow_speed')['results']))}\n\n{source('flow_speed')}"
    )


def flow_speed_equal() -> str:
    r = result("flow_speed_equal")["results"]
    return "\n\n".join(
        [
            markdown_table(speed.equal_table(r)),
            markdown_table(speed.profile_table(r)),
            source("flow_speed_equal"),
        ]
    )


def flow_batches() -> str:
    return f"{markdown_table(batch_sizes.table(result('flow_batches')['results']['rows']))}\n\n{source('flow_batches')}"


def flow_memory() -> str:
    r = result("flow_memory")
    s, growth = (
        r["settings"],
        ", ".join(
            f"{v:.2f} at depth {d}" for d, v in r["results"]["growth_at_twice_the_depth"].items()
        ),
    )
    head = f"{r['claim'].capitalize()}: {growth}. {s['flow']}, {s['hidden']} hidden channels, {r['data']}, {s['net_dtype']}."
    return f"{head}\n\n{markdown_table(memory.table(r['results']))}\n\n{source('flow_memory')}"


def flow_objectives() -> str:
    r = result("flow_objectives")
    rows = [["objective", "bits/dim", "class accuracy", "mean pairwise KL (nats)", "seconds"]]
    for arm in dict.fromkeys(row["arm"] for row in r["results"]):
        runs = [row for row in r["results"] if row["arm"] == arm]
        each = (
            [f"{row['bits_per_dim']:.3f}" for row in runs],
            [f"{100 * row['class_accuracy']:.1f}%" for row in runs],
            [f"{row['mean_pairwise_kl']:.1f}" for row in runs],
            [f"{row['training_seconds']:.0f}" for row in runs],
        )
        rows.append([arm, *(", ".join(values) for values in each)])
    steps, s, seeds = r["results"][0]["steps"], r["settings"], ", ".join(map(str, r["seeds"]))
    head = f"{r['data']}; `{s['flow']}`, {steps} steps of batch {s['batch_size']}, one value for each of the seeds {seeds}."
    return f"{head}\n\n{markdown_table(rows)}\n\n{source('flow_objectives')}"


def timm_train() -> str:
    r = result("timm_train")
    head = f"Medians of {r['settings']['repeats']}, one worker, bfloat16."
    return f"{head}\n\n{markdown_table(trainings.table(r['results']))}\n\n{source('timm_train')}"


def timm_matrix() -> str:
    r = result("timm_matrix")
    first, *others = r["results"]
    rest = ", ".join(f"`{name}`" for name in first["not_run"])
    few = ", ".join(f"{v['train_py']}" for v in others)
    wrong = sum(
        row[place].startswith("FAILS")
        for v in others
        for row in v["cases"]
        for place in matrix.PLACES
    )
    others = f"Of {few} a part of the cases was run; with NFA {wrong} of them failed."
    head = "<details><summary>Flags not run: model, optimizer, schedule, distillation, logging, sources of data</summary>"
    parts = [
        markdown_table(matrix.table(r["results"])),
        others,
        head,
        rest,
        "</details>",
        source("timm_matrix"),
    ]
    return "\n\n".join(parts)


def tangents() -> str:
    r = result("tangents")
    found = r["results"]["median_at_step_1"][tangent_errors.DEFAULT]
    head = f"{r['data']}, `{r['settings']['flow']}`. Claim: {r['claim']}. Found: {found:.2f}. Of the steps the best is shown."
    table = markdown_table(tangent_errors.table(r["results"]["rows"]))
    return f"{head}\n\n{table}\n\n{source('tangents')}\n\n{tangents_paired()}"


def throughput(name: str = "throughput") -> str:
    r = result(name)
    rows, sizes = r["results"]["rows"], sorted({x["size"] for x in r["results"]["rows"]})
    head = ""
    if r["results"]["claim_holds"] is not None:  # the claim is of one thread
        found = r["results"]["claim_ratios"].items()
        ratios = "; ".join(
            f"{arm}, " + ", ".join(f"{v:.2f} at {size} px" for size, v in own.items())
            for arm, own in found
        )
        head = f"Claim: {r['claim']}. Found: {ratios}.\n\n"
    return f"{head}{throughputs.table(rows, sizes)}\n\n{source(name)}"


def throughput_2_threads() -> str:
    return throughput("throughput_2_threads")


def throughput_cuda() -> str:
    return throughput("throughput_cuda")


def flow_pareto() -> str:
    r = result("flow_pareto")
    s = r["settings"]
    head = f"{r['data']}; {s['steps']} steps, seed 0, {s['threads']} thread. Claim: {r['claim']}."
    return f"{head}\n\n{markdown_table(paretos.table(r['results']['rows']))}\n\n{source('flow_pareto')}"


def linearity() -> str:
    r = result("linearity")
    return f"{r['data']}, {r['settings']['modes']} modes.\n\n{linearities.table(r['results']['rows'])}\n\n{source('linearity')}"


def shrinkage() -> str:
    parts = []
    for name in ("shrinkage", "shrinkage_tiny"):
        r = result(name)
        seeds = ", ".join(map(str, r["seeds"]))
        head = f"{r['data']}, {r['settings']['modes']} modes, root mean square over classes and the seeds {seeds}."
        parts.append(f"{head}\n\n{shrinkages.table(r['results']['rows'])}\n\n{source(name)}")
    return "\n\n".join(parts)


def label_drift() -> str:
    r = result("label_drift")
    head = f"{r['data']}; the classifier has {r['results']['clean_top1']:.1f}% of them right. `glem`: `{r['settings']['flow']}`."
    return (
        f"{head}\n\n{markdown_table(drift.table(r['results']['rows']))}\n\n{source('label_drift')}"
    )


def _demo(name: str) -> str:
    r = result(name)
    rows = [["", "test accuracy", "each seed"]]
    for arm, runs in r["results"].items():
        accuracy = [run["accuracy"] for run in runs]
        each = ", ".join(f"{a:.1f}" for a in accuracy)
        rows.append([arm, f"{sum(accuracy) / len(accuracy):.1f}%", each])
    return f"{r['data']}\n\n{markdown_table(rows)}\n\n{source(name)}"


def demo_digits() -> str:
    return _demo("demo_digits")


def demo_cifar() -> str:
    return _demo("demo_cifar10_jpeg")


def generation() -> str:
    r = result("generation")
    found, s = r["results"], r["settings"]
    arms = list(dict.fromkeys(f["arm"] for f in found["flows"]))

    def scores(arm: str, temperature: float, mean_scale: float) -> list[str]:
        own = [
            x
            for x in found["rows"]
            if (x["arm"], x["temperature"], x["mean_scale"]) == (arm, temperature, mean_scale)
        ]
        if not own or any(x["error"] for x in own):
            return ["-"] * 3
        fid, coverage, accuracy = (
            fmean(x[k] for x in own) for k in ("fid", "coverage", "class_accuracy")
        )
        return [f"{fid:.2f}", f"{100 * coverage:.1f}%", f"{100 * accuracy:.1f}%"]

    f = found["floor"]
    summary = [
        ["arm", "bits/dim", "FID", "Coverage", "class accuracy", "seconds for the training set"]
    ]
    summary.append([
        "training images", "", f"{f['fid']:.2f}", f"{100 * f['coverage']:.1f}%", f"{100 * f['class_accuracy']:.1f}%", "",
    ])  # fmt: skip
    for arm in arms:
        own = [x for x in found["flows"] if x["arm"] == arm]
        seconds = [x["training_set_seconds"] for x in own if x["training_set_seconds"] is not None]
        about = " (extrapolated)" if any(x["extrapolated"] for x in own) else ""
        bpd, time = (
            fmean(x["bits_per_dim"] for x in own),
            f"{fmean(seconds):.1f}{about}" if seconds else "-",
        )
        summary.append([arm, f"{bpd:.3f}", *scores(arm, 1.0, 1.0), time])
    rows = [["arm", "mean scale", *(f"temperature {t:g}" for t in s["temperatures"])]]
    for arm in arms:
        for m in s["mean_scales"]:
            if any((x["arm"], x["mean_scale"]) == (arm, m) for x in found["rows"]):
                rows.append(
                    [arm, f"{m:g}", *(", ".join(scores(arm, t, m)) for t in s["temperatures"])]
                )
    e = found["feature_extractor"]
    head = (
        f"{r['data']}; {s['samples']} samples a row, seed {', '.join(map(str, r['seeds']))}. Features: {e['features']} of "
        f"{e['model']}, {e['epochs']} epochs, {100 * e['held_out_accuracy']:.1f}% of the validation images right."
    )
    return (
        f"{head} At temperature 1 and mean scale 1:\n\n{markdown_table(summary)}\n\n"
        f"FID, Coverage, class accuracy at all settings:\n\n{markdown_table(rows)}\n\n{source('generation')}"
    )


def proposition() -> str:
    r = result("proposition")
    kinds = ("mixed", "model", "data")
    rows = [
        ["case", "arm", *(f"{k}: left, right" for k in kinds), "condition", "KL of the fit (nats)"]
    ]
    for case, arms in r["results"]["cases"].items():
        for arm, run in arms.items():
            end = run["end"]
            sides = [
                f"{end[k]['left']:.2g}, {end[k]['right']:.2g}: {end[k]['verdict']}" for k in kinds
            ]
            rows.append(
                [case, arm, *sides, f"{100 * end['condition_share']:.0f}%", f"{end['fit_kl']:.2f}"]
            )
    m = r["results"]["image_margin"]
    note = (
        f"On images (`{m['flow']}`, {m['images']} held-out digits, {m['dimensions']} dimensions) the condition is fulfilled "
        f"with {m['smallest_margin']:.0f} nats to spare at least: there the right side exceeds the left by a factor above "
        f"e^{2 * m['smallest_margin']:.0f}, and the bound says nothing."
    )
    return f"{markdown_table(rows)}\n\n{note}\n\n{source('proposition')}"


TABLES = {
    f.__name__: f
    for f in (
        flows,
        moves,
        flow_speed,
        flow_speed_equal,
        flow_batches,
        flow_pareto,
        flow_memory,
        flow_objectives,
        generation,
        proposition,
        timm_train,
        timm_matrix,
        throughput,
        throughput_2_threads,
        throughput_cuda,
        tangents,
        linearity,
        shrinkage,
        label_drift,
        demo_digits,
        demo_cifar,
    )
}
