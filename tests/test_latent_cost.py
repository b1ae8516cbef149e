"""The cost of a change through an autoencoder is timed part by part, and its memory in processes of their own."""

import pytest
import torch

from benchmarks.core import common
from benchmarks.core.common import pinned
from benchmarks.core.schema import validate_file
from benchmarks.speed import latent, latent_memory
from timm_nfaug import NFAugment


def test_cost_command(tmp_path, monkeypatch, capsys):
    for name, value in pinned(1).items():  # else the command starts itself again
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    threads = torch.get_num_threads()
    how = ["--autoencoder", latent_memory.CHEAP, "--sides", "32", "--threads", "1"]
    assert latent.main([*how, "--repeats", "1"]) == 0
    torch.set_num_threads(threads)
    results = validate_file(tmp_path / "latent_cost.json")["results"]
    assert {r["dtype"] for r in results["rows"]} == set(latent.dtypes("cpu"))
    for r in results["rows"]:
        assert r["images"] == 8 and all(r[k] > 0 for k in ("encode", "decode", "whole", "vit"))
    assert results["goal"] is None and "| 32 px, 1 | float32 |" in capsys.readouterr().out


def test_parts_are_those_of_a_whole_change():
    images = latent.images_for(64, 40, None)
    assert images.shape == (40, 3, 224, 224) and latent.images_for(448, 1, None).shape[3] == 448
    fitted = NFAugment.from_data([images], autoencoder=latent_memory.Rearranged(), size=64)
    found = latent.augmentations(fitted.autoencoder, fitted.flow, 32, "cpu")
    assert found["float32"].size == 32 and not found["float32"].autoencoder.in_bfloat16
    calls = latent.candidates(found["float32"], images[:4])
    assert calls["encode"]().shape == (4, 48, 4, 4) and calls["decode"]().shape == (4, 3, 32, 32)
    for part in ("whole", "cached"):
        assert (calls[part]() != images[:4]).any((1, 2, 3)).all()


def test_the_table_shows_shares_at_p_one_half():
    row = {
        "side": 112,
        "threads": 1,
        "dtype": "bfloat16",
        "encode": 0.1,
        "decode": 0.2,
        "whole": 0.5,
    }
    row |= {"cached": 0.4, "randaugment": 0.01, "vit": 1.0, "eva": 10.0, "disturbed": False}
    row |= {"error_levels": {"mean": 0.5, "p99": 2.0, "move": 20.0}}
    cells = latent.table([row])[1]
    assert cells == [
        "112 px, 1", "bfloat16", "10.0", "5.0", "2.0", "2.5", "50", "25.0%", "20.0%", "2.5%", "0.50 (2.0)",
    ]  # fmt: skip
    assert latent.goal([row]) == {"vit": 0.25, "eva": 0.025}


def test_a_peak_is_that_of_the_pass_alone():
    mb = latent_memory.peak("fit, class modes", 40)
    assert 100 < mb < 4000
    rows = [{"pass": "fit", "images": [1000, 10000], "mb": [500.0, 550.0], "ratio": 1.1}]
    assert latent_memory.table(rows)[1] == ["fit", "500", "550", "1.10"]
    with pytest.raises(SystemExit, match="no_such"):
        latent_memory.PASSES["broken"] = lambda folder, count: ["-m", "no_such"]
        try:
            latent_memory.peak("broken", 1)
        finally:
            del latent_memory.PASSES["broken"]


def test_cheap_latents_can_be_decoded():
    x = torch.rand(2, 3, 64, 64)
    rearranged = latent_memory.Rearranged()
    assert torch.equal(
        rearranged.decode(rearranged.encode(x))[..., ::2, ::2], torch.nn.functional.avg_pool2d(x, 2)
    )
