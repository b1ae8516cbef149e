"""The pictures of docs/gallery.md, drawn from flows and images: what a flow does to images, and what its codes look like.

They follow the figures of the supplementary of Enescu & Sahbi (ACCV 2024). `benchmarks.figures` is
their command.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from timm_nfaug import ConditionalFlow, NFAugment, pixels
from timm_nfaug.flows.label_band import nearest_label
from timm_nfaug.preview import class_name, draw_grid, preview_interpolation, to_pil
from train_flow.data import Images
from train_flow.evaluate import batches

TEMPERATURES = (1.0, 0.7, 0.5, 0.3, 0.1)
CLASSES = 10  # shown at most
CELL = 64  # pixels: CIFAR's images doubled
KEPT = 5  # samples of a class that pass the filter

LabelledImage = tuple[Image.Image, int]
Classifier = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [-1, 1] to logits (B, K)


def augment(
    flow: ConditionalFlow,
    control: ConditionalFlow,
    images: list[LabelledImage],
    strength: float,
    seed: int,
) -> Image.Image:
    """Draws a row for each image: the original, three augmented by `flow`, three by `control`."""
    own, other = flow.config.class_names, control.config.class_names
    if own != other:
        raise ValueError(f"--flow and --control know other classes: {own}, {other}")
    blocks = [[[image] for image, _ in images]]
    for f in (flow, control):
        augmented = NFAugment(f, strength, min(32, f.prior.num_modes), p=1.0, labels="given")
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
    """Puts grids with the same rows side by side, a gap between them; the names stand before the first."""
    blank = [""] * len(names)
    grids = [
        draw_grid(b, t, blank if i else names, CELL)
        for i, (b, t) in enumerate(zip(blocks, titles, strict=True))
    ]
    return Image.fromarray(np.concatenate([np.asarray(grid) for grid in grids], axis=1))


def interpolate(flow: ConditionalFlow, images: list[LabelledImage]) -> Image.Image:
    """Draws rows from image to image through two images of each of four classes: within a class, then to the next."""
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
    """Draws a row for each class: the first two of `draws` samples, then the KEPT that the classifier likes best."""
    if draws < KEPT:
        raise ValueError(f"--draws must be at least the {KEPT} samples that are kept, got {draws}")
    drawn, kept, names = [], [], []
    for k in range(min(CLASSES, flow.num_classes)):
        y, g = torch.full((draws,), k), torch.Generator().manual_seed(seed + k)
        x = check_finite(flow.sample(y, temperature, mean_scale, g))
        liked = margin(classifier(pixels.levels_to_model(pixels.model_to_levels(x))), k)
        best = liked.argsort(descending=True)
        drawn.append([to_pil(image) for image in x[:2]])
        kept.append([to_pil(image) for image in x[best[:KEPT]]])
        names.append(class_name(flow, k))
    return beside([drawn, kept], [["drawn"] * 2, ["kept"] * KEPT], names)


def margin(logits: Tensor, k: int) -> Tensor:
    """Returns the log odds (B,) of class k from logits (B, K).

    Unlike a probability, they do not saturate where a flow is certain.
    """
    others = torch.arange(logits.shape[1]) != k
    return logits[:, k] - logits[:, others].logsumexp(1)


@torch.no_grad()
def temperatures(flow: ConditionalFlow, mean_scale: float, seed: int) -> Image.Image:
    """Draws a row for each temperature, a column for each class; in a column the noise is the same."""
    if flow.config.code_rows:
        raise ValueError(
            "a flow with conditional encoding draws until its labels fit: no noise is the same; use class Gaussians"
        )
    y = torch.arange(min(CLASSES, flow.num_classes))
    rows = []
    for t in TEMPERATURES:
        x = check_finite(flow.sample(y, t, mean_scale, torch.Generator().manual_seed(seed)))
        rows.append([to_pil(image) for image in x])
    names = [class_name(flow, int(k)) for k in y]
    return draw_grid(rows, names, [f"{t:g}" for t in TEMPERATURES], CELL)


def check_finite(x: Tensor) -> Tensor:
    """Returns samples (B, ...); raises ValueError where the inverse left the range of floats."""
    broken = int((~x.flatten(1).isfinite().all(1)).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(x)} samples are not finite; lower --temperature or --mean-scale"
        )
    return x


@torch.no_grad()
def embed(flow: ConditionalFlow, data: Images, seed: int) -> np.ndarray:
    """Returns the t-SNE (N, 2) of the codes of N images, from their first 50 principal components."""
    parts = [flow(pixels.levels_to_model(levels), y)[0] for levels, y in batches(data, 256)]
    z = torch.cat(parts).numpy()
    z = PCA(min(50, *z.shape), random_state=seed).fit_transform(z)
    perplexity = min(30, (len(z) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(z)


def tsne(flows: dict[str, ConditionalFlow], data: Images, seed: int) -> Image.Image:
    """Draws a panel for each flow: the codes of images, a colour for each class."""
    figure = Figure(figsize=(9.6, 3.6), dpi=100, layout="constrained", facecolor="white")
    colours = matplotlib.colormaps["tab10"]
    for axes, (title, flow) in zip(figure.subplots(1, len(flows)), flows.items(), strict=True):
        points = embed(flow, data, seed)
        for k in data.labels.unique().tolist():
            own = points[(data.labels == k).numpy()]
            style = {"s": 5, "color": colours(k), "linewidths": 0}
            axes.scatter(*own.T, label=data.class_names[k], **style)
        axes.set(title=title, xticks=[], yticks=[])
    style = {"ncols": CLASSES, "frameon": False, "markerscale": 3, "handletextpad": 0}
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", **style)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


@torch.no_grad()
def bands(flow: ConditionalFlow, shown: Images, temperature: float, seed: int) -> Image.Image:
    """Draws images above their code bands, then three rows of samples, each titled by the label its band reads."""
    if not flow.config.code_rows:
        raise ValueError("this flow has no code band; expected one trained with objective=ce")
    height, count = flow.config.input_size[1], len(shown)
    inputs = torch.cat([shown.levels, flow.codes[shown.labels]], dim=2)
    g = torch.Generator().manual_seed(seed)
    z = flow.prior.sample(torch.zeros(3 * count, dtype=torch.int64), temperature, generator=g)
    drawn = check_finite(flow.network.inverse(z))
    read = nearest_label(drawn[:, :, height:], pixels.levels_to_model(flow.codes))
    levels = torch.cat([inputs, pixels.model_to_levels(drawn)])
    labels = torch.cat([shown.labels, read])
    side, rows = inputs.shape[2], []
    for name, part, own in zip(
        ["input", *["sample"] * 3], levels.split(count), labels.split(count), strict=True
    ):
        images = [ImageOps.pad(TF.to_pil_image(x), (side, side), color="white") for x in part]
        titles = [class_name(flow, k) for k in own.tolist()]
        rows.append(draw_grid([images], titles, [name], side * 2))
    width = max(row.width for row in rows)  # names differ in length: flush right
    rows = [ImageOps.expand(row, (width - row.width, 0, 0, 0), "white") for row in rows]
    return Image.fromarray(np.concatenate([np.asarray(row) for row in rows]))
