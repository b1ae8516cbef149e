"""The pictures of the pages, one command each: what moves look like, what flows do, and what the records say.

    python -m benchmarks.figures moves --photos DIR
    python -m benchmarks.figures throughput
    python -m benchmarks.figures latent_moves --photos DIR --images DIR --autoencoder NAME
    python -m benchmarks.figures all --photos DIR --images DIR --autoencoder NAME --data-dir DIR

Claim: none; pictures to look at. Data: `moves` shows the first image of val/ of each of the first
classes of an ImageFolder tree of photographs, none chosen by eye;
`augment` and `interpolate` show images from val/ of the tree of a flow's own classes; the charts are
drawn from the records in benchmarks/results. Those of latents fit linear modes to `FIT_IMAGES` of
train/ and take deep flows by `--latent-flow`, which `LATENT_FLOWS` need and `all` then draws, too.
One seed.
"""

from __future__ import annotations

import argparse
import functools
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks import gallery, latent_gallery
from benchmarks.analysis import drift, flow_pareto, proposition
from benchmarks.core.charts import render
from benchmarks.core.common import RESULTS, ROOT
from benchmarks.core.schema import validate_file
from benchmarks.gallery import CLASSES, LabelledImage
from benchmarks.speed import throughput
from timm_nfaug import ConditionalFlow, NFAugment
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.autoencoder import Autoencoder, load_autoencoder
from timm_nfaug.preview import find_images
from timm_nfaug.reading import read_image

# what the pictures of flows show; a change here and `all` draw them anew
FLOW, CONTROL = "conv_p4_small.cifar10", "linear.cifar10"
LABELS = "given"  # modes of the class
STRENGTHS = (0.5, 1.0)  # of `moves`
PHOTOGRAPHS, SIDE = 5, 224
LATENT_SIDE, FIT_IMAGES, MODES = 112, 1500, 32  # of linear modes of latents
OURS, OTHERS = 2, 2  # photographs of --photos and --images in `latent_moves`
CROP = v2.Compose([v2.Resize(SIDE), v2.CenterCrop(SIDE)])

FOLDER = ROOT / "docs" / "figures"
LIMITS = {".png": 150_000, ".jpg": 250_000}  # bytes of a picture


def validation_images(
    flow: ConditionalFlow, data_dir: str, per_class: int, seed: int
) -> list[LabelledImage]:
    """Loads `per_class` images of val/ for each class of the flow, class after class."""
    root, names = Path(data_dir) / "val", flow.config.class_names
    found = find_images(root, per_class * flow.num_classes, seed, names)
    found = sorted((label, path) for path, label in found if label is not None)
    wanted = [k for k in range(flow.num_classes) for _ in range(per_class)]
    if [label for label, _ in found] != wanted:
        raise ValueError(
            f"{root} must hold {per_class} images or more of each class of the flow, in folders named "
            f"{', '.join(names[:5]) or '(this flow names no classes)'} ...; name another --flow or --data-dir"
        )
    return [(read_image(path, flow.config.input_size[0]), label) for label, path in found]


def training_images(photos: Path, count: int) -> DataLoader:
    """Loads the photographs of train/ at `SIDE` pixels, at most `count`, spread over them evenly."""
    train: Any = ImageFolder(str(photos / "train"), v2.Compose([CROP, v2.PILToTensor()]))
    if count < len(train):
        train = Subset(train, [i * len(train) // count for i in range(count)])
    return DataLoader(train, 64)


def first_images(root: Path, classes: int, each: int = 1) -> list[Image.Image]:
    """Loads the first `each` images of `classes` classes, spread over those of val/ evenly."""
    val = ImageFolder(str(root / "val"), CROP)
    classes = min(classes, len(val.classes))
    first = [val.targets.index(k * len(val.classes) // classes) for k in range(classes)]
    return [val[i + j][0] for i in first for j in range(each)]


def draw_moves(args: argparse.Namespace) -> Image.Image:
    """Draws the default, smooth shading, on photographs."""
    augment = NFAugment.from_cosine()
    val = ImageFolder(str(args.photos / "val"), CROP)
    first = [val.targets.index(k) for k in range(min(PHOTOGRAPHS, len(val.classes)))]
    return gallery.moves(augment, [val[i][0] for i in first], STRENGTHS, args.seed)


def draw_augment(args: argparse.Namespace) -> Image.Image:
    flow, control = (ConditionalFlow.from_pretrained(name) for name in (args.flow, args.control))
    images = validation_images(flow, args.data_dir, 1, args.seed)[:CLASSES]
    return gallery.augment(flow, control, images, args.strength, LABELS, args.seed)


def draw_interpolate(args: argparse.Namespace) -> Image.Image:
    flow = ConditionalFlow.from_pretrained(args.flow)
    return gallery.interpolate(flow, validation_images(flow, args.data_dir, 2, args.seed))


def draw_temperatures(args: argparse.Namespace) -> Image.Image:
    flow = ConditionalFlow.from_pretrained(args.flow)
    return gallery.temperatures(flow, args.mean_scale, args.seed)


@functools.cache
def latent_linear(photos: Path, name: str, size: int, kept: Path | None) -> NFAugment:
    """The linear modes of latents, found once and kept in a directory where one is named."""
    autoencoder = load_autoencoder(name)
    if kept is not None and kept.is_dir():
        return NFAugment.from_pretrained(kept, autoencoder=autoencoder)
    loader, how = training_images(photos, FIT_IMAGES), {"modes": MODES, "labels": "none"}
    augment = NFAugment.from_data(loader, autoencoder=autoencoder, size=size, **how)
    if kept is not None:
        augment.save_pretrained(kept)
    return augment


def linear_of(args: argparse.Namespace) -> NFAugment:
    return latent_linear(args.photos, args.autoencoder, args.size, args.latent_modes)


def latent_flows(args: argparse.Namespace, labels: str = "none") -> dict[str, NFAugment]:
    """The augmentations by the flows of --latent-flow, by the names of their directories."""
    autoencoder: Autoencoder = load_autoencoder(args.autoencoder)
    return {
        folder_name(Path(name)): NFAugment.from_pretrained(
            name, autoencoder=autoencoder, labels=labels
        )
        for name in args.latent_flow
    }


def folder_name(path: Path) -> str:
    """The name of a flow's directory, or of the training that it lies in."""
    return path.parent.name if path.name == "flow" else path.name


def first_flow(args: argparse.Namespace) -> NFAugment:
    """The first of --latent-flow, with its classes."""
    if not args.latent_flow:
        raise ValueError("give --latent-flow DIR, a flow that train_flow made over latents")
    return next(iter(latent_flows(args, "given").values()))


def draw_latent_moves(args: argparse.Namespace) -> Image.Image:
    images = first_images(args.photos, OURS) + first_images(args.images, OTHERS)
    pixel = NFAugment.from_data(training_images(args.photos, FIT_IMAGES), labels="none")
    spaces = {"linear (pixels)": pixel, "latent linear": linear_of(args)}
    spaces |= {f"latent {name}": flow for name, flow in latent_flows(args).items()}
    return latent_gallery.moves(spaces, images, args.seed)


def draw_latent_strengths(args: argparse.Namespace) -> Image.Image:
    (image,) = first_images(args.photos, 1)
    return latent_gallery.strengths(linear_of(args), image, args.seed)


def draw_latent_modes(args: argparse.Namespace) -> Image.Image:
    (image,) = first_images(args.photos, 1)
    return latent_gallery.modes(linear_of(args), image)


def draw_latent_interpolate(args: argparse.Namespace) -> Image.Image:
    """Within a class, to the next class, within: by the deep flow if there is one, else the latents."""
    augment = first_flow(args) if args.latent_flow else linear_of(args)
    images = first_images(args.photos, 2, each=2)
    return latent_gallery.interpolate(augment, images, ["same", "other", "same"])


def draw_latent_augment(args: argparse.Namespace) -> Image.Image:
    images = first_images(args.photos, OURS, each=2)
    spaces = latent_flows(args) | {"linear": linear_of(args)}
    return latent_gallery.augmented(spaces, images, (0.25, *STRENGTHS), args.seed)


def draw_latent_temperatures(args: argparse.Namespace) -> Image.Image:
    return latent_gallery.temperatures(first_flow(args), args.mean_scale, args.seed)


def draw_latent_walk(args: argparse.Namespace) -> Image.Image:
    return latent_gallery.walk(first_flow(args), args.label)


def chart_of(draw: Callable[[], Figure]) -> Callable[[argparse.Namespace], Image.Image]:
    return lambda args: render(draw)


def results(name: str) -> dict[str, Any]:
    return validate_file(RESULTS / f"{name}.json")["results"]


def option(
    default: Any, help: str, type: Callable[[str], Any] = str, **more: Any
) -> dict[str, Any]:
    return {"default": default, "help": f"{help} (default: %(default)s)", "type": type, **more}


def folder(help: str) -> dict[str, Any]:
    return {"required": True, "metavar": "DIR", "type": Path, "help": help}


OPTIONS: dict[str, dict[str, Any]] = {
    "--photos": folder("photographs: ImageFolder tree with train/ and val/"),
    "--images": folder("further photographs: ImageFolder tree with val/"),
    "--autoencoder": {
        "required": True,
        "metavar": "NAME",
        "help": "Hub id, directory or FILE.py:FUNCTION",
    },
    "--size": option(LATENT_SIDE, "pixels a side of the images that are encoded", int),
    "--latent-modes": {
        "metavar": "DIR",
        "type": Path,
        "help": "where linear modes are kept once they are found",
    },
    "--latent-flow": {
        "metavar": "DIR",
        "nargs": "+",
        "default": [],
        "help": "deep flows over latents; samples and lines are those of the first",
    },
    "--label": option(0, "number of the class", int),
    "--flow": option(FLOW, "bundled, directory, Hub id", metavar="NAME"),
    "--control": option(CONTROL, "the flow beside it", metavar="NAME"),
    "--data-dir": folder("images of the flow's classes: ImageFolder tree with val/"),
    "--strength": option(0.5, "of the augmentation", float),
    "--mean-scale": option(1.0, "factor of the class means", float),
    "--seed": {"type": int, "default": 0, "help": "default: %(default)s"},
}
LATENTS = ["--photos", "--autoencoder", "--size", "--latent-modes"]
LATENT_FLOWS = ("latent_augment", "latent_temperatures", "latent_walk")  # that need --latent-flow
FIGURES: dict[str, tuple[Callable[[argparse.Namespace], Image.Image], list[str]]] = {
    "moves": (draw_moves, ["--photos", "--seed"]),
    "augment": (draw_augment, ["--flow", "--control", "--data-dir", "--strength", "--seed"]),
    "interpolate": (draw_interpolate, ["--flow", "--data-dir", "--seed"]),
    "temperatures": (draw_temperatures, ["--flow", "--mean-scale", "--seed"]),
    "latent_moves": (draw_latent_moves, [*LATENTS, "--images", "--latent-flow", "--seed"]),
    "latent_strengths": (draw_latent_strengths, [*LATENTS, "--seed"]),
    "latent_modes": (draw_latent_modes, LATENTS),
    "latent_interpolate": (draw_latent_interpolate, [*LATENTS, "--latent-flow"]),
    "latent_augment": (draw_latent_augment, [*LATENTS, "--latent-flow", "--seed"]),
    "latent_temperatures": (
        draw_latent_temperatures,
        ["--autoencoder", "--latent-flow", "--mean-scale", "--seed"],
    ),
    "latent_walk": (draw_latent_walk, ["--autoencoder", "--latent-flow", "--label"]),
    "throughput": (chart_of(lambda: throughput.draw(results("throughput")["rows"])), []),
    "flow_pareto": (chart_of(lambda: flow_pareto.draw(results("flow_pareto")["rows"])), []),
    "latent_drift": (chart_of(lambda: drift.draw(results("latent_drift")["rows"])), []),
    "proposition": (chart_of(lambda: proposition.draw(results("proposition")["cases"])), []),
}


def file_name(figure: str) -> str:
    """Photographs are JPEG, which is a quarter of a PNG of them."""
    photographs = figure.endswith("moves") or figure.startswith("latent_")
    return f"{figure}.jpg" if photographs and figure != "latent_drift" else f"{figure}.png"


def save(sheet: Image.Image, out: Path) -> str:
    """Writes a picture of at most LIMITS bytes, as fine as that allows.

    Returns:
        How fine: the quality of a JPEG, the bits a channel of a PNG.
    """
    limit = LIMITS[out.suffix]
    for how, data in _encoded(sheet, out.suffix):
        if len(data) <= limit:
            write_atomically(out, lambda p, data=data: p.write_bytes(data))
            return how
    raise ValueError(f"{out} would take {len(data)} bytes, {limit} at most are wanted; show less")


def _encoded(sheet: Image.Image, suffix: str) -> Iterator[tuple[str, bytes]]:
    """The picture as a file, finest first; a chart, which has a palette, in its few colours."""
    if suffix == ".jpg":
        for quality in (92, 85, 75):
            yield f"quality {quality}", _bytes(sheet, "JPEG", quality=quality)
    elif sheet.mode == "P":
        yield "a palette", _bytes(sheet, "PNG", optimize=True)
    else:
        for top in (255, 127, 63, 31):
            levels = [round(round(v * top / 255) * 255 / top) for v in range(256)]
            yield f"{top.bit_length()} bits a channel", _bytes(sheet.point(levels * 3), "PNG")


def _bytes(sheet: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, format=kind, **settings)
    return buffer.getvalue()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.figures", description=__doc__.split("\n")[0]
    )
    names = [*FIGURES, "all"]
    commands = parser.add_subparsers(
        dest="figure", required=True, metavar="NAME", help=", ".join(names)
    )
    for name in names:
        command = commands.add_parser(name)
        for flag, settings in OPTIONS.items():
            if name == "all" or flag in FIGURES[name][1]:
                command.add_argument(flag, **settings)
        default = FOLDER if name == "all" else FOLDER / file_name(name)
        command.add_argument("--out", type=Path, default=default, help="default: in docs/figures")
    return parser


def wanted(args: argparse.Namespace) -> list[str]:
    """The figures of a command; `all` are those that it has the flows for."""
    if args.figure != "all":
        return [args.figure]
    return [name for name in FIGURES if name not in LATENT_FLOWS or args.latent_flow]


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    for name in wanted(args):
        out = args.out / file_name(name) if args.figure == "all" else args.out
        try:
            sheet = FIGURES[name][0](args)
            how = save(sheet, out)
        except (ValueError, OSError, ImportError) as e:
            parser.exit(2, f"error: {e}\n")
        size = f"{sheet.width} x {sheet.height}, {how}, {out.stat().st_size:,} bytes"
        print(f"{out}: {size}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
