"""The front of bits/dim and images a second: trained points, their record, and what lies on it."""

import json

import pytest

from benchmarks.analysis import flow_pareto
from benchmarks.core import common
from benchmarks.core.schema import validate_file


def test_command(image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    toy = ["batch_size=18", "warmup_steps=1", "eval_every=0", "data_name=toy"]
    arguments = [
        "--data-dir",
        str(image_folder),
        "--depths",
        "1",
        "2",
        "--hidden",
        "8",
        "--steps",
        "3",
        "--modes",
        "3",
    ]
    arguments += ["--per-class", "4", "--repeats", "2", "--min-seconds", "0.01", "--threads", "1"]
    arguments += ["--runs", str(tmp_path / "runs"), "--plot", str(tmp_path / "plot.png")]
    arguments += [v for s in toy for v in ("--set", s)]
    assert flow_pareto.main(arguments) == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    result = validate_file(tmp_path / "flow_pareto.json")
    rows = {row["name"]: row for row in result["results"]["rows"]}
    assert list(rows) == ["linear", "1 x 8", "2 x 8"] and result["results"]["claim_met"] is None
    assert rows["linear"]["bits_per_dim"] is None and rows["linear"]["parameters"] == 0
    assert all(
        0.9 < row["same_for_all"] <= 1.01 for row in rows.values()
    )  # after three steps all is nearly linear
    log = [
        json.loads(line)
        for line in (tmp_path / "runs" / "2x8-3" / "log.jsonl").read_text().splitlines()
    ]
    assert rows["2 x 8"]["bits_per_dim"] == pytest.approx(log[-1]["bits_per_dim"], rel=1e-4)
    assert rows["1 x 8"]["parameters"] < rows["2 x 8"]["parameters"]
    assert "| 2 x 8 |" in capsys.readouterr().out
    assert flow_pareto.main(arguments) == 0  # nothing is trained again
    again = {
        row["name"]: row for row in validate_file(tmp_path / "flow_pareto.json")["results"]["rows"]
    }
    assert again["2 x 8"]["bits_per_dim"] == rows["2 x 8"]["bits_per_dim"]
    assert again["2 x 8"]["training_seconds"] == rows["2 x 8"]["training_seconds"]


def test_the_front():
    points = [(3.0, 100), (3.2, 300), (3.3, 200), (3.1, 100), (3.5, 900)]
    rows = [{"name": "linear", "bits_per_dim": None, "images_per_s": 1e6}]
    rows += [
        {"name": str(p), "bits_per_dim": b, "images_per_s": s} for p, (b, s) in enumerate(points)
    ]
    assert [flow_pareto.on_front(row, rows) for row in rows] == [
        None,
        True,
        True,
        False,
        True,
        True,
    ]
