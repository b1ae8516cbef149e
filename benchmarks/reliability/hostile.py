"""Damaged and hostile flows drawn from a seed, and what loading makes of each."""

from __future__ import annotations

import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

import timm_nfaug as nfa
from benchmarks.reliability.mutations import CONFIG, MUTATIONS, WEIGHTS

# Of a level, on images that the gate does not look at: it lets half a level pass on its own two.
TOLERANCE = 4.0


def base_flows(folder: Path) -> list[Path]:
    """Saves small sound flows to damage: convolutional, linear, and one with bands of labels.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in base_flows(Path(folder))]
    ['conv', 'linear', 'band']
    """
    kinds: dict[str, dict[str, Any]] = {
        "conv": {"name": "conv_p4_tiny", "depth": 2, "hidden": 8, "prior": {"num_modes": 3}},
        "linear": {"name": "linear", "prior": {"num_modes": 4}, "class_names": ["a", "b"]},
        "band": {"name": "conv_p4_tiny", "depth": 1, "hidden": 4, "code_rows": 8},
    }
    made = []
    for name, arguments in kinds.items():
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            flow = nfa.create_flow(input_size=(3, 8, 8), num_classes=2, **arguments).eval()
            x, y = torch.rand(64, 3, 8, 8).cumsum(3) / 4 - 1, torch.arange(64) % 2
            flow.initialize(x, y)
            flow.prior.set_moments(flow.moments([(x, y)], num_modes=flow.prior.num_modes))
        made.append(flow.save_pretrained(folder / name))
    return made


def mutate(bases: list[Path], directory: Path, seed: int) -> str:
    """Puts a copy of one of the flows into `directory` and damages it; returns the kind of damage.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mutate(base_flows(Path(folder)), Path(folder, "hostile"), seed=1) in MUTATIONS
    True
    """
    rng = random.Random(seed)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for file in (CONFIG, WEIGHTS):
        shutil.copyfile(bases[seed % len(bases)] / file, directory / file)
    kind = rng.choice(list(MUTATIONS))
    MUTATIONS[kind](directory, rng)
    return kind


def try_flow(directory: Path) -> str:
    """Loads a flow and says what came of it.

    refused: a ValueError or OSError that names the file. loaded: it inverts and moves images.
    broken: it does not. raw: any other exception.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [try_flow(path) for path in base_flows(Path(folder))]
    ['loaded', 'loaded', 'loaded']
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nfa.NFAWarning)
            flow = nfa.ConditionalFlow.from_pretrained(directory)
        return "loaded" if is_sound(flow) else "broken"
    except (ValueError, OSError) as e:
        return "refused" if str(directory) in str(e) else "raw"
    except Exception:
        return "raw"


@torch.no_grad()
def is_sound(flow: nfa.ConditionalFlow) -> bool:
    """Whether random images come back from their codes, and are finite moved and classified."""
    x = 2 * torch.rand(4, *flow.config.input_size, generator=torch.Generator().manual_seed(1)) - 1
    y = torch.arange(4) % flow.num_classes
    z = flow(x, y)[0]
    off = (flow.inverse(z) - x).abs().max().item()
    if not off <= TOLERANCE * 2 / 255 or flow.class_logits(x).isnan().any():
        return False
    modes = min(32, flow.prior.num_modes)
    if not modes:
        return True
    moved = nfa.perturb(flow, z, y, modes=modes, generator=torch.Generator().manual_seed(2))
    return bool(flow.inverse(moved).isfinite().all())
