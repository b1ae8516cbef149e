"""The benchmark of batch sizes times every flow at every batch, leaves out what is too slow, and records what its table shows."""

import torch

from benchmarks.core.schema import validate_file
from benchmarks.speed import flow_batches
from benchmarks.speed.candidate import random_flow, synthetic_images
from timm_nfaug.flows.bijections.coupling import AffineCoupling


def test_no_layer_of_a_random_flow_is_an_identity():
    for name in ("conv_p4_tiny", "jet_p4"):
        flow = random_flow(name, synthetic_images(2, 0), 0)
        couplings = [m for m in flow.modules() if isinstance(m, AffineCoupling)]
        x = torch.randn(1, 24, 8, 8)
        assert couplings and all(m.net(x).abs().min() > 0 for m in couplings)


def test_every_batch_is_timed_and_recorded(tmp_path, capsys):
    argv = [
        "--flows",
        "conv_p4_tiny",
        "conv_p4_small",
        "--batches",
        "1",
        "4",
        "--repeats",
        "1",
        "--min-seconds",
        "0.001",
    ]
    assert flow_batches.main([*argv, "--threads", "1", "--record", str(tmp_path / "mine")]) == 0
    rows = validate_file(tmp_path / "mine.json")["results"]["rows"]
    assert [(r["flow"], r["batch"]) for r in rows] == [
        ("conv_p4_tiny", 1), ("conv_p4_small", 1), ("conv_p4_tiny", 4), ("conv_p4_small", 4),
    ]  # fmt: skip
    for r in rows:
        for d in ("forward", "inverse"):
            own = r[d]
            assert (
                0 < own["slowest"] <= own["images_per_s"] <= own["fastest"]
                and 0 < own["share_of_peak"] < 1.5
            )
    assert rows[1]["flops_per_image"] > 3 * rows[0]["flops_per_image"]
    out = capsys.readouterr().out
    assert "| flow | MFLOP | batch 1 | batch 4 |" in out and out.count("| conv_p4_") == 2
    flow_batches.main(
        [*argv, "--threads", "1", "--limit", "1e-9", "--record", str(tmp_path / "short")]
    )
    assert {r["batch"] for r in validate_file(tmp_path / "short.json")["results"]["rows"]} == {1}
