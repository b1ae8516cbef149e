"""Processes and replicas draw noise of their own, and a model around NFAugment trains without it."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import timm_nfaug as nfa
from timm_nfaug._utils.random import Stream
from timm_nfaug.integration.fit import _fit_to_batches

X = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
Y = torch.tensor([0, 1, 2, 0])


class Model(nn.Module):
    """A classifier that augments its images itself."""

    def __init__(self, augment):
        super().__init__()
        self.augment, self.head = augment, nn.Linear(3 * 32 * 32, 3)

    def forward(self, x, y):
        x, _ = self.augment(x, y)
        return nn.functional.cross_entropy(self.head(x.flatten(1).float() / 255), y)


def trainable(flow):
    return flow.requires_grad_(True)


def in_forks(*works):
    """What each of `works` gives in a forked child of its own: tensors, through pipes."""
    found = []
    for work in works:
        read, write = os.pipe()
        if not (child := os.fork()):
            try:
                with os.fdopen(write, "wb") as f:
                    f.write(work().numpy().tobytes())
            finally:
                os._exit(0)
        os.close(write)
        found.append((child, read))
    drawn = []
    for child, read in found:
        with os.fdopen(read, "rb") as f:
            drawn.append(torch.frombuffer(bytearray(f.read()), dtype=torch.float32))
        os.waitpid(child, 0)
    return drawn


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("used", [True, False])
def test_forked_siblings_draw_noise_of_their_own(seed, used):
    stream = Stream(seed)
    draw = lambda: torch.randn(4, generator=stream.generator())
    if used:
        draw()
    drawn = [*in_forks(draw, draw), draw()]
    assert not any(torch.equal(a, b) for a, b in zip(drawn, drawn[1:] + drawn[:1]))
    again = Stream(torch.initial_seed() if seed is None else seed)  # the parent's stream stays
    alone = [torch.randn(4, generator=again.generator()) for _ in range(1 + used)]
    assert torch.equal(drawn[2], alone[-1])


def test_ranks_by_torchrun_draw_noise_of_their_own_and_repeat_it(monkeypatch):
    def draw(rank):
        monkeypatch.setenv("RANK", str(rank))
        return torch.randn(4, generator=Stream(3).generator())

    plain = torch.randn(4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(draw(0), plain) and torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), plain) and not torch.equal(draw(1), draw(2))


def test_ranks_of_a_process_group_draw_noise_of_their_own(tmp_path):
    def draw(rank):
        place = f"file://{tmp_path}/meet"
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
        return torch.randn(4, generator=Stream(3).generator())

    first, second = in_forks(lambda: draw(0), lambda: draw(1))
    assert torch.equal(first, torch.randn(4, generator=torch.Generator().manual_seed(3)))
    assert len(second) == 4 and not torch.equal(first, second)


def test_replicas_of_data_parallel_draw_noise_of_their_own_at_every_step(small_flow):
    """What torch.nn.parallel.replicate does, which needs GPUs: copies of the module, then its flow."""
    augment = nfa.NFAugment(trainable(small_flow), modes=4, p=1.0, seed=0, labels="given")
    flows = [nfa.NFAugment(small_flow, modes=4, labels="given").flow for _ in range(2)]
    out = []
    for _ in range(2):
        replicas = [augment._replicate_for_data_parallel() for _ in range(2)]
        for replica, flow in zip(replicas, flows, strict=True):
            replica.flow = flow
            assert replica.change.flow is flow and augment.change.flow is augment.flow
            out.append(replica(X, Y)[0])
    assert not any(torch.equal(a, b) for i, a in enumerate(out) for b in out[:i])


def test_the_flow_in_a_transform_wants_no_gradients_and_the_callers_keeps_its_own(small_flow):
    flow = trainable(small_flow)
    augment = nfa.NFAugment(flow, modes=4, p=1.0, seed=0, labels="given")
    changed = nfa.NFAugment.from_change(augment.change, p=1.0, labels="given")
    noise = torch.rand(30, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fitted = nfa.NFAugment.to_fit(flow, modes=2, labels="given").fit(
        [(noise, torch.arange(30) % 3)], 3
    )
    for made in (augment, changed, augment.replace(strength=0.1), fitted):
        assert not any(p.requires_grad for p in made.parameters()) and made.change.flow is made.flow
    assert all(p.requires_grad for p in flow.parameters())
    assert len(list(augment.parameters())) == len(list(flow.parameters()))

    def moved():
        return augment(X, Y, generator=torch.Generator().manual_seed(0))[0]

    before = moved()
    optimizer = torch.optim.SGD(flow.parameters(), lr=0.01)
    flow(torch.rand(4, 3, 32, 32))[0].square().mean().backward()
    optimizer.step()  # the weights are shared: a flow that trains is moved with
    assert torch.equal(augment.flow.prior.mu, flow.prior.mu)
    trained = nfa.NFAugment(flow, modes=4, p=1.0, labels="given")(
        X, Y, generator=torch.Generator().manual_seed(0)
    )
    assert not torch.equal(moved(), before) and torch.equal(moved(), trained[0])


def test_to_and_state_dict_know_the_flow_and_leave_the_callers(small_flow):
    flow = trainable(small_flow)
    model = Model(nfa.NFAugment(flow, modes=4, p=1.0, labels="given"))
    names = {f"augment.flow.{name}" for name in flow.state_dict()}
    assert names == {n for n in model.state_dict() if n.startswith("augment.")}
    other = Model(nfa.NFAugment(flow.requires_grad_(False), modes=4, labels="given"))
    model.augment.flow.prior.mu.data += 1
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.augment.flow.prior.mu, model.augment.flow.prior.mu)
    model.augment.to("meta")
    assert model.augment.change.flow.device.type == "meta" and flow.device.type == "cpu"


def test_a_model_with_nfa_trains_under_distributed_data_parallel(small_flow, tmp_path):
    augment = nfa.NFAugment(trainable(small_flow), modes=4, p=1.0, seed=0, labels="given")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(Model(augment))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = model.module.head.weight.clone()
        for _ in range(3):  # with parameters that no gradient reaches, the second would raise
            optimizer.zero_grad()
            model(X, Y).backward()
            optimizer.step()
    finally:
        dist.destroy_process_group()
    assert not torch.equal(model.module.head.weight, before)
    assert torch.equal(augment.flow.prior.mu, small_flow.prior.mu)


def test_ranks_say_of_the_modes_that_all_have(tmp_path):
    """Not of their own part of a stream, of which rank 1 has one class; strict ends none alone."""
    x = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def fit(rank):
        place = f"file://{tmp_path}/meet"
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
        linear = nfa.create_flow("linear", input_size=(3, 8, 8))
        unfitted = nfa.NFAugment.to_fit(linear, modes=2, p=1.0, strict=True, labels="given")
        own = torch.arange(30) % 3 * (1 - rank)
        change = _fit_to_batches(unfitted, [(x, own)], 3).change
        return torch.cat([change.flow.prior.modes.flatten(), torch.tensor([float(change.still)])])

    first, second = in_forks(lambda: fit(0), lambda: fit(1))
    assert torch.equal(first, second) and len(first) > 1 and first[-1] == 0
