"""Arrays, and images of other channels, integers and ranges: what RandAugment cannot take."""

import argparse
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchvision import tv_tensors
from torchvision.transforms import v2

import timm_nfaug as nfa
from timm_nfaug import NFAError, NFAugment, lift
from timm_nfaug.inputs import RangeError

PAGE = (Path(__file__).parent.parent / "docs" / "ranges.md").read_text()


def fields(count: int, channels: int, side: int = 24, seed: int = 0) -> torch.Tensor:
    """Smooth images in [0, 1], (count, channels, side, side)."""
    g = torch.Generator().manual_seed(seed)
    coarse = 0.5 + 0.15 * torch.randn(count, channels, 4, 4, generator=g)
    return F.interpolate(coarse, (side, side), mode="bilinear").clamp(0, 1)


UNIT = fields(24, 3)
LABELS = torch.arange(24) % 2
LEVELS = (UNIT * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def augment():
    """Moves every image of three channels, levels or floats in [0, 1]."""
    return NFAugment.from_data([(LEVELS, LABELS)], labels="none", modes=4, p=1.0, strength=1.0)


@pytest.fixture(scope="module")
def grey():
    """The same for images of one channel."""
    return NFAugment.from_data([(LEVELS[:, :1], LABELS)], labels="none", modes=4, p=1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arrays(x: torch.Tensor) -> np.ndarray:
    """(B, C, H, W) as an array (B, H, W, C) that numpy would make itself."""
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())


# arrays


def test_an_array_is_moved_as_the_tensor_is(augment):
    wanted = arrays(augment(LEVELS, generator=seeded()))
    got = augment(arrays(LEVELS), generator=seeded())
    assert got.dtype == np.uint8 and got.shape == (24, 24, 24, 3) and got.flags.c_contiguous
    np.testing.assert_array_equal(got, wanted)
    one, image = augment(LEVELS[0], generator=seeded()), arrays(LEVELS[:1])[0]
    before = image.copy()
    np.testing.assert_array_equal(augment(image, generator=seeded()), one.permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(image, before)


def test_arrays_in_dicts_and_with_labels(toy_images):
    levels, y = toy_images
    given = NFAugment.from_data([(levels, y)], 3, modes=4, p=1.0, labels="given")
    wanted = arrays(given(levels, y, generator=seeded())[0])
    labels = y.numpy().astype(np.uint16)
    got, same = given(arrays(levels), labels, generator=seeded())
    np.testing.assert_array_equal(got, wanted)
    assert same is labels
    out = given({"image": arrays(levels), "label": labels, "index": 7}, generator=seeded())
    np.testing.assert_array_equal(out["image"], wanted)
    assert out["label"] is labels and out["index"] == 7
    image, _ = given(arrays(levels)[3], np.int64(y[3]), generator=seeded())
    np.testing.assert_array_equal(
        image, given(levels[3], int(y[3]), generator=seeded())[0].permute(1, 2, 0).numpy()
    )


def test_a_grey_array_without_channels(grey):
    image = arrays(LEVELS[:1, :1])[0]  # (H, W, 1)
    wanted = grey(image, generator=seeded())
    assert wanted.shape == (24, 24, 1) and (wanted != image).any()
    flat = grey(image[..., 0], generator=seeded())
    np.testing.assert_array_equal(flat, wanted[..., 0])
    with pytest.raises(ValueError, match="1 channels, got 24"):
        grey(arrays(LEVELS[:, :1])[..., 0])  # (B, H, W) is taken for (H, W, C)


def test_arrays_as_numpy_keeps_them(grey, augment):
    """Mirrored, read-only, of foreign byte order: torch takes none of these."""
    image = arrays(LEVELS[:1])[0]
    wanted = augment(image[:, ::-1].copy(), generator=seeded())
    np.testing.assert_array_equal(augment(image[:, ::-1], generator=seeded()), wanted)
    image.setflags(write=False)
    np.testing.assert_array_equal(augment(image[:, ::-1], generator=seeded()), wanted)
    deep = grey.replace(value_range=(0, 4095))
    native = (UNIT[0, 0].numpy() * 4095).astype(np.uint16)
    foreign = native.astype(">u2")
    moved = deep(foreign, generator=seeded())
    assert moved.dtype == foreign.dtype
    np.testing.assert_array_equal(moved, deep(native, generator=seeded()))


def test_float_arrays_and_their_range(augment):
    unit = arrays(UNIT)
    moved = augment(unit, generator=seeded())
    np.testing.assert_allclose(moved, arrays(augment(UNIT, generator=seeded())), atol=1e-6)
    assert moved.dtype == np.float32
    with pytest.raises(ValueError, match=r"in \[0, 1\], got .*value_range=\(low, high\)"):
        augment(unit * 255)


def test_channels_first_arrays_are_told(augment):
    with pytest.raises(ValueError, match=r"got 24; .*channels last: transpose it to \(H, W, C\)"):
        augment(LEVELS[0].numpy())


def test_in_albumentations(augment):
    A = pytest.importorskip("albumentations")
    image = arrays(LEVELS[:1])[0]
    chain = A.Compose([
        A.HorizontalFlip(p=1.0), A.Lambda(image=lambda x, **kw: augment(x, generator=seeded()), p=1.0)
    ])  # fmt: skip
    moved = chain(image=image)["image"]
    wanted = augment(image[:, ::-1].copy(), generator=seeded())
    np.testing.assert_array_equal(moved, wanted)


# value_range


RANGES = {
    "uint8": (torch.uint8, 0, 255),
    "12 bits": (torch.uint16, 0, 4095),
    "16 bits": (torch.uint16, 0, 65535),
    "CT": (torch.int16, -1024, 3071),
    "int32": (torch.int32, -(10**8), 10**8),
    "int64": (torch.int64, 0, 1000),
    "reflectance": (torch.float32, 0.0, 1.6),
    "normalised": (torch.float64, -2.1, 2.6),
    "half": (torch.float16, 0.0, 1.6),
}


def scaled(kind: str, unit: torch.Tensor = UNIT) -> torch.Tensor:
    dtype, low, high = RANGES[kind]
    x = low + unit.double() * (high - low)
    return (x if dtype.is_floating_point else x.round()).to(dtype)


@pytest.mark.parametrize("kind", RANGES)
def test_every_range_is_moved_as_floats_in_0_to_1_are(augment, kind):
    dtype, low, high = RANGES[kind]
    own, x = augment.replace(value_range=(low, high), p=0.6), scaled(kind)
    kept = x.clone()
    wanted = augment.replace(p=0.6)(UNIT, generator=seeded())
    moved = own(x, generator=seeded())
    assert moved.dtype == dtype and moved.shape == x.shape and torch.equal(x, kept)
    same = (wanted == UNIT).all((1, 2, 3))
    assert 0 < int(same.sum()) < 24
    assert torch.equal(moved[same].double(), x[same].double())
    unit = (moved.double() - low) / (high - low)
    step = 1 / (high - low) if not dtype.is_floating_point else 0
    rounding = {torch.float16: 1e-3}.get(dtype, 1e-6) + step
    assert (unit - wanted).abs().max() <= rounding
    assert float(moved.double().min()) >= low and float(moved.double().max()) <= high + 1e-3
    single = own.replace(p=1.0)(x[0], generator=seeded(1))
    assert single.dtype == dtype and not torch.equal(single.double(), x[0].double())


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("off", [{"strength": 0.0}, {"p": 0.0}])
def test_strength_0_and_p_0_keep_every_bit(augment, kind, off):
    own = augment.replace(value_range=RANGES[kind][1:], **off)
    x, state = scaled(kind), torch.get_rng_state()
    assert own(x) is x
    array = x.permute(0, 2, 3, 1).numpy()
    assert own(array) is array
    assert torch.equal(torch.get_rng_state(), state)


def test_a_deep_flow_sees_the_same_image_in_any_range(small_flow, toy_images):
    levels, y = toy_images
    plain = NFAugment(small_flow, modes=4, p=0.7, labels="given")
    wanted = plain(levels, y, generator=seeded())[0]
    for own, x in (
        (plain.replace(value_range=(0, 255)), levels),
        (plain.replace(value_range=(0, 255)), levels.to(torch.uint16)),
        (plain.replace(value_range=(-3, -2)), levels.float() / 255 - 3),
    ):
        moved = own(x, y, generator=seeded())[0].float()
        moved = (moved + 3) * 255 if x.is_floating_point() else moved
        assert (moved - wanted.float()).abs().max() <= 1.01  # a level where the rounding is a tie


def test_large_integers_change_by_whole_numbers_alone():
    """float32 would round values above 2**24 that a zero change leaves alone."""
    x = torch.tensor([2**30 + 1, 2**30 + 3], dtype=torch.int32).view(1, 1, 1, 2)
    moved = lift.add(x, torch.tensor([0.0, 2.2]).view(1, 1, 1, 2), [0], [2**31 - 1], keep=True)
    assert moved.dtype == torch.int32 and moved.flatten().tolist() == [2**30 + 1, 2**30 + 5]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16])
def test_a_range_wider_than_the_dtype_does_not_wrap(augment, dtype):
    info = torch.iinfo(dtype)
    own = augment.replace(value_range=(-100_000, 100_000))
    for end in (info.min, info.max):
        x = torch.full((64, 3, 8, 8), end, dtype=torch.int32).to(dtype)
        moved = own(x, generator=seeded()).int()
        assert (moved == end).any() and (moved != end).any()
        inwards = (moved - end) * (1 if end == info.min else -1)
        assert int(inwards.min()) == 0 and inwards.double().median() < (info.max - info.min) / 2


def test_a_channel_has_a_range_of_its_own_and_a_constant_one_stays(augment):
    low, high = (0.0, 100.0, 7.0), (1.0, 300.0, 7.0)
    x = torch.stack([UNIT[:, 0], 100 + 200 * UNIT[:, 1], torch.full_like(UNIT[:, 2], 7)], 1)
    moved = augment.replace(value_range=(low, high))(x, generator=seeded())
    wanted = augment(UNIT, generator=seeded())
    torch.testing.assert_close(moved[:, 0], wanted[:, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close((moved[:, 1] - 100) / 200, wanted[:, 1], atol=1e-6, rtol=0)
    assert (moved[:, 2] == 7).all()


def test_an_excess_is_neither_cut_off_nor_grows(augment):
    x = (UNIT * 1.6).clone()
    x[:, :, 0, 0], x[:, :, 0, 1] = 1.61, -0.01  # as bicubic resizing leaves
    own = augment.replace(value_range=(0, 1.6))
    moved = own(x, generator=seeded())
    change = moved - x
    assert change.abs().max() > 0.05
    assert moved.max() <= 1.61 and moved.min() >= torch.tensor(-0.01)
    still = change.abs().amax(1) == 0
    up = change[:, :, 0, 2] > 0  # beside them, where the change is nearly the same
    assert (moved[:, :, 0, 0][up] == 1.61).all() and still.sum() < still.numel() / 2
    assert (moved[:, :, 0, 0][~up] < 1.61).all(), "it moves inwards"


@pytest.mark.parametrize("kind", ["I;16", "I", "F", "L"])
def test_pil_images_of_more_bits(grey, kind):
    dtype, high = {"I;16": ("<u2", 65535), "I": ("<i4", 4095), "F": ("<f4", 1.6), "L": ("u1", 255)}[
        kind
    ]
    values = (UNIT[0, 0].numpy() * high).astype(dtype)
    image = Image.fromarray(values)
    image.info["dpi"] = (300, 300)
    assert image.mode == kind
    own = grey.replace(value_range=(0, high))
    moved = own(image, generator=seeded())
    assert (moved.mode, moved.size, moved.info) == (kind, image.size, image.info)
    np.testing.assert_array_equal(np.asarray(moved), own(values, generator=seeded()))
    assert (np.asarray(moved) != values).mean() > 0.5
    assert own.replace(p=0.0)(image) is image


def test_tv_tensors_stay_such(augment):
    image = tv_tensors.Image((UNIT[0] * 4095).round().to(torch.uint16))
    moved = v2.Compose([augment.replace(value_range=(0, 4095))])(image)
    assert isinstance(moved, tv_tensors.Image) and moved.dtype == torch.uint16
    assert not torch.equal(moved.int(), image.int())


def test_replace_and_repr_keep_the_range(augment):
    own = augment.replace(value_range=(0, 4095))
    assert "value_range=(0.0, 4095.0)" in repr(own) and "value_range" not in repr(augment)
    assert own.replace(p=0.25).value_range == (0.0, 4095.0)
    assert own.replace(mean=0.5, std=0.5).value_range is None  # which takes its place
    with pytest.raises(ValueError, match="takes the place of mean and std"):
        own.replace(mean=0.5, std=0.5, value_range=(0, 1))
    assert own.replace(value_range=None).value_range is None
    refitted = own.replace(labels="none").fit([(scaled("12 bits"), LABELS)])
    assert refitted is not augment and refitted.value_range == (0.0, 4095.0)


def test_uint16_labels_still_work():
    given = NFAugment.from_data([(LEVELS, LABELS)], 2, modes=4, p=1.0, labels="given")
    wanted = given(LEVELS, LABELS, generator=seeded())[0]
    moved = given(LEVELS, LABELS.to(torch.uint16), generator=seeded())[0]
    assert torch.equal(moved, wanted)


MISTAKES = {
    "levels as floats": (
        lambda a: a(UNIT * 255), r"in \[0, 1\], got .* to \d+.*levels 0\.\.255 use uint8, for any "
        r"other range pass value_range=\(low, high\)",
    ),
    "integers": (lambda a: a(scaled("12 bits")), r"got torch\.uint16; .*value_range=\(low, high\)"),
    "outside": (
        lambda a: a.replace(value_range=(0, 1.6))(UNIT * 255),
        r"value_range is 0 to 1\.6 in channel \d, got .* to \d+.*holds all of your images",
    ),
    "one channel outside": (
        lambda a: a.replace(value_range=([0, 0, 0], [1, 1, 0.1]))(UNIT),
        r"value_range is 0 to 0\.1 in channel 2, got",
    ),
    "NaN": (
        lambda a: a.replace(value_range=(0, 2))(torch.full((3, 8, 8), torch.nan)),
        r"hold NaN or infinite values; fill them: torch\.nan_to_num",
    ),
    "NaN in [0, 1]": (lambda a: a(torch.full((3, 8, 8), torch.inf)), "hold NaN or infinite values"),
    "falling": (lambda a: a.replace(value_range=(3, 1)), r"low below high; got \(3, 1\)"),
    "no width": (lambda a: a.replace(value_range=(1, 1)), "low below high"),
    "pairs": (lambda a: a.replace(value_range=[(0, 1)] * 3), r"each a number or one for each of"),
    "two channels": (lambda a: a.replace(value_range=([0, 0], [1, 1])), "each of the 3 channels"),
    "a number": (lambda a: a.replace(value_range=255), r"value_range must be \(low, high\).*255"),
    "a text": (lambda a: a.replace(value_range="unit"), r"must be \(low, high\)"),
    "infinite": (lambda a: a.replace(value_range=(0, np.inf)), r"must be \(low, high\)"),
    "mean, too": (
        lambda a: a.replace(value_range=(0, 1), mean=0.5, std=0.5), "takes the place of mean and std",
    ),
    "16 bits in colour": (
        lambda a: a(Image.new("I;16", (8, 8))), r"got I;16; .*1 channel with value_range=\(low",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_with_the_remedy(augment, mistake):
    call, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        call(augment)


# from_data


@pytest.mark.parametrize("shape, size", [((5, 40, 48), (5, 32, 32)), ((1, 20, 64), (1, 20, 32))])
def test_channels_and_size_come_from_the_loader(shape, size):
    x = torch.randint(0, 256, (8, *shape), generator=seeded(), dtype=torch.uint8)
    aug = NFAugment.from_data(DataLoader(TensorDataset(x, LABELS[:8]), 4), labels="none", modes=2)
    assert aug.change.size == size and aug.value_range is None
    assert aug.replace(p=1.0)(x).shape == x.shape


class Counted(TensorDataset):
    """Counts how often each image is read."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.reads = 0

    def __getitem__(self, i):
        self.reads += 1
        return super().__getitem__(i)


@pytest.mark.parametrize("x", [LEVELS, UNIT, UNIT * 0.3], ids=["levels", "unit", "dark"])
def test_levels_and_floats_in_0_to_1_are_read_once(x):
    data = Counted(x, LABELS)
    aug = NFAugment.from_data(DataLoader(data, 6), labels="none", modes=4)
    assert data.reads == 24 and aug.value_range is None
    once = NFAugment.from_data(((x, LABELS) for _ in range(1)), labels="none", modes=4)
    torch.testing.assert_close(once.flow.prior.mode_std, aug.flow.prior.mode_std)


@pytest.mark.parametrize("kind", ["12 bits", "CT", "normalised"])
def test_another_range_is_found_and_said(kind, caplog):
    x = scaled(kind)
    with caplog.at_level(logging.INFO, "timm_nfaug"):
        aug = NFAugment.from_data(
            DataLoader(TensorDataset(x, LABELS), 5), labels="none", modes=4, p=1.0, strength=1.0
        )
    low, high = (np.array(v) for v in aug.value_range)
    np.testing.assert_array_equal(low, x.double().amin((0, 2, 3)))
    np.testing.assert_array_equal(high, x.double().amax((0, 2, 3)))
    assert "value_range" in repr(aug) and caplog.text.count("value_range found") == 1
    moved = aug(x, generator=seeded())
    assert moved.dtype == x.dtype and not torch.equal(moved.double(), x.double())
    # the modes are those of the data, whatever their unit: nearly one width for all channels here
    known = NFAugment.from_data(
        [(UNIT, LABELS)], labels="none", modes=4, p=1.0, strength=1.0,
        value_range=(UNIT.amin((0, 2, 3)), UNIT.amax((0, 2, 3))),
    )  # fmt: skip
    wanted = known(UNIT, generator=seeded())
    low, width = RANGES[kind][1], RANGES[kind][2] - RANGES[kind][1]
    # a rounding to integers may turn modes of nearly one variance
    assert ((moved.double() - low) / width - wanted).abs().mean() < 0.01


def test_the_order_of_the_images_does_not_matter():
    """Only the last batch shows that these are not in [0, 1]."""
    x = UNIT.clone()
    x[-1] *= 3
    found = [
        NFAugment.from_data([(v[:20], LABELS[:20]), (v[20:], LABELS[20:])], labels="none", modes=2)
        for v in (x, x.flip(0))
    ]
    assert found[0].value_range == found[1].value_range
    assert max(found[0].value_range[1]) == float(x.max())


def test_numpy_batches_are_fitted_as_tensors_are():
    pairs = NFAugment.from_data([(arrays(LEVELS), LABELS.numpy())], 2, modes=4, labels="given")
    wanted = NFAugment.from_data([(LEVELS, LABELS)], 2, modes=4, labels="given")
    torch.testing.assert_close(pairs.flow.prior.mode_std, wanted.flow.prior.mode_std)


def test_what_cannot_be_found_in_a_loader_is_said():
    x = scaled("12 bits")
    with pytest.raises(NFAError, match=r"a generator gives its images once.*value_range=\(low"):
        NFAugment.from_data((pair for pair in [(x, LABELS)]), labels="none")
    own = NFAugment.from_data(
        (pair for pair in [(x, LABELS)]), labels="none", modes=2, value_range=(0, 4095)
    )
    assert own.value_range == (0.0, 4095.0)
    for bad in (torch.nan, torch.inf):
        spoilt = UNIT * 3
        spoilt[13, 1, 2, 3] = bad
        loader = DataLoader(TensorDataset(spoilt, LABELS), 6)
        with pytest.raises(NFAError, match=r"batch 2 .*NaN or infinite values in channel 1; fill"):
            NFAugment.from_data(loader, labels="none")
    with pytest.raises(RangeError, match="value_range is 0 to 1 in channel"):
        NFAugment.from_data([(UNIT * 3, LABELS)], labels="none", value_range=(0, 1))
    with pytest.raises(RangeError, match="mean= and std="):
        NFAugment.from_data([(UNIT * 30, LABELS)], labels="none", mean=0.5, std=0.5)
    with pytest.raises(NFAError, match="gave no images"):
        NFAugment.from_data([], labels="none")


# loaders, and the page


def flags(*given):
    nfa.add_args(parser := argparse.ArgumentParser())
    return parser.parse_args(given)


def test_wrap_loader_takes_a_range():
    x = scaled("12 bits", fields(24, 5))
    data = TensorDataset(x, LABELS)
    loader = nfa.wrap_loader(
        DataLoader(data, 8), flags("--aug", "nfa-p1-lnone"), value_range=(0, 4095)
    )
    moved = torch.cat([images for images, _ in loader])
    assert moved.dtype == torch.uint16 and moved.shape == x.shape
    assert int(moved.int().max()) <= 4095 and (moved.int() != x.int()).any((1, 2, 3)).all()
    for flow in ("linear", "cosine"):  # at the fit, and in the first batch
        with pytest.raises(NFAError, match=r"got torch\.uint16; .*value_range=\(low, high\)"):
            args = flags("--aug", "nfa-lnone", "--nfa-flow", flow)
            args.in_chans = 5
            next(iter(nfa.wrap_loader(DataLoader(data, 8), args)))


def test_wrap_loader_does_not_fit_a_range_to_images_before_their_transform(image_folder):
    from torchvision.datasets import ImageFolder

    data = ImageFolder(image_folder / "train", v2.Compose([v2.PILToTensor()]))
    with pytest.raises(NFAError, match=r"value_range is of the images after .*fit_dataset="):
        nfa.wrap_loader(DataLoader(data, 8), flags("--aug", "nfa"), value_range=(0, 300))


def run_recipe(name: str, **given) -> dict:
    """Runs the code under a mark of docs/ranges.md; returns what it defined."""
    (code,) = re.findall(rf"<!-- recipe: {name} -->\n```python\n(.*?)```", PAGE, re.S)
    exec(compile(code, f"recipe {name}", "exec"), given)
    return given


def test_every_block_of_the_page_is_run_here():
    blocks = len(re.findall(r"^```python", PAGE, re.M))
    names = set(re.findall(r"<!-- recipe: (\w+) -->\n```python", PAGE))
    run = set(re.findall(r'run_recipe\(\s*"(\w+)"', Path(__file__).read_text()))
    assert len(names) == blocks and names == run


def test_the_short_recipe_and_the_wrapped_loader():
    x = scaled("reflectance", fields(24, 4))
    loader = DataLoader(TensorDataset(x, LABELS), 8)
    names = run_recipe("short", loader=loader, images=x)
    assert names["images"].shape == x.shape and not torch.equal(names["images"], x)
    deep = DataLoader(TensorDataset(scaled("12 bits"), LABELS), 8)
    wrapped = run_recipe("wrapped", loader=deep, args=flags("--aug", "nfa-lnone"))["loader"]
    assert wrapped.augment.value_range == (0.0, 20000.0)
    assert sum(len(images) for images, _ in wrapped) == 24


def test_13_bands_are_learned(capsys):
    torch.manual_seed(1)
    names = run_recipe("bands")
    aug = names["aug"]
    assert aug.change.size == (13, 32, 32) and len(aug.value_range[0]) == 13
    assert names["right"] > 0.8 and "% of new scenes are right" in capsys.readouterr().out


def test_16_bit_grey_files(tmp_path):
    for i, image in enumerate(fields(12, 1, side=40)[:, 0].numpy()):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((image * 65535).astype(np.uint16)).save(path)
    names = run_recipe("grey", folder=tmp_path)
    moved, plain = names["train_set"], names["plain"]
    torch.manual_seed(0)
    pairs = [(moved[i][0] * 65535, plain[i][0].float()) for i in range(12)]
    assert all(x.shape == (1, 40, 40) and x.dtype == torch.float32 for x, _ in pairs)
    # p is 0.5; an image that is left comes back through a division
    assert 2 <= sum(float((a - b).abs().max()) > 100 for a, b in pairs) <= 10
    slices = arrays(scaled("CT", fields(6, 1, side=40)))
    given = {"slices_hu": slices, "slice_hu": slices[0, ..., 0], "labels": np.arange(6)}
    out = run_recipe("arrays", nfa=nfa, **given)
    assert out["moved"].shape == (40, 40) and out["moved"].dtype == np.int16
    assert (out["batch"]["image"] != slices).any()
    assert out["batch"]["image"].shape == slices.shape and out["batch"]["label"] is given["labels"]


@pytest.mark.parametrize("shape", [(6, 64, 64, 13), (6, 32, 32, 3), (6, 40, 20, 1)])
def test_batches_with_channels_last_are_refused(shape):
    with pytest.raises(nfa.NFAError, match=r"look like \(B, H, W, C\).*permute\(0, 3, 1, 2\)"):
        nfa.NFAugment.from_data([(torch.rand(shape), None)], modes=2)


def test_8_bit_images_for_modes_of_normalised_ones_are_explained(toy_images):
    levels, _ = toy_images
    normalised = (levels.float() / 255 - 0.5) / 0.25
    augment = nfa.NFAugment.from_data([(normalised, None)], p=1.0)
    with pytest.raises(ValueError, match="a loader without Normalize, or put it after it"):
        augment(levels)
