"""Nothing silent: images that NFA leaves alone, and guesses, are said once with count and remedy."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import timm_nfaug as nfa
from timm_nfaug._utils.notices import Notices
from timm_nfaug.change import FlowChange, LinearChange
from timm_nfaug.moves import PCA

X = torch.randint(0, 256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
Y = torch.arange(64) % 10


def pil(levels):
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).numpy()))


def loader(images, labels):
    return DataLoader(TensorDataset(images, labels), 16)


@pytest.fixture
def silent():
    """Any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_change_that_is_not_finite_is_said_at_the_first_one_and_counted(small_flow):
    with torch.no_grad():
        next(p for n, p in small_flow.named_parameters() if ".net." in n)[0] = float("nan")
    augment = nfa.NFAugment(small_flow, modes=4, p=1.0, labels="given")
    with pytest.warns(nfa.NFAWarning, match="4 of 4 images is not finite.*take another") as said:
        for _ in range(3):
            assert torch.equal(augment(X[:4], Y[:4] % 3)[0], X[:4])
    assert len(said) == 1 and said[0].filename == __file__
    assert augment.notices.count("not finite") == augment.fallbacks == 12
    with pytest.raises(nfa.NFAError, match="not finite"):
        augment.replace(strict=True)(X[:4], Y[:4] % 3)
    with pytest.raises(AttributeError):
        augment.fallbacks = 0


def test_one_image_of_each_class_has_no_modes_and_that_is_said():
    data = loader(X[:50], torch.arange(50))
    with pytest.warns(nfa.NFAWarning, match=r"50 of 50 classes \(0, 1, 2, 3, \.\.\.\)") as said:
        augment = nfa.NFAugment.from_data(data, 50, strength=1.0, p=1.0, labels="given")
        assert torch.equal(augment(X[:50], torch.arange(50))[0], X[:50])
        assert augment(pil(X[0]), 0)[0].tobytes() == pil(X[0]).tobytes()
    assert len(said) == 1 and 'labels="none"' in str(said[0].message)
    assert augment.notices.count("no modes") == 51
    assert augment.notices.summary(100) == (
        "NFA left 51 of 100 images as they were (51.0%): 51 for no modes"
    )
    with pytest.raises(nfa.NFAError, match="no modes"):
        nfa.NFAugment.from_data(data, 50, strict=True, labels="given")


def test_the_remedy_for_one_image_of_each_class_moves_them(silent):
    data = loader(X[:50], torch.arange(50))
    augment = nfa.NFAugment.from_data(data, labels="none", strength=1.0, p=1.0, strict=True)
    assert (augment(X[:50]) != X[:50]).flatten(1).any(1).all()


@pytest.mark.parametrize("kind", ["pca", "axes", "isotropic", "rotation"])
def test_classes_without_modes_are_said_whatever_the_move(kind):
    with pytest.warns(nfa.NFAWarning, match="10 of 10 classes"):
        augment = nfa.NFAugment.from_data(
            loader(X[:10], Y[:10]), 10, modes=4, p=1.0, kind=kind, labels="given"
        )
    assert torch.equal(augment(X[:10], Y[:10])[0], X[:10])
    assert augment.notices.count("no modes") == 10


def test_a_sorted_stream_is_refused_or_its_missing_classes_are_said():
    sorted_part = loader(X[:32], Y.sort().values[:32])  # classes 0 to 4 of 10
    with pytest.raises(nfa.NFAError, match=r"saw no image of class 5 \(of 5 such, of 10\)"):
        nfa.NFAugment.from_data(sorted_part, 10, labels="given")
    with pytest.warns(nfa.NFAWarning, match=r"5 of 10 classes \(5, 6, 7, 8, \.\.\.\)") as said:
        augment = nfa.NFAugment.from_data(
            sorted_part, 10, modes=4, p=1.0, allow_empty=True, labels="given"
        )
        out, _ = augment(X[:20], Y[:20])
    moved = (out != X[:20]).flatten(1).any(1)
    assert torch.equal(moved, Y[:20] < 5) and len(said) == 1
    assert augment.notices.count("no modes") == 10


def test_names_of_the_classes_without_modes_are_given():
    data = loader(X[:32], Y.sort().values[:32])
    data.dataset.classes = [f"kind{k}" for k in range(10)]
    with pytest.warns(nfa.NFAWarning, match=r"\(kind5, kind6, kind7, kind8, \.\.\.\)"):
        nfa.NFAugment.from_data(data, modes=4, allow_empty=True, labels="given")


def test_fewer_modes_than_asked_for_are_said():
    few = loader(X[:12], Y[:12])  # two classes have two images: two directions within classes
    with pytest.warns(
        nfa.NFAWarning, match="have fewer than the 32 modes asked for: one has 2"
    ) as said:
        augment = nfa.NFAugment.from_data(few, 10, p=1.0, labels="given")
    assert len(said) == 1 and "ask for fewer" in str(said[0].message)
    assert not torch.equal(augment(X[:12], Y[:12])[0], X[:12])
    with pytest.raises(nfa.NFAError, match="fewer than the 32 modes"):
        nfa.NFAugment.from_data(few, 10, strict=True, labels="given")


def test_a_fit_of_enough_images_says_nothing(silent):
    augment = nfa.NFAugment.from_data(loader(X, Y), 10, modes=4, p=1.0, labels="given")
    augment(X, Y)
    assert augment.notices.summary(64) == "" and not augment.change.still


def test_an_augmentation_that_was_never_fitted_says_so():
    augment = nfa.NFAugment.to_fit(nfa.create_flow("linear"), modes=4, labels="none", p=1.0)
    with pytest.warns(nfa.NFAWarning, match="64 of 64 images came back unchanged.*have no modes"):
        assert torch.equal(augment(X), X)


def test_a_deep_flow_leaves_images_without_modes_bit_for_bit(small_flow, toy_images):
    levels, y = toy_images
    small_flow.prior.mode_std[1] = 0.0
    augment = nfa.NFAugment(small_flow, modes=4, p=1.0, labels="given")
    x = levels.float() / 255
    with pytest.warns(nfa.NFAWarning, match=r"20 of 60 images .* 1 of 3 classes \(b\)"):
        out, _ = augment(x, y)
    assert torch.equal((out != x).flatten(1).any(1), y != 1)
    # also where the flow finds the class
    guess = augment.replace(labels="posterior")
    with pytest.warns(nfa.NFAWarning, match="no modes"):
        out = guess(x)
    still = int((out == x).flatten(1).all(1).sum())
    assert guess.notices.count("no modes") == still and 10 < still < 30


@pytest.mark.parametrize("kind", [LinearChange, FlowChange])
def test_modes_that_come_later_are_no_false_alarm(silent, toy_images, kind):
    flow = nfa.create_flow("linear", num_classes=3, prior={"num_modes": 4}).requires_grad_(False)
    augment = nfa.NFAugment.from_change(kind(flow, PCA(4)), p=1.0, strict=True, labels="given")
    fitted = nfa.NFAugment.from_data([toy_images], 3, modes=4, labels="given").flow.prior
    flow.prior.set_modes(fitted.modes, fitted.mode_std)
    out, _ = augment(*toy_images)
    assert (out != toy_images[0]).flatten(1).any(1).all()


def test_strict_is_taken_everywhere_and_kept(small_flow, flow_dir, toy_images):
    made = [
        nfa.NFAugment(small_flow, modes=4, strict=True, labels="given"),
        nfa.NFAugment.from_pretrained(flow_dir, strict=True, labels="given"),
        nfa.NFAugment.from_data([toy_images], 3, modes=4, strict=True, labels="given"),
        nfa.NFAugment.to_fit(small_flow, modes=4, strict=True, labels="given"),
        nfa.NFAugment.from_change(FlowChange(small_flow, PCA(4)), strict=True, labels="given"),
        nfa.nf_augment_transform("nfa-k4-lgiven", small_flow, strict=True),
        nfa.nf_augment_transform("nfa-k4-lgiven", str(flow_dir), strict=True),
    ]
    for augment in made:
        assert augment.strict and augment.replace(p=1.0).strict
        assert not augment.replace(strict=False).strict
    assert not nfa.NFAugment(small_flow, modes=4, labels="given").strict


def test_a_cause_said_without_a_count_is_not_said_again():
    notices = Notices()
    with pytest.warns(nfa.NFAWarning) as said:
        notices.say("no modes", "of the fit", images=0)
        notices.say("no modes", "of the use", images=3)
    assert [str(w.message) for w in said] == ["of the fit"] and notices.count("no modes") == 3


def test_a_flow_without_modes_names_the_fit_and_moves_without_them(tmp_path):
    bare = nfa.create_flow("conv_p4_tiny", num_classes=3, depth=1, prior={"num_modes": 0})
    bare.save_pretrained(tmp_path)
    for load in (
        nfa.NFAugment.from_pretrained,
        lambda d: nfa.nf_augment_transform("nfa-lgiven", d),
    ):
        with pytest.raises(ValueError, match=r"stores 0 .*NFAugment.to_fit\(flow\).fit\(loader\)"):
            load(str(tmp_path))
    assert nfa.NFAugment.from_pretrained(tmp_path, kind="isotropic", labels="given").modes == 32
