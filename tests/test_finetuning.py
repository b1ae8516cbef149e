"""Fine-tuning of pretrained timm models: what is trained, what stays, and what images the model sees."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from torch import nn
from torchvision.transforms.v2.functional import to_pil_image

from benchmarks import finetune
from benchmarks.cifar.arms import Arm
from benchmarks.cifar.testing import penultimate
from benchmarks.cifar.training import normalize, train
from benchmarks.core import records
from benchmarks.finetuning.fold import fold_batch_norms
from benchmarks.finetuning.network import FineTuned, ModelNorm, head_names
from benchmarks.finetuning.recipe import FinetuneRecipe, at_side, parameter_groups
from train_flow.data import Images

SIDE = 32


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of a small model without its head, whose batch norms have seen images."""
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_050", num_classes=7)
    for _ in range(3):
        model(torch.randn(8, 3, SIDE, SIDE))
    head = head_names(model)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file({k: v for k, v in model.state_dict().items() if k not in head}, path)
    return str(path)


@pytest.fixture(scope="module")
def data():
    g = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (8, 3, SIDE, SIDE), generator=g, dtype=torch.uint8)
    return Images(levels, torch.arange(8) % 2, ["a", "b"])


@pytest.fixture
def make(weights):
    def recipe(**settings):
        usual = {"model": "mobilenetv2_050", "weights": weights, "side": SIDE}
        quick = {"epochs": 2, "batch_size": 4, "frozen_stages": 0}
        return FinetuneRecipe(**{**usual, **quick, **settings})

    return recipe


def trained(recipe, data, seed=0):
    return train(data, Arm(), recipe, seed)[0].model.state_dict()


def changed(before, after):
    return {k for k in before if k in after and not torch.equal(before[k], after[k])}


@pytest.mark.parametrize("norm", ["fixed", "folded"])
def test_a_frozen_backbone_stays_as_it_was(make, data, norm):
    recipe = make(frozen=True, norm=norm)
    before = recipe.build(data).model.state_dict()
    assert changed(before, trained(recipe, data)) == {"classifier.weight", "classifier.bias"}


def test_fixed_norms_keep_their_statistics_and_learn_their_scale(make, data, weights):
    found = changed(load_file(weights), trained(make(norm="fixed"), data))
    assert "bn1.weight" in found and "conv_stem.weight" in found
    assert not [name for name in found if "running" in name or "tracked" in name]
    found = changed(load_file(weights), trained(make(norm="trained"), data))
    assert "bn1.running_mean" in found


@pytest.mark.parametrize("norm", ["fixed", "trained"])
def test_the_first_stages_stay_as_they_were(make, data, weights, norm):
    found = changed(load_file(weights), trained(make(norm=norm, frozen_stages=3), data))
    assert not [
        name for name in found if name.startswith(("conv_stem", "bn1", "blocks.0", "blocks.1"))
    ]
    assert any(name.startswith("blocks.2") for name in found)


def test_folded_norms_give_the_same_outputs_and_gradients_of_images(make, data):
    x = normalize(data.levels)
    outputs = []
    for norm in ("fixed", "folded"):
        torch.manual_seed(0)
        model = make(norm=norm).build(data).train()
        assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == (norm == "fixed")
        own = x.clone().requires_grad_()
        features = penultimate(model, own)
        features.square().sum().backward()
        outputs.append((features.detach(), own.grad))
    for fixed, folded in zip(*outputs):  # float32 in another order
        assert torch.allclose(fixed, folded, atol=1e-3 * fixed.abs().max().item())


def test_a_norm_that_shares_its_input_is_refused():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return x + self.norm(x)

    model = Shared()
    model.norm.running_mean.fill_(0.5)
    with pytest.raises(ValueError, match="norm='fixed'"):
        fold_batch_norms(model, torch.randn(2, 3, 8, 8))


def test_the_same_seed_gives_the_same_weights(make, data):
    first, again, other = (trained(make(), data, seed) for seed in (1, 1, 2))
    assert not changed(first, again)
    assert changed(first, other)


def test_the_model_sees_what_timm_s_transform_gives(data):
    model = timm.create_model("mobilenetv2_050", num_classes=2)
    config = resolve_data_config({"input_size": (3, SIDE, SIDE), "crop_pct": 1.0}, model=model)
    transform = create_transform(**config)
    theirs = torch.stack([transform(to_pil_image(image)) for image in data.levels])
    ours = ModelNorm(config["mean"], config["std"])(normalize(data.levels))
    assert torch.allclose(ours, theirs, atol=1e-5)  # of values up to 2.6, in float32
    assert FineTuned(model).norm.scale.shape == (1, 3, 1, 1)


def test_weights_of_another_model_are_refused_by_the_name_of_the_file(
    make, data, weights, tmp_path
):
    lacking = load_file(weights)
    lacking.pop("conv_head.weight")
    save_file(lacking, tmp_path / "lacking.safetensors")
    with pytest.raises(ValueError, match=r"lacking\.safetensors .*conv_head\.weight"):
        make(weights=str(tmp_path / "lacking.safetensors")).build(data)
    save_file({**load_file(weights), "more": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match=r"more\.safetensors .*: more"):
        make(weights=str(tmp_path / "more.safetensors")).build(data)
    with pytest.raises(ValueError, match=r"no file .*nowhere\.safetensors"):
        make(weights=str(tmp_path / "nowhere.safetensors")).build(data)


def test_images_are_brought_to_the_side_of_the_model(make, data):
    small = Images(data.levels[..., ::2, ::2], data.labels, data.class_names)
    with pytest.raises(ValueError, match=r"at_side\(data, 32\)"):
        make().batches(small, 0)
    large = at_side(small, SIDE)
    assert large.levels.shape == (8, 3, SIDE, SIDE) and large.levels.dtype == torch.uint8
    assert at_side(data, SIDE) is data


def test_crops_are_a_share_of_the_side_or_pixels_and_flips_can_be_left_out(make, data):
    assert make(crop=0.125).shift == 4 and make(crop=3).shift == 3
    batches = make(crop=0, flip=False).batches(data, 0)
    assert torch.equal(batches.crop_and_flip(data.levels, 0), data.levels)
    flipped = make(crop=0).batches(data, 0).crop_and_flip(data.levels, 0)
    assert not torch.equal(flipped, data.levels)


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_the_head_has_its_own_rate_and_the_schedule_ends_low(make, data, optim):
    recipe = make(optim=optim, lr=0.1, head_lr=5.0, weight_decay=0.01)
    model = recipe.build(data)
    steps = recipe.optimizer(model, 20)
    groups = steps.optimizer.param_groups
    of = {id(p): group for group in groups for p in group["params"]}
    assert len(of) == len(list(model.parameters()))
    head, stem = of[id(model.model.classifier.weight)], of[id(model.model.conv_stem.weight)]
    assert of[id(model.model.classifier.bias)]["weight_decay"] == 0 != head["weight_decay"]
    rates = []
    for _ in range(20):
        rates.append(stem["lr"])
        assert head["lr"] == pytest.approx(5 * stem["lr"])
        steps.step()
    assert rates.index(max(rates)) in (1, 2) and max(rates) == pytest.approx(0.1, rel=0.05)
    assert 0 < rates[-1] < 0.01 and 0 < rates[0] < max(rates)


def test_settings_that_do_not_go_together_are_refused(make, data, weights):
    with pytest.raises(ValueError, match="weights=FILE or from pretrained=True"):
        FinetuneRecipe()
    with pytest.raises(ValueError, match="not both"):
        FinetuneRecipe(weights="small.safetensors", pretrained=True)
    with pytest.raises(ValueError, match="norm='fixed'"):
        make(frozen=True, norm="trained")
    with pytest.raises(ValueError, match="norm"):
        make(norm="fold")
    with pytest.raises(ValueError, match="frozen_stages must be 0 to 8"):
        make(frozen_stages=9).build(data)


def test_the_command_compares_arms_on_a_folder(weights, image_folder, tmp_path, capsys):
    record = tmp_path / "runs.jsonl"
    argv = ["--model", "mobilenetv2_050", "--weights", weights, "--data-dir", str(image_folder)]
    argv += [
        "--per-class",
        "4",
        "--side",
        "32",
        "--batch-size",
        "4",
        "--epochs",
        "1",
        "--lrs",
        "1e-3",
    ]
    argv += ["--arms", "cosine", "flow-ml", "--seeds", "0", "1", "--record", str(record)]
    assert finetune.main(argv) == 0
    runs = records.read(record)
    assert len(runs) == 2 + 2 + 4 + 2, "crop and flip, which they are compared with, runs too"
    assert [r["settings"]["smoothing"] for r in runs[:2]] == [0.0, 0.1], "tuned"
    assert {r["fraction"] for r in runs} == {0.2} and {r["data"] for r in runs} == {
        image_folder.name
    }
    assert all(r["settings"]["weights"] == "small" for r in runs)
    text = capsys.readouterr().out
    assert "flow-ml is left out: no conv_p4_small_ml.cifar10/flow in --flows" in text
    assert "cosine shading, no data" in text.splitlines()[-1]
    assert finetune.main(argv) == 0
    assert records.read(record) == runs


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data-dir", "nowhere"], "no directory nowhere"),
        (["--data-dir", "DATA", "--frozen", "--norm", "trained"], "keeps the batch norms"),
    ],
)
def test_what_cannot_run_is_said_in_a_line(flags, said, image_folder, capsys):
    flags = [str(image_folder) if f == "DATA" else f for f in flags]
    with pytest.raises(SystemExit) as end:
        finetune.main(["--model", "mobilenetv2_050", *flags])
    assert said in f"{end.value}{capsys.readouterr().err}"


def test_splits_by_track_are_a_cell_of_their_own(image_folder):
    argv = ["--model", "mobilenetv2_050", "--data-dir", str(image_folder)]
    plain, tracks = (
        finetune.cell_of(finetune.parse([*argv, *more])) for more in ([], ["--by-track"])
    )
    assert plain.name != tracks.name and tracks.by_track


def test_what_the_model_names_has_no_weight_decay():
    model = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, num_classes=2)
    recipe = FinetuneRecipe(norm="trained", frozen_stages=0, weight_decay=0.1)
    decayed = {
        id(p) for g in parameter_groups(model, recipe) if g["weight_decay"] for p in g["params"]
    }
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert "blocks.0.mlp.fc1.weight" in names and not names & {"pos_embed", "cls_token"}


def test_the_command_trains_from_scratch(image_folder, tmp_path, capsys):
    record = tmp_path / "runs.jsonl"
    argv = ["--model", "mobilenetv2_050", "--from-scratch", "--data-dir", str(image_folder)]
    argv += ["--per-class", "4", "--side", "32", "--batch-size", "4", "--epochs", "1"]
    argv += ["--lrs", "1e-3", "--arms", "crop-flip", "--seeds", "0", "--record", str(record)]
    argv += ["--smoothings", "0.1"]
    assert finetune.main(argv) == 0
    (run,) = records.read(record)
    settings = run["settings"]
    assert settings["cell"] == f"mobilenetv2_050-scratch-{image_folder.name}-4"
    assert not settings["pretrained"] and not settings["weights"] and settings["norm"] == "trained"
    with pytest.raises(SystemExit):
        finetune.main([*argv, "--norm", "fixed"])
    assert "--from-scratch trains all" in capsys.readouterr().err
