"""The benchmark of tangents: what it records of each strength and number of modes, with a classifier and without."""

import pytest
from safetensors.torch import save_model

from benchmarks.analysis import tangents
from benchmarks.cifar.classifier import make_classifier
from benchmarks.core.schema import validate_file


def test_errors_grow_with_strength_and_modes(small_flow, image_folder, tmp_path, capsys):
    flow, weights = small_flow.save_pretrained(tmp_path / "flow"), tmp_path / "some.safetensors"
    save_model(make_classifier("resnet10_half", 3).eval(), weights)
    argv = [
        "--flow",
        str(flow),
        "--data-dir",
        str(image_folder),
        "--data-name",
        "toy",
        "--images",
        "6",
        "--steps",
        "1",
    ]
    argv += ["--strengths", "0.1", "1", "--modes", "2", "4"]
    seen = []
    for name, more in (("with", ["--classifier", str(weights)]), ("without", [])):
        tangents.main([*argv, *more, "--record", str(tmp_path / name)])
        record = validate_file(tmp_path / f"{name}.json")
        rows = record["results"]["rows"]
        assert [(r["strength"], r["modes"]) for r in rows] == [(0.1, 2), (0.1, 4), (1, 2), (1, 4)]
        assert (
            0 < rows[0]["median"] < rows[2]["median"]
            and rows[1]["median"] < rows[3]["median"] < rows[3]["p99"]
        )
        shares = [r.pop("same_class_classifier", None) for r in rows]
        assert [s is not None and 0 <= s <= 1 for s in shares] == [bool(more)] * 4
        assert record["settings"]["classifier"] == ("some" if more else None)
        assert ("| classifier |" in capsys.readouterr().out) == bool(more)
        seen.append(rows)
    assert seen[0] == seen[1]


def test_a_classifier_of_other_classes_is_refused(small_flow, image_folder, tmp_path):
    weights = tmp_path / "other.safetensors"
    save_model(make_classifier("resnet10_half", 5), weights)
    flow = str(small_flow.save_pretrained(tmp_path / "flow"))
    with pytest.raises(ValueError, match="knows 5 classes, not 3"):
        tangents.main(
            [
                "--flow",
                flow,
                "--data-dir",
                str(image_folder),
                "--data-name",
                "toy",
                "--classifier",
                str(weights),
            ]
        )
