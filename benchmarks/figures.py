"""The pictures of docs/gallery.md, one command each: what a flow does to images, and what its codes look like.

    python -m benchmarks.figures augment --data-dir DIR
    python -m benchmarks.figures all --data-dir DIR

The figures are those of the supplementary of Enescu & Sahbi (ACCV 2024). Images come from val/ of the ImageFolder tree DIR;
`tsne` and `bands` first train what they show, on train/, for --steps steps (kept in --runs and resumed from there).
"""

from __future__ import annotations

import argparse
import functools
import io
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import timm
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from timm.data import resolve_data_config
from timm.models import clean_state_dict
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from benchmarks.analysis.flow_objectives import ARMS as OBJECTIVES
from benchmarks.cifar.classifier import load_saved
from benchmarks.demo import first_of_each_class
from timm_nfaug import pixels
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.augment import DEFAULT_FLOW, NFAugment
from timm_nfaug.flows.label_band import nearest_label
from timm_nfaug.flows.model import ConditionalFlow
from timm_nfaug.preview import (
    class_name,
    draw_grid,
    find_images,
    load_image,
    preview_interpolation,
    to_pil,
)
from train_flow.config import load_config
from train_flow.data import Images, load_data
from train_flow.evaluate import batches
from train_flow.trainer import Trainer

TEMPERATURES = (1.0, 0.7, 0.5, 0.3, 0.1)
CLASSES = 10  # shown at most
CELL = 64  # pixels: CIFAR's images doubled
KEPT = 5  # samples of a class that pass the filter
LIMIT = 150_000  # bytes of a picture

# title: (name of the run, its settings). One network, the same images in the same order; only the Gaussians differ. The KLD
# is the strong one, because a gentle one leaves no trace that an eye could find.
STRONG = OBJECTIVES["glem, strong"]
ARMS = {
    "with KLD": ("glem", [*STRONG, "objective=glem"]),
    "without KLD": ("ml", [*STRONG, "objective=ml"]),
    "with KLD, variances free": ("glem-free", [*STRONG, "objective=glem", "prior.a=null"]),
}

LabelledImage = tuple[Image.Image, int]
Classifier = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [-1, 1] to logits (B, K)


def validation_images(
    flow: ConditionalFlow, data_dir: str, per_class: int, seed: int
) -> list[LabelledImage]:
    """`per_class` images of val/ for each class of the flow, class after class."""
    root = Path(data_dir) / "val"
    found = find_images(root, per_class * flow.num_classes, seed, flow.config.class_names)
    found = sorted((label, path) for path, label in found if label is not None)
    if [label for label, _ in found] != [
        k for k in range(flow.num_classes) for _ in range(per_class)
    ]:
        raise ValueError(
            f"{root} must hold {per_class} images or more of each class of the flow, in folders named "
            f"{', '.join(flow.config.class_names[:5]) or '(this flow names no classes)'} ...; name another --flow or --data-dir"
        )
    return [(load_image(path, flow.config.input_size[0]), label) for label, path in found]


def augment(
    flow: ConditionalFlow,
    control: ConditionalFlow,
    images: list[LabelledImage],
    strength: float,
    seed: int,
) -> Image.Image:
    """A row an image: the original, three augmented by `flow`, three by `control`."""
    if flow.config.class_names != control.config.class_names:
        raise ValueError(
            f"--flow and --control know other classes: {flow.config.class_names}, {control.config.class_names}"
        )
    augments = [NFAugment(f, strength, min(32, f.prior.num_modes), p=1.0) for f in (flow, control)]
    blocks = [[[image] for image, _ in images]]
    for augmented in augments:
        rows = []
        for i, (image, label) in enumerate(images):
            generators = [torch.Generator().manual_seed(seed + 1000 * i + j) for j in range(3)]
            rows.append([augmented(image, label, generator=g)[0] for g in generators])
        blocks.append(rows)
    titles = [["original"], *(["", f.config.architecture, ""] for f in (flow, control))]
    return beside(blocks, titles, [class_name(flow, label) for _, label in images])


def beside(
    blocks: list[list[list[Image.Image]]], titles: list[list[str]], names: list[str]
) -> Image.Image:
    """Grids with the same rows side by side, a gap between them; the names stand before the first."""
    blank = [""] * len(names)
    grids = [
        draw_grid(b, t, blank if i else names, CELL)
        for i, (b, t) in enumerate(zip(blocks, titles, strict=True))
    ]
    return Image.fromarray(np.concatenate([np.asarray(grid) for grid in grids], axis=1))


def interpolate(flow: ConditionalFlow, images: list[LabelledImage]) -> Image.Image:
    """Rows from image to image through two images of each of four classes: by turns within a class and to the next."""
    shown = min(4, flow.num_classes)
    picked = [i * flow.num_classes // shown for i in range(shown)]
    return preview_interpolation(flow, [pair for pair in images if pair[1] in picked])


@torch.no_grad()
def samples(
    flow: ConditionalFlow,
    classifier: Classifier,
    draws: int,
    temperature: float,
    mean_scale: float,
    seed: int,
) -> Image.Image:
    """A row a class: the first two of `draws` samples, then the KEPT of them that the classifier likes best."""
    if draws < KEPT:
        raise ValueError(f"--draws must be at least the {KEPT} samples that are kept, got {draws}")
    drawn, kept, names = [], [], []
    for k in range(min(CLASSES, flow.num_classes)):
        y = torch.full((draws,), k)
        x = check_finite(
            flow.sample(y, temperature, mean_scale, torch.Generator().manual_seed(seed + k))
        )
        best = margin(classifier(pixels.levels_to_model(pixels.model_to_levels(x))), k).argsort(
            descending=True
        )
        drawn.append([to_pil(image) for image in x[:2]])
        kept.append([to_pil(image) for image in x[best[:KEPT]]])
        names.append(class_name(flow, k))
    return beside([drawn, kept], [["drawn"] * 2, ["kept"] * KEPT], names)


def margin(logits: Tensor, k: int) -> Tensor:
    """(B,) log odds of class k from logits (B, K): unlike a probability, it does not saturate where a flow is certain."""
    others = torch.arange(logits.shape[1]) != k
    return logits[:, k] - logits[:, others].logsumexp(1)


def load_classifier(path: str, flow: ConditionalFlow) -> Classifier:
    """A classifier that cifar_resnet18 saved, or of a checkpoint of timm's train.py, averaged weights first."""
    if path.endswith(".safetensors"):
        _, own = load_saved(path, flow.num_classes)
        return lambda x: own(x * 2)  # as `classifier.normalize` has images
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
        settings = vars(state["args"])
        weights = clean_state_dict(state.get("state_dict_ema", state["state_dict"]))
    except (
        KeyError,
        TypeError,
        RuntimeError,
        EOFError,
        torch.serialization.pickle.UnpicklingError,
    ) as e:
        raise ValueError(
            f"{path} is no checkpoint of timm's train.py, which holds `args` and `state_dict` ({e})"
        ) from e
    model = timm.create_model(
        settings["model"], num_classes=settings["num_classes"], in_chans=flow.config.input_size[0],
        **settings.get("model_kwargs", {}),
    )  # fmt: skip
    if model.num_classes != flow.num_classes:
        raise ValueError(
            f"{path} knows {model.num_classes} classes, the flow {flow.num_classes}; name another --classifier"
        )
    model.load_state_dict(weights)
    model.eval()
    config = resolve_data_config(settings, model=model)
    mean, std = pixels.channel_stats(config["mean"], config["std"], torch.empty(3, 1, 1))

    def classify(x: Tensor) -> Tensor:
        x = F.interpolate(x, config["input_size"][1:], mode="bilinear", antialias=True)
        x = x.add(1).mul(128).sub(0.5).div(255).clamp(0, 1)  # inverts pixels.unit_to_model
        return model((x - mean) / std)

    return classify


@torch.no_grad()
def temperatures(flow: ConditionalFlow, mean_scale: float, seed: int) -> Image.Image:
    """A row a temperature, a column a class; in a column the noise is the same."""
    if flow.config.code_rows:
        raise ValueError(
            "a flow with conditional encoding draws until its labels fit: no noise is the same; use class Gaussians"
        )
    y = torch.arange(min(CLASSES, flow.num_classes))
    rows = [
        [
            to_pil(image)
            for image in check_finite(
                flow.sample(y, t, mean_scale, torch.Generator().manual_seed(seed))
            )
        ]
        for t in TEMPERATURES
    ]
    return draw_grid(
        rows, [class_name(flow, int(k)) for k in y], [f"{t:g}" for t in TEMPERATURES], CELL
    )


def check_finite(x: Tensor) -> Tensor:
    """Samples (B, ...), or an error where the inverse left the range of floats."""
    broken = int((~x.flatten(1).isfinite().all(1)).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(x)} samples are not finite; lower --temperature or --mean-scale"
        )
    return x


def first_images(data: Images, per_class: int) -> Images:
    """`per_class` images of each of the classes shown."""
    few = first_of_each_class(data, per_class)
    return few.subset(torch.nonzero(few.labels < CLASSES).flatten())


@torch.no_grad()
def embed(flow: ConditionalFlow, data: Images, seed: int) -> np.ndarray:
    """(N, 2) t-SNE of the codes of N images, from their first 50 principal components."""
    z = torch.cat(
        [flow(pixels.levels_to_model(levels), y)[0] for levels, y in batches(data, 256)]
    ).numpy()
    z = PCA(min(50, *z.shape), random_state=seed).fit_transform(z)
    return TSNE(perplexity=min(30, (len(z) - 1) / 3), init="pca", random_state=seed).fit_transform(
        z
    )


def tsne(flows: dict[str, ConditionalFlow], data: Images, seed: int) -> Image.Image:
    """A panel a flow: the codes of images, a colour a class."""
    figure = Figure(figsize=(9.6, 3.6), dpi=100, layout="constrained", facecolor="white")
    for axes, (title, flow) in zip(figure.subplots(1, len(flows)), flows.items(), strict=True):
        points = embed(flow, data, seed)
        for k in data.labels.unique().tolist():
            own = points[(data.labels == k).numpy()]
            axes.scatter(
                *own.T,
                s=5,
                color=matplotlib.colormaps["tab10"](k),
                label=data.class_names[k],
                linewidths=0,
            )
        axes.set(title=title, xticks=[], yticks=[])
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=CLASSES,
        frameon=False,
        markerscale=3,
        handletextpad=0,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


@torch.no_grad()
def bands(flow: ConditionalFlow, data: Images, temperature: float, seed: int) -> Image.Image:
    """One image of each class above its code band, then three rows of samples, each titled by the label its band reads."""
    if not flow.config.code_rows:
        raise ValueError("this flow has no code band; expected one trained with objective=ce")
    shown = first_images(data, 1)
    height, count = flow.config.input_size[1], len(shown)
    inputs = torch.cat([shown.levels, flow.codes[shown.labels]], dim=2)
    g = torch.Generator().manual_seed(seed)
    z = flow.prior.sample(torch.zeros(3 * count, dtype=torch.int64), temperature, generator=g)
    drawn = check_finite(flow.network.inverse(z))
    read = nearest_label(drawn[:, :, height:], pixels.levels_to_model(flow.codes))
    levels = torch.cat([inputs, pixels.model_to_levels(drawn)])
    labels = torch.cat([shown.labels, read])
    rows = []
    for i, name in enumerate(["input", "sample", "sample", "sample"]):
        part = slice(i * count, (i + 1) * count)
        images = [
            ImageOps.pad(TF.to_pil_image(x), (inputs.shape[2],) * 2, color="white")
            for x in levels[part]
        ]
        rows.append(
            draw_grid(
                [images],
                [class_name(flow, k) for k in labels[part].tolist()],
                [name],
                inputs.shape[2] * 2,
            )
        )
    width = max(
        row.width for row in rows
    )  # names differ in length: flush right, where the columns are
    rows = [ImageOps.expand(row, (width - row.width, 0, 0, 0), "white") for row in rows]
    return Image.fromarray(np.concatenate([np.asarray(row) for row in rows]))


# -- training what is shown ------------------------------------------------------------------------------------------


@functools.cache
def read_data(config_name: str, data_dir: str) -> tuple[Images, Images]:
    c = load_config(config_name)
    train, val = load_data(
        c.data, data_dir, c.image_size, c.in_chans, c.val_fraction, c.skip_unreadable
    )
    if val is None:
        raise ValueError(f"{data_dir} has no validation images; expected train/ and val/ inside")
    return train, val


def trained(name: str, settings: list[str], args: argparse.Namespace) -> ConditionalFlow:
    """The flow of a training of --steps steps, resumed from --runs."""
    config = load_config(args.config, [f"steps={args.steps}", f"seed={args.seed}", *settings])
    train, _ = read_data(args.config, args.data_dir)
    trainer = Trainer(
        config, train, None, args.runs / f"{name}-{args.steps}-{args.seed}", resume=True
    )
    trainer.run()
    return trainer.best().eval().set_net_dtype(None)


# -- from the command line -------------------------------------------------------------------------------------------


def draw_augment(args: argparse.Namespace) -> Image.Image:
    flow, control = (ConditionalFlow.from_pretrained(name) for name in (args.flow, args.control))
    return augment(
        flow,
        control,
        validation_images(flow, args.data_dir, 1, args.seed)[:CLASSES],
        args.strength,
        args.seed,
    )


def draw_interpolate(args: argparse.Namespace) -> Image.Image:
    flow = ConditionalFlow.from_pretrained(args.flow)
    return interpolate(flow, validation_images(flow, args.data_dir, 2, args.seed))


def draw_samples(args: argparse.Namespace) -> Image.Image:
    flow = ConditionalFlow.from_pretrained(args.flow)
    classifier = load_classifier(args.classifier, flow) if args.classifier else flow.class_logits
    return samples(flow, classifier, args.draws, args.temperature, args.mean_scale, args.seed)


def draw_temperatures(args: argparse.Namespace) -> Image.Image:
    return temperatures(ConditionalFlow.from_pretrained(args.flow), args.mean_scale, args.seed)


def draw_tsne(args: argparse.Namespace) -> Image.Image:
    flows = {title: trained(name, settings, args) for title, (name, settings) in ARMS.items()}
    return tsne(
        flows, first_images(read_data(args.config, args.data_dir)[1], args.per_class), args.seed
    )


def draw_bands(args: argparse.Namespace) -> Image.Image:
    flow = trained("ce", ["objective=ce"], args)
    return bands(flow, read_data(args.config, args.data_dir)[1], args.temperature, args.seed)


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


OPTIONS = {
    "--flow": {
        "default": DEFAULT_FLOW,
        "metavar": "NAME",
        "help": "bundled, directory, Hub id (default: %(default)s)",
    },
    "--control": {
        "default": "linear.cifar10_jpeg",
        "metavar": "NAME",
        "help": "the flow beside it (default: %(default)s)",
    },
    "--data-dir": {
        "required": True,
        "metavar": "DIR",
        "help": "ImageFolder tree with train/ and val/",
    },
    "--strength": {
        "type": float,
        "default": 0.5,
        "help": "of the augmentation (default: %(default)s)",
    },
    "--draws": {
        "type": positive,
        "default": 64,
        "help": "samples a class that the best are kept of (default: %(default)s)",
    },
    "--temperature": {
        "type": float,
        "default": 0.7,
        "help": "of the samples (default: %(default)s)",
    },
    "--mean-scale": {
        "type": float,
        "default": 1.0,
        "help": "factor of the class means (default: %(default)s)",
    },
    "--classifier": {
        "metavar": "FILE",
        "help": "of cifar_resnet18 --save or timm's train.py; filters (default: the flow)",
    },
    "--config": {
        "default": "conv_p4_tiny.cifar10_jpeg",
        "help": "of the trainings, see train_flow (default: %(default)s)",
    },
    "--steps": {
        "type": positive,
        "default": 1500,
        "help": "of each training (default: %(default)s)",
    },
    "--per-class": {
        "type": positive,
        "default": 200,
        "help": "validation images a class (default: %(default)s)",
    },
    "--runs": {
        "type": Path,
        "default": Path("runs/figures"),
        "help": "where the trainings live (default: %(default)s)",
    },
    "--seed": {"type": int, "default": 0, "help": "default: %(default)s"},
}
FIGURES: dict[str, tuple[Callable[[argparse.Namespace], Image.Image], list[str]]] = {
    "augment": (draw_augment, ["--flow", "--control", "--data-dir", "--strength"]),
    "interpolate": (draw_interpolate, ["--flow", "--data-dir"]),
    "samples": (
        draw_samples,
        ["--flow", "--draws", "--temperature", "--mean-scale", "--classifier"],
    ),
    "temperatures": (draw_temperatures, ["--flow", "--mean-scale"]),
    "tsne": (draw_tsne, ["--data-dir", "--config", "--steps", "--per-class", "--runs"]),
    "bands": (draw_bands, ["--data-dir", "--config", "--steps", "--runs", "--temperature"]),
}


def save(sheet: Image.Image, out: Path) -> int:
    """Writes a PNG of at most LIMIT bytes with as many bits a channel, 8 to 5, as that allows; returns their number."""
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
