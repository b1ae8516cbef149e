"""The demonstration of ``make demo``: its arms run, its table and its sentence follow from the runs."""

import re

import pytest

from benchmarks import demo

GAIN = r"[+-]\d+\.\d ± \d+\.\d"


def test_the_digits_by_its_own_command(tmp_path, capsys):
    argv = ["--per-class", "5", "--epochs", "1", "--seeds", "0", "1", "--out", str(tmp_path)]
    assert demo.main(argv) == 0
    said = capsys.readouterr().out
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text in said and "50 training images (5 a class), 359 test images" in text
    assert re.search(
        rf"\| crop \| \d+\.\d% \|  \| [\d.]+, [\d.]+ \|\n\| timm .* \| {GAIN} \|", text
    )
    assert re.search(rf"NFA's default .*: {GAIN} points with 2 seeds\.\n$", text)
    assert (tmp_path / "preview.png").stat().st_size > 1000


def test_every_seed_has_other_images_and_as_many_of_each_class():
    task = demo.digits_task(5)
    first, again, other = (task.images(seed) for seed in (0, 0, 1))
    assert first.labels.bincount().tolist() == [5] * 10
    assert first.levels.equal(again.levels) and not first.levels.equal(other.levels)


@pytest.mark.parametrize(
    ("default", "words"),
    [
        ((83.0, 82.1, 83.9), "is ahead of crop alone here: +3.0 ± "),
        ((77.0, 76.1, 77.9), "is behind crop alone here: -3.0 ± "),
        ((80.1, 79.3, 80.8), "and crop alone differ by no more than noise here: +0.1 ± "),
    ],
)
def test_what_is_said_follows_from_the_interval(default, words):
    runs = {"crop": (80.0, 79.0, 81.0), "timm": (80.3, 79.4, 80.9), demo.NFA: default}
    found = {arm: [{"accuracy": a, "seconds": 1.0} for a in own] for arm, own in runs.items()}
    assert words in demo.said(found) and demo.said(found).endswith("points with 3 seeds.")
    assert [row[2][:2] for row in demo.table(found)[1:]] == ["", "+0", words.split(": ")[1][:2]]


def test_images_of_other_classes_than_the_flow_knows_end_it(image_folder):
    task = demo.folder_task(str(image_folder), 2)
    with pytest.raises(SystemExit, match=r"the bundled flow knows \['airplane'.*\['a', 'b', 'c'\]"):
        demo.arms(task)
