"""The demonstration of ``make demo``: its arms run, its table and its sentence follow from the runs."""

import re

import pytest

from benchmarks import demo
from timm_nfaug.advice import advise

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
    assert re.search(rf"`--aug nfa` .*: {GAIN} points with 2 seeds\.\n$", text)
    assert (tmp_path / "preview.png").stat().st_size > 1000


def test_every_seed_has_other_images_and_as_many_of_each_class():
    task = demo.digits_task(5)
    first, again, other = (task.images(seed) for seed in (0, 0, 1))
    assert first.labels.bincount().tolist() == [5] * 10
    assert first.levels.equal(again.levels) and not first.levels.equal(other.levels)


@pytest.mark.parametrize(
    ("default", "words"),
    [
        ((83.0, 82.1, 83.9), "`--aug nfa` is ahead of crop alone here: +3.0 ± "),
        ((77.0, 76.1, 77.9), "`--aug nfa` is behind crop alone here: -3.0 ± "),
        (
            (80.1, 79.3, 80.8),
            "`--aug nfa` and crop alone differ by no more than noise here: +0.1 ± ",
        ),
    ],
)
def test_what_is_said_follows_from_the_interval(default, words):
    runs = {"crop": (80.0, 79.0, 81.0), "timm": (80.3, 79.4, 80.9), demo.NFA: default}
    found = {arm: [{"accuracy": a, "seconds": 1.0} for a in own] for arm, own in runs.items()}
    assert words in demo.said(found) and demo.said(found).endswith("points with 3 seeds.")
    assert [row[2][:2] for row in demo.table(found)[1:]] == ["", "+0", words.split(": ")[1][:2]]


def test_nfa_is_what_the_launcher_takes_for_such_images(image_folder, capsys):
    task = demo.folder_task(str(image_folder), 4)
    _, flags = demo.arms(task)[demo.NFA]
    loader, _ = demo.make_loaders(task, task.images(0), None, flags, 0)
    assert "NFA auto: 4 images per class, from scratch: flow" in capsys.readouterr().err
    rule = advise(4, flow=None, size=(3, 32, 32))
    assert (loader.augment.strength, loader.augment.p) == (rule.strength, rule.p)
    assert loader.augment.flow.config.title in rule.flow and rule.fit
    plain, _ = demo.make_loaders(task, task.images(0), None, "", 0)
    assert not hasattr(plain, "augment")
