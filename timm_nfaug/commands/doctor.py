"""Looks at a dataset and says what NFA will do with it: ``timm-nfaug doctor DATA``."""

import argparse
import importlib.util
import random
import shlex
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms.functional import pil_to_tensor

from .._utils.notices import NFAWarning
from ..advice import Advice, advise, flags_of
from ..augment import NFAugment
from ..fit import SIDES
from ..grid import SMALL, check_picture_name, write_picture
from ..hub import COSINE, LINEAR
from ..integration.auto import are_grey
from ..integration.classes import evenly
from ..integration.flags import _complete, flow_of, nfa_string
from ..integration.pillow import guard_posterize
from ..pictures import Labelled, preview_augmentation
from ..spec import parse_config
from .survey import SIDE, Survey, few, file_of, problems_of_folders, square, survey

RANDAUGMENT = "rand-m9-mstd0.5-inc1"  # timm's usual one
SHOWN, TIMED = 4, 10  # images in the picture, and in the timing
LATENT, LATENT_SIZE = SIDES[0], 112  # pixels: images that have latents, and a side to start with
EXAMPLE = "madebyollin/taesd"
KINDS = {  # of images by Pillow's mode
    "RGB": "colour", "L": "grey", "P": "palette", "1": "of 1 bit", "I;16": "grey of 16 bits",
    "I": "grey of 32 bits", "F": "floats",
}  # fmt: skip
Line = tuple[str, str]  # what it is about, and the text


def _problems(found: Survey) -> list[str]:
    """What is wrong with a dataset, each with its remedy."""
    said = problems_of_folders(found)
    name = lambda i: file_of(found.dataset, i)
    if deep := [i for i, look in found.looks.items() if look.deep]:
        modes = ", ".join(sorted({found.looks[i].mode for i in deep}))
        said.append(
            f"{len(deep)} of {found.looked_at} images have more than 8 bits a channel (mode "
            f"{modes}), {few([name(i) for i in deep])}: Pillow turns all above level 255 "
            "white; convert them to 8 bits, or see docs/ranges.md"
        )
    for i, why in list(found.broken.items())[:3]:
        why = why.replace(f" {name(i)!r}", "")
        said.append(f"{name(i)} cannot be read ({why}): repair it, or leave it out")
    if (more := len(found.broken) - 3) > 0:
        said.append(f"{more} more of {found.looked_at} files cannot be read")
    if single := sorted(k for k, n in found.counts.items() if n == 1):
        said.append(
            f"one image in {len(single)} of {len(found.counts)} classes, {few(single)}: modes of "
            "the class (-lgiven) would leave it unmoved; keep -lnone, modes of all images"
        )
    return said


def _augment(found: Survey, flow: str, aug: str) -> NFAugment | None:
    """NFA with the modes of the small copies; None where there are too few images to find any."""
    settings = parse_config(aug)
    own: dict[str, Any] = {k: settings[k] for k in ("strength", "modes", "kind") if k in settings}
    own |= {"labels": "none", "p": 1.0, "seed": 0}  # all images together, as ``-lnone`` takes them
    if flow == COSINE:
        return NFAugment.from_cosine(**own) if found.usable else None
    if len(found.usable) < 2:
        return None
    images = torch.stack([pil_to_tensor(found.looks[i].small) for i in found.usable])
    if flow == LINEAR:
        return NFAugment.from_data([(images,)], input_size=(3, SIDE, SIDE), **own)
    return NFAugment.from_pretrained(flow, **own).fit([(images,)])


def _advised(found: Survey, args: argparse.Namespace) -> tuple[Advice, Advice]:
    """What to take from scratch, and what in fine-tuning."""
    side, grey = _side(found, args), are_grey(found.looks[i].small for i in found.usable)
    flow = args.nfa_flow or (LINEAR if grey else None)  # as the others would tint them
    few, size = found.per_class, (3, side, side)
    return advise(few, False, flow, size), advise(few, True, flow, size)


def _side(found: Survey, args: argparse.Namespace) -> int:
    """Pixels of the images in a training."""
    most = max((max(look.size) for look in found.looks.values()), default=224)
    return args.img_size or (most if most <= SMALL else 224)


def _modes_of(augment: NFAugment) -> int:
    """How many modes the images had."""
    return int((augment.flow.prior.mode_std > 0).sum(1).max())


def _cost(augment: NFAugment, images: list[Image.Image]) -> tuple[float, float]:
    """Microseconds an image on one thread: NFA on a batch, and timm's RandAugment on each image."""
    guard_posterize()
    hyper = {"translate_const": int(0.45 * images[0].width), "img_mean": (124, 116, 104)}
    policy = rand_augment_transform(RANDAUGMENT, hyper)
    batch = torch.stack([pil_to_tensor(image) for image in images])
    threads, state, own = torch.get_num_threads(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.set_num_threads(1)
    try:
        nfa = _microseconds(lambda: augment(batch)) / len(images)
        return nfa, _microseconds(lambda: [policy(image) for image in images]) / len(images)
    finally:
        torch.set_num_threads(threads)
        random.setstate(state)
        np.random.set_state(own)  # noqa: NPY002


def _microseconds(call: Callable[[], Any], repeats: int = 7) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return 1e6 * statistics.median(times)


def _images_line(found: Survey) -> str:
    looks = list(found.looks.values())
    sizes = sorted((look.size for look in looks), key=lambda size: size[0] * size[1])
    least, middle, most = (f"{w} x {h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    text = most if least == most else f"{least} to {most}, median {middle}"
    kinds = Counter(KINDS.get(look.mode, look.mode) for look in looks).most_common()
    text += " pixels; " + ", ".join(f"{n} {kind}" for kind, n in kinds)
    if turned := sum(look.turned for look in looks):
        text += f"; {turned} with EXIF rotation, which timm ignores"
    return f"{text}; {found.looked_at:,} of {len(found.dataset):,} opened"


def _about(found: Survey) -> list[Line]:
    """What the dataset is."""
    counts = sorted(found.counts.values())
    spread = f"least {counts[0]}, median {statistics.median(counts):g}, most {counts[-1]}"
    classes = "class" if len(counts) == 1 else "classes"
    lines = [
        ("data", f"{found.root}: {len(found.dataset):,} images in {len(counts)} {classes}"),
        ("per class", f"{counts[0]} image{'s' * (counts[0] > 1)}" if counts[0] == counts[-1] else spread),
        ("labels", f"{'folder names' if found.in_folders else 'of the dataset'}: "
                   f"{few(list(found.counts))}"),
    ]  # fmt: skip
    return lines + ([("images", _images_line(found))] if found.looks else [])


def _taken(args: argparse.Namespace, advised: Advice) -> tuple[str, str, str]:
    """The flow and settings to look at, and their flags: those of --aug, or the advised ones."""
    if args.aug in (None, "nfa"):
        return advised.flow, advised.aug, advised.flags
    flow = flow_of(_complete(args))
    return flow, args.aug, flags_of(args.aug, flow)


def _advice(
    found: Survey,
    args: argparse.Namespace,
    advised: tuple[Advice, Advice],
    taken: tuple[str, str, str],
    augment: NFAugment,
) -> list[Line]:
    """What to try, what it costs and what to type; draws the picture."""
    (scratch, tuned), (flow, aug, flags) = advised, taken
    side = _side(found, args)
    images = [square(found.dataset, i, side) for i in evenly(found.usable, TIMED)]
    nfa, policy = _cost(augment, images)
    _draw(found, args.out, augment, side)
    alone = "--aug nfa" + f" --nfa-flow {args.nfa_flow}" * bool(args.nfa_flow)
    data = shlex.quote(str(args.data)) + (f" --dataset {args.dataset}" if args.dataset else "")
    command = (
        f"timm-nfaug train path/to/train.py --data-dir {data} --model resnet18 "
        f"--num-classes {len(found.counts)} --img-size {side}"
    )
    return [
        ("try", f"{scratch.flags} from scratch, {tuned.flags} fine-tuned; "
                f"{alone} chooses between them"),
        ("measured", f"from scratch: {scratch.why}; fine-tuned: {tuned.why} (docs/evidence.md)"
                     if scratch.cells else
                     "not yet with so many images of a class, see docs/evidence.md"),
        ("modes", f"{augment.modes}, cosine images, of no data" if flow == COSINE else
                  f"{_modes_of(augment)} of {augment.modes}, of all images together"),
        ("cost", f"{nfa:.0f} us an image at {side} px, RandAugment {policy:.0f} us "
                 f"(one thread, {len(images)} of these images)"),
        ("picture", f"{args.out}: {min(SHOWN, len(found.usable))} images before and after"),
        *_latent(found, command, aug),
        ("next", f"{command} {flags}"),
    ]  # fmt: skip


def _latent(found: Survey, command: str, aug: str) -> list[Line]:
    """How to move texture and background, too, where images are large enough for latents."""
    sides = sorted(max(look.size) for look in found.looks.values())
    if sides[len(sides) // 2] < LATENT or importlib.util.find_spec("diffusers") is None:
        return []
    flags = f"--aug {aug} --nfa-autoencoder {EXAMPLE} --nfa-size {LATENT_SIZE}"
    return [("latent", f"texture and background change, too, by an autoencoder: {command} {flags}")]


def _draw(found: Survey, out: Path, augment: NFAugment, side: int) -> None:
    """Writes the picture of a few images before and after."""
    shown = evenly(found.usable, SHOWN)
    images: Labelled = [(square(found.dataset, i, side), None) for i in shown]
    folders = [found.class_of(i) for i in shown]
    cell = 96 if side <= SMALL else min(side, 224)
    strengths, how = sorted({0.5, 1.0, augment.strength}), (augment.modes, augment.kind)
    sheet = preview_augmentation(
        augment.flow, images, strengths, 2, *how, 0, cell, folders, labels="none"
    )
    write_picture(sheet, out)


def _report(found: Survey, args: argparse.Namespace) -> tuple[list[Line], bool]:
    """The lines (what, text) to print, problems first, and whether NFA would work."""
    said, about = _problems(found), _about(found)
    advised = _advised(found, args)
    flow, aug, flags = taken = _taken(args, advised[0])
    augment = _augment(found, flow, aug)
    modes = 0 if augment is None else _modes_of(augment)
    if augment is not None and modes:
        if modes < augment.modes:
            said.append(
                f"{len(found.usable)} images give {modes} modes, not {augment.modes}: NFA moves "
                f"along these alone; add images, or say so: {flags.replace(aug, f'{aug}-k{modes}', 1)}"
            )
        about += _advice(found, args, advised, taken, augment)
    else:
        said.append(
            "the commands need 2 images that differ and have 8 bits a channel; for others "
            "see docs/ranges.md"
        )
    works = bool(modes) and not any(look.deep for look in found.looks.values())
    return [*(("problem", text) for text in said), *about], works


def main(argv: list[str] | None = None) -> int:
    """Prints the report; returns 0 where NFA would work, 1 where it would not."""
    parser = argparse.ArgumentParser(
        "timm-nfaug doctor",
        description="Looks at a dataset and says what NFA will do with it. Exit code 1: nothing.",
    )
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder of class folders, with or without train/")
    add("--dataset", default="", metavar="NAME", help="with DATA as its root, as train.py takes it")
    size = "of the training (default: 224; small images' own)"
    add("--img-size", type=int, metavar="N", help=size)
    settings = "settings to look at (default: recommended ones)"
    add("--aug", type=nfa_string, metavar="NFA", help=settings)
    flow = f"{COSINE}, modes of no data, or {LINEAR}, of the images (default: the advised one)"
    add("--nfa-flow", choices=(COSINE, LINEAR), help=flow)
    add("--out", type=Path, default=Path("preview.png"), help="picture (default: %(default)s)")
    args = parser.parse_args(argv)
    check_picture_name(parser, args.out)
    if args.img_size is not None and args.img_size < 8:
        parser.error(f"--img-size takes at least 8 pixels, got {args.img_size}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NFAWarning)  # the report says it
            lines, works = _report(survey(args.data, args.dataset), args)
    except (ValueError, OSError) as e:
        parser.exit(1, f"error: {e}\n")
    print("\n".join(f"{what:10}{text}" for what, text in lines))
    return 0 if works else 1
