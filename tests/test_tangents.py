"""The benchmark of tangents: what it records of each strength and number of modes."""

from benchmarks.analysis import tangents
from benchmarks.core.schema import validate_file


def test_errors_grow_with_strength_and_modes(small_flow, image_folder, tmp_path, capsys):
    flow = str(small_flow.save_pretrained(tmp_path / "flow"))
    argv = ["--flow", flow, "--data-dir", str(image_folder), "--data-name", "toy", "--images", "6"]
    argv += ["--steps", "1", "--strengths", "0.1", "1", "--modes", "2", "4"]
    tangents.main([*argv, "--record", str(tmp_path / "some")])
    rows = validate_file(tmp_path / "some.json")["results"]["rows"]
    assert [(r["strength"], r["modes"]) for r in rows] == [(0.1, 2), (0.1, 4), (1, 2), (1, 4)]
    assert 0 < rows[0]["median"] < rows[2]["median"]
    assert rows[1]["median"] < rows[3]["median"] < rows[3]["p99"]
    shown = capsys.readouterr().out
    assert "| same class: flow |" in shown and "classifier" not in shown
    rows[0]["same_class_classifier"] = 0.98  # as in the record of November 2026
    assert tangents.table(rows[:1])[0][8] == "classifier"
