"""The images of a cell: those that are trained on, held out to choose on, and reported on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.evidence.cells import HELD, Cell
from benchmarks.finetuning.recipe import at_side
from benchmarks.finetuning.tracks import pick_by_track, split_by_track, tracks
from train_flow.data import Images, load_data, stratified_split
from train_flow.data import list_files as image_files


@dataclass
class Pool:
    """What trainings draw their images from, with the track of each where frames are near-copies."""

    images: Images
    tracks: list[int] | None = None

    def pick(self, per_class: int | None, seed: int) -> Images:
        """`per_class` random images of each class, others for every seed; all for None.

        Of tracks one frame of each comes first.

        Raises:
            ValueError: a class has fewer.
        """
        if per_class is None:
            return self.images
        labels = self.images.labels
        if self.tracks is not None:
            picked = pick_by_track(labels.tolist(), self.tracks, per_class, seed)
            return self.images.subset(torch.tensor(picked))
        g, found = torch.Generator().manual_seed(seed), []
        for k, name in enumerate(self.images.class_names):
            own = torch.nonzero(labels == k).flatten()
            if len(own) < per_class:
                raise ValueError(f"class {name} has {len(own)} images, not {per_class}: take fewer")
            found.append(own[torch.randperm(len(own), generator=g)[:per_class]])
        return self.images.subset(torch.cat(found).sort().values)


def load(cell: Cell, folder: Path) -> tuple[Pool, dict[str, Images]]:
    """The pool of a cell and, by split, the images that its runs are tested on, at the side of its network.

    Held out is a tenth of the images, or of the tracks, of each class. A cell that trains on all
    images chooses nothing, and holds none out.
    """
    data, test = load_data("folder", folder, cell.size)
    assert test is not None  # as `place_of` has seen
    splits = {"test": at_side(test, cell.side)}
    if cell.per_class is None:
        return Pool(data), splits
    if not cell.by_track:
        rest, held = stratified_split(data.labels, HELD, seed=0)
        return Pool(data.subset(rest)), splits | {"held": at_side(data.subset(held), cell.side)}
    names = [str(path.relative_to(folder)) for path, _ in image_files(folder / "train")[1]]
    own = tracks(names)
    rest, held = (torch.tensor(i) for i in split_by_track(data.labels.tolist(), own, HELD, seed=0))
    pool = Pool(data.subset(rest), [own[i] for i in rest.tolist()])
    return pool, splits | {"held": at_side(data.subset(held), cell.side)}


def training_images(pool: Pool, cell: Cell, seed: int) -> Images:
    """The images of one training, at the side of the cell's network."""
    return at_side(pool.pick(cell.per_class, seed), cell.side)
