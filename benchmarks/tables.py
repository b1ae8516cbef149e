"""Writes the tables of README.md and benchmarks/README.md from the results: ``python -m benchmarks.tables``.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. No figure in them is typed by hand; a test compares
the files with the results.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from benchmarks.analysis import flow_pareto as paretos
from benchmarks.analysis import label_drift as drift
from benchmarks.analysis import linearity as linearities
from benchmarks.analysis import shrinkage as shrinkages
from benchmarks.analysis import tangents as tangent_errors
from benchmarks.cifar import comparison, quoted
from benchmarks.cifar.arms import Settings
from benchmarks.core import records
from benchmarks.core.common import RESULTS, ROOT, markdown_table
from benchmarks.core.schema import validate_file
from benchmarks.speed import flow_batches as batch_sizes
from benchmarks.speed import flow_memory as memory
from benchmarks.speed import flow_speed as speed
from benchmarks.speed import throughput as throughputs
from benchmarks.timm import matrix
from benchmarks.timm import train as trainings
from timm_nfaug._utils.files import write_atomically

PAPER_GAINS = (
    0.33,
    0.04,
)  # of NFA over the baseline and of both over SA: top-1 on ImageNet-ReaL, points
FILES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", ROOT / "docs" / "timm.md")
SECTION = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.S)


def result(name: str) -> dict[str, Any]:
    return validate_file(RESULTS / f"{name}.json")


def source(*names: str) -> str:
    """Where a table comes from: command, machine and commit of each result."""
    lines = []
    for name in names:
        r = result(name)
        e = r["environment"]
        gpu = f"{e['machine']['gpu']}, " if e["machine"]["gpu"] and "cuda" in r["command"] else ""
        lines.append(
            f"<sub>`{r['command']}`: {gpu}{e['machine']['cpu']}, {e['machine']['cores']} cores, torch {e['versions']['torch']}, "
            f"commit {e['commit'][:8]}{' + changes' if e['dirty'] else ''}, {e['date']}.</sub>"
        )
    return "\n".join(dict.fromkeys(lines))  # one command may have made several


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
    pairs = "; ".join(_tangents_paired())
    accuracy = f"Classifiers trained with tangents less those with the exact flow, top-1, paired by seed: {pairs}."
    return f"{head}\n\n{table}\n\n{source('tangents')}\n\n{accuracy}"


def _tangents_paired() -> list[str]:
    pairs = comparison.tangent_pairs(_runs("test"))
    return [
        f"`{name}` {comparison.gain(own, exact)} ({len(set(own) & set(exact))} seeds)"
        for name, own, exact in pairs
    ]


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


def cifar_resnet18() -> str:
    """A table for each data set and fraction, on the test images."""
    return _comparison("test")


SUMMARY = {  # arms of the summary and the heads of their columns
    "baseline": "crop and flip",
    "sa": "RandAugment + RandomErasing",
    "trivial": "TrivialAugment",
    "linear": "NFA",
    "sa+linear": "RandAugment + RandomErasing + NFA (over those two)",
    "cutmix+linear": "CutMix + NFA (over CutMix)",
    "glem": "NFA, deep flow, before the crop",
}
OVER = {
    "sa+linear": "sa",
    "cutmix+linear": "cutmix",
}  # what they are compared with; the others with the baseline


def cifar_summary() -> str:
    """Top-1 of the arms of most interest, a line for each data set, fraction and length with SA; in brackets paired differences.

    Means are over the seeds that the line's baseline has too, so that where no count is given they differ by the gain.
    Of several settings of an arm the one that is best on the held-out images is shown, where none was tried there the
    default; of deep flows the best by bits/dim that has not seen the labels of other images. Of lines of one name, in bfloat16
    and in float32, the one stays whose settings were searched for. Full-size networks first.
    """
    held = comparison.comparisons(_runs("held"))
    lines: dict[str, list[str]] = {}
    found = comparison.comparisons(_runs("test"))
    for key in sorted(found, key=lambda key: (json.loads(key[3])["model"] != "resnet18", key)):
        (data, _, _, recipe), arms = key, found[key]
        searched = held.get((data, "held", key[2], recipe), {})
        for epochs in sorted(
            {e for by_epochs in arms.values() for e in by_epochs} & set(arms.get("baseline", {}))
        ):
            chosen = {
                arm: _chosen(arm, arms, searched, epochs) for arm in {*SUMMARY, *OVER.values()}
            }
            if not chosen["sa"]:
                continue  # what was trained for the sake of one question only stands with the whole comparison
            base = arms["baseline"][epochs]
            runs = {arm: arms[name][epochs] for arm, name in chosen.items() if name}
            name = f"{_line(next(iter(base.values())))}; {len(base)} seed{'s' * (len(base) > 1)}"
            if searched or name not in lines:
                lines[name] = [name, *(_summary_cell(arm, runs) for arm in SUMMARY)]
    return markdown_table([["", *SUMMARY.values()], *lines.values()])


def _summary_cell(arm: str, runs: dict[str, comparison.Runs]) -> str:
    top1 = {name: comparison.metric(own) for name, own in runs.items()}
    shared = [v for seed, v in top1.get(arm, {}).items() if seed in top1["baseline"]]
    base = top1.get(OVER.get(arm, "baseline"))
    if not shared or base is None:
        return ""
    if arm == "baseline":
        return f"{fmean(shared):.1f}"
    mean, half, _, count = records.paired(top1[arm], base)
    notes = [f"{mean:+.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")]
    notes += [f"{count} seed{'s' * (count > 1)}"] * (count != len(top1["baseline"]))
    strength = next(iter(runs[arm].values()))["settings"].get("strength", Settings.strength)
    notes += [f"`s{strength:g}`"] * (strength != Settings.strength)
    return f"{fmean(shared):.1f} ({', '.join(notes)})"


def _line(run: dict[str, Any]) -> str:
    """What a line of a table compares on, in short; `run` is any of its runs."""
    s = run["settings"]
    model, tuned = "ResNet18, " * (s["model"] == "resnet18"), ", fine-tuned" * ("init" in s)
    return f"{run['data']}: {model}{run['training_images']:,} images, {s['epochs']} epochs{tuned}"


def cifar_power() -> str:
    """Which gains so many seeds show, by the standard deviations of the paired differences on record.

    They are pooled over all arms of three seeds or more, in bfloat16 and in float32.
    """
    found: dict[
        str, dict[str, list[list[float]]]
    ] = {}  # line to what is compared with to the differences of each arm
    for _, arms in sorted(comparison.comparisons(_runs("test")).items()):
        for name, by_epochs in arms.items():
            for epochs, runs in by_epochs.items():
                line = found.setdefault(
                    _line(next(iter(runs.values()))), {"baseline": [], "sa": []}
                )
                s = next(iter(runs.values()))["settings"]
                sa = {
                    "arm": "sa",
                    "flow": None,
                    "settings": {k: s[k] for k in ("randaugment", "reprob") if k in s},
                }
                control = {
                    "baseline": "baseline",
                    "sa": comparison.label(sa),
                }  # with the RandAugment of the arm
                for other in ["baseline"] * (name != "baseline") + ["sa"] * name.startswith("sa+"):
                    own, base = (
                        comparison.metric(runs),
                        comparison.metric(arms.get(control[other], {}).get(epochs, {})),
                    )
                    differences = [own[seed] - base[seed] for seed in own if seed in base]
                    if len(differences) >= records.FEWEST:
                        line[other].append(differences)
    head = [""]
    for what, gain in zip(("over crop and flip", "`sa+...` over `sa`"), PAPER_GAINS, strict=True):
        head += [
            f"{what}: deviation",
            "3 seeds see",
            "5 seeds",
            "10 seeds",
            f"seeds for {gain:+.2f}",
        ]
    rows = [head]
    for line, others in found.items():
        if not others["baseline"]:
            continue
        rows.append([line])
        for arms, gain in zip(others.values(), PAPER_GAINS, strict=True):
            if not arms:
                rows[-1] += [""] * 5
                continue
            deviation = math.sqrt(
                sum((len(d) - 1) * variance(d) for d in arms) / sum(len(d) - 1 for d in arms)
            )
            rows[-1] += [f"{deviation:.2f} ({len(arms)} arm{'s' * (len(arms) > 1)})"]
            rows[-1] += [f"{records.half_width(deviation, n):.2f}" for n in (3, 5, 10)]
            rows[-1] += [f"{records.seeds_for(gain, deviation):,}"]
    return markdown_table(rows)


def cifar_quoted() -> str:
    return quoted.table(_runs("test"))


def _chosen(arm: str, arms: dict, searched: dict, epochs: int) -> str | None:
    """Which of the settings of an arm that are on record at this length."""
    names = [
        n for n, by in arms.items() if n.partition(", ")[0].split(" ")[0] == arm and epochs in by
    ]
    whole = [
        n for n in names if "before the crop" in n
    ]  # as a deep flow knows images; linear as the launcher places it
    names = whole or names if arm == "glem" else [n for n in names if n not in whole] or names
    runs = {n: next(iter(arms[n][epochs].values())) for n in names}
    names = [
        n
        for n in names
        if runs[n]["fraction"] == 1
        or "with labels" not in runs[n]["settings"].get("flow_trained_on", "")
    ]

    def order(name: str) -> tuple[float, float, tuple[float, float]]:
        bits = runs[name].get("flow_metrics", {}).get("bits_per_dim", 99.0)
        found = searched.get(name, {}).get(epochs)
        s = runs[name]["settings"]
        default = (
            abs(s.get("strength", 0.0) - Settings.strength),
            abs(s.get("shrinkage", 0.0) - Settings.shrinkage),
        )
        return bits, -fmean(comparison.metric(found).values()) if found else 0.0, default

    return min(names, key=order, default=None)


def cifar_search() -> str:
    """The runs that chose settings, on images held out of the training set."""
    return _comparison("held")


def _comparison(split: str) -> str:
    runs = _runs(split)
    parts = []
    for (data, _, fraction, _), arms in sorted(comparison.comparisons(runs).items()):
        every = [
            r
            for by_epochs in arms.values()
            for by_seed in by_epochs.values()
            for r in by_seed.values()
        ]
        for epochs in sorted({r["settings"]["epochs"] for r in every if r["arm"] != "baseline"}):
            parts.append(
                f"**{comparison.title(data, fraction, epochs, every[0])}**\n\n{comparison.table(arms, epochs)}"
            )
    trained_on = sorted({_flow_of(r) for r in runs if r["flow"]})
    if trained_on:
        parts.append(
            "What the networks of the flows were trained on: " + "; ".join(trained_on) + "."
        )
    return "\n\n".join([*parts, _made(runs)])


def _flow_of(run: dict[str, Any]) -> str:
    bits = run.get("flow_metrics", {}).get("bits_per_dim")
    return f"{run['flow']}: {run['settings']['flow_trained_on']}" + (
        f" ({bits:.3f} bits/dim)" if bits else ""
    )


def _runs(split: str) -> list[dict[str, Any]]:
    return [r for r in records.read(records.suite_file("cifar_resnet18")) if r["split"] == split]


def _made(runs: list[dict[str, Any]]) -> str:
    made: dict[str, set[tuple[str, str]]] = {}
    for r in runs:
        commit = r["commit"][:8] + (" + changes" if r["dirty"] else "")
        made.setdefault(f"{r['device']}, torch {r['versions']['torch']}", set()).add(
            (r["date"], commit)
        )
    lines = []
    for what, when in sorted(made.items()):
        dates = " to ".join(sorted({min(when)[0], max(when)[0]}))
        commits = sorted({commit for _, commit in when})
        lines.append(
            f"{what}, {f'commit {commits[0]}' if len(commits) == 1 else f'{len(commits)} commits'}, {dates}"
        )
    return f"<sub>`python -m benchmarks.cifar.resnet18`: {'; '.join(lines)}; the record has each run's.</sub>"


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


TABLES: dict[str, Callable[[], str]] = {
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
        cifar_summary,
        cifar_power,
        cifar_quoted,
        cifar_resnet18,
        cifar_search,
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


def filled(text: str) -> str:
    """A document with its tables made anew."""
    return SECTION.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def main() -> None:
    for path in FILES:
        text = filled(path.read_text(encoding="utf-8"))
        write_atomically(path, lambda p, text=text: p.write_text(text, encoding="utf-8"))
        print(Path(path).relative_to(ROOT))


if __name__ == "__main__":
    main()
