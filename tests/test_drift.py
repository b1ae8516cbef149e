"""How far augmentations take images from their class: nothing for nothing, further for more, and the records."""

import pytest
import torch
from safetensors.torch import save_file
from small_autoencoder import HALVES, Halves

import timm_nfaug as nfa
from benchmarks.analysis import drift, frozen, latent_modes, moved
from benchmarks.core import common
from benchmarks.core.schema import validate_file
from timm_nfaug.autoencoder import Autoencoder
from timm_nfaug.change import add_change
from timm_nfaug.moves import draw_noise
from train_flow.data import Images


@pytest.fixture(scope="module")
def autoencoder():
    return Autoencoder(Halves())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = frozen.timm.create_model(frozen.BACKBONE, num_classes=0)
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    save_file(model.state_dict(), str(path))
    return path


@pytest.fixture(scope="module")
def data(toy_images):
    return Images(*toy_images, ["a", "b", "c"])


@pytest.fixture(scope="module")
def classifier(weights, data):
    return frozen.Classifier(weights, 32).fit(data)


def test_the_classifier_knows_what_it_was_fitted_to(classifier, data):
    f = classifier.features(data.levels)
    assert f.shape == (60, 1280) and classifier.right(f, data.labels).all()
    assert not classifier.right(f, (data.labels + 1) % 3).any()


def test_no_change_keeps_all_and_a_stronger_one_moves_further(classifier, data):
    flow = moved.linear_modes(data, 8)
    arms = {f"{s}": moved.nfa(flow, s, 8) for s in (0.0, 0.25, 1.0)}
    still, weak, strong = moved.measure(arms, data, classifier, 0).values()
    assert still == {"move_levels": 0.0, "burnt": 0.0, "kept": 1.0, "spread": 0.0}
    assert 0 < 2 * weak["move_levels"] < strong["move_levels"] < 128
    assert 0 < weak["spread"] < strong["spread"] and strong["kept"] <= 1
    unjudged = moved.measure({"1": arms["1.0"]}, data, None, 0)["1"]
    assert unjudged == {k: strong[k] for k in ("move_levels", "burnt")}


def test_burnt_values_are_those_that_became_black_or_white():
    before = torch.tensor([0, 255, 10, 200], dtype=torch.uint8).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    after = torch.tensor([0, 255, 0, 210], dtype=torch.uint8).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    tally = moved.Tally()
    tally.add(before, after)
    assert tally.row(torch.zeros(1), 0, 0) == {"move_levels": 5.0, "burnt": 0.25}


def test_a_partner_is_another_image_of_the_class():
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    rows = torch.arange(6.0).unsqueeze(1)
    found = moved.partners(rows, labels, 0).flatten().long()
    assert torch.equal(labels[found], labels) and not (found == torch.arange(6)).any()
    assert sorted(found.tolist()) == list(range(6))


def test_the_control_is_mostly_grey_shading_of_the_same_energy(data):
    like = moved.linear_modes(data, 32)
    prior = moved.shading(like, 32).prior
    modes, std = prior.modes[0], prior.mode_std[0]
    assert torch.allclose(modes @ modes.T, torch.eye(32), atol=1e-5)
    assert torch.allclose(std.norm(), like.prior.mode_std[0].norm())
    planes = (modes * std[:, None]).view(32, 3, -1)
    grey = 3 * planes.mean(1).square().sum() / planes.square().sum()
    assert 0.92 < grey < 0.96
    assert std.tolist() == sorted(std.tolist(), reverse=True)
    assert modes[0].std() < 1e-6, "the largest is uniform brightness"


def test_latents_that_arms_share_change_images_as_nfa_does(autoencoder, data):
    latents = moved.latents_of(autoencoder, 16, data)
    for classes in (1, 3):
        flow = moved.latent_modes(autoencoder, 16, latents, 4, classes)
        labels = "none" if classes == 1 else "given"
        own = nfa.NFAugment(flow, 0.5, 4, 1.0, labels=labels, autoencoder=autoencoder)
        batch = moved.Batch(data.levels[:6], data.labels[:6])
        found = moved.by_nfa(own)(batch, torch.Generator().manual_seed(3))
        noise = draw_noise(6, own.change.noise_size, torch.Generator().manual_seed(3))
        y = batch.labels if classes > 1 else torch.zeros(6, dtype=torch.int64)
        change = own.change.change(lambda batch=batch: batch.x, y, noise)
        # one rounding of a level, where a convolution rounds by its place in a batch
        off = found.int() - add_change(batch.levels, change).int()
        assert off.abs().max() <= 1 and (found != batch.levels).any((1, 2, 3)).all()


def test_modes_hold_at_their_own_side_what_they_claim(autoencoder, data):
    latents = moved.latents_of(autoencoder, 16, data)
    flow = moved.latent_modes(autoencoder, 16, latents, 3)
    variance, claimed = latent_modes.along(flow, 3, latents)
    assert torch.allclose(variance, claimed, rtol=0.03)  # over N or N - 1 images
    twice, moves = latent_modes.along(flow, 3, moved.latents_of(autoencoder, 32, data))
    assert twice.sum() < latent_modes.total(moved.latents_of(autoencoder, 32, data))
    assert torch.allclose(moves / claimed, torch.full((3,), 4.0), rtol=0.2)  # of 4 times the pixels


@pytest.fixture
def flags(image_folder, tmp_path, weights, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    data = ["--data-dir", str(image_folder), "--data-name", "toy", "--image-size", "32"]
    model = ["--backbone-weights", str(weights), "--classifier-size", "32"]
    return [*data, *model, "--autoencoder", HALVES, "--size", "16"]


def test_drift_command(flags, tmp_path, capsys, small_flow):
    flow = str(small_flow.save_pretrained(tmp_path / "deep"))
    plot = tmp_path / "drift.png"
    own = ["--strengths", "0.5", "--modes", "4", "--flow", flow, "--plot", str(plot)]
    assert drift.main([*flags, *own]) == 0
    record = validate_file(tmp_path / "latent_drift.json")
    rows = record["results"]["rows"]
    arms = ["linear", "shading", "deep", "latent", "latent, class", drift.POLICY]
    assert [row["arm"] for row in rows] == arms and plot.stat().st_size > 1000
    assert all(row["move_levels"] > 0 and row["spread"] > 0 for row in rows)
    assert record["settings"]["autoencoder"] == "small_autoencoder.py:Halves"
    assert "| latent, class | 0.5 |" in capsys.readouterr().out


def test_modes_commands(flags, tmp_path, image_folder, capsys):
    assert latent_modes.main(["modes", *flags, "--modes", "2", "4", "--strengths", "0.5", "1"]) == 0
    rows = validate_file(tmp_path / "latent_modes.json")["results"]["rows"]
    assert [(r["modes"], r["strength"]) for r in rows] == [(2, 0.5), (2, 1.0), (4, 0.5), (4, 1.0)]
    assert rows[0]["variance"] < rows[2]["variance"] < 1
    sides = ["--sides", "8", "16", "--modes", "4", "--strengths", "0.5"]
    assert latent_modes.main(["sides", *flags, *sides]) == 0
    rows = validate_file(tmp_path / "latent_sides.json")["results"]["rows"]
    own = [r for r in rows if r["arm"] == f"modes at {r['side']} px"]
    assert len(rows) == 4 and [r["variance_over_own"] for r in own] == [1.0, 1.0]
    other = ["--other-dir", str(image_folder), "--other-name", "the same", "--modes", "4"]
    assert latent_modes.main(["transfer", *flags, *other, "--strengths", "0.5"]) == 0
    mine, same = validate_file(tmp_path / "latent_transfer.json")["results"]["rows"]
    assert same["arm"] == "modes of the same" and same["correlation"] > 0.9
    assert abs(mine["variance_over_own"] - 1) < 1e-6 and same["variance_over_own"] > 0.9
    with pytest.raises(SystemExit):
        latent_modes.main(["transfer", *flags])
    assert "transfer needs --other-dir" in capsys.readouterr().err


def test_a_record_names_the_flow_without_its_directories():
    assert [common.flow_title(f) for f in ("linear", "/a/b/flow", "/a/b/")] == ["linear", "b", "b"]
