"""benchmarks.claims measures, prints a verdict a line, and ends with 1 where a figure falls short."""

import re

import pytest
from PIL import Image

from benchmarks import claims, throughput


def test_a_group_is_measured_in_a_process_of_its_own(capsys):
    code = claims.main(["--only", "memory"])
    (line,) = capsys.readouterr().out.splitlines()
    figure = float(re.fullmatch(r"reversible training step.*: ([\d.]+), at most 1\.1: (holds|FALLS SHORT)", line)[1])
    assert 0.5 < figure < 1.1 and code == 0  # of stored activations it would be 2


def test_tangents_are_judged_on_real_images_or_not_at_all(capsys, monkeypatch, tmp_path):
    assert claims.main(["--only", "tangents"]) == 0
    assert capsys.readouterr().out == "tangents: not measured, no images to measure them on; pass --data-dir\n"
    for split in ("train", "val"):
        for k, name in enumerate(["a", "b"]):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (90 * k, 50, 20)).save(folder / "0.png")
    monkeypatch.setattr(claims.tangents, "errors", lambda flow, data, *_: [{"median": float(len(data))}])
    ((what, figure, sense, limit),) = claims.errors(str(tmp_path))
    assert what.startswith("tangents against conv_p4_small, strength 0.5, 32 modes")
    assert (figure, sense, limit) == (128, "at most", 0.15)


@pytest.mark.parametrize(("figure", "sense", "limit", "verdict"), [
    (0.4, "at most", 0.5, True), (0.6, "at most", 0.5, False), (4.1, "at least", 4, True), (3.9, "at least", 4, False),
])  # fmt: skip
def test_verdicts(figure, sense, limit, verdict):
    assert claims.holds(figure, sense, limit) is verdict


def test_the_cheap_claim_is_about_what_the_throughput_benchmark_claims(monkeypatch):
    monkeypatch.setattr(claims, "timed", lambda calls, *_: {name: {"median": call() is not None} for name, call in calls.items()})
    found = list(claims.augmentation())
    names = [f"{name} over {throughput.BASE}, us an image, {size} px" for size in (32, 224) for name in throughput.CLAIMED]
    assert [what for what, *_ in found] == names
    assert all(figure == 1 / images and limit == 0.5 for (_, figure, _, limit), images in zip(found, (128, 128, 32, 32)))
