"""The probe that reads labels from moves: finds those of modes per class, and none in modes of all images."""

import pytest
import torch

from benchmarks.analysis import leak
from benchmarks.cifar.arms import Settings
from benchmarks.cifar.quick import QuickRecipe
from benchmarks.core import common
from benchmarks.core.schema import validate_file
from train_flow.data import Images


@pytest.fixture(scope="module")
def noise():
    """Smooth random images, whose principal modes few of them tell otherwise than others do."""
    g = torch.Generator().manual_seed(0)
    small = torch.rand(700, 3, 6, 6, generator=g) * 255
    levels = torch.nn.functional.interpolate(small, size=32, mode="bicubic").clamp(0, 255)
    return Images(levels.to(torch.uint8), torch.arange(700) % 3, list("abc"))


def test_images_to_test_on_are_others_and_their_labels_say_nothing(noise):
    few, *parts = leak.split(noise, (20, 120, 30), seed=3)
    counts = [torch.bincount(part.labels).tolist() for part in (few, *parts)]
    assert counts == [[20] * 3, [40] * 3, [10] * 3]
    rows = [set(map(bytes, part.levels.flatten(1).numpy())) for part in (few, *parts)]
    assert len(set.union(*rows)) == 210
    where = {bytes(x): int(y) for x, y in zip(noise.levels.flatten(1).numpy(), noise.labels)}
    true = [[where[bytes(x)] for x in p.levels.flatten(1).numpy()] for p in (few, *parts)]
    assert true[0] == few.labels.tolist()
    assert (torch.tensor(true[1]) == parts[0].labels).float().mean() < 0.5


def test_modes_per_class_tell_the_label_and_modes_of_all_do_not(noise):
    recipe = QuickRecipe(width=16, epochs=30, batch_size=28, max_lr=0.4, weight_decay=1e-2)
    parts = leak.split(noise, (4, 420, 210), seed=0)
    s = Settings(strength=1.0, p=1.0, shrinkage=0.0)
    told = {k: leak.read_back(parts, k, s, recipe, 0) for k in ("given", "none")}
    assert told["given"] > 55 and told["none"] < 45, told


def test_a_run_and_its_record(image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    argv = ["--data-dir", str(image_folder), "--data-name", "three toy classes"]
    argv += [
        "--per-class",
        "5",
        "--train",
        "30",
        "--test",
        "15",
        "--epochs",
        "1",
        "--seeds",
        "0",
        "1",
    ]
    assert leak.main(argv) == 0
    record = validate_file(tmp_path / "leak.json")
    rows = record["results"]["rows"]
    assert len(rows) == len(leak.CASES) and all(len(r["percent_by_seed"]) == 2 for r in rows)
    assert record["settings"] == {"epochs": 1, "chance": 100 / 3}
    said = capsys.readouterr().out
    assert f"| of all images | 1 | 1 | 100 | {rows[-1]['percent']:.0f}% |" in said
