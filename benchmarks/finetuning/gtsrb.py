"""Writes GTSRB as class folders: ``python -m benchmarks.finetuning.gtsrb --source DIR --out DIR``.

The German Traffic Sign Recognition Benchmark: 43 classes, 30 frames of each sign of the training set
(Stallkamp et al., "Man vs. computer", Neural Networks 32, 2012; https://benchmark.ini.rub.de).
OUT gets train/CLASS/TRACK_FRAME.png and val/CLASS/NAME.png, which is the official test set: RGB,
cropped to the sign's box in the annotations, not resized. `layouts.py` says what DIR may hold,
`tracks.py` tells the frames of one sign from those of another.
"""

import argparse
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from timm_nfaug._utils.files import make_directory
from timm_nfaug._utils.progress import progress

from .layouts import Sign, signs
from .tracks import tracks

OFFICIAL = {"train": (39_209, 26_640), "val": (12_630,)}  # 26,640: what torchvision downloads


class Written(NamedTuple):
    """Counts what was written of a split."""

    images: int
    classes: int
    tracks: int
    scaled: int  # images of another size than annotated, whose boxes were scaled


def convert(source: Path, out: Path) -> dict[str, Written]:
    """Writes `source` as train/ and val/ to `out`, which is there once all of it is.

    Raises:
        OSError: `out` is there already, or a file of `source` is not, or cannot be read.
        ValueError: the annotations are not those of GTSRB, or train and test differ in classes.
    """
    if out.exists():
        raise FileExistsError(f"--out {out} is there already: remove it, or name another directory")
    splits = {split: signs(source, split) for split in OFFICIAL}
    trained, tested = ({s.label for s in splits[k]} for k in OFFICIAL)
    if trained != tested:  # ImageFolder would number the classes differently
        raise ValueError(
            f"train and test must have the same classes, got {sorted(trained ^ tested)} in one of "
            f"them alone: is {source} complete?"
        )
    make_directory(out.parent)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        whole = Path(scratch, "whole")  # with the permissions of any new directory
        written = {split: _write(found, whole / split) for split, found in splits.items()}
        os.replace(whole, out)
    return written


def _write(found: list[Sign], folder: Path) -> Written:
    scaled = 0
    with progress(len(found), f"GTSRB {folder.name}", "images") as bar:
        for sign in found:
            path = folder / f"{sign.label:02d}" / f"{sign.name}.png"
            make_directory(path.parent)
            image, own_size = read(sign)
            image.save(path)
            scaled += not own_size
            bar.update(1)
    names = [f"{s.label:02d}/{s.name}.png" for s in found]
    count = len(set(tracks(names))) if folder.name == "train" else 0  # test images have none
    return Written(len(found), len({s.label for s in found}), count, scaled)


def read(sign: Sign) -> tuple[Image.Image, bool]:
    """Reads a sign, RGB and cropped to its box, and whether the file has the annotated size.

    Where it has not, as in copies resized by others, the box is scaled to the file's size.
    """
    try:
        with Image.open(sign.path) as file:
            image = file.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the annotations name {sign.path}, which is not there: unpack the archive again"
        ) from None
    except OSError as e:  # damaged, too
        raise OSError(f"cannot read {sign.path}: {e}; unpack the archive again") from e
    x, y = (now / annotated for now, annotated in zip(image.size, sign.size))
    box = [round(edge * scale) for edge, scale in zip(sign.box, (x, y, x, y))]
    return image.crop(tuple(box)), image.size == sign.size


def lines(written: dict[str, Written], out: Path) -> Iterable[str]:
    """Says what is in `out`, and what is unlike the official dataset."""
    for split, w in written.items():
        of_tracks = f", {w.tracks:,} tracks" if w.tracks else ""
        yield f"{out / split}: {w.images:,} images, {w.classes} classes{of_tracks}"
        if w.images not in OFFICIAL[split]:
            official = " or ".join(f"{n:,}" for n in OFFICIAL[split])
            yield f"note: {split} of the official dataset has {official} images"
        if w.scaled:
            yield (
                f"note: {w.scaled:,} images of {split} are not of the size in their annotations "
                "(resized by somebody): their boxes were scaled"
            )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.finetuning.gtsrb",
        description="Writes GTSRB as class folders, cropped to the signs.",
    )
    add = parser.add_argument
    add("--source", type=Path, required=True, help="where GTSRB was unpacked, as in layouts.py")
    add("--out", type=Path, required=True, help="new directory for train/ and val/")
    args = parser.parse_args(argv)
    try:
        written = convert(args.source, args.out)
    except (OSError, ValueError) as e:
        parser.exit(2, f"error: {e}\n")
    print("\n".join(lines(written, args.out)))


if __name__ == "__main__":
    main()
