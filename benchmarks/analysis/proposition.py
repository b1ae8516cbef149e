"""Proposition 1 in numbers: both sides of the bound over a training, with and without the separation of the Gaussians.

    python -m benchmarks.analysis.proposition

Claim: none of ours; the paper's (Enescu & Sahbi, ACCV 2024, supplementary, section 2) is that for a
flow trained with L_NF alone

    E[(P_Z(Z | y1) - P_Z(Z | y2))^2]  <=  E[(P_X(X | y1) - P_X(X | y2))^2] * e / det(Sigma_y*),

y* the class of smallest determinant. The statement is at hand, its premises are not. Nothing holds
the left side up, so classes may collapse onto one another; L_KLD is there to prevent it.

Data: two classes, mixtures of Gaussians in 2 or 4 dimensions, whose densities are known; one seed.
The flow is the package's own, on images of one pixel. Both expectations run over X, drawn with
equal class shares, and Z = f(X). What the densities stand for can be read in three ways, and all
are computed:

- ``mixed``: P_Z is the class Gaussian, P_X the known density of the data. The figure shows this one.
- ``model``: P_Z is the class Gaussian, P_X the flow's density, P_Z(f(x) | y) * abs det J(x).
- ``data``: P_X is the known density, P_Z that of the codes which it gives, P_X(x | y) / abs det
  J(x).

Under the last two the left side is E[(P_X(X | y1) - P_X(X | y2))^2 / (det J)^2], so the bound
follows where ``log abs det J(x) >= (log det Sigma_y* - 1) / 2`` for every x. This is the condition
under which we read the statement (L_NF(x) <= 1/2, without its constant D / 2 log 2 pi, implies it),
and its share among the x is reported. Training does not bring it about: with the data multiplied by
s, a flow that takes the factor out again leaves the left side as it is while the right side shrinks
by s^(-2D). A linear flow that fits one Gaussian of covariance C a class has the bound if and only
if det C <= e. One of the cases therefore is another one in other units, in which the bound is
expected to fail.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import timm_nfaug as nfa
from benchmarks.core.charts import BLUE, VERMILION, chart, plain, render
from benchmarks.core.common import ROOT, command_line, environment, markdown_table, write_result
from timm_nfaug import pixels
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.flows.model import ConditionalFlow
from timm_nfaug.flows.prior import ClassGaussians
from train_flow.config import TrainConfig
from train_flow.data import load_data
from train_flow.objective import FlowLoss, gaussian_loss
from train_flow.schedule import generator, piecewise

FIGURE = ROOT / "docs" / "figures" / "proposition.png"
ARMS = {"without KLD (ml)": 0.0, "with KLD (glem)": 1.0}  # what L_KLD's weight is multiplied by
READINGS = ("mixed", "model", "data")
# clamp: the default of 0.6 is for images and would fit worse here
NETWORK = {"patch": 1, "depth": 6, "hidden": 64, "clamp": 2.0}
BATCH = 512
LR = 5e-3
UPDATES = 120  # of the Gaussians, over the steps until they freeze
IMAGE_FLOW = "conv_p4_tiny.digits"
DRAWS, INIT, TEST = range(200, 203)  # purposes of random numbers


@dataclass
class Classes:
    """Two classes, each a mixture of M equally likely Gaussians N(means[k, m], std^2 I); means (2, M, D)."""

    means: Tensor
    std: float

    def sample(self, count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points (count, D) and labels (count,), as many of each class."""
        m, d = self.means.shape[1:]
        y = torch.arange(count) % 2
        component = torch.randint(m, (count,), generator=g)
        return self.means[y, component] + self.std * torch.randn(count, d, generator=g), y

    def log_prob(self, x: Tensor) -> Tensor:
        """(B, 2) log density of points x (B, D) in each class, in nats, float64."""
        means = self.means.double()
        parts = Independent(Normal(means, torch.full_like(means, self.std)), 1)
        equal = Categorical(torch.ones(means.shape[:2], dtype=torch.float64))
        return MixtureSameFamily(equal, parts).log_prob(x.double().unsqueeze(1))

    def times(self, factor: float) -> Classes:
        """The same data in other units."""
        return Classes(self.means * factor, self.std * factor)


def moons() -> Classes:
    """Two half circles that reach into one another."""
    t = torch.linspace(0, math.pi, 24)
    upper = torch.stack([t.cos() - 0.5, t.sin() - 0.25], dim=1)
    return Classes(0.6 * torch.stack([upper, -upper]), 0.08)


def mixtures() -> Classes:
    """Three Gaussians a class at random places of 4 dimensions."""
    return Classes(0.5 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), 0.25)


CASES = {
    "two Gaussians, 2-D": Classes(torch.tensor([[[-0.3, 0.0]], [[0.3, 0.0]]]), 0.25),
    "moons, 2-D": moons(),
    "moons times 8, 2-D": moons().times(8),
    "mixtures, 4-D": mixtures(),
}


def make_flow(classes: Classes, seed: int) -> ConditionalFlow:
    """Creates the package's convolutional flow on images of one pixel and D channels, set from draws of the data."""
    torch.manual_seed(seed)
    shape, prior = (classes.means.shape[2], 1, 1), {"num_modes": 0}
    flow = nfa.create_flow("conv_p4_tiny", input_size=shape, num_classes=2, prior=prior, **NETWORK)
    flow.initialize(_image(classes.sample(4096, generator(seed, INIT))[0]))
    return flow


def _image(x: Tensor) -> Tensor:
    return x.view(*x.shape, 1, 1)


def smallest_log_det(prior: ClassGaussians) -> Tensor:
    """Returns log det Sigma_y*, float64, of no dimensions."""
    return prior.variance.detach().double().log().sum(1).min()


@torch.no_grad()
def terms(flow: ConditionalFlow, x: Tensor, log_data: Tensor) -> dict[str, Tensor]:
    """Computes what the two sides are expectations of.

    Args:
        x: points (B, D). log_data: their known log densities (B, 2).

    Returns:
        For each reading ``READING left`` and ``READING right``, e / det(Sigma_y*) included, and
        `margin`, by how many nats log abs det J fulfils the condition; all (B,) float64.
    """
    z, log_det = flow(_image(x))
    log_det, log_gauss = log_det.double().unsqueeze(1), flow.prior.log_prob_all(z).double()
    smallest = smallest_log_det(flow.prior)
    factor = (1 - smallest).exp()

    def squared(log_density: Tensor) -> Tensor:
        return log_density.exp().diff(dim=1).squeeze(1).square()

    return {
        "mixed left": squared(log_gauss),
        "mixed right": squared(log_data) * factor,
        "model left": squared(log_gauss),
        "model right": squared(log_gauss + log_det) * factor,
        "data left": squared(log_data - log_det),
        "data right": squared(log_data) * factor,
        "margin": log_det.squeeze(1) - (smallest - 1) / 2,
    }


def compare(left: Tensor, right: Tensor) -> dict[str, Any]:
    """Estimates both expectations from their terms (B,), with standard errors, and judges whether left <= right.

    `verdict` is holds or fails where the difference exceeds three of its own standard errors, else
    open.
    """
    difference = left - right
    mean, error = difference.mean().item(), _error(difference)
    return {
        "left": left.mean().item(),
        "left_error": _error(left),
        "right": right.mean().item(),
        "right_error": _error(right),
        "verdict": "open" if abs(mean) <= 3 * error else "fails" if mean > 0 else "holds",
    }


def _error(values: Tensor) -> float:
    return (values.std() / len(values) ** 0.5).item()


def measure(flow: ConditionalFlow, classes: Classes, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Returns `compare` for every reading, the share of points that fulfil the condition, fit and separation."""
    log_data = classes.log_prob(x)
    found = terms(flow, x, log_data)
    with torch.no_grad():
        log_flow = flow.log_prob(_image(x), y).double()
    own = log_data.gather(1, y.unsqueeze(1)).squeeze(1)
    return {
        **{r: compare(found[f"{r} left"], found[f"{r} right"]) for r in READINGS},
        "condition_share": (found["margin"] >= 0).double().mean().item(),
        "fit_kl": (own - log_flow).mean().item(),  # nats, KL(known density || the flow's)
        "pairwise_kl": flow.prior.pairwise_kl().sum().item() / 2,  # nats, of the class Gaussians
        "smallest_det": smallest_log_det(flow.prior).exp().item(),
    }


def train(
    classes: Classes, kld: float, steps: int, seed: int, points: int, test_points: int
) -> list[dict[str, Any]]:
    """Trains by turns as `train_flow.trainer` does, on fresh draws.

    Args:
        kld: what the paper's weight of L_KLD is multiplied by.
        points: measurements, at most, beside the one at the start.
        test_points: draws of the data, the same at every step, that the expectations are estimated
        from.

    Returns:
        `measure` at the start and at up to `points` steps.
    """
    config = TrainConfig(image_size=1)  # its defaults are the paper's schedules of the Gaussians
    flow = make_flow(classes, seed)
    gaussians = GaussianUpdates(flow, config, kld, steps)
    loss = FlowLoss(flow)
    optimizer = torch.optim.Adam(flow.network.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    held = classes.sample(test_points, generator(seed, TEST))
    wanted = {round(steps * (i / points) ** 2) for i in range(1, points + 1)}  # most happens early
    curve = [{"step": 0, **measure(flow, classes, *held)}]
    for step in range(steps):
        x, y = classes.sample(BATCH, generator(seed, DRAWS, step))
        x = _image(x)
        gaussians.step(step, x, y)
        optimizer.zero_grad()
        loss(x, y)[0].backward()
        torch.nn.utils.clip_grad_norm_(flow.network.parameters(), config.clip_grad)
        optimizer.step()
        schedule.step()
        if step + 1 in wanted:
            curve.append({"step": step + 1, **measure(flow, classes, *held)})
    return curve


class GaussianUpdates:
    """The other turn of a training: Adam on the class Gaussians, `UPDATES` times until they freeze."""

    def __init__(self, flow: ConditionalFlow, config: TrainConfig, kld: float, steps: int):
        self.flow, self.config, self.kld = flow, config, kld
        prior = flow.prior.requires_grad_(False)
        self.adam = torch.optim.Adam([prior.mu, prior.s])
        self.freeze = round(config.gaussian_until * steps)
        self.every = max(1, self.freeze // UPDATES)

    def step(self, step: int, x: Tensor, y: Tensor) -> None:
        """Updates the Gaussians on images x (B, D, 1, 1) of labels y (B,), where it is their turn."""
        if not step or step >= self.freeze or step % self.every:
            return
        prior, t = self.flow.prior, step / self.freeze
        with torch.no_grad():
            z = self.flow(x)[0]
        prior.requires_grad_(True)
        weight = self.kld * piecewise(self.config.kld_weight, t, geometric=False)
        loss = gaussian_loss(prior, z, y, weight, 0.0, self.flow.dim)
        grads = torch.autograd.grad(loss, [prior.mu, prior.s])
        prior.requires_grad_(False)
        if step == 2 * self.every:  # as in the trainer: the first update knew no KLD
            self.adam.state.clear()
        prior.mu.grad, prior.s.grad = grads
        self.adam.param_groups[0]["lr"] = piecewise(self.config.gaussian_lr, t, geometric=True)
        self.adam.step()


@torch.no_grad()
def image_margin() -> dict[str, Any]:
    """Measures the condition on images: margins of the bundled digits flow on held-out digits, in nats."""
    flow = nfa.create_flow(IMAGE_FLOW, pretrained=True)
    _, val = load_data("digits")
    log_det = flow(pixels.levels_to_model(val.levels))[1].double()
    margin = log_det - (smallest_log_det(flow.prior) - 1) / 2
    return {
        "flow": IMAGE_FLOW,
        "images": len(val),
        "dimensions": flow.dim,
        "smallest_margin": margin.min().item(),
        "median_margin": margin.median().item(),
    }


def draw(cases: dict[str, dict[str, dict[str, Any]]]) -> Figure:
    """Draws the last step of every training, of the `mixed` reading: left over right side, and the left side."""
    figure = chart(2.6, "Does the bound of Proposition 1 hold, and does KLD keep classes apart?")
    bound, apart = figure.subplots(1, 2, sharey=True)
    for arm, colour, shift in zip(ARMS, (VERMILION, BLUE), (-0.12, 0.12), strict=True):
        ends = [arms[arm]["curve"][-1] for arms in cases.values()]
        rows = [row + shift for row in range(len(cases))]
        bound.plot([e["left"] / e["right"] for e in ends], rows, "o", color=colour, label=arm)
        apart.plot([e["left"] for e in ends], rows, "o", color=colour)
    bound.axvline(1, color="0.6", linewidth=1)
    bound.set(xscale="log", xlabel="left side over right side: holds below 1")
    apart.set(xscale="log", xlabel="left side: right is further apart")
    bound.set_yticks(range(len(cases)), list(cases))
    bound.invert_yaxis()
    for axis in (bound, apart):
        axis.grid()
        plain(axis.xaxis)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def table(results: dict[str, Any]) -> list[list[str]]:
    """Returns cells: the last step of every training."""
    sides = [f"{r}: left, right" for r in READINGS]
    rows = [["case", "arm", *sides, "condition", "KL of the fit (nats)"]]
    for case, arms in results["cases"].items():
        for arm, run in arms.items():
            end = run["end"]
            each = [end[r] for r in READINGS]
            shown = [f"{e['left']:.2g}, {e['right']:.2g}: {e['verdict']}" for e in each]
            share, fit = f"{100 * end['condition_share']:.0f}%", f"{end['fit_kl']:.2f}"
            rows.append([case, arm, *shown, share, fit])
    return rows


def rounded(value: Any) -> Any:
    """Rounds floats to 6 significant digits, at any depth."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.proposition", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--steps", type=int, default=600)
    points = "measurements over a training, denser at its start"
    add("--points", type=int, default=16, help=points)
    draws = "draws that the expectations are estimated from"
    add("--test-points", type=int, default=20000, help=draws)
    add("--seed", type=int, default=0)
    add("--figure", type=Path, default=FIGURE)
    args = parser.parse_args(argv)
    if args.points < 1 or args.steps < args.points or args.test_points < 2:
        parser.error("expected 1 <= --points <= --steps and --test-points of at least 2")
    return args


def train_all(args: argparse.Namespace) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Returns the curve of every arm in every case."""
    curves: dict[str, dict[str, list[dict[str, Any]]]] = {case: {} for case in CASES}
    for case, classes in CASES.items():
        for arm, kld in ARMS.items():
            sizes = args.steps, args.seed, args.points, args.test_points
            curves[case][arm] = train(classes, kld, *sizes)
            print(f"{case}, {arm}: done", flush=True)
    return curves


def record(args: argparse.Namespace, argv: list[str] | None, results: dict[str, Any]) -> None:
    settings = {"steps": args.steps, "network": NETWORK, "batch_size": BATCH, "lr": LR}
    data = f"mixtures of Gaussians of known density, {args.test_points} draws; scikit-learn digits"
    write_result(
        "proposition",
        {
            "benchmark": "proposition",
            "command": command_line("benchmarks.analysis.proposition", argv),
            "data": data,
            "seeds": [args.seed],
            "environment": environment(["matplotlib"]),
            "settings": {**settings, "gaussian_updates": UPDATES},
            "results": results,
        },
    )


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    curves = train_all(args)
    cases = {
        case: {
            arm: {"curve": [{"step": c["step"], **c["mixed"]} for c in curve], "end": curve[-1]}
            for arm, curve in arms.items()
        }
        for case, arms in curves.items()
    }
    results = rounded({"cases": cases, "image_margin": image_margin()})
    record(args, argv, results)
    picture = render(lambda: draw(cases))
    write_atomically(args.figure, lambda p: picture.save(p, format="PNG", optimize=True))
    print(f"\n{markdown_table(table(results))}\n\n{results['image_margin']}\n")
    print(f"written to benchmarks/results/proposition.json and {args.figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
