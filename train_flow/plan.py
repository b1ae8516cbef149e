"""What a training will take, from a short trial of it: images, bytes, memory and hours."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

import torch

from timm_nfaug.flows.model import ConditionalFlow

from .config import TrainConfig
from .data import find_splits, list_files, load_data, load_folder
from .images import Images
from .latents import Latents, bytes_of, cached, find_autoencoder, spread
from .trainer import Trainer

TRIAL, STEPS = 32, 3  # images that are read and encoded, and steps that are taken


@dataclasses.dataclass
class _Trial:
    """Some images of a dataset, with the classes of all, and what is known of the others."""

    data: Images | Latents
    train: int  # images to train on
    val: int  # images held out
    seconds: float  # to read an image and to encode it


def plan(config: TrainConfig, data_dir: str | None, device: torch.device) -> list[str]:
    """Lines that say what a training takes; tries some images and steps in a temporary directory.

    Raises:
        ValueError, OSError: as the training would.
    """
    with tempfile.TemporaryDirectory() as folder:
        trial = _try_images(config, data_dir, Path(folder), device)
        flow, seconds = _try_steps(config, trial, Path(folder), device)
    shape, classes = " x ".join(map(str, flow.config.input_size)), trial.data.class_names
    held = f"{trial.train:,} to train on, {trial.val:,} held out"
    rows = {"images": f"{held}, {_count(len(classes), 'class', 'classes')}"}
    if isinstance(trial.data, Latents):
        views = 1 + config.flip
        each = flow.config.input_size
        size = bytes_of(trial.train, each, views) + bytes_of(trial.val, each, 1)
        rows["latents"] = f"{shape}, {_bytes(size)} on the disk"
    rows["flow"] = _size(flow, config)
    rows["memory"] = f"{_bytes(_peak(device))} in the trial{_later(config, trial, flow)}"
    rows["time"] = _hours(config, trial, seconds, device)
    return [f"{name:9}{text}" for name, text in rows.items()]


def _try_images(
    config: TrainConfig, data_dir: str | None, folder: Path, device: torch.device
) -> _Trial:
    """Reads some images of a dataset, and encodes them where their latents are modelled."""
    if config.data != "folder" or data_dir is None or config.image_size is None:
        train, val = load_data(config.data, data_dir, config.image_size, config.in_chans)
        some = train.subset(torch.arange(min(TRIAL, len(train))))
        return _trial(config, some, some.class_names, len(train), 0 if val is None else len(val))
    train_dir, val_dir, _ = find_splits(Path(data_dir))
    names, files = list_files(train_dir)
    held = 0 if val_dir is None else len(list_files(val_dir)[1])
    root = _linked(files, folder / "images")
    if config.space == "pixels":
        start = time.perf_counter()
        data: Images | Latents = load_folder(root, config.image_size, config.in_chans)
    else:
        encoder = find_autoencoder(config, device)
        start = time.perf_counter()
        data = cached(root, folder / "latents", encoder, config.image_size, 1 + config.flip)
        data.latent |= spread(data)
    seconds = (time.perf_counter() - start) / len(data)
    return _trial(config, data, names, len(files), held, seconds)


def _linked(files: list[tuple[Path, int]], root: Path) -> Path:
    """A tree of links to some of the files, evenly spaced."""
    for i in range(min(TRIAL, len(files))):
        path, label = files[i * len(files) // min(TRIAL, len(files))]
        link = root / f"{label:06d}" / f"{i:03d}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    return root


def _trial(
    config: TrainConfig, data: Images | Latents, names: list[str], count: int, held: int,
    seconds: float = 0.0,
) -> _Trial:  # fmt: skip
    if config.val_fraction:
        held = round(config.val_fraction * count)
        count -= held
    names = names if config.labels else ["image"]
    several = data.subset(torch.arange(config.batch_size) % len(data))  # enough for a step
    labels = torch.arange(config.batch_size) % len(names)
    several = dataclasses.replace(several, labels=labels, class_names=names)
    return _Trial(several, count, held, seconds)


def _try_steps(
    config: TrainConfig, trial: _Trial, folder: Path, device: torch.device
) -> tuple[ConditionalFlow, float]:
    """Takes some steps; returns the flow and the seconds of a step."""
    own = dataclasses.replace(config, gaussian_fraction=0.0, modes_every=0, steps=10**6)
    trainer = Trainer(own, trial.data, None, folder / "out", device)
    taken = []
    for _ in range(STEPS if trainer.steps else 0):
        start = time.perf_counter()
        trainer.take_step()  # which waits for its numbers
        taken.append(time.perf_counter() - start)
    trainer.close()
    return trainer.flow, min(taken, default=0.0)  # the first ones are slower


def _size(flow: ConditionalFlow, config: TrainConfig) -> str:
    """Parameters and bytes on the disk of network and Gaussians."""
    network, prior = sum(p.numel() for p in flow.network.parameters()), flow.prior
    width = 2 if config.half else 4
    gaussians = 4 * (prior.mu.numel() + prior.s.numel()) + width * prior.modes.numel()
    modes = f"{prior.num_modes} modes for {_count(prior.num_classes, 'class', 'classes')}"
    return f"{network:,} parameters, {_bytes(width * network)}; {modes}, {_bytes(gaussians)}"


def _later(config: TrainConfig, trial: _Trial, flow: ConditionalFlow) -> str:
    """What takes memory beside a step: all images, and at the end the moments of the classes."""
    rows = 2 * flow.prior.num_modes + 16
    moments = 4 * flow.prior.num_classes * flow.dim * (rows + 4)
    found = f", {_bytes(moments)} for the modes at the end"
    if isinstance(trial.data, Images):
        numbers = trial.data.levels[0].numel()
        found += f", {_bytes((trial.train + trial.val) * numbers)} for the images"
    return found


def _hours(config: TrainConfig, trial: _Trial, seconds: float, device: torch.device) -> str:
    of_d_nf = 1 - config.gaussian_fraction * config.alternates
    steps = config.total_steps(round(of_d_nf * trial.train))
    images = trial.train + trial.val
    parts = [("latents" if isinstance(trial.data, Latents) else "reading", images, trial.seconds)]
    parts += [("steps", steps, seconds)]
    each = [f"{name} {n * s / 3600:.2g} h ({n:,} at {1e3 * s:.3g} ms)" for name, n, s in parts]
    where = f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device
    return f"{', '.join(each)}, on {where}"


def _count(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _bytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.2f} MB"


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # which Windows lacks

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
