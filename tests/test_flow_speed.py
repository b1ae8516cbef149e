"""The benchmark of speed counts every FLOP, says where the time of decoding goes, and builds rivals of equal FLOPs."""

import json
import shlex

import pytest
import torch

from benchmarks.core.schema import validate_file
from benchmarks.speed import flow_speed, peak
from benchmarks.speed.candidate import PARTS, synthetic_images
from benchmarks.speed.rivals import OPPONENTS

ARGV = shlex.split("--flows conv_p4_tiny --batch 2 --repeats 1 --min-seconds 0.001 --threads 1")
ARGV.append("--keep-disturbed")


def test_our_flows_are_measured_without_another_library(tmp_path, capsys):
    assert flow_speed.main([*ARGV, "--rivals", "--record", str(tmp_path / "mine")]) == 0
    results = validate_file(tmp_path / "mine.json")["results"]
    row = results["flows"]["conv_p4_tiny"]
    networks = 9 * 24 * 64 + 64 * 64 + 9 * 64 * 48  # multiply-adds a pixel
    linear = 48 * 48
    assert row["flops_per_image"] == 2 * 6 * 64 * (networks + linear)
    profile = row["inverse"]["profile"]
    assert sum(profile[part] for part in PARTS) == pytest.approx(1)
    assert all(profile[part] > 0 for part in PARTS)
    share = row["inverse"]["share_of_peak"] * networks / (networks + linear)
    assert profile["convolutions_share_of_peak"] * profile["convolutions"] == pytest.approx(share)
    out = capsys.readouterr().out
    assert (
        "| conv_p4_tiny |" in out and "| decoding | convolutions |" in out and "Glow |" not in out
    )


def test_rivals_are_built_with_the_flops_of_a_flow(tmp_path, capsys):
    for library in ("normflows", "FrEIA"):
        pytest.importorskip(library)
    assert (
        flow_speed.main([*ARGV, "--rivals", "tuned", "equal", "--record", str(tmp_path / "mine")])
        == 0
    )
    rows = json.loads((tmp_path / "mine.json").read_text())["results"]["flows"]
    for opponent in OPPONENTS:
        for name in (f"{opponent} of conv_p4_tiny", f"{opponent} of conv_p4_tiny, channels_last"):
            rival, own = rows[name], rows["conv_p4_tiny"]
            assert rival["flops_per_image"] == pytest.approx(
                own["flops_per_image"], rel=0.05
            )  # to the nearest channel
            assert own["forward"]["speedup_over"][name]["median"] > 0
    assert capsys.readouterr().out.count("| conv_p4_tiny |") == 1 + 4 + 1


def test_bfloat16_is_not_timed_where_it_is_emulated(monkeypatch):
    images = synthetic_images(2, 0)
    for emulated, count in ((True, 1), (False, 2)):
        monkeypatch.setattr(peak, "emulates_bfloat16", lambda device, e=emulated: e)
        with torch.no_grad():
            assert len(flow_speed.make_candidates(["conv_p4_tiny"], images, 0, rivals=())) == count
        assert len(peak.peak_functions(1, "cpu")) == 2 * count
