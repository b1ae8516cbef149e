"""The tables of NFA in timm's train.py, as the pages show them."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.core.common import markdown_table
from benchmarks.core.pages import result, source
from benchmarks.timm import flags, speed

NOT_RUN = "Flags not run: model, optimizer, schedule, distillation, logging, sources of data"


def timm_train() -> str:
    record = result("timm_train")
    head = f"Medians of {record['settings']['repeats']}, one worker, bfloat16."
    return f"{head}\n\n{markdown_table(speed.table(record['results']))}\n\n{source('timm_train')}"


def timm_matrix() -> str:
    found = result("timm_matrix")["results"]
    first, *others = found
    few = ", ".join(version["train_py"] for version in others)
    wrong = flags.failures(others)
    return "\n\n".join([
        markdown_table(flags.table(found)),
        f"Of {few} a part of the cases was run; with NFA {wrong} of them failed.",
        f"<details><summary>{NOT_RUN}</summary>",
        ", ".join(f"`{name}`" for name in first["not_run"]),
        "</details>",
        source("timm_matrix"),
    ])  # fmt: skip


TABLES: dict[str, Callable[[], str]] = {"timm_train": timm_train, "timm_matrix": timm_matrix}
