"""What is pinned of the command line: batches, args.yaml, flags, a resumed training.

All of them run in one subprocess, as starting one costs seconds.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from .fixtures import copied_run
from .inputs import FLOWS, HERE, write_folder

ROOT = HERE.parents[1]
SCRIPT = str(HERE / "script.py")
DEEP = ["--nfa-flow", str(FLOWS / "conv_p4_tiny")]
LAUNCHER, SMALL = ["timm_nfaug.train", SCRIPT], ["--aug", "nfa-s1-k4-p0.5-lgiven", *DEEP]
# a name, what starts the script, and its flags
TRAININGS = {
    "plain": (LAUNCHER, []),
    "batch": (LAUNCHER, [*SMALL, "--epochs", "2"]),
    "resumed": (LAUNCHER, [*SMALL, "--start-epoch", "1"]),
    "fit": (LAUNCHER, ["--aug", "nfa-s1-k3-p0.5-lgiven", *DEEP, "--nfa-fit", "--seed", "7"]),
    "linear": (LAUNCHER, ["--aug", "nfa-lgiven"]),
    "dataset": (LAUNCHER, [*SMALL, "--nfa-place", "dataset", "--epochs", "2"]),
    "aa": (LAUNCHER, ["--aa", "nfa-s1-k4-p0.5-lnone", "--nfa-flow", "linear"]),
    "cache": (LAUNCHER, [*SMALL, "--nfa-cache", "CACHE", "--epochs", "2"]),
    "plugin": ([SCRIPT], ["--device-modules", "timm_nfaug.plugin", "--epochs", "2"]),
}
PLUGIN = {"TIMM_NFAUG": shlex.join(SMALL)}
HELPS = {"preview": "timm_nfaug.preview", "train_flow": "train_flow", "train": "timm_nfaug.train"}
NFA_FLAGS = ("aug", "nfa_flow", "nfa_fit", "nfa_place", "nfa_cache", "aa")
METRICS = ("bits_per_dim", "class_accuracy", "mean_pairwise_kl", "images")


def make_jobs(folder: Path) -> dict[str, dict]:
    """Name to job; everything that a job reads and writes lies in `folder`."""
    data, small = write_folder(folder / "data"), write_folder(folder / "small", 8)
    jobs = {}
    for name, (start, flags) in TRAININGS.items():
        flags = [str(folder / "kept") if flag == "CACHE" else flag for flag in flags]
        argv = [*start, "--data-dir", str(data), "--output", str(folder / name), *flags]
        jobs[name] = {"argv": argv, "env": PLUGIN if name == "plugin" else {}}
    jobs |= {f"help/{name}": {"argv": [module, "--help"]} for name, module in HELPS.items()}
    picture = ["--images", str(data / "train"), "--out", str(folder / "a.png"), "--count", "2"]
    jobs["preview"] = {
        "argv": ["timm_nfaug.preview", "--flow", str(FLOWS / "conv_p4_small"), *picture]
    }
    run = copied_run(folder / "run")
    flow = [
        "train_flow",
        "--config",
        str(run / "config.yaml"),
        "--data-dir",
        str(small),
        "--device",
        "cpu",
    ]
    jobs["flow/resumed"] = {"argv": [*flow, "--out", str(run), "--resume"]}
    jobs["flow/whole"] = {"argv": [*flow, "--out", str(folder / "whole"), "--set", "half=true"]}
    return jobs


def run_jobs(folder: Path) -> dict[str, str]:
    """Runs all of them; name to what each printed."""
    jobs = make_jobs(folder)
    (folder / "jobs.json").write_text(json.dumps(list(jobs.values())))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "1000"}
    command = [sys.executable, str(HERE / "run_modules.py"), str(folder / "jobs.json")]
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    done = dict(zip(jobs, json.loads((folder / "done.json").read_text()), strict=True))
    failed = {name: job["printed"] for name, job in done.items() if job["code"] not in (0, None)}
    assert not failed, failed
    return {name: job["printed"] for name, job in done.items()}


def results(folder: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and facts that the jobs leave."""
    printed, arrays, facts = run_jobs(folder), {}, {}
    for name in TRAININGS:
        with np.load(folder / name / "batches.npz") as found:
            arrays |= {f"job/{name}/{k}": found[k] for k in found.files}
        args = yaml.safe_load((folder / name / "args.yaml").read_text())
        facts[f"args.yaml/{name}"] = {k: placeless(args[k], folder) for k in NFA_FLAGS if k in args}
    for name in HELPS:
        facts[f"help/{name}"] = sorted(
            set(re.findall(r"(?<![\w-])--[a-z][\w-]*", printed[f"help/{name}"]))
        )
    facts["preview"] = [
        (folder / "a.png").is_file(),
        bool(re.search(r"a\.png: \d+ x \d+", printed["preview"])),
    ]
    for name, out in (("resumed", "run"), ("whole", "whole")):
        arrays |= training(folder / out, f"job/flow_{name}")
        report = re.search(r"^\{.*?^\}", printed[f"flow/{name}"], re.DOTALL | re.MULTILINE)
        files = sorted(str(p.relative_to(folder / out)) for p in (folder / out).rglob("*"))
        facts[f"flow/{name}"] = {"report": sorted(json.loads(report[0])), "files": files}
    return arrays, facts


def placeless(value, folder: Path):
    """A flag's value with the folders of this machine left out."""
    return (
        value.replace(str(folder), "TMP").replace(str(HERE), "HERE")
        if isinstance(value, str)
        else value
    )


def training(out: Path, name: str) -> dict[str, np.ndarray]:
    """The losses and the final report that a training wrote into its log."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    losses = np.array(
        [[line[k] for k in ("step", "loss", "bits_per_dim", "lr")] for line in steps], np.float32
    )
    return {
        f"{name}/log": losses,
        f"{name}/final": np.array([lines[-1][k] for k in METRICS], np.float32),
    }
