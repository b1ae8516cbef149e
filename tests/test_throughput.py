"""The throughput benchmark runs every candidate once and records what its table shows."""

import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from benchmarks.core.schema import validate_file
from benchmarks.speed import augmentations, throughput
from train_flow.trainer import emulates_bfloat16

ROOT = Path(__file__).parent.parent


def test_every_candidate_is_timed_and_recorded(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.throughput", "--sizes", "32", "--repeats", "1", "--min-seconds", "0.001",
         "--flows", "conv_p4_small", "conv_p4_base", "--record", str(tmp_path / "mine"), "--plot", str(tmp_path / "mine.png")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    result = validate_file(tmp_path / "mine.json")
    rows = {(r["size"], r["name"]): r for r in result["results"]["rows"]}
    assert rows[32, augmentations.BASE]["over_randaugment"] == 1.0
    steps = [key for key in rows if key[1].startswith("training step")]
    dtype = "float32" if emulates_bfloat16("cpu") else "bfloat16"
    assert steps == [(32, f"training step, resnet18, {dtype}")] and not emulates_bfloat16("cuda")
    names = {n for _, n in rows}
    assert {
        *throughput.CLAIMED,
        "NFA linear (PIL)",
        "NFA conv_p4_small (PIL)",
        "NFA conv_p4_small (uint8 batch)",
        "NFA conv_p4_base, decode only (uint8 batch)",
        "timm AugMix (PIL)",
        "torchvision RandAugment (uint8 batch, all alike)",
    } <= names
    assert {
        rows[32, f"NFA conv_p4_{which} (uint8 batch)"]["images"] for which in ("small", "base")
    } == {128, 32}
    for r in rows.values():
        assert r["us_min"] <= r["us_per_image"] <= r["us_max"] and r["images"] in (1, 32, 128)
        assert f"| {r['name']} |" in done.stdout
    share = rows[32, "NFA linear (uint8 batch)"]["us_per_image"] / rows[steps[0]]["us_per_image"]
    line = next(s for s in done.stdout.splitlines() if s.startswith("| NFA linear (uint8 batch) |"))
    assert "of a resnet18 step, 32 px" in done.stdout and line.endswith(f"| {share:.2%} |")
    with Image.open(tmp_path / "mine.png") as picture:
        assert picture.width > 400
    for name in throughput.CLAIMED:
        ratio = rows[32, name]["us_per_image"] / rows[32, augmentations.BASE]["us_per_image"]
        assert result["results"]["claim_ratios"][name] == {"32": ratio}
    assert done.returncode == 0 and result["results"]["claim_holds"] is None, (
        "224 px was not measured"
    )
    assert str(tmp_path) not in (tmp_path / "mine.json").read_text()


def test_what_is_timed_is_an_augmentation():
    """Each NFA candidate changes every image; the float one works on the levels' normalised twin."""
    flows = {name: augmentations.augmentation(name) for name in ("linear", "conv_p4_tiny")}
    calls = augmentations.candidates(48, flows, "cpu")
    levels = augmentations.smooth_levels(128, 48, torch.Generator().manual_seed(0))
    out, _ = calls["NFA linear (uint8 batch)"][0]()
    assert out.shape == levels.shape and (out != levels).flatten(1).any(1).all()
    cached = calls["NFA, cached tangents (uint8 batch)"][0]()
    assert cached.shape == levels.shape and (cached != levels).flatten(1).any(1).all()
    decoded = calls["NFA conv_p4_tiny, decode only (uint8 batch)"][0]()
    assert decoded.shape == levels.shape and (decoded != levels).flatten(1).any(1).all()
    normal, _ = calls["NFA linear (float batch)"][0]()
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (augmentations.IMAGENET_DEFAULT_MEAN, augmentations.IMAGENET_DEFAULT_STD)
    )
    unit = normal * std + mean
    assert (
        unit.min() > -1e-5
        and unit.max() < 1 + 1e-5
        and (unit - levels / 255).abs().flatten(1).amax(1).min() > 0.01
    )


def test_a_commit_is_timed_beside_itself(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.beside", "--base", "HEAD", "--rounds", "1",
         "--only", "PIL, 224 px", "--record", str(tmp_path / "beside")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    (row,) = validate_file(tmp_path / "beside.json")["results"]
    assert 0.2 < row["ratio"] < 5 and row["base_us"] > 0 and "PIL, 224 px" in done.stdout
