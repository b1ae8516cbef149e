"""The launcher on a script of train.py's shape, and NFA's place in timm's loader, in real subprocesses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

SCRIPT = Path(__file__).parent / "toy_train.py"
ROOT = SCRIPT.parent.parent


@pytest.fixture(scope="module")
def flow_dir(_small_flow, tmp_path_factory):
    return _small_flow.save_pretrained(tmp_path_factory.mktemp("flow"))


@pytest.fixture
def launch(flow_dir, image_folder, tmp_path):
    def run(*flags, launcher=True, name="run", ok=True, data=True):
        command = ["-m", "timm_nfaug.train", str(SCRIPT)] if launcher else [str(SCRIPT)]
        paths = ["--data-dir", str(image_folder), "--output", str(tmp_path / name)] if data else []
        done = subprocess.run(
            [sys.executable, *command, *paths, *flags], capture_output=True, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        if not ok:
            assert done.returncode != 0
            return done.stdout + done.stderr
        assert done.returncode == 0, done.stderr
        assert "timm_nfaug" not in done.stderr and "Warning" not in done.stderr, done.stderr
        if "--help" in flags:
            return done.stdout
        return torch.load(tmp_path / name / "seen.pt"), yaml.safe_load((tmp_path / name / "args.yaml").read_text())

    run.flow = ["--aug", "nfa-s0.5-k4", "--nfa-flow", str(flow_dir)]
    run.out = tmp_path
    return run


def images(seen):
    return torch.cat([x for x, _ in seen["train"]])


@pytest.mark.parametrize("prefetcher", [[], ["--no-prefetcher"]])
def test_only_the_training_images_change(launch, prefetcher):
    stock, _ = launch(*prefetcher, launcher=False, name="stock")
    same, args = launch(*prefetcher, name="off")
    assert args["aug"] is None and stock["losses"] == same["losses"]
    nfa, args = launch(*prefetcher, *launch.flow, name="on")
    assert args["aug"] == "nfa-s0.5-k4" and args["nfa_flow"] == launch.flow[-1]
    assert torch.equal(stock["val"], nfa["val"])
    assert (images(stock) != images(nfa)).flatten(1).any(1).all()
    assert torch.equal(torch.cat([y for _, y in stock["train"]]), torch.cat([y for _, y in nfa["train"]]))
    again, _ = launch(*prefetcher, *launch.flow, name="again")
    assert torch.equal(images(again), images(nfa)) and again["losses"] == nfa["losses"]


def test_p_0_trains_like_stock_to_the_last_bit(launch):
    stock, _ = launch("--reprob", "0.5", launcher=False, name="stock")
    nfa, _ = launch("--reprob", "0.5", "--aug", "nfa-p0", "--nfa-flow", launch.flow[-1], name="p0")
    assert stock["losses"] == nfa["losses"]


def test_config_file_and_args_yaml_round_trip(launch):
    (launch.out / "config.yaml").write_text(f"aug: nfa-s0.5-k4\nnfa_flow: {launch.flow[-1]}\n")
    direct, _ = launch(*launch.flow, name="direct")
    config, args = launch("--config", str(launch.out / "config.yaml"), name="config")
    assert config["losses"] == direct["losses"] and args["aug"] == "nfa-s0.5-k4"
    again, _ = launch("--config", str(launch.out / "config" / "args.yaml"), name="again")
    assert again["losses"] == direct["losses"]


def test_linear_takes_its_modes_from_the_training_set(launch):
    stock, _ = launch(launcher=False, name="stock")
    flags = ["--aug", "nfa-s0.2-k3", "--nfa-flow", "linear"]
    nfa, args = launch(*flags, name="linear")
    assert args["nfa_flow"] == "linear" and torch.equal(stock["val"], nfa["val"])
    assert launch(*flags, "-j", "2", name="again")[0]["losses"] == nfa["losses"]
    change = (images(nfa) - images(stock)).flatten(1)
    labels = torch.cat([y for _, y in nfa["train"]])
    for k in range(3):  # three modes a class, but for what the clamping takes
        s = torch.linalg.svdvals(change[labels == k].double())
        assert s[2] > 0 and s[3:].square().sum() < 0.05 * s.square().sum()
    assert torch.linalg.svdvals(change.double())[8] > 0.02 * torch.linalg.svdvals(change.double())[0], "nine modes together"


def test_a_flow_of_other_classes_is_fitted(launch, _small_flow):
    flow = _small_flow.with_prior(_small_flow.prior, ["x", "y", "z"])
    flags = ["--aug", "nfa-s0.5-k4", "--nfa-flow", str(flow.save_pretrained(launch.out / "xyz"))]
    assert "add --nfa-fit" in launch(*flags, ok=False)
    fitted, args = launch(*flags, "--nfa-fit", name="fitted")
    assert args["nfa_fit"] is True
    assert not torch.equal(images(fitted), images(launch(launcher=False, name="stock")[0]))


def test_a_resumed_training_draws_its_own_epochs_numbers(launch):
    first, third = (launch(*launch.flow, "--start-epoch", str(e), name=f"epoch{e}")[0] for e in (0, 2))
    stock = launch("--start-epoch", "2", launcher=False, name="stock")[0]
    assert torch.equal(stock["val"], third["val"])
    assert (images(first) != images(third)).flatten(1).any(1).all()


def test_help_shows_the_flags_beside_timms_own(launch):
    text = launch("--help", data=False)
    assert "--aug NFA" in text and "--nfa-flow" in text and "--aug-repeats" in text


@pytest.mark.parametrize("prefetcher", [[], ["--no-prefetcher"]])
def test_mixup_comes_after_nfa(launch, prefetcher):
    seen, _ = launch(*launch.flow, "--mixup", "1.0", *prefetcher)
    target = torch.cat([y for _, y in seen["train"]])
    assert target.shape == (60, 3) and ((target > 0.01).sum(1) == 2).any()  # soft targets left the loader


def test_erasing_comes_after_nfa(launch):
    seen, _ = launch(*launch.flow, "--reprob", "1.0")
    erased = (images(seen) == 0).all(1)  # timm's const mode erases normalised images to 0
    # each image has a rectangle of exact zeros, which NFA before it could not have left
    assert (erased.flatten(1).sum(1) >= 10).all()


def test_the_first_augmentation_split_stays_clean():
    from torch.utils.data import DataLoader

    import timm_nfaug as nfa
    from timm_nfaug.timm_hook import NFALoader

    flow = nfa.create_flow("linear", num_classes=3, prior={"num_modes": 2})
    x = torch.rand(12, 3, 32, 32)
    y = torch.arange(12) % 3
    augment = nfa.NFAugment(flow, modes=2, strength=1.0).fit([(x, y)], num_classes=3)
    batch = [(image, int(k)) for image, k in zip(x, y)]
    loader = NFALoader(DataLoader(batch, batch_size=12), augment, (0.0,) * 3, (1.0,) * 3, splits=3)
    out, _ = next(iter(loader))
    changed = (out != x).flatten(1).any(1)
    assert not changed[:4].any() and changed[4:].all()
    assert len(loader) == 1 and loader.dataset is batch and loader.sampler is loader.loader.sampler
    assert loader.mixup_enabled is False


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--aug", "nfa-z3"], "unknown key 'z'"),
        (["--aug", "nfa", "--nfa-flow", "conv_p4_tiny.digitz"], "did you mean 'conv_p4_tiny.digits'"),
        (["--aug", "nfa", "--nfa-flow", "conv_p4_tiny.digits"], "the flow knows the classes 0, 1, 2, 3"),
    ],
)
def test_errors(launch, flags, message):
    assert message in launch(*flags, ok=False)


def test_a_script_of_another_shape_is_named(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("print('hello')\n")
    for argument, message in ((str(script), "no timm train.py"), (str(tmp_path / "x.py"), "no file"), ("", "usage")):
        done = subprocess.run(
            [sys.executable, "-m", "timm_nfaug.train", argument], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode != 0 and message in done.stderr
