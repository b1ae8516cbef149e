"""benchmarks.claims ends with 1 where a claim falls short or was not measured; aims are listed apart and fail nothing."""

import json
import re

import pytest
from PIL import Image

from benchmarks import claims
from benchmarks.core.common import RESULTS
from benchmarks.speed import augmentations, flow_memory, flow_speed, throughput
from benchmarks.speed.rivals import BASELINE


def test_a_group_is_measured_in_a_process_of_its_own(capsys):
    code = claims.main(["--only", "memory"])
    (line,) = capsys.readouterr().out.splitlines()
    figure = float(
        re.fullmatch(
            r"reversible training step.*: ([\d.]+), at most 1\.1: (holds|FALLS SHORT)", line
        )[1]
    )
    assert 0.5 < figure < 1.1 and code == 0  # of stored activations it would be 2


def test_tangents_are_judged_on_real_images_or_not_at_all(capsys, monkeypatch, tmp_path):
    assert claims.main(["--only", "tangents"]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first == "tangents: NOT MEASURED, no images to measure them on: pass --data-dir"
    assert last.endswith("--skip tangents")
    for split in ("train", "val"):
        for k, name in enumerate(["a", "b"]):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (90 * k, 50, 20)).save(folder / "0.png")
    monkeypatch.setattr(
        claims.tangents, "errors", lambda flow, data, *_: [{"median": float(len(data))}]
    )
    ((what, figure, sense, limit),) = claims.errors(str(tmp_path))
    assert what.startswith("tangents against conv_p4_small, strength 0.5, 32 modes")
    assert (figure, sense, limit) == (128, "at most", 0.15)


@pytest.mark.parametrize(("figure", "sense", "limit", "verdict"), [
    (0.4, "at most", 0.5, True), (0.6, "at most", 0.5, False), (4.1, "at least", 4, True), (3.9, "at least", 4, False),
])  # fmt: skip
def test_verdicts(figure, sense, limit, verdict):
    assert claims.holds(figure, sense, limit) is verdict


def test_the_cheap_claim_is_about_what_the_throughput_benchmark_claims(monkeypatch):
    monkeypatch.setattr(
        claims,
        "timed",
        lambda calls, *_: {name: {"median": call() is not None} for name, call in calls.items()},
    )
    found = list(claims.augmentation())
    arms = (*throughput.CLAIMED, *claims.ONE_BY_ONE)
    names = [
        f"{name} over {augmentations.BASE}, us an image, {size} px"
        for size in (32, 224)
        for name in arms
    ]
    assert [what for what, *_ in found] == names
    assert [figure for _, figure, *_ in found] == [1 / 128, 1 / 128, 1, 1, 1 / 32, 1 / 32, 1, 1]
    assert [limit for *_, limit in found] == [0.5, 0.5, 3.5, 3.5, 0.5, 0.5, 1.5, 1.5]


def test_what_cannot_be_measured_is_said_and_ends_with_1_unless_skipped(capsys, monkeypatch):
    monkeypatch.setattr(claims.importlib.util, "find_spec", lambda name: None)
    # without another library
    assert claims.lacking("peak", None) == claims.lacking("tangents", "somewhere") == ""
    assert claims.main(["--only", "rivals"]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert (
        first == "rivals: NOT MEASURED, normflows and FrEIA not installed: pip install '.[bench]'"
    )
    assert last == "not everything was measured; without rivals: --skip rivals"
    assert claims.main(["--only", "rivals", "--skip", "rivals"]) == 0
    assert capsys.readouterr().out == ""


def test_aims_that_are_not_met_are_listed_apart_and_fail_nothing(capsys, monkeypatch):
    figures = {
        "memory": [("a claim", 0.1, "at most", 0.5)],
        "peak": [("a share", 0.64, "at least", 0.75), ("another", 0.7, "at least", 0.6)],
        "decoding": [("a price", 0.2, "at most", 0.1)],
    }
    monkeypatch.setattr(claims, "run_group", lambda name, data_dir: figures[name])
    assert claims.main(["--only", *figures]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a claim: 0.1, at most 0.5: holds",
        "",
        "aims met:",
        "  another: 0.7, at least 0.6",
        "",
        "aims not met:",
        "  a share: 0.64, at least 0.75",
        "  a price: 0.2, at most 0.1",
    ]
    figures["memory"] = [("a claim", 0.6, "at most", 0.5)]
    assert claims.main(["--only", *figures]) == 1
    assert "a claim: 0.6, at most 0.5: FALLS SHORT" in capsys.readouterr().out


def test_an_aim_that_cannot_be_measured_fails_nothing(capsys, monkeypatch):
    monkeypatch.setattr(claims.importlib.util, "find_spec", lambda name: None)
    assert claims.main(["--only", "equal"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "",
        "aims not measured:",
        "  equal: normflows and FrEIA not installed: pip install '.[bench]'",
    ]


def test_claims_are_what_the_pages_and_their_records_say():
    """The limits are those of the records, and what the pages call an aim is none of the claims."""
    record = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("throughput", "flow_memory", "flow_speed")
    }
    assert record["throughput"]["results"]["claim_holds"] is True
    assert f"at most {throughput.CLAIM:g} of the time" in record["throughput"]["claim"]
    assert record["flow_memory"]["results"]["claim_met"] is True and flow_memory.LIMIT == 1.1
    rows = record["flow_speed"]["results"]["flows"]
    for direction in ("forward", "inverse"):
        assert flow_speed.claimed_ratio(rows, direction) >= flow_speed.CLAIMED_SPEEDUP == 4
    assert not set(claims.CLAIMS) & set(claims.AIMS) and BASELINE in rows
