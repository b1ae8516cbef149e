"""The pictures of docs/gallery.md, one command each: what a flow does to images, and what its codes look like.

    python -m benchmarks.figures augment --data-dir DIR
    python -m benchmarks.figures all --data-dir DIR

Claim: none; pictures to look at (`benchmarks.gallery` draws them). Data: images from val/ of the
ImageFolder tree DIR; one seed. `tsne` and `bands` first train what they show, on train/, for
--steps steps (kept in --runs and resumed from there).
"""

from __future__ import annotations

import argparse
import functools
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import resolve_data_config
from timm.models import clean_state_dict
from torch import Tensor, nn

from benchmarks import gallery
from benchmarks.analysis.flow_objectives import ARMS as OBJECTIVES
from benchmarks.cifar.classifier import load_saved
from benchmarks.demo import first_of_each_class
from benchmarks.gallery import CLASSES, Classifier, LabelledImage
from timm_nfaug import ConditionalFlow, pixels
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.preview import find_images
from timm_nfaug.reading import read_image
from train_flow.config import load_config
from train_flow.data import Images, load_data
from train_flow.trainer import Trainer

FLOW = "conv_p4_small.cifar10_jpeg"
LIMIT = 150_000  # bytes of a picture
# title: (name of the run, its settings). One network, the same images in the same order; only the Gaussians differ. The KLD
# is the strong one, because a gentle one leaves no trace that an eye could find.
STRONG = OBJECTIVES["glem, strong"]
ARMS = {
    "with KLD": ("glem", [*STRONG, "objective=glem"]),
    "without KLD": ("ml", [*STRONG, "objective=ml"]),
    "with KLD, variances free": ("glem-free", [*STRONG, "objective=glem", "prior.a=null"]),
}


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


def first_images(data: Images, per_class: int) -> Images:
    """Picks `per_class` images of each of the classes shown."""
    few = first_of_each_class(data, per_class)
    return few.subset(torch.nonzero(few.labels < CLASSES).flatten())


def load_classifier(path: str, flow: ConditionalFlow) -> Classifier:
    """Loads what benchmarks.cifar.resnet18 saved, or a checkpoint of timm's train.py, averaged weights first."""
    if path.endswith(".safetensors"):
        _, own = load_saved(path, flow.num_classes)
        return lambda x: own(x * 2)  # as `classifier.normalize` has images
    model, settings = load_checkpoint(path, flow.config.input_size[0])
    if model.num_classes != flow.num_classes:
        raise ValueError(
            f"{path} knows {model.num_classes} classes, the flow {flow.num_classes}; name another --classifier"
        )
    config = resolve_data_config(settings, model=model)
    mean, std = pixels.channel_stats(config["mean"], config["std"], torch.empty(3, 1, 1))

    def classify(x: Tensor) -> Tensor:
        large = F.interpolate(x, config["input_size"][1:], mode="bilinear", antialias=True)
        unit = large.add(1).mul(128).sub(0.5).div(255).clamp(0, 1)  # inverts pixels.unit_to_model
        return model((unit - mean) / std)

    return classify


def load_checkpoint(path: str, channels: int) -> tuple[nn.Module, dict[str, Any]]:
    """Loads the model of a checkpoint of timm's train.py, and the settings it was trained with."""
    broken = KeyError, TypeError, RuntimeError, EOFError, torch.serialization.pickle.UnpicklingError
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
        settings = vars(state["args"])
        weights = clean_state_dict(state.get("state_dict_ema", state["state_dict"]))
    except broken as e:
        raise ValueError(
            f"{path} is no checkpoint of timm's train.py, which holds `args` and `state_dict` ({e})"
        ) from e
    shape = {"num_classes": settings["num_classes"], "in_chans": channels}
    model = timm.create_model(settings["model"], **shape, **settings.get("model_kwargs", {}))
    model.load_state_dict(weights)
    return model.eval(), settings


@functools.cache
def read_data(config_name: str, data_dir: str) -> tuple[Images, Images]:
    """Loads the training and validation images of a config."""
    c = load_config(config_name)
    images, val = load_data(
        c.data, data_dir, c.image_size, c.in_chans, c.val_fraction, c.skip_unreadable
    )
    if val is None:
        raise ValueError(f"{data_dir} has no validation images; expected train/ and val/ inside")
    return images, val


def trained(name: str, settings: list[str], args: argparse.Namespace) -> ConditionalFlow:
    """Returns the flow of a training of --steps steps, resumed from --runs."""
    config = load_config(args.config, [f"steps={args.steps}", f"seed={args.seed}", *settings])
    images, _ = read_data(args.config, args.data_dir)
    out = args.runs / f"{name}-{args.steps}-{args.seed}"
    trainer = Trainer(config, images, None, out, resume=True)
    trainer.run()
    return trainer.best().eval().set_net_dtype(None)


def draw_augment(args: argparse.Namespace) -> Image.Image:
    flow, control = (ConditionalFlow.from_pretrained(name) for name in (args.flow, args.control))
    images = validation_images(flow, args.data_dir, 1, args.seed)[:CLASSES]
    return gallery.augment(flow, control, images, args.strength, args.seed)


def draw_interpolate(args: argparse.Namespace) -> Image.Image:
    flow = ConditionalFlow.from_pretrained(args.flow)
    return gallery.interpolate(flow, validation_images(flow, args.data_dir, 2, args.seed))


def draw_samples(args: argparse.Namespace) -> Image.Image:
    flow = ConditionalFlow.from_pretrained(args.flow)
    classifier = load_classifier(args.classifier, flow) if args.classifier else flow.class_logits
    how = args.draws, args.temperature, args.mean_scale, args.seed
    return gallery.samples(flow, classifier, *how)


def draw_temperatures(args: argparse.Namespace) -> Image.Image:
    flow = ConditionalFlow.from_pretrained(args.flow)
    return gallery.temperatures(flow, args.mean_scale, args.seed)


def draw_tsne(args: argparse.Namespace) -> Image.Image:
    flows = {title: trained(*run, args) for title, run in ARMS.items()}
    shown = first_images(read_data(args.config, args.data_dir)[1], args.per_class)
    return gallery.tsne(flows, shown, args.seed)


def draw_bands(args: argparse.Namespace) -> Image.Image:
    flow = trained("ce", ["objective=ce"], args)
    shown = first_images(read_data(args.config, args.data_dir)[1], 1)
    return gallery.bands(flow, shown, args.temperature, args.seed)


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def option(
    default: Any, help: str, type: Callable[[str], Any] = str, **more: Any
) -> dict[str, Any]:
    return {"default": default, "help": f"{help} (default: %(default)s)", "type": type, **more}


OPTIONS: dict[str, dict[str, Any]] = {
    "--flow": option(FLOW, "bundled, directory, Hub id", metavar="NAME"),
    "--control": option("linear.cifar10_jpeg", "the flow beside it", metavar="NAME"),
    "--data-dir": {
        "required": True,
        "metavar": "DIR",
        "help": "ImageFolder tree with train/ and val/",
    },
    "--strength": option(0.5, "of the augmentation", float),
    "--draws": option(64, "samples a class that the best are kept of", positive),
    "--temperature": option(0.7, "of the samples", float),
    "--mean-scale": option(1.0, "factor of the class means", float),
    "--classifier": {
        "metavar": "FILE",
        "help": "of benchmarks.cifar.resnet18 --save or timm's train.py; filters (default: the flow)",
    },
    "--config": option("conv_p4_tiny.cifar10_jpeg", "of the trainings, see train_flow"),
    "--steps": option(1500, "of each training", positive),
    "--per-class": option(200, "validation images a class", positive),
    "--runs": option(Path("runs/figures"), "where the trainings live", Path),
    "--seed": {"type": int, "default": 0, "help": "default: %(default)s"},
}
SAMPLES = ["--flow", "--draws", "--temperature", "--mean-scale", "--classifier"]
TRAINED = ["--data-dir", "--config", "--steps", "--runs"]
FIGURES: dict[str, tuple[Callable[[argparse.Namespace], Image.Image], list[str]]] = {
    "augment": (draw_augment, ["--flow", "--control", "--data-dir", "--strength"]),
    "interpolate": (draw_interpolate, ["--flow", "--data-dir"]),
    "samples": (draw_samples, SAMPLES),
    "temperatures": (draw_temperatures, ["--flow", "--mean-scale"]),
    "tsne": (draw_tsne, [*TRAINED, "--per-class"]),
    "bands": (draw_bands, [*TRAINED, "--temperature"]),
}


def save(sheet: Image.Image, out: Path) -> int:
    """Writes a PNG of at most LIMIT bytes with as many bits a channel, 8 to 5, as that allows.

    Returns:
        The bits.
    """
    for bits in (8, 7, 6, 5):
        top = 2**bits - 1
        buffer = io.BytesIO()
        sheet.point([round(round(v * top / 255) * 255 / top) for v in range(256)] * 3).save(
            buffer, format="PNG"
        )
        if buffer.tell() <= LIMIT:
            write_atomically(out, lambda p, b=buffer: p.write_bytes(b.getvalue()))
            return bits
    raise ValueError(
        f"{out} would take {buffer.tell()} bytes with 5 bits a channel, {LIMIT} at most are wanted; show less"
    )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.figures", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(
        dest="figure", required=True, metavar="NAME", help=", ".join([*FIGURES, "all"])
    )
    for name in [*FIGURES, "all"]:
        command = commands.add_parser(name)
        for flag, settings in OPTIONS.items():
            if name == "all" or flag == "--seed" or flag in FIGURES[name][1]:
                command.add_argument(flag, **settings)
        folder = Path("docs/figures")
        default = folder if name == "all" else folder / f"{name}.png"
        command.add_argument("--out", type=Path, default=default, help="default: %(default)s")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    for name in FIGURES if args.figure == "all" else [args.figure]:
        out = args.out / f"{name}.png" if args.figure == "all" else args.out
        try:
            sheet = FIGURES[name][0](args)
            bits = save(sheet, out)
        except (ValueError, FileNotFoundError) as e:
            parser.exit(2, f"error: {e}\n")
        print(
            f"{out}: {sheet.width} x {sheet.height}, {bits} bits a channel, {out.stat().st_size:,} bytes",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
