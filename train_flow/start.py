"""The flow that a training starts with: new, or a copy of another one, and set up from the data."""

from __future__ import annotations

import torch

import timm_nfaug
from timm_nfaug.flows.label_band import BLOCK
from timm_nfaug.flows.model import ConditionalFlow

from .config import TrainConfig
from .images import Examples
from .schedule import START, generator


def make_flow(config: TrainConfig, data: Examples) -> ConditionalFlow:
    """A new flow for the images and classes of `data`, its weights drawn from the config's seed."""
    torch.manual_seed(config.seed)
    if config.code_rows and data.latent:
        _check_room_for_bands(data)
    flow = timm_nfaug.create_flow(
        config.flow,
        input_size=data.shape,
        latent=data.latent,
        num_classes=len(data.class_names),
        bits=config.bits,
        code_rows=config.code_rows,
        prior=config.prior,
        class_names=data.class_names,
        **config.network,
    )
    if config.objective != "moments" and not any(True for _ in flow.network.parameters()):
        raise ValueError(
            f"flow {config.flow} has no weights for objective {config.objective} to train; "
            f"set objective=moments"
        )
    return flow


def start_flow(flow: ConditionalFlow, config: TrainConfig, data: Examples) -> str:
    """Starts a flow from another one (`config.init`) or from the data; returns a note for the card."""
    origin = ""
    if config.init:
        other = ConditionalFlow.from_pretrained(config.init)
        _start_from_flow(flow, other)
        trained = other.config.info.get("training") or "not stated."
        origin = f" It started from a flow trained so: {trained}"
    else:
        _start_from_data(flow, config, data)
    counts = torch.bincount(data.labels.cpu(), minlength=len(data.class_names))
    flow.log_prior.copy_((counts / counts.sum()).log())
    return origin


def _start_from_flow(flow: ConditionalFlow, other: ConditionalFlow) -> None:
    """Copies the weights of a flow of the same kind and the same classes."""
    mine, theirs = flow.config, other.config
    for key in ("architecture", "input_size", "num_classes", "network", "prior", "code_rows"):
        if getattr(mine, key) != getattr(theirs, key):
            raise ValueError(
                f"init: {key} of that flow is {getattr(theirs, key)}, "
                f"of this training {getattr(mine, key)}"
            )
    if (known := theirs.latent.get("sha256")) != mine.latent.get("sha256"):
        of = f"latents of another autoencoder, {known}," if known else "images"
        raise ValueError(f"init: that flow is over {of} and not over what this training has")
    if theirs.class_names and mine.class_names != theirs.class_names:
        raise ValueError(
            f"init: that flow knows the classes {theirs.class_names[:5]}, "
            f"the data {mine.class_names[:5]}"
        )
    flow.load_state_dict(other.state_dict())


def _start_from_data(flow: ConditionalFlow, config: TrainConfig, data: Examples) -> None:
    """Sets the Gaussians as the objective needs them, and whitening and scales from the images."""
    seed = config.seed
    if config.objective == "random":
        flow.prior.randomize(generator(seed, START, 1))
    elif config.objective == "ce":
        flow.prior.set_variance(torch.ones_like(flow.prior.s))
    some = data.subset(torch.randperm(len(data), generator=generator(seed, START))[:2048])
    x = some.drawn(config.bits, generator(seed, START, 2))
    flow.initialize(x, some.labels)


def _check_room_for_bands(data: Examples) -> None:
    """Refuses objective ce where the blocks of a band do not fit the width of latents."""
    width, side = data.shape[2], data.latent["size"]
    if width % BLOCK:
        step = side // width * BLOCK
        raise ValueError(
            f"objective ce writes labels in blocks of {BLOCK} columns, and latents of {side} "
            f"pixels have {width}; set image_size to a multiple of {step}, e.g. {-(-side // step) * step}"
        )
