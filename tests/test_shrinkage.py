"""The measure of how well modes from few images fit others: against covariances that are written out."""

import numpy as np
import pytest
import torch

from benchmarks.analysis import shrinkage
from benchmarks.core import common
from benchmarks.core.schema import validate_file


def test_the_error_is_that_of_the_covariances():
    rng = np.random.default_rng(0)
    modes = [torch.from_numpy(np.linalg.qr(rng.normal(size=(12, 3)))[0].T) for _ in range(2)]
    std = [torch.from_numpy(rng.uniform(0.5, 2, size=3)) for _ in range(2)]
    a, b = (m.T @ torch.diag(s**2) @ m for m, s in zip(modes, std, strict=True))
    wanted = float((a - b).square().sum() / b.square().sum())
    assert shrinkage.squared_error(modes[0], std[0], modes[1], std[1]) == pytest.approx(wanted)
    assert shrinkage.squared_error(modes[0], std[0], modes[0], std[0]) == pytest.approx(0, abs=1e-9)


def test_a_run_and_its_record(image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    argv = [
        "--data-dir",
        str(image_folder),
        "--data-name",
        "three toy classes",
        "--images",
        "4",
        "8",
        "--shrinkages",
        "0",
        "20",
    ]
    argv += ["--modes", "3", "--seeds", "0", "1"]
    assert shrinkage.main(argv) == 0
    assert "| 4 | " in capsys.readouterr().out
    rows = validate_file(tmp_path / "shrinkage.json")["results"]["rows"]
    assert [(r["images"], r["shrinkage"]) for r in rows] == [(4, 0), (4, 20), (8, 0), (8, 20)]
    by_seed = np.array([r["error_by_seed"] for r in rows])
    assert by_seed.shape == (4, 2) and (by_seed > 0.05).all() and (by_seed < 5).all()
    np.testing.assert_allclose([r["error"] for r in rows], np.sqrt((by_seed**2).mean(1)))
    assert rows[0]["error"] > rows[2]["error"], "more images know better"
    assert rows[0]["error"] > rows[1]["error"], "four images of a class know less than all do"
    with pytest.raises(SystemExit):
        shrinkage.main([*argv[:4], "--images", "11"])
    assert (
        "the rarest class has 20 images, too few to leave others beside 11"
        in capsys.readouterr().err
    )
