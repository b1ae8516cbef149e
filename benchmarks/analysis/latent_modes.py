"""Which modes of latents to take: how many, how strong, from what size of images, and from whose images.

    python -m benchmarks.analysis.latent_modes modes --data-dir DIR --data-name "Imagenette (224 px, resized)" --autoencoder NAME
    python -m benchmarks.analysis.latent_modes sides ...
    python -m benchmarks.analysis.latent_modes transfer ... --other-dir DIR --other-name "CIFAR-10" --image-size 32 --size 64

Claim: none beforehand. Data and measures as in `benchmarks.analysis.drift`; pooled modes alone.

- modes: every number of modes at every strength.
- sides: modes of latents at one side, resampled to the latents of another. Beside the measures: the
  share of those latents' variance along them, over that along as many modes of their own; the
  correlation of that variance, mode by mode and in logarithms, with what the modes claim; and the
  standard deviation that they claim over the one found, which is 1 where strength 1 keeps its
  meaning.
- transfer: the same for modes of other images, `--other-dir`, in place of another side. The images
  that are moved and judged are those of `--data-dir`; if that has no train/, one half of val/ takes
  its place and nothing is judged.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.analysis.drift import add_data, described, loaded, named, opened
from benchmarks.analysis.frozen import Classifier, read
from benchmarks.analysis.moved import Latents, latent_modes, latents_of, measure, nfa
from benchmarks.core.common import command_line, environment, markdown_table, write_result
from timm_nfaug import ConditionalFlow, lift
from timm_nfaug.autoencoder import Autoencoder
from train_flow.data import Images

Rows = list[dict[str, Any]]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.latent_modes", description=__doc__.split("\n")[0]
    )
    parser.add_argument("study", choices=tuple(STUDIES))
    add_data(parser)
    add = parser.add_argument
    add("--size", type=int, default=112, help="side of latents' images (default: %(default)s)")
    add("--sides", type=int, nargs="+", default=[64, 112, 224], help="of the study of sides")
    add("--modes", type=int, nargs="+", help="default: 8 16 32 64 128, of other studies 32")
    add("--other-dir", type=Path, help="of transfer: ImageFolder tree with train/")
    add("--other-name", default="")
    add("--record", metavar="NAME", help="default: latent_STUDY")
    return parser


def study_modes(
    args: argparse.Namespace,
    autoencoder: Autoencoder,
    train: Images,
    val: Images,
    classifier: Classifier | None,
) -> Rows:
    counts = args.modes or [8, 16, 32, 64, 128]
    latents = latents_of(autoencoder, args.size, train)
    flow = latent_modes(autoencoder, args.size, latents, max(counts))
    which = [{"modes": m, "strength": s} for m in counts for s in args.strengths]
    arms = {
        str(i): nfa(flow, w["strength"], w["modes"], autoencoder, args.size)
        for i, w in enumerate(which)
    }
    found = measure(arms, val, classifier, args.seed)
    held = latents_of(autoencoder, args.size, val)
    share = {m: along(flow, m, held)[0].sum() / total(held) for m in counts}
    return [w | {"variance": share[w["modes"]].item()} | found[str(i)] for i, w in enumerate(which)]


def study_sides(
    args: argparse.Namespace,
    autoencoder: Autoencoder,
    train: Images,
    val: Images,
    classifier: Classifier | None,
) -> Rows:
    flows = {}
    for side in args.sides:
        latents = latents_of(autoencoder, side, train)
        flows[side] = latent_modes(autoencoder, side, latents, modes_of(args))
    rows = []
    for side in args.sides:
        names = {f"modes at {fitted} px": flow for fitted, flow in flows.items()}
        own = f"modes at {side} px"
        rows += compared(args, names, own, autoencoder, side, val, classifier)
    return rows


def study_transfer(
    args: argparse.Namespace,
    autoencoder: Autoencoder,
    train: Images,
    val: Images,
    classifier: Classifier | None,
) -> Rows:
    other = read(args.other_dir / "train", args.train_images, 224)
    names = {args.data_name: train, args.other_name: other}
    flows = {
        f"modes of {name}": latent_modes(
            autoencoder, args.size, latents_of(autoencoder, args.size, images), modes_of(args)
        )
        for name, images in names.items()
    }
    own = f"modes of {args.data_name}"
    return compared(args, flows, own, autoencoder, args.size, val, classifier)


def images_of(args: argparse.Namespace) -> tuple[Images, Images, Classifier | None]:
    """Images to fit to, images to move, and what judges them; see `transfer` for data without train/."""
    if (args.data_dir / "train").is_dir():
        return loaded(args)
    torch.set_num_threads(args.threads)
    whole = read(args.data_dir / "val", 2 * args.images, args.image_size)
    half = torch.arange(len(whole)) % 2 == 0
    return whole.subset(half), whole.subset(~half), None


STUDIES = {"modes": study_modes, "sides": study_sides, "transfer": study_transfer}


def modes_of(args: argparse.Namespace) -> int:
    """The one number of modes of a study that does not compare them."""
    return (args.modes or [32])[0]


def compared(
    args: argparse.Namespace, flows: dict[str, ConditionalFlow], own: str,
    autoencoder: Autoencoder, side: int, val: Images, classifier: Classifier | None,
) -> Rows:  # fmt: skip
    """Rows for each flow and strength on images at one side; `own` is the flow that was fitted for them."""
    m = modes_of(args)
    which = [{"arm": name, "side": side, "strength": s} for name in flows for s in args.strengths]
    arms = {
        str(i): nfa(flows[w["arm"]], w["strength"], m, autoencoder, side)
        for i, w in enumerate(which)
    }
    found = measure(arms, val, classifier, args.seed)
    held = latents_of(autoencoder, side, val)
    explained = along(flows[own], m, held)[0].sum()
    fit = {}
    for name, flow in flows.items():
        found_there, claimed = along(flow, m, held)
        fit[name] = {
            "variance": (found_there.sum() / total(held)).item(),
            "variance_over_own": (found_there.sum() / explained).item(),
            "correlation": torch.corrcoef(torch.stack([found_there, claimed]).log())[0, 1].item(),
            "scale": (claimed.sum() / found_there.sum()).sqrt().item(),
        }
    return [w | fit[w["arm"]] | found[str(i)] for i, w in enumerate(which)]


def along(flow: ConditionalFlow, modes: int, latents: Latents) -> tuple[Tensor, Tensor]:
    """The variance (modes,) of latents along the modes of a pooled flow, resampled to their size, and that of the moves."""
    z = torch.cat([own for own, _ in latents])
    prior, size = flow.prior, flow.config.input_size
    directions = prior.modes[0, :modes].view(modes, *size)
    directions = lift.down(directions, (z.shape[2], z.shape[3])).flatten(1)
    moved = directions.square().sum(1) * prior.mode_std[0, :modes].square()
    basis = torch.linalg.qr(directions.T)[0]  # resampled modes are no longer quite orthonormal
    return (z.flatten(1) @ basis).var(0), moved


def total(latents: Latents) -> Tensor:
    """The variance of latents in all directions."""
    return torch.cat([z for z, _ in latents]).flatten(1).var(0).sum()


def table(rows: Rows) -> list[list[str]]:
    """Cells, the header first."""
    first = [k for k in ("arm", "side", "modes", "strength") if k in rows[0]]
    measures = {
        "variance": "variance along them", "variance_over_own": "over their own",
        "correlation": "correlation", "scale": "std claimed over found", "move_levels": "move (levels)", "kept": "kept",
        "spread": "spread", "burnt": "burnt",
    }  # fmt: skip
    shown = {k: name for k, name in measures.items() if k in rows[0]}
    cells = [[*first, *shown.values()]]
    shares = ("variance", "kept", "burnt")
    for r in rows:
        form = lambda k, r=r: f"{100 * r[k]:.1f}%" if k in shares else f"{r[k]:.2f}"
        cells.append([*(f"{r[k]}" for k in first), *(form(k) for k in shown)])
    return cells


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.study == "transfer" and not (args.other_dir and args.other_name):
        parser.error("transfer needs --other-dir and --other-name")
    autoencoder = opened(args)
    if autoencoder is None:
        parser.error("--autoencoder is missing: whose latents?")
    train, val, classifier = images_of(args)
    rows = STUDIES[args.study](args, autoencoder, train, val, classifier)
    keys = ("study", "size", "image_size", "classifier_size", "bfloat16")
    write_result(
        args.record or f"latent_{args.study}",
        {
            "benchmark": "analysis.latent_modes",
            "command": command_line("benchmarks.analysis.latent_modes", argv),
            "data": described(args, train, val),
            "seeds": [args.seed],
            "environment": environment(),
            "settings": {k: getattr(args, k) for k in keys} | {"autoencoder": named(args)},
            "results": {"rows": rows},
        },
    )
    print(markdown_table(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
