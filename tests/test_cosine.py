"""cosine: shading without data, in Python, in timm's train.py and in the commands."""

import argparse
import itertools
import json
import math

import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import timm_nfaug as nfa
from benchmarks.core import records
from benchmarks.core.statistics import compare
from benchmarks.evidence.cells import CELLS
from benchmarks.evidence.choices import reported
from benchmarks.evidence.tables import line
from tests import recipes
from timm_nfaug import materialise, preview
from timm_nfaug.advice import FINE_TUNED, FROM_SCRATCH
from timm_nfaug.change import LinearChange
from timm_nfaug.commands import doctor
from timm_nfaug.commands import fit as fit_command
from timm_nfaug.flows import cosine
from timm_nfaug.integration import NFALoader, factory
from timm_nfaug.integration.flags import flow_of
from timm_nfaug.moves import draw_noise

make = nfa.NFAugment.from_cosine


class Unread(Dataset):
    """A dataset that nobody may read."""

    classes = ("a", "b")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise AssertionError("cosine read the data")


def flags(*argv):
    nfa.add_args(parser := argparse.ArgumentParser())
    parser.add_argument("--in-chans", type=int)
    return parser.parse_args(["--aug", "nfa-p1", "--nfa-flow", "cosine", *argv])


def twin(noise, c, h, w):
    """The change of one image by loops over modes, channels and pixels: noise times std times cosines."""
    colours = cosine.COLOURS if c == 3 else [[1.0] * c]
    waves = [(u, v, i) for u in range(h) for v in range(w) for i in range(len(colours))]
    share = lambda u, v, i: (0.24 if i else 1.0) / max(1.0, math.hypot(u, v))
    waves.sort(key=lambda mode: -share(*mode))
    change = torch.zeros(c, h, w, dtype=torch.float64)
    for e, (u, v, i) in zip(noise.tolist(), waves):
        along = lambda k, n, size: math.cos(math.pi * k * (n + 0.5) / size)
        mode = torch.zeros(c, h, w, dtype=torch.float64)
        for k, y, x in itertools.product(range(c), range(h), range(w)):
            mode[k, y, x] = colours[i][k] * along(u, y, h) * along(v, x, w)
        std = cosine.BRIGHTNESS * math.sqrt(c * h * w) * share(u, v, i)
        change += e * std * mode / mode.norm()
    return change


@pytest.mark.parametrize("size", [(3, 32, 32), (3, 20, 32), (1, 28, 28), (4, 32, 32), (13, 8, 8)])
def test_modes_are_orthonormal_and_their_energy_falls(size):
    modes, std = cosine.cosine_modes(size, 32)
    assert torch.allclose(modes @ modes.T, torch.eye(32), atol=1e-5)
    assert std.tolist() == sorted(std.tolist(), reverse=True) and std.min() > 0
    assert torch.allclose(std[0], torch.tensor(cosine.BRIGHTNESS * math.sqrt(math.prod(size))))
    planes = modes.view(32, size[0], -1)
    assert (planes.std(1, correction=0).amax() < 1e-6) == (size[0] != 3), (
        "colour where there are 3 channels"
    )
    few, _ = cosine.cosine_modes(size, 5)
    assert torch.equal(few, modes[:5]), "fewer modes are the first ones"


def test_energy_and_share_of_colour():
    """24.58 is the norm of a fit to the training images of CIFAR-10, 24.45 that of the bundled modes."""
    modes, std = cosine.cosine_modes((3, 32, 32), 32)
    assert std.norm().item() == pytest.approx(24.58, rel=1e-3)
    bundled = nfa.ConditionalFlow.from_pretrained("linear.cifar10").pooled().prior.mode_std
    assert std.norm().item() == pytest.approx(bundled.norm().item(), rel=0.01)
    planes = (modes * std[:, None]).view(32, 3, -1)
    grey = 3 * planes.mean(1).square().sum() / planes.square().sum()
    assert grey.item() == pytest.approx(0.94, abs=0.005)


@pytest.mark.parametrize("size", [(3, 8, 12), (1, 8, 8), (4, 8, 8)])
def test_the_change_is_that_of_a_slow_twin(size):
    augment = make(strength=0.7, modes=20, p=1.0, input_size=size)
    assert type(augment.change) is LinearChange
    noise = draw_noise(3, 20, torch.Generator().manual_seed(0))
    found = augment.change.change(None, None, noise)  # never asks for the images
    wanted = torch.stack([0.7 * twin(row, *size) for row in noise])
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)  # float32


def test_any_size_takes_the_change_enlarged_and_as_large():
    images = torch.full((400, 3, 32, 32), 0.5)
    moved = [
        make(0.1, p=1.0, seed=1, input_size=(3, side, side))(
            images.new_full((400, 3, large, large), 0.5)
        )
        for side, large in ((32, 32), (16, 16), (32, 64))
    ]
    spread = [(x - 0.5).square().mean().sqrt().item() for x in moved]
    # 24.58 over 3,072 values, half of the range; of 400 draws
    assert spread[0] == pytest.approx(0.1 * 24.58 / math.sqrt(3072) / 2, rel=0.05)
    assert spread[1:] == pytest.approx([spread[0]] * 2, rel=0.02)
    photograph = torch.randint(0, 256, (2, 3, 224, 160), dtype=torch.uint8)
    out = make(p=1.0, seed=0)(photograph)
    assert out.shape == photograph.shape and out.dtype == torch.uint8
    assert (out != photograph).flatten(1).any(1).all()
    assert make(p=1.0, seed=0)(Image.new("RGB", (50, 40), "grey")).size == (50, 40)


def test_strength_0_and_p_0_are_the_identity():
    x = torch.rand(4, 3, 40, 40)
    assert make(0.0, p=1.0).idle and torch.equal(make(0.0, p=1.0)(x), x)
    assert torch.equal(make(p=0.0)(x), x)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_are_shaded_in_grey(channels):
    x = torch.full((2, channels, 40, 40), 0.5)
    out = make(0.2, p=1.0, seed=0, input_size=(channels, 32, 32))(x)
    assert (out != x).flatten(1).any(1).all()
    assert (out - out[:, :1]).abs().max() < 1e-6


def test_nothing_reads_the_data():
    loader = DataLoader(Unread(), batch_size=2)
    assert isinstance(nfa.wrap_loader(loader, flags()), NFALoader)
    assert len(nfa.NFADataset(Unread(), make())) == 4
    assert nfa.nf_augment_transform("nfa-s0.25-k8", "cosine").modes == 8


def test_a_stream_that_gives_its_images_once():
    batches = iter([(torch.full((8, 3, 24, 24), 0.5), torch.arange(8))] * 3)
    loader = nfa.wrap_loader(batches, flags())
    found = [x for x, _ in loader]
    assert len(found) == 3 and all((x != 0.5).flatten(1).any(1).all() for x in found)
    grey = [(torch.full((8, 1, 24, 24), 0.5), torch.arange(8))]
    with pytest.raises(nfa.NFAError, match="take --nfa-flow cosine or linear with --in-chans 1"):
        next(iter(nfa.wrap_loader(grey, flags())))
    x, _ = next(iter(nfa.wrap_loader(grey, flags("--in-chans", "1"))))
    assert x.shape == (8, 1, 24, 24) and (x != 0.5).any()


@pytest.mark.parametrize(
    ("words", "flow"),
    [
        (["nfa"], "cosine"),
        (["nfa-s1-k8-p1-lnone-mrotation"], "cosine"),
        (["nfa-s1", "--nfa-flow", "linear"], "linear"),
        (["nfa-lgiven"], "linear"),
        (["nfa-lposterior"], "linear"),
        (["nfa-maxes"], "linear"),
        (["nfa", "--nfa-fit"], "linear"),
        (["nfa", "--nfa-space", "latent"], "linear"),
        (["nfa", "--nfa-space", "pixels"], "cosine"),
        (["nfa", "--nfa-autoencoder", "org/name"], "linear"),
        (["nfa", "--nfa-size", "64"], "linear"),
        (["nfa", "--nfa-place", "dataset"], "cosine"),
    ],
)
def test_it_is_the_default_unless_modes_have_to_be_found(words, flow):
    nfa.add_args(parser := argparse.ArgumentParser())
    assert flow_of(parser.parse_args(["--aug", *words])) == flow


def test_it_is_the_default_in_python():
    assert nfa.nf_augment_transform("nfa-s0.25").flow.config.title == "cosine"
    loader = [(torch.rand(8, 3, 8, 8), torch.arange(8))]
    assert nfa.nf_augment_transform("nfa-s0.25", data=loader).flow.config.title == "linear"
    with pytest.raises(ValueError, match="cosine images are the same for all"):
        nfa.nf_augment_transform("nfa-lgiven")


@pytest.mark.parametrize("aug", ["nfa", "nfa-s0.25"])
def test_images_of_another_range_are_moved_by_their_own_modes(aug):
    loader = [(torch.rand(40, 3, 24, 24) * 2550, torch.arange(40))]
    wrapped = nfa.wrap_loader(loader, argparse.Namespace(aug=aug), value_range=(0, 2550))
    assert wrapped.augment.flow.config.title == "linear"


def test_modes_of_the_images_are_nowhere_shown_to_be_worth_more():
    """Which is why they are not the default."""
    runs, found = records.read(records.suite_file("evidence")), {}
    for cell in CELLS.values():
        values = line(reported(runs, cell))
        if {"pooled", "cosine"} <= {*values}:
            found[cell.name] = compare(values, "pooled", "cosine")
    assert len(found) >= 4
    assert not any(d.mean > d.half for d in found.values()), found


def test_saved_and_loaded(tmp_path):
    augment = make(0.3, 8, 0.7, input_size=(3, 24, 24))
    loaded = nfa.NFAugment.from_pretrained(augment.save_pretrained(tmp_path / "mine"))
    assert (loaded.strength, loaded.modes, loaded.p, loaded.labels) == (0.3, 8, 0.7, "none")
    x = torch.rand(6, 3, 30, 30)
    draw = lambda a: a(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(augment), draw(loaded))
    assert loaded.flow.config.title == "cosine"
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "| modes | cosine images, of no data |" in card
    assert "| data | none |" in card
    again = tmp_path / "mine" / "config.json"
    again.write_text(json.dumps(json.loads(again.read_text()) | {"info": {"fixed_modes": 3}}))
    with pytest.raises(ValueError, match="info.fixed_modes must be a text"):
        nfa.NFAugment.from_pretrained(tmp_path / "mine")


def test_a_fit_makes_it_linear(toy_images):
    augment = make(modes=4).fit([toy_images])
    assert augment.flow.config.title == "linear"
    by_hand = nfa.NFAugment.from_data([toy_images], modes=4)
    assert torch.allclose(augment.flow.prior.mode_std, by_hand.flow.prior.mode_std)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(labels="given"), "cosine images are the same for all"),
        (lambda: make(kind="axes"), "kind axes needs the variances of your data"),
        (lambda: make(modes=0), "modes must be a positive integer"),
        (lambda: make(modes=65, input_size=(1, 8, 8)), "there are 64 cosine images of 1 x 8 x 8"),
        (lambda: make(size=64), "this flow moves pixels and takes no size=64"),
        (lambda: make().replace(modes=33), "stores 32 principal modes"),
        (lambda: nfa.NFAugment.from_pretrained("cosine"), r"NFAugment.from_cosine\(\) makes it"),
        (lambda: nfa.wrap_loader([], flags("--nfa-fit")), "cosine has nothing to fit"),
        (lambda: nfa.wrap_loader([], flags("--nfa-cache", "x")), "drop --nfa-cache"),
        (lambda: nfa.wrap_loader([], flags("--nfa-space", "latent")), "--nfa-space pixels"),
        (lambda: nfa.wrap_loader([], flags("--nfa-size", "64")), "takes no size=64"),
        (lambda: nfa.wrap_loader([], flags("--aug", "nfa-lgiven")), "-lnone"),
    ],
)
def test_what_goes_not_with_it(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", ["isotropic", "rotation"])
def test_other_kinds_move(kind):
    x = torch.rand(2, 3, 32, 32)
    assert (make(p=1.0, kind=kind)(x) != x).flatten(1).any(1).all()


def trained(path):
    seen = torch.load(path / "seen.pt")
    return torch.cat([x for x, _ in seen["train"]]), torch.cat([y for _, y in seen["train"]]), seen


@pytest.mark.parametrize("place", ["batch", "dataset"])
def test_in_a_training(run_script, tmp_path, monkeypatch, capsys, place):
    def refuse(*_, **__):
        raise AssertionError("a pass over the data")

    monkeypatch.setattr(factory, "_fit_to_dataset", refuse)
    run_script(launcher=False, name="stock")
    run_script("--aug", "nfa-s0.1-p1", "--nfa-flow", "cosine", "--nfa-place", place, name="own")
    x, y, stock = trained(tmp_path / "stock")
    moved, same, own = trained(tmp_path / "own")
    assert torch.equal(y, same) and torch.equal(stock["val"], own["val"])
    assert (x != moved).flatten(1).any(1).all()
    args = yaml.safe_load((tmp_path / "own" / "args.yaml").read_text())
    assert args["nfa_flow"] == "cosine"
    said = capsys.readouterr()
    line = "NFA on: flow cosine, modes of no images at 3 x 32 x 32, space cosine, s 0.1, k 32, p 1"
    assert line in said.out + said.err
    # the script's standard deviations are the same in all channels, so that spans stay what they are
    change, modes = (moved - x).flatten(1), cosine.cosine_modes((3, 32, 32), 32)[0]
    left = (change - change @ modes.T @ modes).square().sum() / change.square().sum()
    assert left < 0.05  # what black and white cut, and in the workers levels round


def test_a_training_on_grey_images(run_script, tmp_path):
    own = ["--in-chans", "1", "--aug", "nfa-p1", "--nfa-flow", "cosine"]
    run_script(*own, name="grey")
    x, _, _ = trained(tmp_path / "grey")
    assert x.shape == (60, 1, 32, 32)


def test_preview(image_folder, tmp_path, capsys):
    for name, more in (
        ("moves.png", ["--images", str(image_folder / "train"), "--count", "3", "--modes", "8"]),
        ("samples.png", ["--samples", "--temperatures", "1"]),
    ):
        preview.main(["--flow", "cosine", *more, "--out", str(tmp_path / name)])
        with Image.open(tmp_path / name) as sheet:
            assert sheet.width > 100
    with pytest.raises(SystemExit):
        preview.main(["--flow", "cosine", "--images", str(image_folder), "--size", "64"])
    assert "takes no size=64" in capsys.readouterr().err


def test_doctor(image_folder, tmp_path, capsys):
    out = str(tmp_path / "a.png")
    assert doctor.main([str(image_folder), "--nfa-flow", "cosine", "--out", out]) == 0
    said = capsys.readouterr().out
    assert "modes     32, cosine images, of no data\n" in said
    assert f"measured  from scratch: {FROM_SCRATCH.why}; fine-tuned: {FINE_TUNED.why}" in said
    assert said.splitlines()[-1].endswith("--aug nfa-s1-p0.5")
    one = tmp_path / "one" / "a"
    one.mkdir(parents=True)
    Image.new("RGB", (20, 20), "grey").save(one / "0.png")
    assert doctor.main([str(one.parent), "--nfa-flow", "cosine", "--out", out]) == 0
    assert "the commands need 2 images" not in capsys.readouterr().out


def test_copies_on_disk_and_nothing_to_fit(image_folder, tmp_path, capsys):
    few = tmp_path / "few" / "train" / "a"
    few.mkdir(parents=True)
    for path in sorted((image_folder / "train" / "a").iterdir())[:3]:
        (few / path.name).write_bytes(path.read_bytes())
    out = ["--data-dir", str(tmp_path / "few"), "--flow", "cosine", "--out"]
    more = ["--copies", "1", "--device", "cpu", "--processes", "1"]
    for _ in range(2):  # the second finds everything made
        assert materialise.main([*out, str(tmp_path / "set"), *more]) == 0
    made = sorted((tmp_path / "set" / "train" / "a").iterdir())
    assert len(made) == 6 and len({p.read_bytes() for p in made}) == 6
    with pytest.raises(SystemExit):
        fit_command.main([*out, str(tmp_path / "fit")])
    assert "no flow named 'cosine', as it has no file" in capsys.readouterr().err


def test_the_example():
    found = recipes.run_recipe("design.md", "cosine", {"dataset": Unread()})
    assert found["aug"].strength == 0.5 and found["grey"].change.size == (1, 28, 28)
    assert len(found["train_set"]) == 4
