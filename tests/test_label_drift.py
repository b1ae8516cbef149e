"""How far augmentations take images from their class: nothing for nothing, further for more, and the record."""

import pytest
import torch
from safetensors.torch import save_model

from benchmarks.analysis import label_drift
from benchmarks.cifar.arms import Arm, Settings, make_arm
from benchmarks.cifar.classifier import make_classifier
from benchmarks.core import common
from benchmarks.core.schema import validate_file
from train_flow.data import Images


@pytest.fixture
def model():
    torch.manual_seed(0)
    return make_classifier("resnet10_quarter", 3).eval()


def test_no_change_keeps_all_and_a_stronger_one_moves_further(model, toy_images):
    data = Images(*toy_images, ["a", "b", "c"])
    assert label_drift.measure(Arm(), model, data, 0) == {
        "kept": 1.0,
        "move_levels": 0.0,
        "spread": 0.0,
    }
    found = [
        label_drift.measure(
            make_arm("linear", data, None, Settings(strength=s, modes=4, p=1.0)), model, data, 0
        )
        for s in (0.25, 1.0)
    ]
    assert 0 < found[0]["move_levels"] * 2 < found[1]["move_levels"] < 128
    assert 0 < found[0]["spread"] < found[1]["spread"] and all(0 <= f["kept"] <= 1 for f in found)
    crops = label_drift.measure(label_drift.CROPPED, model, data, 0)
    assert crops["move_levels"] > 1 and crops == label_drift.measure(
        label_drift.CROPPED, model, data, 0
    )


def test_a_partner_is_another_image_of_the_class():
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    rows = torch.arange(6.0).unsqueeze(1)
    found = label_drift.partners(rows, labels, 0).flatten().long()
    assert torch.equal(labels[found], labels) and not (found == torch.arange(6)).any()
    assert sorted(found.tolist()) == list(range(6))


def test_command(image_folder, tmp_path, model, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    save_model(model, str(tmp_path / "classifier.safetensors"))
    arguments = [
        "--data-dir",
        str(image_folder),
        "--data-name",
        "toy",
        "--classifier",
        str(tmp_path / "classifier.safetensors"),
    ]
    assert label_drift.main([*arguments, "--strengths", "0.5", "--modes", "4"]) == 0
    rows = validate_file(tmp_path / "label_drift.json")["results"]["rows"]
    assert [row["augmentation"] for row in rows] == [
        "crop and flip",
        "sa",
        "trivial",
        "linear s0.5-k4",
    ]
    assert (
        all(row["move_levels"] > 0 for row in rows)
        and "| linear s0.5-k4 |" in capsys.readouterr().out
    )


def test_a_record_names_the_flow_without_its_directories():
    assert [common.flow_title(f) for f in ("linear", "/a/b/flow", "/a/b/")] == ["linear", "b", "b"]
