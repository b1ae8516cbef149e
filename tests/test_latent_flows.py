"""Flows over the same latents are compared in nats of these, and the record is valid."""

import json

import pytest

from benchmarks.analysis import latent_flows
from benchmarks.core import common
from benchmarks.core.schema import validate_file
from train_flow.__main__ import main as train_flow


def test_flows_are_measured_on_the_same_latents(
    image_folder, tmp_path, tiny_autoencoder, monkeypatch, capsys
):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    where = ["--data-dir", str(image_folder)]
    small = ["image_size=64", f"latents={tmp_path / 'latents'}", f"autoencoder={tiny_autoencoder}"]
    small += ["steps=2", "batch_size=8", "eval_every=0", "net_dtype=float32"]
    sets = [v for setting in small for v in ("--set", setting)]
    for config, own in (
        ("linear_latent", []),
        ("conv_latent", ["--set", "network={depth: 1, hidden: 8}"]),
    ):
        out = ["--config", f"{config}.imagenette", "--out", str(tmp_path / config)]
        train_flow([*out, *where, *sets, *own])
    capsys.readouterr()
    flows = [str(tmp_path / name / "flow") for name in ("linear_latent", "conv_latent")]
    given = ["--data-name", "toy", "--autoencoder", tiny_autoencoder, "--image-size", "64"]
    latent_flows.main([*where, *given, "--latents", str(tmp_path / "latents"), "--flow", *flows])
    assert "| `linear` |" in capsys.readouterr().out
    file = tmp_path / "results" / "latent_flows.json"
    validate_file(file)
    rows = json.loads(file.read_text())["results"]["rows"]
    logs = [
        (tmp_path / name / "log.jsonl").read_text() for name in ("linear_latent", "conv_latent")
    ]
    for row, log in zip(rows, logs, strict=True):  # as the training itself found
        final = json.loads(log.splitlines()[-1])
        assert final["final"] and row["nats_per_dim"] == pytest.approx(
            final["nats_per_dim"], rel=1e-5
        )


def test_what_is_missing_is_named(tmp_path, tiny_autoencoder, capsys):
    (tmp_path / "a").mkdir()
    given = ["--data-name", "toy", "--autoencoder", tiny_autoencoder, "--latents", str(tmp_path)]
    with pytest.raises(SystemExit):
        latent_flows.main(["--data-dir", str(tmp_path / "none"), *given, "--flow", "none"])
    assert "no directory" in capsys.readouterr().err
