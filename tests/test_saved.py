"""Saved augmentations: their settings come back in Python, launcher, preview and from the Hub; timm-nfaug fit makes them."""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import environment, running_hub
from PIL import Image
from safetensors import safe_open
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

import timm_nfaug as nfa
from timm_nfaug import preview
from timm_nfaug.change import Change
from timm_nfaug.commands import fit
from timm_nfaug.config import SETTINGS, FlowConfig, settings_string
from timm_nfaug.moves import list_moves
from timm_nfaug.spec import parse_config

ROOT = Path(__file__).parents[1]
load = nfa.NFAugment.from_pretrained


def settings_of(augment) -> dict:
    return {name: getattr(augment, name) for name in SETTINGS.values()}


def moved(augment, images, labels=None):
    g = torch.Generator().manual_seed(0)
    out = (
        augment(images, generator=g) if labels is None else augment(images, labels, generator=g)[0]
    )
    return out


@pytest.fixture
def pooled(toy_images):
    return nfa.NFAugment.from_data([toy_images], strength=0.25, modes=4, p=1.0, labels="none")


@pytest.fixture
def saved(pooled, tmp_path):
    return pooled.save_pretrained(tmp_path / "saved")


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list_moves())
def test_settings_come_back_and_move_images_alike(small_flow, toy_images, tmp_path, kind):
    own = {"strength": 0.3, "modes": 3, "p": 0.75, "kind": kind, "labels": "given"}
    augment = nfa.NFAugment(small_flow, **own)
    again = load(augment.save_pretrained(tmp_path))
    assert settings_of(again) == own
    assert torch.equal(moved(again, *toy_images), moved(augment, *toy_images))
    other = load(tmp_path, strength=1.0, labels="posterior")
    assert settings_of(other) == own | {"strength": 1.0, "labels": "posterior"}
    flow = nfa.ConditionalFlow.from_pretrained(tmp_path)
    assert flow.config.augment == own and torch.equal(flow.prior.mu, small_flow.prior.mu)
    assert not small_flow.config.augment, "the flow that was saved stays as it was"


def test_modes_of_all_images_need_no_label_after_loading(pooled, saved, toy_images):
    again = load(saved)
    assert settings_of(again) == settings_of(pooled)
    out = moved(again, toy_images[0])
    assert torch.equal(out, moved(pooled, toy_images[0]))
    assert (out != toy_images[0]).flatten(1).any(1).all()


def test_what_belongs_to_the_loader_is_not_saved(small_flow, tmp_path):
    augment = nfa.NFAugment(
        small_flow, modes=2, mean=[0.5] * 3, std=[0.2] * 3, seed=3, strict=True, labels="given"
    )
    again = load(augment.save_pretrained(tmp_path))
    assert (again.mean, again.std, again.seed, again.strict) == (None, None, None, False)
    assert load(tmp_path, mean=[0.5] * 3, std=[0.2] * 3, seed=3).seed == 3


def test_a_flow_without_settings_is_written_as_before(small_flow, tmp_path):
    values = json.loads((small_flow.save_pretrained(tmp_path) / "config.json").read_text())
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        inside = json.loads(weights.metadata()["config"])
    assert "augment" not in values and "augment" not in inside
    usual = nfa.NFAugment(small_flow, modes=6)
    assert settings_of(load(tmp_path)) == settings_of(usual)


def test_saving_over_a_saved_one_leaves_no_setting_of_it(saved, tmp_path):
    again = load(saved).replace(strength=1.0, modes=2)
    again.save_pretrained(saved)
    assert settings_of(load(saved)) == settings_of(again)
    load(saved).flow.save_pretrained(saved)  # the flow alone keeps what it was loaded with
    assert load(saved).strength == 1.0
    fitted = nfa.NFAugment.to_fit(load(saved).flow, modes=2)
    assert not fitted.flow.config.augment, "other modes are another augmentation"


@pytest.mark.parametrize("half", range(2))
def test_a_save_cut_short_between_its_files_gives_one_whole_augmentation(pooled, tmp_path, half):
    """The weights are written first, and bring the settings along."""
    old, new = pooled.save_pretrained(tmp_path / "old"), pooled.replace(strength=1.0, modes=2)
    new.save_pretrained(tmp_path / "new")
    if half:
        shutil.copy(tmp_path / "new" / "model.safetensors", old)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = load(old)
    assert settings_of(found) == settings_of(new if half else pooled)
    assert [("cut short" in str(w.message)) for w in said] == [True] * half


def _save_for_ever(augment, directory):
    for i in range(10**6):
        with torch.no_grad():
            augment.flow.prior.mu.fill_(i % 1000)
        augment.replace(strength=(i % 1000) / 1000).save_pretrained(directory)


def test_a_killed_save_loses_no_settings(pooled, saved):
    context, seen = multiprocessing.get_context("fork"), set()
    for i in range(6):
        process = context.Process(target=_save_for_ever, args=(pooled, saved), daemon=True)
        process.start()
        time.sleep(0.1 + 0.037 * i)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nfa.NFAWarning)
            found = load(saved)
        if (found.flow.prior.mu == found.flow.prior.mu.flatten()[0]).all():  # else killed too early
            seen.add(found.strength)
            assert found.flow.prior.mu.flatten()[0] == round(found.strength * 1000)
    assert seen


class Shift(Change):
    size, num_classes, noise_size = (3, 8, 8), 1, 1

    def change(self, images, y, noise):
        return noise.view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def test_an_augmentation_without_a_flow_says_what_to_save(tmp_path):
    own = nfa.NFAugment.from_change(Shift())
    for save in (own.save_pretrained, own.push_to_hub):
        with pytest.raises(TypeError, match="with a flow can be saved.* has a Shift: save the arg"):
            save(str(tmp_path / "own"))
    assert not (tmp_path / "own").exists()


# -- the field -------------------------------------------------------------------------------------

BAD = {
    "unknown": ({"strenght": 1}, "unknown key 'strenght' in augment.*'strength'"),
    "no dict": ([1], "augment must be a dict"),
    "text": ({"strength": "0.5"}, "augment.strength must be a number from 0"),
    "negative": ({"strength": -1}, "augment.strength must be a number from 0"),
    "NaN": ({"strength": float("nan")}, "augment.strength must be finite"),
    "float modes": ({"modes": 2.0}, "augment.modes must be an integer from 1"),
    "no modes": ({"modes": 0}, "augment.modes must be an integer from 1"),
    "truth": ({"modes": True}, "augment.modes must be an integer from 1"),
    "p": ({"p": 1.5}, "augment.p must be a number from 0 to 1"),
    "kind": ({"kind": "p`\n"}, "augment.kind must be a name of letters"),
    "labels": ({"labels": "mine"}, "augment.labels must be one of given, posterior, none"),
    "list": ({"labels": ["none"]}, "augment.labels must be one of given, posterior, none"),
    "seed": ({"seed": 3}, "unknown key 'seed' in augment"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_settings_are_named(case):
    augment, match = BAD[case]
    with pytest.raises(ValueError, match=match):
        FlowConfig("linear", (3, 8, 8), 2, augment=augment)


def test_settings_of_another_program_leave_the_flow_usable(saved):
    """A kind that is registered there alone; more modes than are stored."""
    values = json.loads((saved / "config.json").read_text())
    for own, match in (({"kind": "theirs"}, "kind must be one of"), ({"modes": 9}, "stores 4 pri")):
        flow = nfa.ConditionalFlow.from_pretrained(saved)
        flow.config.augment = values["augment"] | own
        flow.save_pretrained(saved)
        with pytest.raises(ValueError, match=match):
            load(saved)
        assert load(saved, kind="pca", modes=2).modes == 2


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.5, 1.0, 1e-7, 1 / 3, 123456.0])
def test_the_string_on_a_card_is_read_as_these_settings(strength):
    own = {"strength": strength, "modes": 7, "p": 0.25, "kind": "axes", "labels": "posterior"}
    assert parse_config(settings_string(own)) == own
    assert settings_string({}) == "nfa"


# -- who takes them --------------------------------------------------------------------------------


def flags(*given):
    nfa.add_args(parser := argparse.ArgumentParser())
    return parser.parse_args([str(v) for v in given])


def test_the_string_wins_over_what_was_saved(saved):
    for text, own in (("nfa", {}), ("nfa-s1-k2", {"strength": 1.0, "modes": 2}), ("nfa-p0.5", {"p": 0.5})):  # fmt: skip
        wanted = settings_of(load(saved)) | own
        assert settings_of(nfa.nf_augment_transform(text, str(saved))) == wanted
        loader = [(torch.rand(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64))]
        wrapped = nfa.wrap_loader(loader, flags("--aug", text, "--nfa-flow", saved))
        assert settings_of(wrapped.augment) == wanted


def test_the_launcher_needs_no_fit_of_a_saved_augmentation(run_script, saved, tmp_path, capsys):
    """And moves the images as the augmentation says, without a look at others."""
    run_script("--aug", "nfa", "--nfa-flow", saved)
    said = capsys.readouterr().err
    assert "s 0.25, k 4, p 1, m pca, place batch, labels none" in said
    run_script("--aug", "nfa-s0.25-k4-p1-lnone", "--nfa-flow", saved, name="named")
    run_script("--aug", "nfa-s0", "--nfa-flow", saved, name="still")
    images = [torch.load(tmp_path / n / "seen.pt")["train"] for n in ("run", "named", "still")]
    first, named, still = (torch.cat([x for x, _ in batches]) for batches in images)
    assert torch.equal(first, named) and (first != still).flatten(1).any(1).all()


def test_a_fit_to_other_data_keeps_the_settings(run_script, saved, capsys):
    run_script("--aug", "nfa-k2", "--nfa-flow", saved, "--nfa-fit")
    assert "s 0.25, k 2, p 1, m pca, place batch, labels none" in capsys.readouterr().err


def test_the_preview_draws_what_was_saved(pooled, saved, image_folder, tmp_path):
    draw = ["--images", str(image_folder / "val"), "--count", "3", "--out"]
    for name, own in (
        ("saved", []),
        ("named", ["--strengths", "0.125", "0.25", "0.5", "--modes", "4", "--kind", "pca"]),
        ("other", ["--modes", "2"]),
    ):
        preview.main(["--flow", str(saved), *draw, str(tmp_path / f"{name}.png"), *own])
    pictures = [np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("saved", "named", "other")]
    assert np.array_equal(*pictures[:2]) and not np.array_equal(pictures[0], pictures[2])


# -- cards and the Hub -----------------------------------------------------------------------------


def run_card(text: str) -> dict:
    (code,) = re.findall("```python\n(.*?)```", text, re.S)
    found: dict = {}
    exec(code, found)
    return found


@pytest.mark.parametrize("labels", ["none", "given", "posterior"])
def test_the_code_of_a_card_runs_beside_it(toy_images, tmp_path, monkeypatch, labels):
    own = nfa.NFAugment.from_data([toy_images], 3, modes=4, p=1.0, labels=labels)
    folder = own.save_pretrained(tmp_path / 'my "flow"', name="Mine")
    monkeypatch.chdir(folder)
    text = Path("README.md").read_text()
    found = run_card(text)
    assert settings_of(found["augment"]) == settings_of(own)
    assert found["images"].shape == (4, 3, 32, 32) and found["images"].dtype == torch.uint8
    assert f"| settings | `nfa-s0.5-k4-p1-mpca-l{labels}` |" in text and "\n# Mine\n" in text
    (line,) = re.findall("```bash\n(.*)\n```", text)
    (values,) = [flags(*line.split()[line.split().index("--aug") :])]
    assert settings_of(nfa.nf_augment_transform(values.aug, values.nfa_flow)) == settings_of(own)


def test_a_card_states_no_figures_of_the_flow_with_other_modes(tmp_path):
    flow = nfa.ConditionalFlow.from_pretrained("conv_p4_tiny.digits")
    assert "class accuracy" in (flow.save_pretrained(tmp_path) / "README.md").read_text()
    text = (load("conv_p4_tiny.digits").save_pretrained(tmp_path) / "README.md").read_text()
    assert "class accuracy" not in text and "digits" in text


def test_a_picture_goes_beside_the_card_and_along(pooled, tmp_path):
    plain = pooled.save_pretrained(tmp_path / "plain")
    assert "preview.png" not in (plain / "README.md").read_text()
    picture = Image.new("RGB", (8, 6), "red")
    shown = pooled.save_pretrained(tmp_path / "shown", preview=picture)
    assert "](preview.png)" in (shown / "README.md").read_text()
    again = pooled.save_pretrained(tmp_path / "again", preview=shown / "preview.png")
    assert Image.open(again / "preview.png").getpixel((0, 0)) == (255, 0, 0)


CLIENT = """
import re, sys
import timm_nfaug as nfa

load = nfa.NFAugment.from_pretrained
fitted = load(sys.argv[1])
print(fitted.push_to_hub("org/mine"))
print(fitted.replace(strength=0.75).push_to_hub("org/mine", revision="v2", commit_message="more"))
for name in ("org/mine", "hf-hub:org/mine@v2"):
    print(load(name).strength, load(name, p=0.5).p, nfa.nf_augment_transform("nfa-k2", name))
for branch in ("main", "v2"):
    card = sys.stdin.readline().encode().decode("unicode_escape")
    exec(re.findall("```python\\n(.*?)```", card, re.S)[0])
    print(augment.strength, tuple(images.shape))
"""


def test_an_upload_brings_settings_card_and_picture(pooled, tmp_path):
    folder = pooled.save_pretrained(tmp_path / "own", preview=Image.new("RGB", (8, 6), "red"))
    with running_hub() as server:
        env = environment(server.url, tmp_path / "home", HF_TOKEN="hf_test", PYTHONUNBUFFERED="1")
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(folder)], env=env, cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        lines = [client.stdout.readline().strip() for _ in range(4)]
        files = [server.commits[sha] for sha in server.repos.get("org/mine", {}).values()]
        cards = [f["README.md"].decode() for f in files if f]
        out, err = client.communicate(
            "".join(c.encode("unicode_escape").decode() + "\n" for c in cards), timeout=120
        )
        assert client.returncode == 0, err
    assert [name in line for name, line in zip(("mine/commit", "mine/commit"), lines)] == [True] * 2
    usual = "NFAugment(flow=linear, strength={}, modes=2, p=1, kind=pca, labels=none)"
    assert lines[2] == f"0.25 0.5 {usual.format(0.25)}"
    assert lines[3] == f"0.75 0.5 {usual.format(0.75)}"
    assert out.split("\n")[:2] == ["0.25 (4, 3, 32, 32)", "0.75 (4, 3, 32, 32)"]
    main = files[0]
    assert sorted(main) == ["README.md", "config.json", "model.safetensors", "preview.png"]
    assert main["preview.png"] == (folder / "preview.png").read_bytes()
    assert "](preview.png)" in cards[0] and "](preview.png)" not in cards[1]
    assert 'from_pretrained("org/mine@v2")' in cards[1] and "--nfa-flow org/mine@v2" in cards[1]
    assert server.messages == ["Upload augmentation", "more"]


# -- timm-nfaug fit --------------------------------------------------------------------------------


def run_fit(data, out, *more):
    fit.main(["--data-dir", str(data), "--out", str(out), *map(str, more)])


def test_fit_saves_what_a_training_on_the_data_would_use(
    image_folder, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    run_fit(image_folder, out, "--aug", "nfa-s0.25-k4-p1-lnone")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"saved {out}: nfa-s0.25-k4-p1-mpca-lnone, modes of 60 images of ")
    assert second == f'use it: NFAugment.from_pretrained("{out}"), or --aug nfa --nfa-flow {out}'
    augment = eval(second.split("use it: ")[1].split(", or")[0], vars(nfa))
    loader = DataLoader(ImageFolder(image_folder / "train", pil_to_tensor), 60)
    wanted = nfa.NFAugment.from_data(loader, modes=4, labels="none").flow.prior
    assert torch.equal(augment.flow.prior.modes, wanted.modes)
    assert augment.flow.config.info == {"data": image_folder.name, "images": 60, "classes": 3}
    monkeypatch.chdir(out)
    card = Path("README.md").read_text()
    assert f"| data | {image_folder.name}; 3 classes; modes of 60 images |" in card
    assert "](preview.png)" in card and settings_of(run_card(card)["augment"]) == settings_of(
        augment
    )
    cells = np.asarray(Image.open("preview.png").convert("RGB")).astype(int)
    rows = [cells[26:122, cells.shape[1] - 100 * j :][:, :96] for j in range(7, 0, -1)]
    off = [np.abs(cell - rows[0]).mean() for cell in rows[1:]]
    assert 0 < off[0] < off[2] < off[4], "the columns grow in strength"


def test_fit_finds_classes_their_names_and_the_side(image_folder, tmp_path):
    run_fit(
        image_folder / "train", tmp_path, "--aug", "nfa-k3-lgiven", "--size", "16", "--name", "Mine"
    )
    augment = load(tmp_path)
    assert augment.change.size == (3, 16, 16) and augment.flow.config.class_names == ["a", "b", "c"]
    assert augment.flow.config.info["data"] == image_folder.name, "not train"
    assert "\n# Mine\n" in (tmp_path / "README.md").read_text()


def test_fit_of_a_deep_flow_says_whose_network_it_is(small_flow, image_folder, tmp_path):
    small_flow.config.info = {
        "data": "toys",
        "license": "mit",
        "metrics": {"n": 1.0},
        "training": "x",
    }
    own = nfa.NFAugment(small_flow, strength=0.3, modes=2, labels="given")
    flow, out = own.save_pretrained(tmp_path / "own"), tmp_path / "out"
    for given in (flow, out):  # and again, from what was fitted
        run_fit(image_folder, out, "--flow", given, "--aug", "nfa-k4")
        found = load(out)
        assert settings_of(found) == settings_of(own) | {"modes": 4}
        assert found.flow.config.info == {
            "license": "mit", "network": "toys", "data": image_folder.name, "images": 60, "classes": 3,
        }  # fmt: skip
    weights = [f.network.state_dict()["layers.3.weight"] for f in (found.flow, small_flow)]
    assert torch.equal(*weights)
    assert "| network trained on | toys |" in (out / "README.md").read_text()


def test_fit_takes_a_tar_file_and_a_dataset_of_timm(image_folder, tmp_path):
    with tarfile.open(tmp_path / "mine.tar", "w") as tar:
        tar.add(image_folder / "train", "mine")
    for data, more, name in (
        (tmp_path / "mine.tar", [], "mine"),
        (image_folder, ["--dataset", "torch/image_folder"], "torch/image_folder"),
    ):
        run_fit(data, tmp_path / "out", "--aug", "nfa-k4-lgiven", *more)
        info = load(tmp_path / "out").flow.config.info
        assert info == {"data": name, "images": 60, "classes": 3}


REFUSED = {
    "no folder": ({"--data-dir": "nowhere"}, "no directory nowhere"),
    "no images": ({"--data-dir": "empty"}, "Found 0 images"),
    "damaged": ({"--data-dir": "damaged"}, "cannot read damaged/a/0.png"),
    "string": ({"--aug": "nfa-z1"}, "unknown key 'z'"),
    "flow": ({"--flow": "nope"}, "no flow named 'nope'"),
    "size": ({"--flow": "conv_p4_tiny.digits", "--size": "32"}, "--size is for --flow linear"),
    "side": ({"--size": "-1"}, "input_size must be three positive integers"),
    "dataset": ({"--dataset": "torch/nope"}, "Unknown torchvision dataset nope"),
    "a file": ({"--out": "file"}, "--out file is a file; name a directory"),
    "a class": ({"--out": "data/train/out"}, "lies in the data"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_fit_refuses_in_one_line_and_writes_nothing(
    case, image_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(image_folder)
    Path("file").touch()
    Path("empty").mkdir()
    Path("damaged/a").mkdir(parents=True)
    Path("damaged/a/0.png").write_bytes(b"no picture")
    given, match = REFUSED[case]
    before = sorted(tmp_path.rglob("*")), sorted(image_folder.rglob("*"))
    values = {"--data-dir": "data", "--out": "out", **given}
    with pytest.raises(SystemExit) as e:
        fit.main([part for pair in values.items() for part in pair])
    said = capsys.readouterr()
    assert e.value.code == 2 and not said.out and said.err.count("\n") == 1, said
    assert said.err.startswith("error: ") and match in said.err
    assert (sorted(tmp_path.rglob("*")), sorted(image_folder.rglob("*"))) == before


def test_a_bundled_flow_brings_its_defaults():
    flow = nfa.ConditionalFlow.from_pretrained("conv_p4_tiny.digits")
    wanted = nfa.NFAugment(flow, modes=min(32, flow.prior.num_modes))
    assert settings_of(load("conv_p4_tiny.digits")) == settings_of(wanted)


def test_a_fit_to_images_that_are_the_same_saves_nothing(tmp_path, capsys):
    for i in range(3):
        path = tmp_path / "my data" / "a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (9, 99, 9)).save(path)
    with pytest.raises(SystemExit) as e:
        fit.main(["--data-dir", str(tmp_path / "my data"), "--out", str(tmp_path / "my out")])
    assert e.value.code == 2 and not (tmp_path / "my out").exists()
    assert "nothing to save: the images have no modes" in capsys.readouterr().err


@pytest.mark.parametrize("ends", [(0.0, 4095.0), ((0.0, 10.0), (100.0, 4095.0))])
def test_the_range_that_modes_are_in_units_of_is_saved(ends, tmp_path):
    x = torch.randint(10, 100, (40, 2, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    augment = nfa.NFAugment.from_data([(x, None)], value_range=ends, modes=4, p=1.0, strength=1.0)
    again = nfa.NFAugment.from_pretrained(augment.save_pretrained(tmp_path))
    assert again.value_range == augment.value_range == ends
    g = lambda: torch.Generator().manual_seed(0)
    assert torch.equal(again(x, generator=g()), augment(x, generator=g()))
    assert nfa.NFAugment.from_pretrained(tmp_path, value_range=(0, 9)).value_range == (0.0, 9.0)
    other = nfa.NFAugment.from_pretrained(tmp_path, mean=[0.5] * 2, std=[0.5] * 2)
    assert other.value_range is None and again.replace(mean=[0.5] * 2, std=[0.5] * 2).std
    FlowConfig.from_dict(
        json.loads((tmp_path / "config.json").read_text()) | {"weights_sha256": ""}
    )


def test_wrap_loader_keeps_the_range_that_was_saved(tmp_path):
    x = torch.randint(0, 4096, (16, 2, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    loader = DataLoader([(image, 0) for image in x], 16)
    augment = nfa.NFAugment.from_data(loader, value_range=(0, 4095), modes=4)
    nfa.add_args(parser := argparse.ArgumentParser())
    flow = str(augment.save_pretrained(tmp_path))
    args = parser.parse_args(["--aug", "nfa-s1-p1", "--nfa-flow", flow])
    (moved, _), *_ = nfa.wrap_loader(loader, args)
    assert (moved != x).flatten(1).any(1).all() and moved.max() > 1
