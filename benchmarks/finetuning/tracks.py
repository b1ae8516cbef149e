"""Tracks: the frames of one sign, which a car photographed while it came nearer.

The 30 frames of a track of GTSRB are near-copies: a split of images would hold out what was trained
on, and 20 frames of one track would count as 20 images.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePath

import torch

from timm_nfaug._utils.random import keyed_generator

NAME = re.compile(r"(.*\d)_\d+")  # TRACK_FRAME, or CLASS_TRACK_FRAME


def tracks(names: Sequence[str]) -> list[int]:
    """Numbers the tracks of images by class folder and TRACK of .../CLASS/TRACK_FRAME.png.

    >>> tracks(["00/00000_00000.png", "00/00000_00001.png", "01/00000_00000.png"])
    [0, 0, 1]
    """
    numbers: dict[tuple[str, str], int] = {}
    found = []
    for name in map(PurePath, names):
        match = NAME.fullmatch(name.stem)
        if match is None or not name.parent.name:
            raise ValueError(f"expected a name CLASS/TRACK_FRAME.png, got {name}")
        found.append(numbers.setdefault((name.parent.name, match[1]), len(numbers)))
    return found


def split_by_track(
    labels: Sequence[int], tracks: Sequence[int], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Splits images into (rest, held), sorted indices, with no track in both.

    Args:
        fraction: of the tracks of each class that are held, rounded; at least one, never all.

    >>> split_by_track([0, 0, 0, 0], [0, 0, 1, 1], 0.5, seed=0)
    ([0, 1], [2, 3])

    Raises:
        ValueError: a class has a single track, or `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    rest: list[int] = []
    held: list[int] = []
    for label, groups in _shuffled(labels, tracks, seed).items():
        if len(groups) < 2:
            raise ValueError(f"class {label} has a single track: it cannot be in both parts")
        count = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
        held += [i for group in groups[:count] for i in group]
        rest += [i for group in groups[count:] for i in group]
    return sorted(rest), sorted(held)


def pick_by_track(
    labels: Sequence[int], tracks: Sequence[int], per_class: int, seed: int
) -> list[int]:
    """Picks images of each class, from as many tracks as there are; returns sorted indices.

    One frame of each track comes first, then second frames. Of the same seed, the images of a
    smaller `per_class` are among those of a larger one.

    >>> pick_by_track([0, 0, 0, 0], [0, 0, 0, 1], 2, seed=0)[-1]
    3

    Raises:
        ValueError: a class has fewer images.
    """
    if per_class < 1:
        raise ValueError(f"per_class must be 1 or more, got {per_class}")
    picked: list[int] = []
    for label, groups in _shuffled(labels, tracks, seed).items():
        turns = sorted((turn, k) for k, group in enumerate(groups) for turn in range(len(group)))
        if len(turns) < per_class:
            raise ValueError(
                f"class {label} has {len(turns)} images, {per_class} were asked for: take fewer"
            )
        picked += [groups[k][turn] for turn, k in turns[:per_class]]
    return sorted(picked)


def _shuffled(
    labels: Sequence[int], tracks: Sequence[int], seed: int
) -> dict[int, list[list[int]]]:
    """The indices of each class by track, both in an order that follows from seed and class."""
    if len(labels) != len(tracks):
        raise ValueError(f"expected a track for each label, got {len(tracks)} for {len(labels)}")
    classes: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, (label, track) in enumerate(zip(labels, tracks)):
        classes[int(label)][int(track)].append(i)
    found = {}
    for label, groups in sorted(classes.items()):
        g = keyed_generator(seed, label)
        frames = [_permuted(group, g) for group in groups.values()]
        found[label] = _permuted(frames, g)
    return found


def _permuted(items: list, g: torch.Generator) -> list:
    return [items[i] for i in torch.randperm(len(items), generator=g).tolist()]
