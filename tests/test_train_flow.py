"""Training a flow: every objective, the Gaussians' alternation, schedules and averages, and the command line's report."""

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
import yaml

import timm_nfaug as nfa
from timm_nfaug import pixels
from timm_nfaug.flows.bijections.chain import Chain
from train_flow.__main__ import main
from train_flow.config import TrainConfig, list_configs, load_config
from train_flow.data import Images, load_data
from train_flow.evaluate import batches, evaluate
from train_flow.objective import FlowLoss, gaussian_loss, make_loss
from train_flow.schedule import BatchOrder, piecewise
from train_flow.trainer import Trainer

TOY = {
    "flow": "conv_p4_tiny",
    "network": {
        "depth": 2,
        "hidden": 16,
        "whiten": False,
    },  # without whitening there is something to learn
    "prior": {"num_modes": 4},
    "image_size": 32,
    "batch_size": 18,
    "lr": 0.003,
    "warmup_steps": 5,
    "steps": 40,
    "gaussian_every": 4,
    "ema_decay": 0.9,
    "log_every": 1,
    "eval_every": 0,
}


@pytest.fixture
def toy_trainer(toy_images, tmp_path):
    """Makes a trainer of the toy flow on the 60 toy images, with settings of one's own."""

    def make(out="run", resume=False, **settings) -> Trainer:
        data = Images(*toy_images, ["a", "b", "c"])
        return Trainer(
            TrainConfig(**{**TOY, **settings}), data, data, tmp_path / out, resume=resume
        )

    return make


def run_cli(settings: dict, data_dir, out, *arguments: str) -> list[dict]:
    """Trains through the command line's own function; returns the log."""
    path = out.parent / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump({**TOY, **settings}))
    assert (
        main(["--config", str(path), "--data-dir", str(data_dir), "--out", str(out), *arguments])
        == 0
    )
    return read_log(out)


def read_log(out) -> list[dict]:
    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    return [
        json.loads(line, parse_constant=refuse)
        for line in (out / "log.jsonl").read_text().splitlines()
    ]


# -- objectives --------------------------------------------------------------------------------------------------------


OBJECTIVES = {
    "glem": {},
    "ml": {},
    "joint": {"discriminative": 0.05, "temperature": 10.0, "shift": 2, "gaussian_lr": [[0, 0.002]]},
    "random": {},
    "ce": {},
    "moments": {"flow": "linear", "network": {}},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_lowers_bits_per_dim(
    objective, image_folder, tmp_path, capsys, toy_trainer
):
    settings = {"objective": objective, **OBJECTIVES[objective]}
    log = run_cli(settings, image_folder, tmp_path / objective)
    printed = capsys.readouterr().out
    report = json.loads(printed[: printed.rindex("}") + 1])
    _, val = load_data("folder", image_folder, 32)
    start = evaluate(toy_trainer(**settings).flow, val)["bits_per_dim"]
    assert report["images"] == 24
    assert report["bits_per_dim"] < start - 0.3, (report["bits_per_dim"], start)
    assert report["round_trip_max"] < 1e-4  # float32, in units of [-1, 1]: a hundredth of a level
    if objective != "moments":
        steps = [line for line in log if "final" not in line]
        assert [line["step"] for line in steps] == list(range(1, 41))
        assert steps[-1]["bits_per_dim"] < steps[0]["bits_per_dim"] - 0.3
    assert log[-1]["round_trip_max"] == pytest.approx(report["round_trip_max"], rel=1e-3)
    # what is reported is what was stored, to the last digit
    flow = nfa.ConditionalFlow.from_pretrained(tmp_path / objective / "flow")
    assert evaluate(flow, val) == report
    assert flow.config.info["metrics"]["bits_per_dim"] == report["bits_per_dim"]
    assert flow.config.info["metrics"]["class_accuracy"] == report["class_accuracy"]
    assert flow.config.class_names == ["a", "b", "c"]
    # the modes of the stored flow are those of its own codes
    std = flow.prior.mode_std
    assert (std[:, 0] > 0).all() and (std.diff(dim=1) <= 1e-6).all()
    assert objective in flow.config.info["training"] or objective == "moments"


def test_a_flow_without_labels_learns_them_by_fit(image_folder, tmp_path, capsys):
    settings = {"objective": "joint", "labels": False, "gaussian_lr": [[0, 0.002]]}
    log = run_cli(settings, image_folder, tmp_path / "out")
    assert log[-2]["bits_per_dim"] < log[0]["bits_per_dim"] - 0.3
    flow = nfa.ConditionalFlow.from_pretrained(tmp_path / "out" / "flow")
    assert flow.config.class_names == ["image"] and flow.num_classes == 1
    card = (tmp_path / "out" / "flow" / "README.md").read_text()
    assert "labels not looked at" in card and "lass accuracy" not in card
    data, _ = load_data("folder", image_folder, 32)
    augment = nfa.NFAugment(flow, modes=4, p=1.0, seed=0, labels="given").fit(batches(data, 16), 3)
    assert augment.flow.num_classes == 3
    moved, labels = augment(data.levels, data.labels)
    assert torch.equal(labels, data.labels) and not torch.equal(moved, data.levels)


@pytest.mark.parametrize("name", list_configs())
def test_every_shipped_config_trains(name, image_folder, tmp_path, capsys, tiny_autoencoder):
    """Two steps through the command line: all settings of the file but its size hold."""
    config, out = load_config(name), tmp_path / "out"
    small = ["steps=2", "batch_size=12", "log_every=1"]
    if config.data == "cifar10":
        small += ["data=folder", "image_size=32"]
    if config.space == "latent":
        small += [f"autoencoder={tiny_autoencoder}", "image_size=64"]
    if config.flow.endswith("_latent"):
        small += ["network.depth=1", "network.hidden=32"]
    if config.flow == "resnet_ms3":
        small += ["network={levels: 2, steps: 1, blocks: [1, 1], hidden: 8}"]
    arguments = [v for s in small for v in ("--set", s)]
    arguments += ["--config", name, "--data-dir", str(image_folder), "--out", str(out)]
    assert main(arguments) == 0
    assert f"flow saved to {out / 'flow'}" in capsys.readouterr().out
    flow = nfa.ConditionalFlow.from_pretrained(out / "flow")
    assert flow.config.architecture == config.flow
    own = "scikit-learn digits" if config.data == "digits" else image_folder.name
    assert flow.config.info["data"] == own, "not the data that the config was made for"
    steps = [line["step"] for line in read_log(out) if "loss" in line]
    assert steps == ([] if config.objective == "moments" else [1, 2])


def test_the_shipped_digits_config_runs(tmp_path, capsys):
    out = tmp_path / "digits"
    small = ["steps=30", "network.depth=2", "network.hidden=16", "mode_images=400"]
    arguments = [v for s in small for v in ("--set", s)]
    assert main(["--config", "conv_p4_tiny.digits", "--out", str(out), *arguments]) == 0
    assert f"flow saved to {out / 'flow'}" in capsys.readouterr().out
    card = (out / "flow" / "README.md").read_text()
    assert "| data | scikit-learn digits |" in card and "float16" in card
    flow = nfa.ConditionalFlow.from_pretrained(out / "flow")
    assert flow.config.input_size == (1, 8, 8) and flow.num_classes == 10


@pytest.mark.parametrize(
    "capability, dtype, warned",
    [("AVX2", "bfloat16", 1), ("AVX2", "float32", 0), ("AVX512", "bfloat16", 0)],
)
def test_bfloat16_that_a_cpu_only_emulates_is_warned_of(
    capability, dtype, warned, toy_trainer, monkeypatch, caplog
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    toy_trainer(net_dtype=dtype)
    assert caplog.text.count("--set net_dtype=float32") == warned


def test_fixed_random_gaussians_stay_where_they_are(toy_trainer):
    trainer = toy_trainer(objective="random", steps=6)
    start = trainer.flow.prior.state_dict()["mu"].clone(), trainer.flow.prior.s.clone()
    assert start[0].std() > 0.5
    assert trainer.run()
    trainer.finish()
    stored = nfa.ConditionalFlow.from_pretrained(trainer.out / "flow").prior
    assert torch.equal(stored.mu, start[0]) and torch.equal(stored.s, start[1])


def test_reversible_trains_the_same_flow(toy_trainer):
    weights = []
    for reversible in (False, True):
        trainer = toy_trainer(str(reversible), steps=10, reversible=reversible)
        assert trainer.run()
        weights.append([p.detach().clone() for p in trainer.flow.network.parameters()])
        assert all(
            m.reversible is reversible for m in trainer.flow.modules() if isinstance(m, Chain)
        )
    for plain, again in zip(*weights):
        # Adam magnifies differences of gradients near zero
        torch.testing.assert_close(again, plain, rtol=0, atol=2e-3)


def test_glem_separates_more_than_ml(toy_trainer):
    separation = {}
    for objective in ("glem", "ml"):
        trainer = toy_trainer(objective, objective=objective, steps=30, gaussian_every=2)
        trainer.run()
        separation[objective] = trainer.finish()["mean_pairwise_kl"]
    assert separation["glem"] > 1.2 * separation["ml"] > 0


def test_flow_loss_is_likelihood_plus_classification(small_flow, toy_images):
    x, y = pixels.levels_to_model(toy_images[0]), toy_images[1]
    loss, bpd, accuracy = FlowLoss(small_flow, discriminative=0.5)(x, y)
    logits = small_flow.class_logits(x)  # of equal priors
    torch.testing.assert_close(bpd, small_flow.bits_per_dim(x, y).mean())
    # nats of some thousand in float32 give logits to 1e-3, and half of that counts
    torch.testing.assert_close(loss, bpd + 0.5 * F.cross_entropy(logits, y), rtol=0, atol=2e-3)
    assert accuracy == (logits.argmax(1) == y).float().mean()


def test_the_loss_of_a_label_band_is_its_likelihood(toy_images):
    config = TrainConfig(image_size=32, objective="ce")
    flow = nfa.create_flow("conv_p4_tiny", num_classes=3, code_rows=config.code_rows, depth=2)
    x, y = pixels.levels_to_model(toy_images[0]), toy_images[1]
    loss, bpd, accuracy = make_loss(flow, config)(x, y)
    assert loss == bpd == flow.bits_per_dim(x, y).mean() and loss.requires_grad
    assert accuracy.isnan() and not bpd.requires_grad


def test_shifted_images_count_in_the_cross_entropy_only(small_flow, toy_images):
    x, y = pixels.levels_to_model(toy_images[0]), toy_images[1]
    loss, bpd, accuracy = FlowLoss(small_flow, discriminative=0.5, temperature=20.0)(x, y, whole=20)
    logits = small_flow.class_logits(x)
    torch.testing.assert_close(bpd, small_flow.bits_per_dim(x, y)[:20].mean())
    # as above, over 20
    torch.testing.assert_close(loss, bpd + 0.5 * F.cross_entropy(logits / 20, y), rtol=0, atol=1e-4)
    assert accuracy == (logits.argmax(1) == y)[:20].float().mean()


def test_joint_trains_the_gaussians_in_every_step_until_they_freeze(toy_trainer):
    trainer = toy_trainer(
        objective="joint", steps=4, gaussian_until=0.5, gaussian_lr=[[0, 0.01]], average="none"
    )
    seen = [trainer.flow.prior.mu.detach().clone()]
    while trainer.step < 4:
        trainer.take_step()
        seen.append(trainer.flow.prior.mu.detach().clone())
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert moved == [True, True, False, False] and trainer.alternation.updates == 2


def test_modes_of_a_low_rank_covariance_are_learned_with_the_flow(toy_trainer):
    """Between two fits the network is trained under the modes of the last, and each fit raises the likelihood of the codes."""
    prior = {"num_modes": 4, "low_rank": True, "a": None}
    trainer = toy_trainer(
        objective="joint",
        prior=prior,
        steps=6,
        modes_every=3,
        gaussian_until=0.5,
        gaussian_images=30,
    )
    x, y = pixels.levels_to_model(trainer.train_data.levels), trainer.train_data.labels
    before = trainer.flow.bits_per_dim(x, y).mean()
    alternation = trainer.alternation
    alternation.fit(0)
    assert trainer.flow.bits_per_dim(x, y).mean() < before - 0.1
    seen, fit = [], alternation.fit
    alternation.fit = lambda step: (
        fit(step),
        seen.append((step, alternation.flow.prior.modes.clone())),
    )
    trainer.run()
    assert [step for step, _ in seen] == [0]  # 3 is past gaussian_until
    assert (
        torch.equal(trainer.flow.prior.modes, seen[0][1]) and seen[0][1].norm(dim=2).gt(0.99).all()
    )
    trainer.finish()  # the modes and what they leave of the variances, of all images under the averaged flow
    own = trainer.best().prior
    assert not torch.equal(own.modes, seen[0][1]) and own.low_rank
    card = (trainer.out / "flow" / "README.md").read_text()
    assert "fitted anew every 3 steps" in " ".join(card.split())


def test_a_fit_between_steps_sees_every_class(toy_trainer):
    """Where the draw misses a class, the first image of it in the order of the draw joins it."""
    prior = {"num_modes": 4, "low_rank": True}
    trainer = toy_trainer(
        objective="joint", prior=prior, steps=1, modes_every=1, gaussian_images=60
    )
    alternation, labels = trainer.alternation, trainer.train_data.labels
    order = alternation.indices(0)
    for n in (1, 4, 60):
        trainer.config.gaussian_images = n
        expected = order[:n].tolist()
        for k in {0, 1, 2} - set(labels[order[:n]].tolist()):
            expected.append(next(i for i in order.tolist() if labels[i] == k))
        assert torch.equal(alternation.indices(0), order[:n])
        assert sorted(alternation.indices(0, every_class=True).tolist()) == sorted(expected)
        alternation.fit(0)


def test_modes_of_some_images_are_made_from_every_class(toy_images, tmp_path):
    """A class of one image, too, which no split takes."""
    data = Images(toy_images[0][:41], toy_images[1][:41], ["a", "b", "c"])
    config = TrainConfig(
        **TOY | {"flow": "linear", "network": {}, "objective": "moments", "mode_images": 20}
    )
    trainer = Trainer(config, data, None, tmp_path / "run")
    trainer.finish()
    stored = nfa.ConditionalFlow.from_pretrained(trainer.out / "flow")
    torch.testing.assert_close(
        stored.prior.mu[2], pixels.levels_to_model(data.levels[40]).flatten()
    )
    mean = pixels.levels_to_model(data.levels[:20]).flatten(1).mean(0)
    assert not torch.allclose(stored.prior.mu[0], mean), "of half the images"


def test_the_kld_term_drives_gaussians_apart(small_flow, toy_images):
    """One gradient step of it on its own: the mean pairwise KL grows, and equal Gaussians give no direction."""
    prior, y = small_flow.prior, toy_images[1]
    z = small_flow(pixels.levels_to_model(toy_images[0]))[0]
    prior.requires_grad_(True)
    grads = []
    for weight in (0.0, 10.0):
        loss = gaussian_loss(prior, z, y, weight, 0.0, small_flow.dim)
        grads.append(torch.autograd.grad(loss, [prior.mu, prior.s]))
    before = prior.pairwise_kl().mean()
    with torch.no_grad():
        for p, without, with_term in zip((prior.mu, prior.s), *grads):
            p.sub_(1e-2 * (with_term - without) / (with_term - without).norm())
    assert prior.pairwise_kl().mean() > before
    with torch.no_grad():
        prior.mu.zero_(), prior.s.zero_()
    equal = [gaussian_loss(prior, z, y, weight, 0.0, small_flow.dim) for weight in (0.0, 10.0)]
    assert equal[0] == equal[1]


def test_a_training_can_start_from_a_flow(toy_trainer, tmp_path):
    first = toy_trainer("first", steps=2)
    first.run()
    first.finish()
    start = nfa.ConditionalFlow.from_pretrained(first.out / "flow").state_dict()
    second = toy_trainer("second", init=str(first.out / "flow"), steps=2)
    assert all(torch.equal(v, start[k]) for k, v in second.flow.state_dict().items())
    assert second.run()
    second.finish()
    assert "started from a flow" in (second.out / "flow" / "README.md").read_text()
    with pytest.raises(ValueError, match="init: network of that flow is .*'depth': 2.*'depth': 1"):
        toy_trainer("third", init=str(first.out / "flow"), network={**TOY["network"], "depth": 1})


@pytest.mark.parametrize("objective", ["glem", "joint"])
def test_snapshots_are_flows_on_the_way_and_change_nothing(objective, toy_trainer):
    plain = toy_trainer("plain", steps=6, objective=objective)
    kept = toy_trainer("kept", steps=6, objective=objective, snapshots=[2, 4, 6])
    for trainer in (plain, kept):
        assert trainer.run()
        trainer.finish()
    own, other = plain.flow.state_dict(), kept.flow.state_dict()
    assert all(torch.equal(own[k], other[k]) for k in own)
    assert sorted(p.name for p in kept.out.glob("flow*")) == ["flow", "flow-2", "flow-4"]
    first, last = (
        nfa.ConditionalFlow.from_pretrained(kept.out / f"flow-{step}") for step in (2, 4)
    )
    assert (
        "2 steps of batch" in first.config.info["training"]
        and "4 steps of batch" in last.config.info["training"]
    )
    assert any(not torch.equal(v, last.state_dict()[k]) for k, v in first.state_dict().items())
    logged = [json.loads(line) for line in (kept.out / "log.jsonl").read_text().splitlines()]
    found = {row["step"]: row["bits_per_dim"] for row in logged if row.get("snapshot")}
    assert found == pytest.approx(
        {s: f.config.info["metrics"]["bits_per_dim"] for s, f in ((2, first), (4, last))}, rel=1e-4
    )
    with pytest.raises(
        ValueError, match=r"snapshots must be steps, integers of at least 1, got \[0\]"
    ):
        toy_trainer("wrong", snapshots=[0])


def test_a_limited_evaluation_sees_every_class(small_flow, toy_images):
    data = Images(*toy_images, ["a", "b", "c"])  # sorted by class
    few = data.subset(torch.tensor([0, 10, 20, 30, 40, 50]))
    assert evaluate(small_flow, data, limit=6) == evaluate(small_flow, few)
    assert evaluate(small_flow, data, limit=100) == evaluate(small_flow, data)
    # batches change nothing but the last digits of float32 sums
    assert evaluate(small_flow, data, batch_size=7) == pytest.approx(
        evaluate(small_flow, data), rel=1e-5, abs=1e-6
    )


# -- the alternation ---------------------------------------------------------------------------------------------------


def test_gaussians_move_until_they_freeze(toy_trainer):
    trainer = toy_trainer(steps=20, gaussian_every=3, gaussian_until=0.6, gaussian_fraction=0.2)
    prior = trainer.flow.prior
    moved, used = [], []
    done = False
    while not done:
        before, step = prior.mu.clone(), trainer.step
        used.append(trainer.order(step))
        done = trainer.run(time_limit=0)  # one step
        assert trainer.step == step + 1
        if not torch.equal(prior.mu, before):
            moved.append(step)
    assert moved == [3, 6, 9]  # before each of these steps, and not at 12 = 0.6 * 20 or later
    pool = set(trainer.alternation.pool.tolist())
    assert len(pool) == 12  # 0.2 of the 60 images
    assert not pool & set(torch.cat(used[:12]).tolist())  # the flow has not seen D_G before
    assert pool & set(torch.cat(used[12:]).tolist())


@pytest.mark.parametrize("fraction, first", [(0.1, 54), (0.0, 60)])
def test_gaussian_fraction_zero_is_the_training_set_itself(toy_trainer, fraction, first):
    trainer = toy_trainer(gaussian_fraction=fraction)
    assert [len(p) for p in trainer.order.phases] == [first, 60]
    assert len(trainer.alternation.pool) == (60 - first or 60)


def test_batch_order_covers_each_epoch_once():
    first, second = torch.arange(0, 40, 2), torch.arange(1, 40, 2)
    order = BatchOrder(first, second, batch_size=5, merge_step=10, seed=0)
    steps = [order(t) for t in range(26)]
    epochs = [torch.cat(steps[i:j]) for i, j in ((0, 4), (4, 8), (10, 18), (18, 26))]
    for epoch, pool in zip(epochs, (first, first, torch.arange(40), torch.arange(40))):
        assert torch.equal(epoch.sort().values, pool)
        assert not torch.equal(epoch, pool)
    assert not torch.equal(epochs[0], epochs[1])
    # a pure function of the step: any other object, asked in any order, gives the same
    again = BatchOrder(first, second, batch_size=5, merge_step=10, seed=0)
    assert all(torch.equal(again(t), steps[t]) for t in (25, 3, 17, 10, 9))
    with pytest.raises(ValueError, match="batch_size 21 exceeds the 20"):
        BatchOrder(first, second, batch_size=21, merge_step=10, seed=0)


# -- schedules and averages --------------------------------------------------------------------------------------------


def test_piecewise():
    points = [[0.0, 100.0], [0.5, 1.0], [1.0, 0.01]]
    for t, value in ((-1, 100), (0, 100), (0.25, 10), (0.5, 1), (0.75, 0.1), (1, 0.01), (2, 0.01)):
        assert piecewise(points, t, geometric=True) == pytest.approx(value)
    for t, value in ((0.25, 50.5), (0.5, 1), (0.75, 0.505), (1, 0.01)):
        assert piecewise(points, t, geometric=False) == pytest.approx(value)


def learning_rates(trainer: Trainer) -> list[float]:
    found = []
    for t in range(trainer.steps):
        trainer.scheduler.step_update(t)
        found.append(trainer.optimizer.param_groups[0]["lr"])
    return found


def test_cosine_schedule(toy_trainer):
    found = learning_rates(toy_trainer(steps=100, warmup_steps=10, lr=0.01, lr_floor=0.001))
    for t, lr in enumerate(found):
        expected = (
            1e-6 + t / 10 * (0.01 - 1e-6)
            if t < 10
            else 0.001 + 0.0045 * (1 + math.cos(math.pi * t / 100))
        )
        assert lr == pytest.approx(expected, rel=1e-6), t


def test_halving_schedule(toy_trainer):
    """3 steps an epoch: half after 4 epochs, half again after 2 more, then the floor; the warm-up shifts nothing."""
    found = learning_rates(
        toy_trainer(
            steps=60,
            warmup_steps=6,
            schedule="halving",
            halve_from=4,
            halve_every=2,
            lr=0.01,
            lr_floor=0.0025,
        )
    )
    assert found[0] < 1e-5 and found[3] == pytest.approx(0.005, rel=1e-3)
    for steps, lr in ((range(6, 11), 0.01), (range(12, 17), 0.005), (range(18, 60), 0.0025)):
        # timm may be one step early
        assert [found[t] for t in steps] == pytest.approx([lr] * len(steps)), steps


@pytest.mark.parametrize("average", ["ema", "swa", "none"])
def test_averages(toy_trainer, average):
    trainer = toy_trainer(steps=12, average=average, ema_decay=0.8, swa_from=0.5)
    weights, done = [], False
    while not done:
        done = trainer.run(time_limit=0)
        weights.append({k: p.detach().double().clone() for k, p in trainer.flow.named_parameters()})
    if average == "none":
        expected = weights[-1]
    elif average == "swa":
        chosen = weights[5:]  # after steps 6, 7, ... of 12
        expected = {k: sum(w[k] for w in chosen) / len(chosen) for k in weights[0]}
    else:
        expected = weights[0]
        for t, w in enumerate(weights[1:], 1):
            decay = min(0.8, (1 + t) / (10 + t))
            expected = {k: decay * expected[k] + (1 - decay) * w[k] for k in w}
    trainer.finish()
    stored = nfa.ConditionalFlow.from_pretrained(trainer.out / "flow")
    for key, p in stored.named_parameters():
        # a dozen float32 roundings of weights of size 1
        torch.testing.assert_close(p.detach().double(), expected[key], rtol=0, atol=2e-6, msg=key)


def test_a_loss_that_is_not_finite_stops_the_training(toy_trainer):
    trainer = toy_trainer()
    with torch.no_grad():
        trainer.flow.prior.mu.fill_(math.nan)
    with pytest.raises(
        FloatingPointError, match=r"at step 0; train again .* \(they were 0.003 and 1\) and another"
    ):
        trainer.run()
    assert not trainer.checkpoints.exist()


@pytest.mark.parametrize("objective", ["ml", "joint"])
def test_a_flow_without_weights_is_not_trained(toy_trainer, objective):
    with pytest.raises(
        ValueError,
        match=f"flow linear has no weights for objective {objective} to train; set objective=moments",
    ):
        toy_trainer(flow="linear", network={}, objective=objective)
