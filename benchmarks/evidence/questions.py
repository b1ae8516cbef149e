"""The questions that the evidence is for, each answered by two arms in every cell that has both."""

from __future__ import annotations

import math
from collections.abc import Callable

from benchmarks.core.statistics import Difference, compare, corrected, verdict
from benchmarks.evidence.answers import title
from benchmarks.evidence.cells import BASELINE, CELLS, Cell
from benchmarks.evidence.choices import Run, reported
from benchmarks.evidence.tables import MARGIN, all_runs, degrees, gain, line

QUESTIONS = {  # the question to the arm and what it is compared to
    "Does NFA with modes of pixels help alone?": ("pooled", BASELINE),
    "Do these modes help on top of RandAugment?": ("randaugment+pooled", "randaugment"),
    "Does either RandAugment or modes for each image help, compared with RandAugment for all?":
        ("randaugment|pooled", "randaugment"),
    "Does it, compared with RandAugment for some images and nothing for the others?":
        ("randaugment|pooled", "randaugment-some"),
    "Does it, compared with either RandAugment or shading without data?":
        ("randaugment|pooled", "randaugment|cosine"),
    "Do modes help instead of RandAugment?": ("pooled", "randaugment"),
    "What do modes of pixels give that shading without data does not?": ("pooled", "cosine"),
    "What does a deep flow give that modes of pixels do not?": ("flow-joint", "pooled"),
    "What does a deep flow give that shading without data does not?": ("flow-joint", "cosine"),
    "Does a deep flow help instead of RandAugment?": ("flow-joint", "randaugment"),
    "Does RandAugment gain from twice as long a training?": ("randaugment-long", "randaugment"),
    "Does a deep flow help, compared with RandAugment for twice as long?":
        ("flow-joint", "randaugment-long"),
    "Is a deep flow ahead of crop and flip where both train twice as long?":
        ("flow-joint-long", "crop-flip-long"),
    "And of RandAugment?": ("flow-joint-long", "randaugment-long"),
    "Does a deep flow help on top of RandAugment?": ("randaugment+flow", "randaugment"),
    "Does either RandAugment or a deep flow for each image help, compared with RandAugment for all?":
        ("randaugment|flow", "randaugment"),
    "Does it, compared with RandAugment for all and twice as long?":
        ("randaugment|flow", "randaugment-long"),
    "Does it, where both train twice as long?": ("randaugment|flow-long", "randaugment-long"),
    "Does it, compared with either RandAugment or modes of pixels?":
        ("randaugment|flow", "randaugment|pooled"),
    "Does it, compared with the deep flow alone?": ("randaugment|flow", "flow-joint"),
    "What do labels give in the training of a deep flow (joint against maximum likelihood)?":
        ("flow-joint", "flow-ml"),
    "What does the paper's objective, GLEM, give that joint does not?": ("glem", "flow-joint"),
    "What do the paper's moves along single axes give that principal modes do not?":
        ("flow-joint-axes", "flow-joint"),
    "What do such moves give, five times as strong?":
        ("flow-joint-axes-far", "flow-joint"),
    "What does GLEM with moves along single axes of each class give, the paper's method?":
        ("glem-axes", BASELINE),
    "What does it give with moves five times as strong?": ("glem-axes-far", BASELINE),
    "What has a deep flow learned, beside one of the same weights in random order?":
        ("flow-joint", "flow-shuffled"),
    "Does a deep flow do worse after the crop, where timm's train.py has NFA?":
        ("flow-joint-after", "flow-joint"),
    "Does shading?": ("cosine-after", "cosine"),
    "Does shading without data help instead of ColorJitter?": ("cosine", "colorjitter"),
    "What do modes of each class give that modes of all images do not?": ("class", "pooled"),
    "What do modes of latents give that modes of pixels do not?": ("latent-linear", "pooled"),
    "What does a deep flow over latents give that their modes do not?":
        ("latent-deep", "latent-linear"),
    "What do moves up the loss, after the crop, give that random ones before it do not?":
        ("adversarial", "pooled"),
    "What do modes of pixels give that white noise does not?": ("pooled", "noise"),
}  # fmt: skip


def of_cell(cell: Cell, runs: list[Run], measure: str = "top1") -> dict[str, Difference]:
    """The difference of each question that a cell answers, p adjusted by Holm's method for all.

    All are those that its arms will answer, run or not.
    """
    values = line(reported(runs, cell), measure)
    asked = sum({arm, other} <= set(cell.arms) for arm, other in QUESTIONS.values())
    try:
        found = {
            question: compare(values, arm, other)
            for question, (arm, other) in QUESTIONS.items()
            if {arm, other} <= set(values) and set(values[arm]) & set(values[other])
        }
    except ValueError:  # one seed, or one arm
        return {}
    return corrected(found, asked)


def questions(runs: list[Run]) -> str:
    """Every question with the differences that answer it, a line for each cell."""
    answers: dict[str, list[str]] = {question: [] for question in QUESTIONS}
    for cell in CELLS.values():
        found = of_cell(cell, runs)
        dof = degrees(line(reported(runs, cell)))
        for question, difference in found.items():
            p = "" if math.isnan(difference.p) else f" (p {difference.holm:.2g})"
            said = f"{verdict(difference, MARGIN, dof, len(cell.seeds))}{p}"
            answers[question].append(f"  - {title(cell)}: {gain(difference)}, {said}")
    parts = [f"- **{question}**\n" + "\n".join(own) for question, own in answers.items() if own]
    return "\n".join(parts) or "Not measured yet."


TABLES: dict[str, Callable[[], str]] = {"evidence_questions": lambda: questions(all_runs())}
