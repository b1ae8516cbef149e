"""train_flow's settings and datasets: what is read, what is refused, and how images are split."""

import dataclasses
import hashlib
import math
import os
import pickle
import re
import shutil
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from timm_nfaug import NFAWarning
from train_flow.__main__ import main
from train_flow.config import BOUNDS, TrainConfig, list_configs, load_config
from train_flow.data import load_data, load_folder, random_shift, stratified_split
from train_flow.trainer import Trainer

# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_configs())
def test_shipped_configs_load_and_claim_no_data(name):
    assert load_config(name).data_name == "", "it would stand in the card of a flow of other data"


def test_overrides(tmp_path):
    path = tmp_path / "mine.yaml"
    # YAML reads 1e-3 as a string
    path.write_text("data: digits\nlr: 1e-3\nprior: {num_modes: 8, a: 1.0}\n")
    config = load_config(
        path,
        [
            "prior.num_modes=16",
            "network.depth=2",
            "steps=5",
            "epochs=2",
            "flip=false",
            "kld_weight=[[0, 1], [1, 2]]",
        ],
    )
    assert (
        config.lr == 0.001
        and config.prior == {"num_modes": 16, "a": 1.0}
        and config.network == {"depth": 2}
    )
    assert config.steps == 5 and config.flip is False and config.kld_weight == [[0, 1], [1, 2]]
    assert isinstance(config.epochs, float)
    config = load_config(
        path,
        [
            "gaussian_lr=[[0, 1e-2], [1, 1e-3]]",
            "network={clamp: 6e-1}",
            "prior.c=1e-1",
            "snapshots=[1e1]",
        ],
    )
    assert config.snapshots == [10] and config.gaussian_lr == [[0, 0.01], [1, 0.001]]
    assert config.network == {"clamp": 0.6} and config.prior["c"] == 0.1
    assert TrainConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    "override, match",
    [
        ("learning_rate=1", "unknown key 'learning_rate'.*"),
        ("batch_sise=1", "unknown key 'batch_sise'.*did you mean 'batch_size'"),
        ("lr=fast", "lr must be float, got 'fast'"),
        ("steps=1.5", "steps must be int, got 1.5"),
        ("steps=true", "steps must be int, got True"),
        ("steps=.inf", "steps must be int, got inf"),
        ("flip=1", "flip must be bool, got 1"),
        ("flow=3", "flow must be str, got 3"),
        ("prior=3", "prior must be dict.*, got 3"),
        ("objective=gle", "objective must be one of glem.*did you mean 'glem'"),
        ("data=folder", "image_size is required"),
        ("image_size=16", "images of digits are 8 pixels wide, got image_size 16"),
        ("in_chans=2", "in_chans must be 1 or 3"),  # two channels would be the grey one twice
        ("code_rows=8", "code_rows goes with objective: ce"),
        ("lr_floor=0.2", "lr_floor must be at most lr, got 0.2 and 0.1"),
        ("snapshots=[0]", r"snapshots must be steps, integers of at least 1, got \[0\]"),
        ("snapshots=[true]", r"snapshots must be steps, integers of at least 1, got \[True\]"),
        ("network={1: 2}", "network must be dict.*, got {1: 2}"),
        ("prior=&a {x: *a}", "prior is nested too deeply"),
        (f"prior={'[' * 2000}", "is not valid YAML"),
        ("data_name=2001-99-99", "is not valid YAML: month must be in 1..12"),
        (f"lr={'9' * 400}", "lr must be in|lr must be float"),
        ("gaussian_lr=[]", r"gaussian_lr must be \[fraction, value\] pairs .* e.g. .*; got \[\]"),
        ("gaussian_lr=[0.01]", r"gaussian_lr must be \[fraction, value\] pairs .* got \[0.01\]"),
        ("kld_weight=[[0, 1, 2]]", r"kld_weight must be .* got \[\[0, 1, 2\]\]"),
        ("kld_weight=[[0, much]]", "kld_weight must be .* got .*much"),
        ("kld_weight=[[0, .nan]]", "kld_weight must be .* got .*nan"),
        (
            "kld_weight=[[0.5, 1], [0.2, 1]]",
            r"in \[0, 1\] that do not fall.* got \[\[0.5, 1\], \[0.2, 1\]\]",
        ),
        ("kld_weight=[[0, 1], [2, 1]]", r"in \[0, 1\] that do not fall"),
        (
            "gaussian_lr=[[0, 0.1], [1, 0]]",
            r"values of gaussian_lr must be above 0.* got \[\[0, 0.1\], \[1, 0\]\]",
        ),
        ("kld_weight=[[0, -1]]", r"values of kld_weight must be at least 0.* got \[\[0, -1\]\]"),
        ("steps", "--set takes key=value, got 'steps'"),
        ("lr.x=1", "lr"),
        ("steps=[1", r"steps=\[1"),
    ],
)
def test_wrong_settings_are_refused(override, match):
    with pytest.raises(ValueError, match=match):
        load_config("conv_p4_tiny.digits", ["lr=0.1", override])


NUMBERS = [
    f for f in dataclasses.fields(TrainConfig) if str(f.type) in ("int", "float", "int | None")
]


def test_every_number_has_bounds():
    assert {f.name for f in NUMBERS} - set(BOUNDS) == {"in_chans"}  # 1 or 3


@pytest.mark.parametrize("name, bounds", BOUNDS.items())
def test_numbers_out_of_bounds_are_refused_with_the_bounds(name, bounds):
    """From YAML, from --set and from Python: the ends of each interval, NaN, infinity, and another type."""
    low, high = map(float, bounds[1:-1].split(", "))
    whole = "int" in str(next(f.type for f in NUMBERS if f.name == name))
    wrong = [low - 1, -math.inf] + ([low] if bounds[0] == "(" else [])
    wrong += [math.inf, math.nan] if not whole else []
    wrong += [] if high == math.inf else [high * 2] + ([high] if bounds[-1] == ")" else [])
    for value in wrong:
        value = int(value) if whole and math.isfinite(value) else value
        kind = f"{name} must be int" if whole and not isinstance(value, int) else ""
        expected = kind or f"{name} must be in {bounds}, got {value!r}"
        with pytest.raises(ValueError, match=re.escape(expected)):
            TrainConfig(**{"image_size": 32, name: value})
        text = (
            str(value)
            if math.isfinite(value)
            else {"inf": ".inf", "-inf": "-.inf"}.get(str(value), ".nan")
        )
        with pytest.raises(ValueError, match=re.escape(expected)):
            load_config("linear.cifar10", [f"{name}={text}"])
    for value in ("many", True, [1], {}, b"3", torch.ones(1)):
        with pytest.raises(ValueError, match=f"{name} must be (int|float)"):
            TrainConfig(**{"image_size": 32, name: value})


def test_settings_of_another_type_are_refused_in_python():
    for name, value in (
        ("flow", 3), ("prior", []), ("prior", {1: 2}), ("flip", 1), ("snapshots", {}),
        ("kld_weight", 5.0), ("gaussian_lr", "x"), ("data_name", None), ("objective", ["ml"]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} must be "):
            TrainConfig(**{"image_size": 32, name: value})


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="shift goes with discriminative above 0"):
        TrainConfig(image_size=32, shift=4)
    with pytest.raises(ValueError, match="objective: ce has one Gaussian"):
        TrainConfig(image_size=32, objective="ce", discriminative=0.1)
    with pytest.raises(ValueError, match="labels: false goes with .* got objective glem"):
        TrainConfig(image_size=32, labels=False)
    with pytest.raises(ValueError, match="labels: false goes with .* discriminative 0.1"):
        TrainConfig(image_size=32, labels=False, objective="joint", discriminative=0.1)
    with pytest.raises(
        ValueError, match="modes_every goes with objective joint and prior.low_rank=true, got glem"
    ):
        TrainConfig(image_size=32, modes_every=100)
    with pytest.raises(
        ValueError, match="modes_every goes with .* got joint and prior {'num_modes': 4}"
    ):
        TrainConfig(image_size=32, modes_every=100, objective="joint", prior={"num_modes": 4})


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="no config 'conv_p4_tiny.digit'.*did you mean 'conv_p4_tiny.digits'"
    ):
        load_config("conv_p4_tiny.digit")
    path = tmp_path / "list.yaml"
    path.write_text("- lr")
    with pytest.raises(ValueError, match="must hold key: value lines, got a list"):
        load_config(path)
    for text in (b"lr: [1", b"lr: \xff\xfe\xfd", b"[" * 5000, b"lr: 2001-99-99"):
        path.write_bytes(text)
        with pytest.raises(ValueError, match="list.yaml is not valid YAML"):
            load_config(path)
    path.write_text("1: 2")
    with pytest.raises(ValueError, match="unknown key '1' in config list.yaml"):
        load_config(path)


# -- folders -----------------------------------------------------------------------------------------------------------


def test_folder_is_read_as_it_is(image_folder, toy_images):
    train, val = load_data("folder", image_folder, image_size=32)
    assert torch.equal(train.levels, toy_images[0]) and torch.equal(train.labels, toy_images[1])
    assert train.class_names == val.class_names == ["a", "b", "c"] and len(val) == 24
    # class folders directly
    train, val = load_data("folder", image_folder / "train", image_size=32)
    assert torch.equal(train.levels, toy_images[0]) and val is None


def test_classes_of_one_image_are_not_split(tmp_path, image_folder):
    for k in "abc":
        (tmp_path / "train" / k).mkdir(parents=True)
        shutil.copy(next((image_folder / "train" / k).iterdir()), tmp_path / "train" / k)
    with pytest.raises(
        ValueError, match="val_fraction 0.5 holds out no image, as every class has one alone"
    ):
        load_data("folder", tmp_path, 32, val_fraction=0.5)
    train, _ = load_data("folder", tmp_path, 32)
    with pytest.raises(
        ValueError, match="gaussian_fraction takes no image, as every class has one alone"
    ):
        Trainer(TrainConfig(image_size=32, batch_size=2), train, None, tmp_path / "out")


def test_val_fraction_replaces_the_validation_split(image_folder):
    train, val = load_data("folder", image_folder, image_size=32, val_fraction=0.25)
    assert len(train) == 45 and torch.bincount(val.labels).tolist() == [5, 5, 5]
    assert not any(torch.equal(v, t) for v in val.levels for t in train.levels)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_images_of_any_mode_and_size_are_brought_to_one(tmp_path, in_chans):
    """The classes are the modes of PIL; each image is white, wide, and with a black bar that the crop cuts off."""
    modes = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"]
    for mode in modes:
        image = np.full((40, 100), 255, dtype=np.uint8)
        image[:, :20] = 0
        path = tmp_path / mode / ("x.tif" if mode == "CMYK" else "x.png")
        path.parent.mkdir()
        Image.fromarray(image).convert(mode).save(path)
    data = load_folder(tmp_path, 20, in_chans)
    assert data.levels.shape == (len(modes), in_chans, 20, 20)
    assert (data.levels == 255).all()


def damage(path, how: str) -> None:
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"not an image", "truncated": whole[: len(whole) // 2]}[how]
    )


@pytest.mark.parametrize("how", ["empty", "text", "truncated"])
def test_an_unreadable_image_is_named_and_refused_or_skipped(tmp_path, image_folder, how, caplog):
    root = tmp_path / "train"
    shutil.copytree(image_folder / "train", root)
    bad = root / "b" / "025.png"
    damage(bad, how)
    with pytest.raises(
        ValueError,
        match=r"1 of 60 images cannot be read, first: cannot read .*b/025\.png: .*skip_unreadable",
    ):
        load_folder(root, 32)
    caplog.clear()
    data = load_folder(root, 32, skip_unreadable=True)
    assert torch.bincount(data.labels).tolist() == [20, 19, 20]
    assert str(bad) in caplog.text


@pytest.mark.parametrize("dtype, mode", [(np.uint16, "I;16"), (np.int32, "I"), (np.float32, "F")])
def test_an_image_of_more_than_8_bits_is_refused_or_skipped(tmp_path, dtype, mode):
    (tmp_path / "a").mkdir()
    levels = np.linspace(0, 60000, 64).reshape(8, 8)
    Image.fromarray(levels.astype(dtype)).save(tmp_path / "a" / "0.tif")
    Image.fromarray((levels / 256).astype(np.uint8)).save(tmp_path / "a" / "1.tif")
    with pytest.raises(
        ValueError,
        match=rf"a/0\.tif: mode {mode} has more than 8 bits a channel; convert it to 8 bits first",
    ):
        load_folder(tmp_path, 8)
    data = load_folder(tmp_path, 8, in_chans=1, skip_unreadable=True)
    assert len(data) == 1 and np.array_equal(
        data.levels[0, 0].numpy(), (levels / 256).astype(np.uint8)
    )


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the TIFF reader
def test_damaged_bytes_never_end_in_a_traceback(tmp_path, toy_images):
    """Files with a few random bytes overwritten: each is read or named, whatever its decoder raises."""
    rng = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    image = Image.fromarray(toy_images[0][0].permute(1, 2, 0).numpy())
    for i in range(90):
        path = tmp_path / "a" / f"{i:03d}.{('png', 'jpg', 'tif')[i % 3]}"
        image.save(path)
        data = bytearray(path.read_bytes())
        for j in rng.integers(0, min(len(data), 200) if i % 2 else len(data), size=4):
            data[j] = rng.integers(0, 256)
        path.write_bytes(data)
    image.save(tmp_path / "a" / "whole.png")
    data = load_folder(tmp_path, 32, skip_unreadable=True)
    assert 1 < len(data) < 70  # PNGs have checksums; a JPEG or TIFF often shows the damage instead
    assert torch.equal(data.levels[-1], toy_images[0][0])


def png_of(width: int, height: int) -> bytes:
    """A black picture of any size in a small file."""
    chunk = lambda kind, data: (
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    )
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_and_a_huge_image_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bomb.png").write_bytes(png_of(20_000, 20_000))
    with pytest.raises(ValueError, match=r"first: cannot read .*a/bomb\.png: .*decompression bomb"):
        load_folder(tmp_path, 32)
    (tmp_path / "a" / "bomb.png").unlink()
    (tmp_path / "a" / "large.png").write_bytes(png_of(9_500, 9_500))
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.warns(NFAWarning, match=r"a/large\.png has 9500 x 9500 pixels; a smaller copy"),
    ):
        assert (load_folder(tmp_path, 32).levels == 0).all()


def test_the_data_is_called_after_its_folder(tmp_path, image_folder, monkeypatch):
    """Not train, and not what a shipped config was made for; through subsets and devices."""
    shutil.copytree(image_folder, tmp_path / "own37")
    for place, given in (("own37", "."), ("own37", "train"), ("own37/train", ".."), (".", "own37")):
        monkeypatch.chdir(tmp_path / place)
        train, _ = load_data("folder", given, 32)
        assert train.name == "own37", given
        kept = train.subset(torch.arange(3)).to(torch.device("cpu")).without_labels()
        assert kept.name == "own37" and kept.class_names == ["image"]
    odd = os.fsencode(tmp_path) + b"/caf\xe9"  # Latin-1, which no card in UTF-8 can hold
    shutil.copytree(os.fsencode(image_folder), odd)
    assert load_data("folder", os.fsdecode(odd), 32)[0].name == "caf\ufffd"


def test_a_class_that_lost_all_its_images_is_refused(tmp_path, image_folder):
    shutil.copytree(image_folder / "train", tmp_path / "train")
    for path in (tmp_path / "train" / "b").iterdir():
        damage(path, "empty")
    with pytest.raises(ValueError, match=r"train/b"):
        load_folder(tmp_path / "train", 32, skip_unreadable=True)


def test_wrong_folders_are_refused(tmp_path, image_folder):
    with pytest.raises(FileNotFoundError, match="no directory .*nowhere"):
        load_data("folder", tmp_path / "nowhere", 32)
    with pytest.raises(ValueError, match="needs --data-dir"):
        load_data("folder", None, 32)
    with pytest.raises(
        ValueError, match=r"holds no images; expected class folders with files ending in .*\.png"
    ):
        load_data("folder", tmp_path, 32)
    shutil.copytree(image_folder, tmp_path / "data")
    (tmp_path / "data" / "train" / "d").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*train/d holds no images \(1 such"):
        load_data("folder", tmp_path / "data", 32)
    (tmp_path / "data" / "train" / "d").rmdir()
    (tmp_path / "data" / "val" / "c").rename(tmp_path / "data" / "val" / "z")
    with pytest.raises(ValueError, match="val and .*train hold different classes"):
        load_data("folder", tmp_path / "data", 32)


@pytest.mark.parametrize(
    "names", [["val"], ["training", "testing"], ["Train", "valid"], ["a", "dev"]]
)
def test_splits_without_train_are_not_taken_for_classes(tmp_path, image_folder, names):
    for name in names:
        shutil.copytree(image_folder / "val", tmp_path / name)
    with pytest.raises(
        ValueError,
        match=r"must hold train/ \(and val/\), or class folders directly; it holds .*rename",
    ):
        load_data("folder", tmp_path, 32)
    assert load_data("folder", tmp_path / names[0], 32)[0].class_names == ["a", "b", "c"]
    (tmp_path / "train").symlink_to(image_folder / "train")
    assert len(load_data("folder", tmp_path, 32)[0]) == 60


# -- other datasets ---------------------------------------------------------------------------------------------------


def test_digits():
    train, val = load_data("digits")
    assert train.levels.shape[1:] == (1, 8, 8) and train.levels.dtype == torch.uint8
    assert len(train) + len(val) == 1797 and abs(len(val) - 0.2 * 1797) < 10
    assert train.levels.max() == 255 and train.class_names == [str(k) for k in range(10)]
    # the split belongs to the dataset: no seed changes it
    assert torch.equal(load_data("digits", seed=3)[1].levels, val.levels)


def test_cifar10_as_torchvision_stores_it(tmp_path, monkeypatch):
    """A small archive in CIFAR's own format; only the checksums that torchvision compares with are this archive's."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    written = {}

    def write(name, values):
        data = pickle.dumps(values)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name):
        written[name] = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
        return write(name, {"data": written[name], "labels": list(range(10))})

    names = [f"class {k}" for k in range(10)]
    meta = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    train, val = load_data("cifar10", tmp_path)
    expected = np.concatenate([written[f"data_batch_{i}"] for i in range(1, 6)]).reshape(
        -1, 3, 32, 32
    )
    assert np.array_equal(train.levels.numpy(), expected) and train.levels.is_contiguous()
    assert train.labels.tolist() == list(range(10)) * 5 and train.class_names == names
    assert np.array_equal(val.levels.numpy(), written["test_batch"].reshape(-1, 3, 32, 32))


def test_cifar10_that_is_damaged_and_cannot_be_downloaded_is_named(tmp_path, monkeypatch):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"half")
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # nobody there
    with pytest.raises(
        OSError, match=rf"cannot read CIFAR-10 in {tmp_path}: .*refused.*; remove what"
    ):
        load_data("cifar10", tmp_path)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_stratified_split(fraction):
    labels = torch.tensor([0] * 40 + [1] * 2 + [2] * 17 + [3])[
        torch.randperm(60, generator=torch.Generator().manual_seed(0))
    ]
    rest, held = stratified_split(labels, fraction, seed=1)
    assert torch.equal(torch.cat([rest, held]).sort().values, torch.arange(60))
    assert torch.equal(rest, rest.sort().values) and torch.equal(held, held.sort().values)
    for k, n in enumerate((40, 2, 17, 1)):
        # at least one, never all: a class of one keeps its image
        expected = min(max(1, round(fraction * n)), n - 1)
        assert int((labels[held] == k).sum()) == expected
    again = stratified_split(labels, fraction, seed=1)[1]
    other = stratified_split(labels, fraction, seed=2)[1]
    assert torch.equal(again, held) and (fraction > 0.9 or not torch.equal(other, held))


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["--config", "none"], "no config 'none'"),
        (["--config", "conv_p4_tiny.digits", "--set", "lr.x=1"], "lr"),
        (
            ["--config", "conv_p4_tiny.digits", "--set", "flow=conv_p5"],
            "unknown flow 'conv_p5'.*conv_p4",
        ),
        (["--config", "conv_p4_tiny.digits", "--set", "network.dept=2"], "unknown key 'dept'"),
        (["--config", "conv_p4_tiny.digits", "--set", "optimizer=adamv"], "adamv"),
        (
            ["--config", "conv_p4_tiny.digits", "--set", "batch_size=5000"],
            "batch_size 5000 exceeds",
        ),
        (["--config", "linear.cifar10"], "needs --data-dir"),
        (["--config", "linear.cifar10", "--data-dir", "/nowhere"], "no directory /nowhere"),
        (["--config", "linear.cifar10", "--set", "objective=ml"], "needs --data-dir"),
        (["--config", "conv_p4_tiny.digits", "--device", "tpu9"], "--device tpu9 cannot be used"),
        (
            ["--config", "conv_p4_tiny.digits", "--set", "clip_grad=-1"],
            "clip_grad must be in [0, inf), got -1",
        ),
    ],
)
def test_the_command_line_explains_errors(arguments, match, tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        main([*arguments, "--out", str(tmp_path / "out")])
    assert e.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and match.split(".*")[-1] in error
    assert [p.name for p in (tmp_path / "out").glob("*")] in ([], [".lock"])


@pytest.mark.parametrize("limit", ["nan", "-1", "soon"])
def test_a_time_limit_is_a_number_of_seconds(limit, tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        main(["--config", "conv_p4_tiny.digits", "--out", str(tmp_path), "--time-limit", limit])
    assert e.value.code == 2
    assert f"--time-limit: invalid number of seconds value: '{limit}'" in capsys.readouterr().err


def test_random_shift_moves_whole_images_and_mirrors_at_the_edges():
    levels = torch.randint(
        0, 256, (64, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    shifted = random_shift(levels, 2, torch.Generator().manual_seed(1))
    assert shifted.shape == levels.shape and shifted.dtype == torch.uint8
    padded = np.pad(levels.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    found = set()
    for image, source in zip(shifted.numpy(), padded, strict=True):
        fits = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if np.array_equal(image, source[:, i : i + 6, j : j + 5])
        ]
        assert len(fits) == 1
        found.add(fits[0])
    assert len(found) > 15, "64 draws of 25 shifts meet nearly all"
    assert torch.equal(shifted, random_shift(levels, 2, torch.Generator().manual_seed(1)))
