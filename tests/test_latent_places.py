"""The latent space in trainings, commands and cards: the flags, what is read, and what is said."""

import argparse
import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import run_recipe
from small_autoencoder import Small
from small_diffusers import write_autoencoder
from torch.utils.data import DataLoader

import timm_nfaug as nfa
from timm_nfaug import __main__ as command
from timm_nfaug import pictures
from timm_nfaug.autoencoder import Autoencoder, load_autoencoder
from timm_nfaug.commands import doctor
from timm_nfaug.integration import NFAError, NFALoader
from timm_nfaug.integration import fit as timm_fit
from timm_nfaug.integration.fit import _is_on, _on_device
from timm_nfaug.integration.flags import augment_from_args
from timm_nfaug.integration.workers import _WorkerDataset
from timm_nfaug.preview import main as preview

OWN = f"{Path(__file__).parent / 'small_autoencoder.py'}:load"
FLAGS = ["--aug", "nfa-s1-k4-p1", "--nfa-autoencoder", OWN]
ROOT = Path(__file__).parent.parent


def parsed(*flags):
    nfa.add_args(parser := argparse.ArgumentParser())
    return parser.parse_args(list(map(str, flags)))


@pytest.fixture
def train(run_script, tmp_path, capsys):
    """Runs the toy train.py, through the launcher where a flag is of NFA; what it saved and said."""
    count = iter(range(100))

    def run(*flags):
        name = str(next(count))
        run_script(*flags, launcher=any("nfa" in str(f) for f in flags), name=name)
        return torch.load(tmp_path / name / "seen.pt"), capsys.readouterr().err

    return run


def images(seen):
    return torch.cat([x for x, _ in seen["train"]])


@pytest.fixture
def saved(toy_images, tmp_path):
    """A saved augmentation over latents of an autoencoder of one's own, by class."""
    own = {"autoencoder": load_autoencoder(OWN), "size": 32, "labels": "given", "modes": 4}
    return nfa.NFAugment.from_data([toy_images], 3, **own).save_pretrained(tmp_path / "saved")


@pytest.fixture(scope="module")
def by_name(toy_images, tmp_path_factory):
    """A saved augmentation that names its autoencoder, one of diffusers in a directory."""
    folder = tmp_path_factory.mktemp("named")
    own = {"autoencoder": write_autoencoder(folder / "tiny"), "size": 64, "modes": 4, "p": 1.0}
    return nfa.NFAugment.from_data([toy_images], **own).save_pretrained(folder / "saved")


# -- trainings -------------------------------------------------------------------------------------


def test_an_epoch_with_mixup_and_erasing(train):
    how = ["--img-size", 64, "--mixup", 0.2, "--reprob", 0.25]
    stock, _ = train(*how)
    moved, said = train(*how, *FLAGS, "--nfa-space", "latent")
    assert f"at 3 x 64 x 64, space latent, autoencoder {OWN}, size 64, s 1, k 4" in said
    assert torch.equal(stock["val"], moved["val"]) and np.isfinite(moved["losses"]).all()
    apart = (images(stock) - images(moved)).abs().flatten(1).mean(1)
    assert apart.min() > 0 and len(apart) == 60
    soft, labels = moved["train"][0][1], stock["train"][0][1]
    assert soft.shape == (20, 3) and (soft.amax(1) < 0.999).any() and torch.equal(soft, labels)
    erased = (images(moved) == 0).all(1).flatten(1).sum(1) >= 10  # exact zeros, put in after NFA
    assert 0.1 < erased.float().mean() < 0.5


def test_workers_draw_the_same_images_in_any_number(train):
    runs = [
        train(*FLAGS, "--nfa-size", 16, "--nfa-place", "dataset", "-j", j, "--seed", 3)
        for j in (0, 2)
    ]
    assert torch.equal(images(runs[0][0]), images(runs[1][0]))
    for _, said in runs:
        assert said.count("encode an image once and decode it twice, on a CPU, which is slow") == 1
        assert "size 16, s 1, k 4, p 1, m pca, place dataset" in said


def test_a_cache_of_latents_is_made_once_and_moves_the_images(train, tmp_path):
    flags = [*FLAGS, "--nfa-size", 16, "--nfa-cache", tmp_path / "cache", "--seed", 3]
    stock, _ = train("--seed", 3)
    runs = [train(*flags, "-j", j) for j in (2, 0)]
    assert "kB of latents an image" in runs[0][1] and "complete" in runs[1][1]
    assert torch.equal(images(runs[0][0]), images(runs[1][0]))
    assert (images(stock) - images(runs[0][0])).abs().flatten(1).mean(1).min() > 0


@pytest.mark.parametrize("aug", ["nfa-s0-k4-p1", "nfa-s1-k4-p0"])
@pytest.mark.parametrize("place", ["batch", "dataset"])
def test_strength_0_is_the_stock_training(train, aug, place):
    stock, _ = train()
    still, _ = train("--aug", aug, *FLAGS[2:], "--nfa-place", place)
    assert still["losses"] == stock["losses"] and torch.equal(images(still), images(stock))


def test_mixed_precision_around_it_changes_nothing(toy_images):
    levels, y = toy_images
    found = []
    for on in (False, True):
        loader = nfa.wrap_loader([(levels, y)], parsed(*FLAGS, "--nfa-size", 32))
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            ((moved, _),) = loader
        found.append(moved)
    assert torch.equal(*found) and not torch.equal(found[0], levels)


class Counting(list):
    """A dataset that counts how often it is read."""

    reads = 0

    def __getitem__(self, i):
        self.reads += 1
        return super().__getitem__(i)


@pytest.mark.parametrize(("labels", "wanted"), [("none", 32), ("given", 3 * 8)])
def test_a_fit_reads_few_images_spread_over_the_data(toy_images, monkeypatch, labels, wanted):
    monkeypatch.setattr(timm_fit, "LATENTS", 8)
    monkeypatch.setattr(timm_fit, "LATENTS_POOLED", 8)  # so that it is 8 of each mode
    levels, y = toy_images
    data = Counting(zip(levels, y.tolist()))
    data.targets = y.tolist()
    loader = DataLoader(data, 20)
    flags = ["--aug", f"nfa-k4-p1-l{labels}", *FLAGS[2:], "--nfa-size", 32]
    picked = timm_fit._picked(augment_from_args(parsed(*flags)), data, 3)
    assert len(picked) == wanted and {data.targets[i] for i in picked} == {0, 1, 2}
    wrapped = nfa.wrap_loader(loader, parsed(*flags), num_classes=3)
    part = [(levels[picked], y[picked])]
    own = {"autoencoder": Small(), "size": 32, "labels": labels, "modes": 4}
    by_hand = nfa.NFAugment.from_data(part, 3, **own).flow.prior.mode_std
    torch.testing.assert_close(wrapped.augment.flow.prior.mode_std, by_hand, rtol=1e-3, atol=1e-4)


def test_the_log_says_what_the_modes_are_of(train, monkeypatch, caplog):
    monkeypatch.setattr(timm_fit, "LATENTS_POOLED", 8)
    with caplog.at_level("INFO"):
        train(*FLAGS, "--nfa-size", 32)
    assert "modes of latents at 32 px, of all images together from 32 of 60 images" in caplog.text


def test_the_size_is_that_of_the_images_from_64_to_112(toy_images):
    assert augment_from_args(parsed(*FLAGS)).size == 112
    for given, size in ({"img_size": 100}, 100), ({"input_size": [3, 40, 99]}, 64), ({}, 64):
        args = argparse.Namespace(**vars(parsed(*FLAGS)), **given)
        assert augment_from_args(args, (3, 32, 32)).size == size
    args = parsed(*FLAGS)
    args.nfa_autoencoder = Small()  # from Python
    loader = nfa.wrap_loader([(torch.rand(4, 3, 90, 80), torch.zeros(4))], args)
    assert loader.augment.size == 80 and args.nfa_autoencoder is not loader.augment.autoencoder


def test_an_autoencoder_is_looked_for_on_the_device_of_the_batches():
    there, cpu = torch.device("meta"), torch.device("cpu")
    assert _is_on(Autoencoder(Small()), cpu) and not _is_on(Autoencoder(Small()), there)
    data = [(torch.rand(8, 3, 32, 32),)]
    augment = nfa.NFAugment.from_data(data, autoencoder=Small(), size=32, modes=2)
    assert _on_device(augment, "cpu") is augment
    away = copy.deepcopy(augment.autoencoder).to("meta")
    augment.change.autoencoder = vars(augment)["_modules"]["autoencoder"] = away
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta"):
        _on_device(augment, "cpu")  # which tries to bring it, though the flow is there


def test_a_saved_flow_brings_its_autoencoder_or_has_it_passed(toy_images, saved, by_name):
    loader = [(toy_images[0], toy_images[1])]
    named = nfa.wrap_loader(loader, parsed("--aug", "nfa", "--nfa-flow", by_name))
    assert named.augment.size == 64 and named.augment.autoencoder.factor == 8
    flags = ["--aug", "nfa-s1-p1", "--nfa-flow", saved]
    with pytest.raises(NFAError, match="small_autoencoder.py:load, which is not saved.*--nfa-auto"):
        augment_from_args(parsed(*flags))
    own = nfa.wrap_loader(loader, parsed(*flags, "--nfa-autoencoder", OWN, "--nfa-size", 48))
    assert own.augment.size == 48 and own.augment.labels == "given"
    ((moved, _),) = own
    assert (moved != toy_images[0]).flatten(1).any(1).all()


def test_a_deep_flow_over_latents_is_fitted_to_other_images(toy_images, tmp_path):
    autoencoder = load_autoencoder(OWN)
    torch.manual_seed(0)
    latent = {"autoencoder": OWN, "sha256": autoencoder.digest(), "size": 32, "mean": [0.1] * 4, "std": [2.0] * 4}  # fmt: skip
    flow = nfa.create_flow("conv_latent", input_size=(4, 8, 8), num_classes=2, depth=1, hidden=8, latent=latent)  # fmt: skip
    folder = flow.save_pretrained(tmp_path / "deep")
    flags = [*FLAGS, "--nfa-flow", folder, "--nfa-fit"]
    loader = nfa.wrap_loader([toy_images], parsed(*flags))
    found = loader.augment.flow.prior
    assert found.num_classes == 1 and (found.mode_std > 0).sum() == 4
    z = autoencoder.encode(toy_images[0].float() / 128 - 255 / 256)
    codes, _ = flow((z - 0.1) / 2)
    torch.testing.assert_close(found.mu[0], codes.mean(0), rtol=1e-3, atol=1e-3)
    ((moved, _),) = loader
    assert (moved != toy_images[0]).flatten(1).any(1).all()


def test_the_string(toy_images, by_name, tmp_path):
    own = {"data": [toy_images], "autoencoder": Small(), "size": 32}
    made = nfa.nf_augment_transform("nfa-s1-k3", **own)
    assert (made.size, made.modes, made.strength) == (32, 3, 1.0)
    named = nfa.nf_augment_transform("nfa-s1", by_name, size=96)
    assert (named.size, named.modes, named.strength) == (96, 4, 1.0)
    again = nfa.nf_augment_transform("nfa", made.flow, autoencoder=made.autoencoder)
    assert again.size == 32
    with pytest.raises(ValueError, match="moves pixels and takes no size=32"):
        nfa.nf_augment_transform("nfa", "conv_p4_tiny.digits", size=32)


ODD = [(1, 1), (7, 300), (3000, 20)]


def test_odd_images_in_the_workers_come_back_as_they_came(by_name):
    augment = nfa.NFAugment.from_pretrained(by_name, strength=2.0)
    for size in ODD:
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
        image = Image.fromarray(noise)
        (moved, label), same = _WorkerDataset([(image, 3)], augment)[0], copy.deepcopy(image)
        assert (moved.size, moved.mode, label) == (size, "RGB", 3) and image == same
        assert moved != image or size == (1, 1)
    grey = Image.new("L", (40, 40))
    for image in (Image.new("CMYK", (40, 40)), Image.new("I;16", (40, 40)), grey):
        with pytest.raises(NFAError):
            _WorkerDataset([(image, 3)], augment)[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nfa-space", "latent"], "--nfa-space latent needs --nfa-autoencoder NAME: a Hub id such"),
        (["--nfa-space", "pixels", *FLAGS[2:]], "--nfa-autoencoder is for --nfa-space latent"),
        (["--nfa-size", 64], "--nfa-size is the side at which latents are made: add --nfa-auto"),
        ([*FLAGS[2:], "--nfa-size", 30], "size must be a multiple of 4 pixels .* got 30; take 32"),
        ([*FLAGS[2:], "--in-chans", 1], "an autoencoder takes images of 3 channels.*to RGB"),
        (["--nfa-autoencoder", "."], r"\. holds no config.json; expected an autoencoder of diffusers"),
        (["--nfa-autoencoder", "taesd"], "no autoencoder 'taesd'; expected a Hub id"),
        (["--nfa-autoencoder", "none.py:load"], "cannot make an autoencoder by none.py:load"),
        (["--nfa-flow", "conv_p4_tiny.digits", *FLAGS[2:]], "moves pixels and takes no autoencoder"),
        (["--nfa-flow", "conv_p4_tiny.digits", "--nfa-space", "latent"], "flow moves pixels, which"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together(train, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        train("--aug", "nfa-k4-p1", *flags)
    assert re.search(f"error: .*{message}", str(ended.value))


def test_without_diffusers_the_extra_is_named(by_name, monkeypatch, capsys, image_folder, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as where it is not installed
    remedy = r"pip install timm_nfaug\[latent\]"
    tiny = str(by_name.parent / "tiny")
    with pytest.raises(ImportError, match=remedy):
        augment_from_args(parsed("--aug", "nfa", "--nfa-autoencoder", tiny))
    for line in (
        ["fit", "--data-dir", image_folder, "--out", tmp_path / "o", "--autoencoder", tiny],
        [
            "preview",
            "--images",
            image_folder / "val",
            "--flow",
            by_name,
            "--out",
            tmp_path / "a.png",
        ],
    ):
        with pytest.raises(SystemExit):
            command.main(list(map(str, line)))
        assert re.search(f"error: .*{remedy}", capsys.readouterr().err)


def test_a_name_on_the_hub_without_a_network(image_folder, tmp_path):
    line = ["fit", "--data-dir", str(image_folder), "--out", "o", "--autoencoder", "nobody/taesd"]
    closed = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "timm_nfaug", *line], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | closed,
    )  # fmt: skip
    assert done.returncode == 2 and "nobody/taesd" in done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def fit_a_share(rank, root):
    """As the process `rank` of two does, which has images of its own."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=2
    )
    g = torch.Generator().manual_seed(rank)
    batch = torch.rand(24 + 6 * rank, 3, 32, 32, generator=g), torch.arange(24 + 6 * rank) % 2
    flags = ["--aug", "nfa-k2-p1-lgiven", *FLAGS[2:], "--nfa-size", 32]
    loader = nfa.wrap_loader([batch], parsed(*flags), num_classes=2)
    torch.save(loader.augment.flow.state_dict(), root / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_share_the_basis_of_a_stream(tmp_path):
    start = torch.multiprocessing.start_processes
    start(fit_a_share, (tmp_path,), nprocs=2, start_method="fork")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert found[0]["network.basis"].any()
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


# -- commands and cards ----------------------------------------------------------------------------


@pytest.fixture
def captions(monkeypatch):
    """What pictures say below, and their columns, and the size of a cell."""
    found, draw = [], pictures.draw_grid

    def seen(rows, columns, names, cell, caption):
        found.append((columns, cell, caption, rows))
        return draw(rows, columns, names, cell, caption)

    monkeypatch.setattr(pictures, "draw_grid", seen)
    return found


def psnr_of(autoencoder, folder, size):
    """Slowly, by levels."""
    files = sorted(folder.rglob("*.png"))
    x = torch.stack([torch.from_numpy(np.array(Image.open(f).resize((size, size)))) for f in files])
    x = x.permute(0, 3, 1, 2).float() / 127.5 - 1
    back = autoencoder.decode(autoencoder.encode(x)).clamp(-1, 1)
    return 10 * np.log10(255**2 / ((x - back) * 127.5).square().mean().item())


def test_pictures_state_what_the_autoencoder_loses(tmp_path, captions, by_name):
    g = np.random.default_rng(0)
    (folder := tmp_path / "images").mkdir()
    for i in range(3):
        small = Image.fromarray(g.integers(0, 256, (5, 5, 3), np.uint8))
        small.resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    out = ["--images", folder, "--out", tmp_path / "a.png", "--count", 3]
    tiny = by_name.parent / "tiny"
    linear = ["--autoencoder", tiny, "--size", 96, "--modes", 2]
    wanted = psnr_of(load_autoencoder(tiny), folder, 96)
    preview(list(map(str, [*out, *linear])))
    preview(list(map(str, [*out, "--flow", by_name, "--size", 96])))
    for columns, cell, caption, rows in captions:
        assert columns[1] == "latent linear, s 0.25" and cell == 160
        assert rows[0][1].size == (96, 96), "at the size of the image"
        assert "of the flow linear over latents of images of 96 px" in caption
        stated = re.search(rf"autoencoder {tiny} alone, at 96 px.* PSNR of (.*) dB", caption)[1]
        assert float(stated) == pytest.approx(wanted, abs=0.06)
    captions.clear()
    preview(list(map(str, [*out, "--flow", by_name, "--interpolate"])))
    preview(list(map(str, [*out, "--flow", by_name, "--samples", "--temperatures", "0.5"])))
    (_, cell, ways, rows), (_, _, samples, drawn) = captions
    assert "at 64 px, gives these images back with a PSNR of" in ways and cell == 160
    flow, own = nfa.NFAugment.from_pretrained(by_name).flow, load_autoencoder(tiny)
    assert len(rows) == 2 and rows[0][0].size == drawn[0][0].size == (64, 64)
    first = torch.from_numpy(np.array(rows[0][0])).permute(2, 0, 1)[None] / 127.5 - 1
    found = [np.array(Image.open(p)) for p in sorted(folder.rglob("*.png"))]
    small = [torch.from_numpy(f).permute(2, 0, 1)[None] / 127.5 - 1 for f in found]
    small = [torch.nn.functional.interpolate(x, (64, 64), mode="bilinear", antialias=True) for x in small]  # fmt: skip
    ends = [own.decode(own.encode(x)).clamp(-1, 1) for x in small]
    assert min(float((first - end).abs().mean()) for end in ends) < 0.02, "the first is one of them"
    assert f"gives latents, which the autoencoder {tiny} decodes to images of 64 px" in samples
    drawn_again = flow.sample(torch.zeros(3).long(), 0.5, 1.0, torch.Generator().manual_seed(0))
    wanted = pictures.to_pil(own.decode(drawn_again)[0])
    assert np.abs(np.asarray(wanted).astype(int) - np.asarray(drawn[0][0])).max() <= 2


def test_fit_saves_what_names_its_autoencoder_and_a_card_that_runs(
    image_folder, by_name, tmp_path, capsys, monkeypatch
):
    tiny, out = by_name.parent / "tiny", tmp_path / "out"
    line = ["fit", "--data-dir", image_folder, "--out", out, "--aug", "nfa-k4", "--space", "latent"]
    command.main(list(map(str, [*line, "--autoencoder", tiny])))
    assert capsys.readouterr().out.endswith(f"or --aug nfa --nfa-flow {out}\n")
    config = json.loads((out / "config.json").read_text())["latent"]
    assert config["autoencoder"] == str(tiny) and config["size"] == 64, "at least"
    monkeypatch.chdir(out)
    found = run_card(text := Path("README.md").read_text())
    assert found["images"].shape == (4, 3, 64, 64) and found["augment"].size == 64
    assert f"| autoencoder | {tiny} |" in text and "| latents | 4 x 8 x 8 |" in text
    command.main(["flows", str(out)])
    assert "4 x 8 x 8, latents of 64 px" in capsys.readouterr().out


def run_card(text: str) -> dict:
    (code,) = re.findall("```python\n(.*?)```", text, re.S)
    exec(code, found := {})
    return found


def test_an_autoencoder_of_ones_own_has_to_be_passed(image_folder, tmp_path, capsys, monkeypatch):
    line = ["fit", "--data-dir", image_folder, "--out", "o", "--aug", "nfa-k4-lgiven"]
    monkeypatch.chdir(tmp_path)
    command.main(list(map(str, [*line, "--autoencoder", OWN, "--size", 32])))
    use = capsys.readouterr().out.split("use it: ")[1]
    made, flags = use.split(", or ")
    assert eval(made, vars(nfa)).size == 32
    assert augment_from_args(parsed(*flags.split())).labels == "given"
    monkeypatch.chdir("o")
    text = Path("README.md").read_text()
    assert run_card(text)["augment"].size == 32 and f"--nfa-autoencoder {OWN}" in text
    assert "not saved here: pass yours" in text


def test_the_card_of_a_flow_over_latents_runs(by_name, tmp_path, monkeypatch):
    latent = nfa.NFAugment.from_pretrained(by_name).flow.config.latent
    monkeypatch.chdir(tmp_path)
    for code_rows in (0, 4):
        own = {"depth": 1, "hidden": 8, "latent": latent, "code_rows": code_rows}
        flow = nfa.create_flow("conv_latent", input_size=(4, 8, 8), num_classes=2, **own)
        flow.config.info["metrics"] = {"nats_per_dim": 1.234}
        flow.save_pretrained("flow")
        monkeypatch.chdir("flow")
        found = run_card(Path("README.md").read_text())
        assert found["z"].shape == (4, (64 + 8 * code_rows) * 4)
        monkeypatch.chdir("..")
    from timm_nfaug.commands.flows import _row, describe

    assert "1.23 nats" in _row(describe("flow"))


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("installed", [True, False])
def test_the_doctor_mentions_it_for_photographs(tmp_path, capsys, monkeypatch, side, installed):
    for i in range(4):
        (tmp_path / "DATA" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "DATA" / "ab"[i % 2] / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    find = doctor.importlib.util.find_spec
    seen = lambda name, *a: find(name, *a) if installed or name != "diffusers" else None
    monkeypatch.setattr(doctor.importlib.util, "find_spec", seen)
    command.main(["doctor", "DATA"])
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("latent ")]
    assert len(lines) == (side == 64 and installed)
    for line in lines:
        words = line.split("train.py ")[1].split()
        args = parsed(*words[words.index("--aug") :])
        assert args.nfa_autoencoder == "madebyollin/taesd" and args.nfa_size == 112


# -- docs/latent.md --------------------------------------------------------------------------------


def test_the_recipes(toy_images, tmp_path, monkeypatch):
    own = run_recipe("latent.md", "own", {})
    assert Autoencoder(own["load"]()).in_bfloat16
    monkeypatch.chdir(tmp_path)
    given = {"loader": [toy_images], "images": toy_images[0][:4], "autoencoder": own["load"]()}
    found = run_recipe("latent.md", "python", given)
    assert found["moved"].shape == (4, 3, 32, 32) and found["by_string"].size == 112
    assert (tmp_path / "my_latents" / "config.json").is_file()


def test_the_loader_keeps_one_copy(toy_images):
    """Batches on the device of the augmentation move neither flow nor autoencoder."""
    loader = nfa.wrap_loader([toy_images] * 2, parsed(*FLAGS, "--nfa-size", 32))
    assert isinstance(loader, NFALoader)
    own = loader.augment.flow, loader.augment.autoencoder
    list(loader)
    assert (loader.augment.flow, loader.augment.autoencoder) == own
