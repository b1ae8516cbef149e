"""NFAugment and perturb: what comes back, what must not change, who supplies the class, and the errors."""

import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split
from torchvision import tv_tensors
from torchvision.transforms import v2

import timm_nfaug as nfa
from timm_nfaug import lift, pixels
from timm_nfaug.moves import PCA, create_move, perturb
from timm_nfaug.spec import parse_config


@pytest.fixture
def augment(small_flow):
    return nfa.NFAugment(small_flow, strength=0.5, modes=4, p=1.0, seed=3, labels="given")


def pil(levels):
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).numpy()))


def test_kind_dtype_and_size_come_back(augment, toy_images):
    levels, y = toy_images
    image = pil(levels[0])
    out, label = augment(image, 0)
    assert (
        isinstance(out, Image.Image) and out.mode == "RGB" and out.size == image.size and label == 0
    )
    assert np.abs(np.asarray(out).astype(int) - np.asarray(image)).max() > 0
    for x in (
        levels[:4],
        levels[:4].float() / 255,
        (levels[:4].float() / 255).bfloat16(),
        (levels[:4] / 255).double(),
    ):
        out, same = augment(x, y[:4])
        assert (
            out.shape == x.shape
            and out.dtype == x.dtype
            and same is not x
            and torch.equal(same, y[:4])
        )
        assert not torch.equal(out, x)
    single = augment(levels[0], 0)[0]
    assert single.shape == (3, 32, 32) and single.dtype == torch.uint8
    wrapped = augment(tv_tensors.Image(levels[0]))
    assert isinstance(wrapped, tv_tensors.Image) and wrapped.shape == (3, 32, 32)


def test_the_same_image_as_pil_uint8_and_float_is_augmented_alike(augment, toy_images):
    levels, _ = toy_images
    outs = []
    for image in (pil(levels[0]), levels[0], levels[0].float() / 255, levels[0].double() / 255):
        out = augment(image, 0, generator=torch.Generator().manual_seed(5))[0]
        if isinstance(out, Image.Image):
            out = torch.from_numpy(np.array(out)).permute(2, 0, 1)
        outs.append(out.float() if out.dtype == torch.uint8 else out.float() * 255)
    for out in outs[1:]:
        assert (out - outs[0]).abs().max() <= 0.51  # one rounding to a level


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("labels", ["given", "none"])
def test_one_pil_image_under_the_linear_flow_is_moved_as_a_tensor(toy_images, labels, dtype):
    """One PIL image takes a way of its own there; the general one is the twin."""
    levels, y = toy_images
    augment = nfa.NFAugment.from_data([(levels, y)], 3, modes=4, p=0.7, labels=labels).to(dtype)
    draws = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    changed = 0
    for i in range(30):
        big = F.interpolate(levels[i : i + 1].float(), size=(40, 50)).to(torch.uint8)[0]
        for image in (levels[i], big):
            given = () if i % 3 == 0 else (int(y[i]),)
            a, b = (augment(x, *given, generator=g) for x, g in zip((pil(image), image), draws))
            if given:
                (a, label), (b, _) = a, b
                assert label is given[0]
            a = torch.from_numpy(np.array(a)).permute(2, 0, 1).int()
            assert (a - b.int()).abs().max() <= 1 and (
                a == b
            ).double().mean() > 0.999  # a level where the rounding is a tie
            changed += not torch.equal(b, image)
    assert 25 < changed < 55
    augment.p = 1.0
    if labels == "given":
        with pytest.raises(ValueError, match=r"labels must be in 0\.\.2 for a flow"):
            augment(pil(levels[0]), 3)
    with pytest.raises(ValueError, match="mode RGB, got L"):
        augment(pil(levels[0]).convert("L"), 0)
    augment.flow.prior.modes[:, 0, 0] = float(
        "nan"
    )  # a damaged flow: the image comes back, and is counted
    before = augment.fallbacks
    assert augment(pil(levels[0]), 0)[0].tobytes() == pil(levels[0]).tobytes()
    assert augment.fallbacks == before + 1


def test_normalised_floats(small_flow, toy_images):
    levels, y = toy_images
    mean, std = (
        torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1),
        torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1),
    )
    unit = levels[:4].float() / 255
    plain = nfa.NFAugment(small_flow, modes=4, p=1.0, labels="given")
    normal = nfa.NFAugment(small_flow, modes=4, p=1.0, mean=mean, std=std, labels="given")
    a = plain(unit, y[:4], generator=torch.Generator().manual_seed(1))[0]
    b = normal((unit - mean) / std, y[:4], generator=torch.Generator().manual_seed(1))[0]
    torch.testing.assert_close(
        b * std + mean, a, atol=1e-5, rtol=0
    )  # float32 through normalisation and back
    with pytest.raises(ValueError, match="mean= and std="):
        plain((unit - mean) / std, y[:4])
    for name, values in (
        ("mean", {"mean": (0.4, 0.5), "std": std}),
        ("std", {"mean": 0.5, "std": (0.2, 0.3)}),
    ):
        wrong = nfa.NFAugment(small_flow, modes=4, p=1.0, **{"labels": "given"} | values)
        with pytest.raises(
            ValueError,
            match=rf"{name} must be one number or one for each of the 3 channels, got \[0\.",
        ):
            wrong((unit - mean) / std, y[:4])


def test_strength_0_and_p_0_return_the_input_and_draw_nothing(small_flow, toy_images):
    levels, y = toy_images
    for kwargs in ({"strength": 0}, {"p": 0}):
        augment = nfa.NFAugment(small_flow, modes=4, **{"labels": "given"} | kwargs)
        before = torch.random.get_rng_state()
        assert augment(levels, y)[0] is levels
        image = pil(levels[0])
        assert augment(image) is image
        assert torch.equal(torch.random.get_rng_state(), before)


def test_the_global_generator_is_never_drawn_from(small_flow, toy_images, tmp_path):
    levels, y = toy_images
    small_flow.save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    augment = nfa.NFAugment.from_pretrained(tmp_path, modes=4, labels="given")
    augment(levels, y)
    augment(levels)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeds(small_flow, toy_images):
    levels, y = toy_images
    a, b, c = (
        nfa.NFAugment(small_flow, modes=4, p=1.0, seed=s, labels="given")(levels, y)[0]
        for s in (1, 1, 2)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
    augment = nfa.NFAugment(small_flow, modes=4, p=1.0, seed=1, labels="given")
    first, second = augment(levels, y)[0], augment(levels, y)[0]
    assert torch.equal(first, a) and not torch.equal(first, second)


def test_p_leaves_the_others_untouched_bit_for_bit(small_flow, toy_images):
    levels, y = toy_images
    x = levels.float() / 255
    out = nfa.NFAugment(small_flow, modes=4, p=0.5, seed=0, labels="given")(x, y)[0]
    same = (out == x).flatten(1).all(1)
    assert 15 <= int(same.sum()) <= 45  # 60 coins
    alone = nfa.NFAugment(small_flow, modes=4, p=1.0, seed=0, labels="given")(x, y)[0]
    assert not (alone == x).flatten(1).all(1).any()


def test_with_p_each_chosen_image_gets_its_own_label_and_noise(small_flow, toy_images):
    """Beside the augmentation of the chosen images alone, for a deep flow and the linear one."""
    levels, y = toy_images
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    levels, y = levels[order], y[order]
    linear = nfa.NFAugment.from_data([(levels, y)], 3, modes=4, p=0.5, labels="given")
    for augment in (nfa.NFAugment(small_flow, modes=4, p=0.5, labels="given"), linear):
        out, _ = augment(levels, y, generator=torch.Generator().manual_seed(0))
        params = augment.make_params([levels], y, torch.Generator().manual_seed(0))
        chosen = torch.zeros(60, dtype=torch.bool)
        chosen[params["rows"]] = True
        assert 15 <= int(chosen.sum()) <= 45 and torch.equal(out[~chosen], levels[~chosen])
        alone = augment.augment(pixels.levels_to_model(levels[chosen]), y[chosen], params["noise"])
        assert (
            out[chosen].int() - pixels.model_to_levels(alone).int()
        ).abs().max() <= 1  # ties of the rounding
        assert (out[chosen] == pixels.model_to_levels(alone)).double().mean() > 0.999


def test_strength_1_moves_by_one_standard_deviation_along_the_modes(small_flow, toy_images):
    _, y = toy_images
    z = torch.zeros(4000, small_flow.dim)
    y = torch.full((4000,), 1)
    moved = perturb(
        small_flow, z, y, strength=1.0, modes=4, generator=torch.Generator().manual_seed(0)
    )
    prior = small_flow.prior
    along = moved @ prior.modes[1].T  # (4000, 6)
    torch.testing.assert_close(
        along[:, :4].std(0), prior.mode_std[1, :4], rtol=0.05, atol=0
    )  # 4000 draws: 1.1% error
    assert along[:, 4:].abs().max() < 1e-3 * prior.mode_std[1, 0]  # the other modes stay
    rest = moved - along[:, :4] @ prior.modes[1, :4]
    assert rest.abs().max() < 1e-4 * moved.abs().max()


def test_a_move_takes_a_label_for_each_code(small_flow):
    for y in (torch.tensor([1]), torch.tensor([1, 2, 0])):
        with pytest.raises(
            ValueError, match=f"one for each image, got {len(y)} labels for 4 images"
        ):
            perturb(small_flow, torch.zeros(4, small_flow.dim), y, modes=4)


def test_the_default_dtype_changes_no_noise(toy_images):
    levels, y = toy_images
    augment = nfa.NFAugment.from_data([(levels, y)], num_classes=3, modes=4, p=1.0, labels="given")
    draw = lambda: augment(pil(levels[0]), 0, generator=torch.Generator().manual_seed(0))[0]
    expected = draw()
    torch.set_default_dtype(torch.float64)
    try:
        assert np.array_equal(draw(), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_gathered_moves_are_those_of_class_by_class(small_flow):
    """The way of a GPU, on the CPU."""
    g = torch.Generator().manual_seed(0)
    y, noise = torch.randint(0, 3, (1100,), generator=g), torch.randn(1100, 4, generator=g)
    move = PCA(4, strength=0.5)
    by_class = move._by_class(small_flow, y, noise)
    torch.testing.assert_close(move._gathered(small_flow, y, noise), by_class)


def test_axes_move_only_the_widest_coordinates(small_flow):
    noise = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    small_flow.prior.s.copy_(
        torch.randn(small_flow.prior.s.shape, generator=torch.Generator().manual_seed(1))
    )  # no ties
    y = torch.tensor([0, 2, 0])
    move = create_move("axes", 5).displacement(small_flow, y, noise)
    for row, k, eps in zip(move, y.tolist(), noise):
        widest = small_flow.prior.variance[k].argsort(descending=True)[:5]
        assert set(torch.nonzero(row).flatten().tolist()) == set(widest.tolist())
        torch.testing.assert_close(row[widest], eps * small_flow.prior.variance[k][widest].sqrt())


def test_isotropic_has_the_energy_of_the_modes(small_flow):
    y = torch.zeros(500, dtype=torch.int64)
    noise = torch.randn(
        500,
        create_move("isotropic", 4).noise_size(small_flow),
        generator=torch.Generator().manual_seed(0),
    )
    move = create_move("isotropic", 4).displacement(small_flow, y, noise)
    expected = small_flow.prior.mode_std[0, :4].square().sum()
    torch.testing.assert_close(
        move.square().sum(1).mean(), expected, rtol=0.02, atol=0
    )  # 500 x 3072 draws


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: (x, y.unsqueeze(1)),
        lambda x, y: (x, y.numpy()),
        lambda x, y: (x, y.numpy().astype(np.uint16)),
        lambda x, y: (x, y, torch.arange(len(y)).flip(0)),  # row numbers after the labels
        lambda x, y: (
            x,
            torch.full((len(y), 3), 1 / 3),
            y,
        ),  # a teacher's probabilities before them
        lambda x, y: ({"id": torch.arange(len(y)).flip(0), "image": x, "label": y},),
        lambda x, y: ({"weight": torch.rand(len(y)), "pixels": x, "labels": y.unsqueeze(1)},),
    ],
)
def test_labels_are_found_in_every_usual_form(small_flow, toy_images, form):
    levels, y = toy_images[0], (toy_images[1] + 1) % 3  # not what the flow would guess
    aug = nfa.NFAugment(small_flow, modes=4, p=1.0, labels="given")
    told = aug(levels, y, generator=torch.Generator().manual_seed(0))[0]
    out = aug(*form(levels, y), generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        told, next(v for v in (out.values() if isinstance(out, dict) else out) if v.ndim == 4)
    )
    image, k = Image.fromarray(levels[0].permute(1, 2, 0).numpy()), int(y[0])
    told, *others = (
        np.asarray(aug(image, label, generator=torch.Generator().manual_seed(0))[0])
        for label in (k, np.array(k), np.array([k]), torch.tensor([[k]]))
    )
    assert all(np.array_equal(told, other) for other in others)


def test_with_a_seed_the_workers_of_each_epoch_draw_anew_and_can_be_repeated(
    small_flow, toy_images
):
    class Own(Dataset):
        def __init__(self, augment):
            self.augment = augment

        def __len__(self):
            return 4

        def __getitem__(self, i):
            return self.augment(toy_images[0][i], int(toy_images[1][i]))[0]

    def epochs():
        loader = DataLoader(
            Own(nfa.NFAugment(small_flow, modes=4, p=1.0, seed=0, labels="given")),
            4,
            num_workers=2,
            generator=g,
        )
        return [torch.cat(list(loader)) for _ in range(2)]

    g = torch.Generator().manual_seed(0)
    first, second = epochs()
    assert not torch.equal(first, second)
    g.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip((first, second), epochs(), strict=True))


def test_without_labels_the_flow_supplies_the_class(small_flow, toy_images):
    levels, _ = toy_images
    guess = small_flow.class_logits(pixels.levels_to_model(levels)).argmax(1)
    augment = nfa.NFAugment(small_flow, modes=4, p=1.0, labels="given")
    free = augment(levels, generator=torch.Generator().manual_seed(0))
    told = augment(levels, guess, generator=torch.Generator().manual_seed(0))[0]
    assert torch.equal(free, told)
    wrong = (guess + 1) % 3
    assert not torch.equal(
        free, augment(levels, wrong, generator=torch.Generator().manual_seed(0))[0]
    )
    posterior = nfa.NFAugment(
        small_flow, modes=4, p=1.0, labels="posterior"
    )  # ignores labels, even those of other data
    assert torch.equal(
        free, posterior(levels, wrong + 100, generator=torch.Generator().manual_seed(0))[0]
    )


def test_lift_keeps_fine_detail(small_flow):
    g = torch.Generator().manual_seed(0)
    big = torch.rand(2, 3, 97, 130, generator=g) * 0.2 + 0.4
    augment = nfa.NFAugment(small_flow, modes=4, strength=0.5, p=1.0, labels="given")
    y = torch.tensor([0, 1])
    out = augment(big, y, generator=torch.Generator().manual_seed(1))[0]
    assert out.shape == big.shape
    change = (out - big) * 255
    assert change.abs().max() > 1
    # the change is smooth: neighbours differ by a small part of it, while the image itself is noise
    assert (change[..., 1:] - change[..., :-1]).abs().mean() < 0.25 * change.abs().mean()
    x = torch.randn(2, 3, 32, 32)
    assert lift.down(x, (32, 32)) is x


@pytest.mark.parametrize("size", [(32, 32), (97, 130), (20, 24)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64])
def test_lift_adds_as_torch_interpolates(size, dtype):
    """Parity with one interpolation of all images at once, over image sizes on both sides of the flow's."""
    g = torch.Generator().manual_seed(0)
    change = torch.randn(7, 3, 32, 32, generator=g) * 0.2
    unit, rows = torch.rand(20, 3, *size, generator=g), torch.randperm(20, generator=g)[:7]
    if dtype == torch.uint8:
        x, change, low, high = (
            (unit * 255).to(torch.uint8),
            change * 255,
            [0, 0, 0],
            [255, 255, 255],
        )
    else:
        x, low, high = unit.to(dtype), [0.0, 0.1, 0.2], [1.0, 0.9, 0.8]
    before, kept = x.clone(), change.clone()
    limits = [torch.tensor(v).view(3, 1, 1) for v in (low, high)]
    large = F.interpolate(change, size=size, mode="bilinear", align_corners=False)
    for where in (rows, None):
        images = x if where is not None else x[:7]
        out = lift.add(images, change, low, high, where)
        slow, picked = images.clone(), slice(None) if where is None else rows
        new = (large + images[picked]).clamp(*limits)
        slow[picked] = (new.round() if dtype == torch.uint8 else new).to(dtype)
        assert out.dtype == dtype and out.data_ptr() != images.data_ptr()
        tolerance = {torch.uint8: 1, torch.bfloat16: 0.005}.get(
            dtype, 1e-5
        )  # a level where the rounding is a tie
        assert (out.double() - slow.double()).abs().max() <= tolerance
        if dtype == torch.uint8:
            assert (out == slow).double().mean() > 0.999
    assert torch.equal(x, before) and torch.equal(change, kept), "the caller's tensors were changed"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "size", [(32, 32), (20, 24), (130, 97), (250, 300)]
)  # the last is more than is worked on at a time
def test_lift_adds_to_a_pil_image_as_to_a_batch(size, channels):
    g = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (channels, *size), generator=g, dtype=torch.uint8)
    change = torch.randn(channels, 32, 32, generator=g) * 60
    kept, image = (
        change.clone(),
        pil(levels) if channels == 3 else Image.fromarray(levels[0].numpy()),
    )
    out = lift.add_to_image(image, change.numpy())
    assert out.mode == image.mode and torch.equal(change, kept)
    wanted = lift.add(levels.unsqueeze(0), change.unsqueeze(0), [0] * channels, [255] * channels)[0]
    got = torch.from_numpy(np.array(out)).view(*size, channels).permute(2, 0, 1)
    assert (got.int() - wanted.int()).abs().max() <= 1 and (got == wanted).double().mean() > 0.999


@pytest.mark.parametrize("size", [(32, 32), (90, 70)])
def test_the_largest_changes_end_at_the_ends_of_the_range(size):
    levels = torch.randint(
        0, 256, (3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    for value, end in ((256.0, 255), (-256.0, 0)):
        change = torch.full((3, 32, 32), value)
        assert (lift.add(levels.unsqueeze(0), change.unsqueeze(0), [0] * 3, [255] * 3) == end).all()
        assert (np.array(lift.add_to_image(pil(levels), change.numpy())) == end).all()
    still = torch.full((3, 32, 32), 0.49)
    assert torch.equal(
        lift.add(levels.unsqueeze(0), still.unsqueeze(0), [0] * 3, [255] * 3)[0], levels
    )
    assert torch.equal(
        lift.add(levels.unsqueeze(0), -still.unsqueeze(0), [0] * 3, [255] * 3)[0], levels
    )


def test_linear_flow_adds_its_eigen_images(toy_images):
    levels, y = toy_images
    flow = nfa.create_flow("linear", num_classes=3, prior={"num_modes": 4})
    augment = nfa.NFAugment(flow, modes=4, strength=0.3, p=1.0, labels="given").fit(
        [(levels, y)], num_classes=3
    )
    fitted = augment.flow
    assert (
        flow.prior.mode_std.abs().sum() == 0 and fitted.prior.mode_std.min() > 0
    )  # the caller's flow is untouched
    noise = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    x = pixels.levels_to_model(levels)
    out = augment.augment(x, y, noise)
    slow = torch.stack([
        image + 0.3 * sum(noise[i, k] * fitted.prior.mode_std[c, k] * fitted.prior.modes[c, k].view(3, 32, 32) for k in range(4))
        for i, (image, c) in enumerate(zip(x, y.tolist()))
    ]).clamp(-1, 1)  # fmt: skip
    torch.testing.assert_close(out, slow, atol=1e-5, rtol=0)


def test_non_finite_rows_fall_back_and_are_counted(augment, toy_images):
    levels, y = toy_images
    with torch.no_grad():
        augment.flow.prior.mode_std[1] = float("nan")  # class 1 comes out as NaN
    out = augment(levels, y)[0]
    assert torch.equal(out[y == 1], levels[y == 1]) and augment.fallbacks == int((y == 1).sum())
    assert not torch.equal(out[y == 0], levels[y == 0])


def test_from_data_is_the_linear_flow_of_the_data(toy_images):
    """Its moves are combinations of eigen-images, of the class's spread and a share of that within all classes."""
    levels, y = toy_images
    aug = nfa.NFAugment.from_data(
        [(levels, y)], 3, strength=0.2, modes=3, p=1.0, seed=0, labels="given"
    )
    assert (
        aug.flow.is_linear
        and aug.flow.num_classes == 3
        and aug.flow.config.input_size == (3, 32, 32)
    )
    x = pixels.levels_to_model(levels).flatten(1).double()
    spread = torch.stack([row - x[y == k].mean(0) for row, k in zip(x, y, strict=True)])
    for k in range(3):
        n = int((y == k).sum())
        rows = torch.cat([spread[y == k], spread * (100 / (len(y) - 3)) ** 0.5])
        _, s, v = torch.linalg.svd(rows, full_matrices=False)
        std = s[:3] / (n - 1 + 100) ** 0.5
        torch.testing.assert_close(aug.flow.prior.mode_std[k].double(), std, rtol=1e-4, atol=1e-6)
        noise = torch.full((1, 3), 0.1)
        change = (
            aug.augment(torch.zeros(1, 3, 32, 32), torch.tensor([k]), noise).flatten(1).double()
        )
        inside = change @ v[:3].T
        torch.testing.assert_close(inside.abs()[0], 0.1 * 0.2 * std, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(inside @ v[:3], change, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="saw no image of class 3"):
        nfa.NFAugment.from_data([(levels, y)], 4, labels="given")
    assert (
        nfa.NFAugment.from_data([(levels, y)], 4, allow_empty=True, labels="given").flow.num_classes
        == 4
    )
    big = torch.rand(4, 3, 48, 48)
    assert aug(big, torch.arange(4) % 3)[0].shape == big.shape
    with pytest.raises(ValueError, match="pass num_classes="):
        nfa.NFAugment.from_data([(levels, y)], labels="given")


def test_without_classes_the_modes_are_those_of_all_images(toy_images):
    """labels="none": whatever labels come along, soft ones and none at all, the move is that of one class of all images."""
    levels, y = toy_images
    pooled = nfa.NFAugment.from_data([(levels, "whatever they are")], labels="none", modes=3, p=1.0)
    one = nfa.NFAugment.from_data(
        [(levels, torch.zeros_like(y))], 1, modes=3, p=1.0, labels="given"
    )
    torch.testing.assert_close(pooled.flow.prior.modes, one.flow.prior.modes)
    expected = one(levels, torch.zeros_like(y), generator=torch.Generator().manual_seed(0))[0]
    assert (expected != levels).flatten(1).any(1).all()
    soft = torch.rand(60, 3)
    for more in ((), (y,), (y + 100,), (soft,), ([f"{k}" for k in y.tolist()],)):
        out = pooled(levels, *more, generator=torch.Generator().manual_seed(0))
        assert torch.equal(out[0] if more else out, expected)
    assert nfa.nf_augment_transform("nfa-k3-lnone", pooled.flow).labels == "none"
    for alone in (levels, [levels]):  # batches of a loader of images
        again = nfa.NFAugment.from_data([alone], labels="none", modes=3).flow.prior.modes
        assert torch.equal(again, pooled.flow.prior.modes)


def test_fit_to_other_classes(small_flow, toy_images):
    levels, y = toy_images
    two = (y != 0).long()

    class Loader(list):
        class dataset:
            classes = ("red", "rest")

    augment = nfa.NFAugment(small_flow, modes=4, labels="given").fit(Loader([(levels, two)]))
    assert augment.flow.num_classes == 2 and augment.flow.config.class_names == ["red", "rest"]
    assert augment.flow.network is small_flow.network and small_flow.num_classes == 3
    z = small_flow(pixels.levels_to_model(levels))[0]
    torch.testing.assert_close(augment.flow.prior.mu[0], z[two == 0].mean(0), atol=1e-5, rtol=1e-4)
    augment(levels, two)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        augment(levels, y)


def test_in_a_compose_and_through_pickle(augment, toy_images):
    levels, _ = toy_images
    compose = v2.Compose(
        [augment, v2.RandomHorizontalFlip(1.0), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    )
    image, label = compose(pil(levels[0]), 2)
    assert image.shape == (3, 32, 32) and label == 2
    copy = pickle.loads(pickle.dumps(augment))
    g = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.equal(copy(levels, generator=g[0]), augment(levels, generator=g[1]))


def test_a_bad_image_is_refused_whether_its_turn_comes_or_not(small_flow):
    augment = nfa.NFAugment(small_flow, modes=4, p=1e-9, labels="given")
    for image, message in (
        (Image.new("RGBA", (32, 32)), "convert"),
        (torch.zeros(1, 32, 32, dtype=torch.uint8), "3 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            augment(image)
    with pytest.raises(ValueError, match="uint8 or float"):
        augment(torch.zeros(3, 32, 32, dtype=torch.int16))


def test_no_gradient_leaves_the_augmentation(augment, toy_images):
    levels, y = toy_images
    x = (levels[:2].float() / 255).requires_grad_()
    assert not augment(x, y[:2])[0].requires_grad


def test_an_empty_batch_comes_back_empty(augment):
    x, y = torch.zeros(0, 3, 40, 40), torch.zeros(0, dtype=torch.int64)
    assert augment(x, y)[0].shape == x.shape
    assert augment.augment(x, y, torch.zeros(0, 4)).shape == x.shape
    assert perturb(augment.flow, torch.zeros(0, augment.flow.dim), y, modes=4).shape == (
        0,
        augment.flow.dim,
    )


def test_boxes_and_masks_pass_through(augment, toy_images):
    box = tv_tensors.BoundingBoxes(
        torch.tensor([[1, 2, 3, 4]]), format="XYXY", canvas_size=(32, 32)
    )
    mask = tv_tensors.Mask(torch.ones(32, 32, dtype=torch.uint8))
    out = augment(
        {"image": tv_tensors.Image(toy_images[0][0]), "box": box, "mask": mask, "label": 1}
    )
    assert out["box"] is box and out["mask"] is mask and out["label"] == 1
    assert not torch.equal(out["image"], toy_images[0][0])


@pytest.mark.parametrize("size", [32, 45])
def test_autocast_changes_nothing(augment, toy_images, size):
    levels, y = toy_images
    levels = v2.functional.resize(levels, [size, size])
    plain = augment(levels, y, generator=torch.Generator().manual_seed(0))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = augment(levels, y, generator=torch.Generator().manual_seed(0))[0]
    assert torch.equal(plain, cast)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, x: nfa.NFAugment(f, modes=4, strength=-0.1, labels="given"), "strength"),
        (lambda f, x: nfa.NFAugment(f, modes=4, strength=float("nan"), labels="given"), "strength"),
        (lambda f, x: nfa.NFAugment(f, modes=4, p=1.5, labels="given"), "p must"),
        (
            lambda f, x: nfa.NFAugment(f, modes=4).replace(labels="given"),
            "make it anew with labels",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="some"),
            "labels must be one of given, posterior, none",
        ),
        (lambda f, x: nfa.NFAugment(f, modes=7, labels="given"), "stores 6 principal modes"),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, kind="pcaa", labels="given"),
            "kind must be one of",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, p=1.0, labels="given")(x, torch.full((60,), 3)),
            r"0\.\.2",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, p=1.0, labels="given")(
                x, torch.zeros(59, dtype=torch.int64)
            ),
            "60 images came with 59 labels",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, p=1.0, labels="given")(x[:, :1]),
            "3 channels, got 1",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given").augment(
                x[:, :1].float(), None, torch.zeros(60, 4)
            ),
            "3 channels, got 1",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, p=1.0, labels="given")(x.short()),
            "uint8 or float",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, p=1.0, labels="given")(
                Image.new("RGBA", (32, 32))
            ),
            r'convert\("RGB"\)',
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, p=1.0, labels="given")("image.png"),
            "found no image",
        ),
        (lambda f, x: nfa.nf_augment_transform("nfa-s-1-k4", f), "strength"),
        (lambda f, x: nfa.nf_augment_transform("nfa-q3", f), "unknown key 'q'"),
        (lambda f, x: nfa.nf_augment_transform("rand-m9", f), "starts with 'nfa'"),
        (lambda f, x: nfa.nf_augment_transform("nfa-k0.5-lgiven", f), "takes an integer"),
        (lambda f, x: nfa.nf_augment_transform("nfa-0.5-k4", f), "did you mean 'nfa-s0.5-k4'"),
        (lambda f, x: nfa.nf_augment_transform("nfa0.5", f), "did you mean 'nfa-s0.5'"),
        (
            lambda f, x: nfa.NFAugment.to_fit(f, modes=0, labels="given"),
            "modes must be a positive integer, got 0",
        ),
        (
            lambda f, x: nfa.NFAugment.from_data([x], modes=0, labels="none"),
            "modes must be a positive integer, got 0",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, seed="0", labels="given"),
            "seed must be an integer or None",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, p=1.0, labels="given")(
                torch.linspace(-0.09, 1.09, 3072).view(3, 32, 32), 0
            ),
            r"-0\.09 to 1\.09; resizing with antialiasing.*clamp\(0, 1\).*pass mean=",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, p=1.0, labels="given")(
                torch.randn(3, 32, 32) * 3, 0
            ),
            r"in \[0, 1\], got -\S+ to \S+; for normalised images pass mean= and std=",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")(
                x.to(torch.uint16), torch.zeros(60)
            ),
            r"integer labels \(60,\), got torch.float32",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")(x.to(torch.uint16)),
            "got torch.uint16; bring them to levels 0..255 as uint8",
        ),
        (
            lambda f, x: nfa.NFAugment.from_data(
                [(x[:, :1], torch.zeros(60).long())], 1, (3, 32, 32), labels="given"
            ),
            r"3 channels, got 1; convert them; NFAugment.from_data\(loader, input_size=\(1, 32, 32\)",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")(Image.new("L", (64, 48)), 1),
            r'convert\("RGB"\); NFAugment.from_data\(loader, input_size=\(1, 32, 32\)\)',
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")(x.permute(0, 2, 3, 1)),
            r"got 32; .*permute it to \(C, H, W\)",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4)(x[0].numpy(), 1),
            r"got 32; .*an array has its channels last: transpose it to \(H, W, C\)",
        ),
        (
            lambda f, x: nfa.nf_augment_transform("nfa-m9", f),
            "takes pca, axes, isotropic, rotation, got '9'.*the strength is s",
        ),
        (
            lambda f, x: nfa.nf_augment_transform("nfa-lsome", f),
            "takes given, posterior, none, got 'some' in 'nfa-lsome'$",
        ),
        (lambda f, x: nfa.nf_augment_transform("nfa", "linear"), r"pass data=loader, or a trained"),
        (lambda f, x: nfa.NFAugment.from_pretrained("linear"), r"NFAugment\.from_data\(loader\)"),
        (
            lambda f, x: nfa.NFAugment.from_pretrained("conv_p4_tiny.digitz", labels="given"),
            "conv_p4_tiny.digits",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")(x, torch.full((60, 3), 1 / 3)),
            r"integer labels \(60,\), got .* \(60, 3\)",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")(
                x, F.one_hot(torch.zeros(60, dtype=torch.int64), 5)
            ),
            r"probabilities \(60, 5\)",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")(x[0], torch.tensor([0.2, 0.8])),
            r"integer labels \(1,\), got probabilities",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")(x[0], np.eye(3)[1]),
            r"integer labels \(1,\), got probabilities",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")(x, torch.ones(60)),
            r"integer labels \(60,\), got torch.float32 \(60,\)",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")(
                x, torch.ones(60, dtype=torch.bool)
            ),
            r"got torch.bool \(60,\)",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")(x, torch.ones(60, 5)),
            r"got torch.float32 \(60, 5\)",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")(x[0], 2.0),
            r"integer labels \(1,\), got float",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, p=1.0, labels="given")(
                x, torch.full((60, 1), 3)
            ),
            r"0\.\.2",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")([pil(x[0]), pil(x[1])], [1, 2]),
            "2 images came with 2 integers",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")(pil(x[0]), 1, pil(x[1]), 2),
            "2 images came with 2 integers.*one image, or batch, and its labels",
        ),
        (
            lambda f, x: nfa.NFAugment(f, modes=4, labels="given")(Image.new("I;16", (32, 32)), 1),
            "got I;16; bring them to 8 bits first",
        ),
        (
            lambda f, x: nfa.NFAugment.from_data(TensorDataset(x), labels="given"),
            "got a dataset, TensorDataset: DataLoader",
        ),
        (
            lambda f, x: nfa.NFAugment.from_data([{"image": x}], 3, labels="given"),
            r"batches \(images \(B, C, H, W\), labels \(B,\)\), got dict",
        ),
        (
            lambda f, x: nfa.NFAugment.from_data([(x[0], 1)], 3, labels="given"),
            r"got a tensor \(3, 32, 32\)",
        ),
        (
            lambda f, x: nfa.NFAugment.from_data([x], 3, labels="given"),
            r"got a tensor \(60, 3, 32, 32\)",
        ),
    ],
)
def test_bad_input_is_refused(small_flow, toy_images, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(small_flow, toy_images[0])


def test_string_idiom(small_flow):
    assert parse_config("nfa") == {}
    assert parse_config("nfa-s0.25-k8-p0.5-maxes-lposterior") == {
        "strength": 0.25, "modes": 8, "p": 0.5, "kind": "axes", "labels": "posterior",
    }  # fmt: skip
    plain = nfa.nf_augment_transform("nfa-lgiven", small_flow)
    assert (plain.strength, plain.p) == (0.5, 0.5), "what the search of benchmarks/README.md chose"
    augment = nfa.nf_augment_transform("nfa-s0.25-lgiven", small_flow)
    assert augment.strength == 0.25 and augment.modes == 6  # all that this flow stores


def test_settings_are_replaced_on_a_copy(small_flow, toy_images):
    augment = nfa.NFAugment(small_flow, strength=0.5, modes=4, p=1.0, seed=3, labels="given")
    other = augment.replace(strength=0.0, p=0.25)
    assert (other.strength, other.p, other.flow is small_flow) == (0.0, 0.25, True)
    assert (augment.strength, augment.p, other.modes) == (0.5, 1.0, 4) and other.idle
    linear = nfa.NFAugment.from_data([toy_images], num_classes=3, modes=4, labels="given").flow
    assert augment.replace(flow=linear).change.flow is linear and augment.flow is small_flow
    with pytest.raises(AttributeError, match="replace"):
        augment.flow = linear
    with pytest.raises(AttributeError):
        augment.strength = 1.0


@pytest.mark.parametrize("size", [(32, 32), (60, 44)])
def test_moved_images_keep_their_exif_as_the_others_do(toy_images, size):
    """So that a later exif_transpose turns all images or none."""
    image = pil(toy_images[0][0]).resize(size)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    file = io.BytesIO()
    image.save(file, "jpeg", exif=exif, icc_profile=b"profile", dpi=(72, 72))
    image = Image.open(file)
    augment = nfa.NFAugment.from_data([toy_images], 3, modes=4, p=1.0, seed=0, labels="given")
    moved, _ = augment(image, 0)
    assert moved.tobytes() != image.tobytes()
    assert moved.info == image.info and moved.info is not image.info
    assert moved.info["icc_profile"] == b"profile" and moved.getexif()[0x0112] == 6
    assert ImageOps.exif_transpose(moved).size == ImageOps.exif_transpose(image).size == size[::-1]


class Named(TensorDataset):
    classes = ("a", "b", "c")


def test_classes_are_found_inside_subsets_and_parts(toy_images):
    named = Named(*toy_images)
    whole = list(range(60))
    first, second = random_split(named, [40, 20], torch.Generator().manual_seed(0))
    for data in (
        Subset(named, whole),
        Subset(Subset(named, whole), whole),
        first,
        ConcatDataset([first, second]),
        ConcatDataset([named, Subset(named, whole)]),
    ):
        flow = nfa.NFAugment.from_data(DataLoader(data, 30), modes=4, labels="given").flow
        assert flow.config.class_names == ["a", "b", "c"]
    other = Named(*toy_images)
    other.classes = ("c", "b", "a")
    for data in (ConcatDataset([named, other]), Subset(TensorDataset(*toy_images), whole)):
        with pytest.raises(
            ValueError, match=rf"{type(data).__name__}, has no `classes`.*num_classes"
        ):
            nfa.NFAugment.from_data(DataLoader(data, 30), modes=4, labels="given")


def test_what_a_loader_raises_comes_through(toy_images):
    class Broken(TensorDataset):
        def __getitem__(self, index):
            if index == 7:
                raise OSError("image file is truncated: cats/7.jpg")
            return super().__getitem__(index)

    for workers in (0, 1):
        loader = DataLoader(Broken(*toy_images), 5, num_workers=workers)
        with pytest.raises(OSError, match="truncated: cats/7.jpg"):
            nfa.NFAugment.from_data(loader, 3, modes=4, labels="given")
