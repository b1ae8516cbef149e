"""Generation metrics: FID and Coverage against twins, samples and their counts, the whole command on toy images."""

import functools
import itertools
import json
import math
import time

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import autocast_depth

import timm_nfaug as nfa
from benchmarks.cifar.resnet import Recipe
from benchmarks.core import common
from benchmarks.generation import run as generation
from benchmarks.generation import samples
from benchmarks.generation.extractor import feature_extractor, features_of, five_bits
from benchmarks.generation.metrics import coverage, fid
from benchmarks.generation.run import ARMS
from benchmarks.generation.samples import (
    Deadline,
    asked_labels,
    row_of,
    sample_levels,
    settings_of,
    training_set_time,
)
from timm_nfaug import pixels
from train_flow.config import load_config
from train_flow.data import Images


def features(count: int, dim: int, seed: int) -> torch.Tensor:
    """Correlated normal features (count, dim)."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=g) @ torch.randn(dim, dim, generator=g) + torch.randn(
        dim, generator=g
    )


def test_fid_against_scipy():
    real, made = features(300, 24, 0), features(200, 24, 1)
    (m1, c1), (m2, c2) = (
        (f.double().mean(0).numpy(), np.cov(f.double().numpy().T)) for f in (real, made)
    )
    root = scipy.linalg.sqrtm(c1 @ c2).real
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root)
    assert fid(real, made) == pytest.approx(expected, rel=1e-6)
    assert fid(real, real) == pytest.approx(0, abs=1e-3 * expected)
    assert fid(made, real) == pytest.approx(fid(real, made), rel=1e-6)


def test_coverage_against_slow_twin():
    real, made = features(60, 5, 2), features(40, 5, 3)[:, :5] * 0.7
    for k in (1, 3, 5):
        covered = 0
        for i, point in enumerate(real):
            others = sorted((point - other).norm().item() for j, other in enumerate(real) if j != i)
            covered += min((point - m).norm().item() for m in made) < others[k - 1]
        assert coverage(real, made, k) == covered / len(real)
        assert 0 < covered < len(real)
    assert coverage(real, real + 1e-4) == 1
    assert coverage(real, real + 1000) == 0
    with pytest.raises(ValueError, match="more than 5 real images, got 5"):
        coverage(real[:5], made)


def test_coverage_of_the_same_distribution():
    """Its expectation between two draws of one distribution is known whatever that is (Naeem et al. 2020, eq. 7)."""
    n, m, k = 800, 400, 5
    expected = 1 - math.prod((n - j) / (m + n - j) for j in range(1, k + 1))
    g = torch.Generator().manual_seed(0)
    found = [
        coverage(torch.randn(n, 4, generator=g), torch.randn(m, 4, generator=g)) for _ in range(6)
    ]
    error = np.std(found, ddof=1) / len(found) ** 0.5
    assert np.mean(found) == pytest.approx(expected, abs=4 * error + 0.003)


def test_five_bits():
    levels = torch.arange(256, dtype=torch.uint8)
    cut = five_bits(levels)
    assert len(cut.unique()) == 32
    assert ((cut.int() - levels.int()) >= -3).all() and ((cut.int() - levels.int()) <= 4).all()
    assert torch.equal(five_bits(cut), cut)


@pytest.fixture(scope="module")
def images(toy_images):
    return Images(*toy_images, ["a", "b", "c"])


@pytest.fixture(scope="module")
def recipe():
    return Recipe("resnet10_half", epochs=2, batch_size=20, bf16=False)


@pytest.fixture(scope="module")
def extractor(images, recipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "f.pt"
    return feature_extractor(images, recipe, path), path


def test_feature_extractor_is_kept(extractor, images, recipe):
    model, path = extractor
    before = path.stat().st_mtime_ns
    again = feature_extractor(images, recipe, path)
    assert path.stat().st_mtime_ns == before
    for a, b in zip(features_of(model, images.levels), features_of(again, images.levels)):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="other settings or data"):
        feature_extractor(images, Recipe("resnet10_half", epochs=3), path)
    with pytest.raises(ValueError, match="other settings or data"):
        feature_extractor(images.subset(torch.arange(40)), recipe, path)


def test_features(extractor, images):
    """The prediction is that of the whole classifier, on images cut to 5 bits, whatever the batch."""
    model, _ = extractor
    found, predicted = features_of(model, images.levels)
    assert found.shape == (60, 256)
    x = pixels.levels_to_model(five_bits(images.levels)) * 2
    with torch.no_grad():
        assert torch.equal(model(x).argmax(1), predicted)
    noisy = images.levels // 8 * 8 + torch.randint(
        8, images.levels.shape, dtype=torch.uint8
    )  # within the 5-bit level
    assert torch.equal(features_of(model, noisy)[0], found)
    torch.testing.assert_close(
        features_of(model, images.levels[30:35])[0], found[30:35], rtol=1e-4, atol=1e-4
    )


def test_sample_levels(small_flow):
    y = torch.tensor([0, 1, 2] * 4)
    levels, finite, seconds = sample_levels(small_flow, y, 0.5, 1.0, 3, 1)
    assert (
        levels.shape == (12, 3, 32, 32)
        and levels.dtype == torch.uint8
        and finite.all()
        and seconds > 0
    )
    assert torch.equal(levels, sample_levels(small_flow, y, 0.5, 1.0, 3, 1)[0])
    assert not torch.equal(levels, sample_levels(small_flow, y, 0.5, 1.0, 4, 1)[0])
    with torch.no_grad():  # without noise a sample is the class mean
        mean = small_flow.inverse(1.3 * small_flow.prior.mu)
    cold = sample_levels(small_flow, y, 0.0, 1.3, 0, 1)[0]
    assert torch.equal(cold[:3], pixels.model_to_levels(mean.clamp(-1, 1)))


def test_non_finite_samples_are_left_out(small_flow, extractor, images):
    model, _ = extractor
    y = torch.tensor([0, 1, 2] * 6)
    real = features_of(model, images.levels)[0]
    whole = row_of(small_flow, y, 0.5, 1.0, 0, 1, real, model)
    assert (whole["images"], whole["non_finite"], whole["error"]) == (18, 0, None)
    with torch.no_grad():
        small_flow.prior.mu[1, 5] = math.inf
    row = row_of(small_flow, y, 0.5, 1.0, 0, 1, real, model)
    assert (row["images"], row["non_finite"], row["error"]) == (12, 6, None)
    kept = sample_levels(small_flow, y, 0.5, 1.0, 0, 1)[0]
    predicted = features_of(model, kept)[1]
    assert row["class_accuracy"] == pytest.approx((predicted == y[y != 1]).double().mean().item())
    assert all(math.isfinite(row[k]) for k in ("fid", "coverage"))
    with torch.no_grad():
        small_flow.prior.mu[:, 5] = math.inf
    row = row_of(small_flow, y, 0.5, 1.0, 0, 1, real, model)
    assert (
        row["images"] == 0 and row["fid"] is None and row["error"] == "0 of 18 samples are finite"
    )


def test_ce_without_a_label_is_on_record(extractor, images):
    """A flow with conditional encoding whose samples hold one label only says so; one out of time too."""
    model, _ = extractor
    torch.manual_seed(0)
    flow = nfa.create_flow(
        "conv_p4_tiny", num_classes=3, code_rows=8, depth=1, hidden=4, prior={"num_modes": 0}
    ).eval()
    flow.initialize(pixels.levels_to_model(images.levels), images.labels)
    y, real = torch.tensor([0, 1, 2] * 2), features_of(model, images.levels)[0]
    row = row_of(flow, y, 0.0, 1.0, 0, 60, real, model)
    assert "held no label of" in row["error"]
    assert row["images"] == 0 and row["fid"] is None and row["sampling_seconds"] is None
    row = row_of(flow, y, 0.0, 1.0, 0, 0.05, real, model)
    assert "no end after 0.05 seconds" in row["error"]
    assert settings_of(flow, [1.0, 0.5], [1.0, 1.3]) == [(1.0, 1.0), (0.5, 1.0)]  # its mean is zero
    with pytest.raises(TypeError):  # what is no matter of sampling is not swallowed
        row_of(flow, y.float(), 0.0, 1.0, 0, 60, real, model)


def test_a_deadline_falls_between_calls_of_torch_and_leaves_nothing_behind():
    x = torch.ones(2)
    with Deadline(60):
        assert torch.equal(torch.add(x, x, alpha=2), 3 * x)
    for _ in range(20):
        with (
            pytest.raises(TimeoutError, match="after 0.002 seconds; raise --limit-seconds"),
            Deadline(0.002),
        ):
            for _ in itertools.count():
                with torch.autocast("cpu", torch.bfloat16):
                    torch.add(x, x)
        assert (autocast_depth(), torch.is_autocast_enabled("cpu")) == (0, False)
    time.sleep(0.003)
    torch.add(x, x)


def test_asked_labels(images):
    short, long = (asked_labels(images, n, 0) for n in (30, 120))
    assert torch.bincount(short).tolist() == [10, 10, 10] and torch.bincount(long).tolist() == [
        40,
        40,
        40,
    ]
    assert not torch.equal(short, short.sort().values)
    assert torch.equal(short, asked_labels(images, 30, 0)) and not torch.equal(
        short, asked_labels(images, 30, 1)
    )


def test_training_set_time():
    row = {
        "temperature": 1.0,
        "mean_scale": 1.0,
        "images": 90,
        "non_finite": 10,
        "sampling_seconds": 5.0,
        "error": None,
    }
    cold = row | {"temperature": 0.5, "sampling_seconds": 9.0}
    measured = {"training_set_seconds": 5.0, "extrapolated": False}
    assert training_set_time(40.0, [cold, row], 100) == measured
    assert training_set_time(40.0, [cold, row], 200) == {
        "training_set_seconds": 5.0,
        "extrapolated": True,
    }
    assert training_set_time(None, [cold, row], 100) == measured
    assert training_set_time(None, [cold, row], 300) == {
        "training_set_seconds": 15.0,
        "extrapolated": True,
    }
    failed = row | {"sampling_seconds": None, "error": "?"}
    assert training_set_time(None, [failed], 100) == {
        "training_set_seconds": None,
        "extrapolated": True,
    }


def test_arms_differ_in_the_objective_only():
    configs = {
        arm: load_config("conv_p4_tiny.cifar10", settings).to_dict()
        for arm, settings in ARMS.items()
    }
    for arm in ("ml", "random", "joint", "ce"):
        changed = {k for k in configs["glem"] if configs[arm][k] != configs["glem"][k]}
        assert changed == ({"objective", "code_rows"} if arm == "ce" else {"objective"})
    assert configs["linear"]["flow"] == "linear"


def test_command(image_folder, tmp_path, monkeypatch, capsys):
    """The whole path, trainings of three arms included; a second call takes everything from the runs."""
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(
        samples, "timed", functools.partial(common.timed, min_seconds=0.01)
    )  # or it takes most of the time
    argv = [
        "--data-dir",
        str(image_folder),
        "--runs",
        str(tmp_path / "runs"),
        "--samples",
        "24",
        "--threads",
        "1",
    ]
    argv += [
        "--features-model",
        "resnet10_half",
        "--features-epochs",
        "1",
        "--temperatures",
        "1",
        "0.3",
        "--steps",
        "3",
    ]
    for item in (
        "network={depth: 1, hidden: 8}",
        "batch_size=16",
        "mode_images=0",
        "data_name=toys",
        "prior={num_modes: 4}",
    ):
        argv += ["--set", item]
    argv += ["--no-bf16"]
    assert generation.main([*argv, "--arms", "glem", "ce", "linear", "--limit-seconds", "2"]) == 0
    result = json.loads((tmp_path / "generation.json").read_text())
    found = result["results"]
    pairs = [(r["arm"], r["temperature"], r["mean_scale"]) for r in found["rows"]]
    both = [(1.0, 1.0), (0.3, 1.0), (1.0, 1.3), (0.3, 1.3)]
    assert [p[1:] for p in pairs if p[0] == "linear"] == both and [
        p[1:] for p in pairs if p[0] == "ce"
    ] == both[:2]
    for row in found["rows"]:
        assert row["error"] is None or row["arm"] == "ce"
        if row["error"] is None:
            assert row["images"] + row["non_finite"] == 24
            assert row["fid"] >= 0 and 0 <= row["coverage"] <= 1 and 0 <= row["class_accuracy"] <= 1
    assert [f["arm"] for f in found["flows"]] == ["glem", "ce", "linear"]
    assert all(f["extrapolated"] and f["bits_per_dim"] > 0 for f in found["flows"])
    assert found["floor"]["images"] == 24 and found["feature_extractor"]["features"] == 256
    checkpoint = torch.load(tmp_path / "runs" / "glem-0" / "checkpoint.pt", weights_only=True)
    assert (
        found["feature_extractor"]["bf16"] is False
        and checkpoint["config"]["net_dtype"] == "float32"
    )
    assert str(tmp_path) not in json.dumps(result) and result["settings"]["samples"] == 24
    assert "| linear | 0 | 0.3 | 1.3 |" in capsys.readouterr().out

    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs" / "rows").iterdir()}
    trained = str(tmp_path / "runs" / "linear-0" / "flow")
    assert generation.main([*argv, "--flows", f"mine={trained}", "--record", "again"]) == 0
    again = json.loads((tmp_path / "again.json").read_text())["results"]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs" / "rows").iterdir()} == kept
    assert [r | {"arm": "linear"} for r in again["rows"]] == [
        r for r in found["rows"] if r["arm"] == "linear"
    ]
    assert again["flows"][0]["flow"] == "flow" and again["floor"] == found["floor"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--flows", "glem"], "ARM=NAME"),
        (["--flows", "glem=a", "--arms", "glem"], "got glem twice"),
        (["--flows", "glem=a", "glem=b"], "twice"),
        (["--samples", "1"], "at least 2"),
        (["--arms", "gelm"], "invalid choice"),
    ],
)
def test_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        generation.main(["--data-dir", "nowhere", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
