"""Labels: what counts as one, where it is looked for, and what happens without (docs/labels.md)."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchvision import tv_tensors
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import timm_nfaug as nfa
from timm_nfaug.labels import class_of, labels_of

PAGE = Path(__file__).parent.parent / "docs" / "labels.md"
ROWS = re.findall(r"^\| `(aug\(.*\))` \| (.*) \|$", PAGE.read_text(), re.M)


def pil(levels):
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).numpy()))


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def linear(toy_images):
    return nfa.NFAugment.from_data([toy_images], 3, modes=4, p=1.0, seed=0, labels="given")


def found_image(out):
    """The image in what a call gave back, whatever its nesting."""
    if isinstance(out, dict):
        return out["image"]
    if isinstance(out, (tuple, list)):
        return next(v for v in out if isinstance(v, (torch.Tensor, Image.Image)))
    return out


def same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(("call", "outcome"), ROWS, ids=[call for call, _ in ROWS])
def test_each_row_of_the_table(linear, toy_images, call, outcome):
    batch = toy_images[0][[0, 20, 40]]
    image = pil(batch[0])
    aug = lambda *inputs: linear.replace()(*inputs, generator=generator())
    names = {"aug": aug, "image": image, "batch": batch, "np": np, "torch": torch}
    run = lambda: eval(call, names | {"tv_tensors": tv_tensors})
    kind, _, reason = outcome.partition(":")
    if reason:
        with pytest.raises({"TypeError": TypeError, "ValueError": ValueError}[kind]) as said:
            run()
        assert "label" in str(said.value)
    elif kind == "a guess":
        with pytest.warns(nfa.NFAWarning, match="no label came"):
            out = run()
        guess = linear.replace(labels="posterior")(image, generator=generator())
        assert same(found_image(out), guess)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            out = found_image(run())
        classes = [int(k) for k in kind.split(",")]
        several = "batch" in call and "batch[0]" not in call
        told = batch if several else batch[0] if "batch" in call else image
        label = torch.tensor(classes) if several else classes[0]
        others = torch.tensor([0, 2, 0]) if several else 0
        assert same(out, aug(told, label)[0]) and not same(out, aug(told, others)[0])


def test_the_table_has_its_rows():
    outcomes = [outcome.partition(":")[0] for _, outcome in ROWS]
    assert len(ROWS) == 25 and {"2", "a guess", "TypeError", "ValueError"} <= set(outcomes)


@pytest.mark.parametrize(
    "label",
    ["cat", True, np.True_, torch.tensor(True), 1.0, None, torch.ones(3), np.eye(3)[0], [1]],
)
def test_what_names_no_class_is_refused_of_one_image(label):
    with pytest.raises(TypeError, match=r'one integer label an image, got .*labels="none"'):
        class_of(label)


@pytest.mark.parametrize("label", [2, np.uint16(2), np.array([2]), torch.tensor([[2]])])
def test_an_integer_of_any_kind_names_a_class(label):
    assert class_of(label) == 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.uint64])
def test_labels_of_every_integer_dtype(linear, toy_images, dtype):
    levels, y = (v[::20] for v in toy_images)
    assert torch.equal(labels_of(y.to(dtype), 3, 3), y)
    told = linear(levels, y, generator=generator())[0]
    assert same(linear(levels, y.to(dtype), generator=generator())[0], told)
    fitted = nfa.NFAugment.from_data(
        [(toy_images[0], toy_images[1].to(dtype))], 3, modes=4, labels="given"
    )
    assert torch.equal(fitted.flow.prior.modes, linear.flow.prior.modes)


@pytest.mark.parametrize("labels", [-1, 3, 10**30])
def test_a_label_out_of_range_is_told_how_to_do_without(linear, toy_images, labels):
    levels = toy_images[0][:2]
    calls = [lambda: linear(pil(levels[0]), labels), lambda: linear(levels, [0, labels])]
    if labels != 10**30:
        calls.append(
            lambda: nfa.NFAugment.from_data(
                [(levels, torch.tensor([0, labels]))], 3, labels="given"
            )
        )
    for call in calls:
        with pytest.raises((ValueError, TypeError), match='labels="none"'):
            call()


def test_a_fit_to_text_says_what_labels_are(toy_images):
    levels = toy_images[0][:2]
    with pytest.raises(TypeError, match=r"integer labels \(2,\), got list \['cat', 'dog'\]"):
        nfa.NFAugment.from_data([(levels, ["cat", "dog"])], 2, labels="given")
    with pytest.raises(ValueError, match="2 images came with 1 labels"):
        nfa.NFAugment.from_data([(levels, [0])], 2, labels="given")


def test_without_classes_nothing_is_looked_at(toy_images):
    pooled = nfa.NFAugment.from_data([toy_images], labels="none", modes=4, p=1.0, strict=True)
    linear = nfa.NFAugment.from_data([toy_images], 3, modes=4, p=1.0, strict=True, labels="given")
    for aug in (pooled, linear.replace(labels="posterior")):
        for label in ("cat", True, -1, 0.5, torch.rand(3)):
            image, same_label = aug(pil(toy_images[0][0]), label)
            assert same_label is label and not same(image, pil(toy_images[0][0]))


def test_a_dataset_whose_transform_gets_no_label_is_told_once(linear, image_folder):
    augment = linear.replace(strength=1.0)
    folder = ImageFolder(image_folder / "train", v2.Compose([augment, v2.ToImage()]))
    with pytest.warns(nfa.NFAWarning) as said:
        for i in range(5):
            folder[i]
    assert len(said) == 1 and "docs/labels.md" in str(said[0].message)
    assert augment.notices.count("guessed label") == 5
    strict = linear.replace(strict=True)
    with pytest.raises(nfa.NFAError, match='no label came.*labels="none"'):
        strict(pil(torch.zeros(3, 32, 32, dtype=torch.uint8)))


def test_a_flow_of_one_class_needs_no_label(toy_images):
    augment = nfa.NFAugment.from_data(
        [(toy_images[0], torch.zeros(60, dtype=torch.int64))],
        1,
        modes=4,
        p=1.0,
        strict=True,
        labels="given",
    )
    for label in ((), ("cat",), (True,)):
        augment(pil(toy_images[0][0]), *label)


def test_rows_of_the_collate_function_are_labels(linear, toy_images):
    """What a DataLoader makes of samples with dicts and of plain ints."""
    levels, y = toy_images
    samples = [{"image": levels[i], "index": 60 - i, "target": int(y[i])} for i in range(0, 60, 9)]
    (batch,) = DataLoader(samples, 10)
    told = linear(levels[::9], y[::9], generator=generator())[0]
    assert same(linear(batch, generator=generator())["image"], told)
    (batch,) = DataLoader(TensorDataset(levels[::9], y[::9]), 10)
    assert same(linear(batch, generator=generator())[0], told)


def test_labels_that_stand_equally_near_are_not_chosen_from(linear, toy_images):
    image = pil(toy_images[0][0])
    two = {"image": image, "objects": [{"label": 1}, {"label": 2}]}
    with pytest.raises(ValueError, match="2 integers, any of which may be the label"):
        linear(two)
    assert linear({**two, "target": 2})["target"] == 2  # nearer to the top
