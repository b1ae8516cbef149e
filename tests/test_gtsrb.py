"""GTSRB as class folders: both layouts give the same images, and no track is counted as many images."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from benchmarks.finetuning import gtsrb
from benchmarks.finetuning.tracks import pick_by_track, split_by_track, tracks

COLUMNS = ("Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId")
SIZE, BOX = (12, 10), (2, 3, 9, 8)  # width, height; left, top, right, bottom
TRAIN = [(k, track, frame) for k in (0, 7) for track in (0, 1) for frame in (0, 1, 2)]
TEST = [(7, "00000"), (0, "00001"), (0, "00002")]


def pixels(*key: int) -> np.ndarray:
    width, height = SIZE
    return np.random.default_rng(key).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, *key: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(*key)).save(path)


def row(label: int) -> list[str]:
    return [str(v) for v in (*SIZE, *BOX, label)]


def write_table(path: Path, rows: list[list[str]], first: str = "", last: str = "") -> None:
    separator = ";" if first else ","
    head = [name for name in (first, *COLUMNS, last) if name]
    path.write_text("".join(separator.join(r) + "\r\n" for r in [head, *rows]))


def official(root: Path, training: str = "Final_Training/Images", table: str = "") -> Path:
    for k in (0, 7):
        folder = root / training / f"{k:05d}"
        names = [(f"{t:05d}_{f:05d}.ppm", t, f) for c, t, f in TRAIN if c == k]
        for name, track, frame in names:
            save(folder / name, k, track, frame)
        write_table(folder / f"GT-{k:05d}.csv", [[n, *row(k)] for n, *_ in names], "Filename")
    images = root / "Final_Test" / "Images"
    for i, (_, name) in enumerate(TEST):
        save(images / f"{name}.ppm", 100 + i)
    unlabelled = [[f"{name}.ppm", *row(0)[:-1]] for _, name in TEST]
    write_table(images / "GT-final_test.test.csv", unlabelled, "Filename")  # is there, too
    labelled = [[f"{name}.ppm", *row(k)] for k, name in TEST]
    write_table(root / (table or "Final_Test/GT-final_test.csv"), labelled, "Filename")
    return root


def torchvision(root: Path) -> Path:
    official(root / "gtsrb" / "GTSRB", "Training", table="../GT-final_test.csv")
    return root


def kaggle(root: Path) -> Path:
    training = [(k, f"Train/{k}/{k:05d}_{t:05d}_{f:05d}.png", (k, t, f)) for k, t, f in TRAIN]
    test = [(k, f"Test/{name}.png", (100 + i,)) for i, (k, name) in enumerate(TEST)]
    for table, signs in (("Train.csv", training), ("Test.csv", test)):
        for _, path, key in signs:
            save(root / path, *key)
        write_table(root / table, [[*row(k), path] for k, path, _ in signs], last="Path")
    return root


LAYOUTS = [official, torchvision, kaggle]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_cropped_folders(tmp_path, layout, capsys):
    source, out = layout(tmp_path / "source"), tmp_path / "new" / "out"
    gtsrb.main(["--source", str(source), "--out", str(out)])
    left, top, right, bottom = BOX
    wanted = {
        f"train/{k:02d}/{t:05d}_{f:05d}.png": pixels(k, t, f) for k, t, f in TRAIN
    } | {f"val/{k:02d}/{name}.png": pixels(100 + i) for i, (k, name) in enumerate(TEST)}  # fmt: skip
    found = {p.relative_to(out).as_posix(): p for p in out.rglob("*.png")}
    assert set(found) == set(wanted)
    for name, image in wanted.items():
        with Image.open(found[name]) as file:
            assert file.mode == "RGB" and file.format == "PNG"
            assert np.array_equal(np.asarray(file), image[top:bottom, left:right])
    assert ImageFolder(str(out / "train")).classes == ["00", "07"]
    assert [p.name for p in out.parent.iterdir()] == ["out"], "no temporary directory is left"
    said = capsys.readouterr().out
    assert "12 images, 2 classes, 4 tracks" in said and "3 images, 2 classes\n" in said
    assert "39,209 or 26,640" in said and "scaled" not in said


def test_the_boxes_of_resized_images_are_scaled(tmp_path, capsys):
    source = official(tmp_path / "source")
    for path in source.rglob("*.ppm"):
        with Image.open(path) as file:
            twice = file.resize((24, 20), Image.Resampling.NEAREST)
        twice.save(path)
    gtsrb.main(["--source", str(source), "--out", str(tmp_path / "out")])
    with Image.open(tmp_path / "out" / "train" / "07" / "00001_00002.png") as file:
        twice = pixels(7, 1, 2)[3:8, 2:9].repeat(2, axis=0).repeat(2, axis=1)
        assert np.array_equal(np.asarray(file), twice)
    assert "12 images of train are not of the size" in capsys.readouterr().out


def no_boxes(source: Path) -> None:
    (source / "Final_Training" / "Images" / "00007" / "GT-00007.csv").unlink()


def no_labels(source: Path) -> None:
    (source / "Final_Test" / "GT-final_test.csv").unlink()


def no_image(source: Path) -> None:
    (source / "Final_Test" / "Images" / "00001.ppm").unlink()


def cut_image(source: Path) -> None:
    (source / "Final_Test" / "Images" / "00001.ppm").write_bytes(b"P6\n12 10\n255\n\0")


def no_training(source: Path) -> None:
    (source / "Final_Training").rename(source / "other")


def changed(old: str, new: str):
    def change(source: Path) -> None:
        path = source / "Final_Training" / "Images" / "00007" / "GT-00007.csv"
        path.write_text(path.read_text().replace(old, new))

    return change


FAULTS = [
    (no_boxes, "no GT-*.csv in"),
    (no_labels, "no test set of GTSRB"),
    (no_image, "00001.ppm, which is not there"),
    (cut_image, "cannot read"),
    (no_training, "expected Final_Training/Images/"),
    (changed(";7\n", ";8\n"), "the same classes, got [7, 8]"),
    (changed(";7\n", ";43\n"), "line 2: expected a class from 0 to 42"),
    (changed(";9;8;", ";13;8;"), "line 2: expected a class from 0 to 42 and a box within (12, 10)"),
    (changed(";ClassId", ";Class"), "line 2: expected Filename, Width"),
    (changed("00000_00001", "00000_00000"), "name an image twice"),
    (changed("00000_00001", "frame1"), "expected a name TRACK_FRAME"),
]


@pytest.mark.parametrize("fault, message", FAULTS, ids=[m for _, m in FAULTS])
def test_a_fault_is_named_and_nothing_is_left(tmp_path, fault, message, capsys):
    source = official(tmp_path / "source")
    fault(source)
    with pytest.raises(SystemExit, match="2"):
        gtsrb.main(["--source", str(source), "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_what_is_there_is_kept_and_what_is_not_is_named(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    source = official(tmp_path / "source")
    for faulty, out, message in (
        (source, "out", "is there already"),
        (tmp_path / "none", "new", "no directory"),
    ):
        with pytest.raises(SystemExit, match="2"):
            gtsrb.main(["--source", str(faulty), "--out", str(tmp_path / out)])
        assert message in capsys.readouterr().err


def test_tracks_are_told_by_class_and_name():
    official_names = [f"/data/train/{k:02d}/{t:05d}_{f:05d}.png" for k, t, f in TRAIN]
    kaggle_names = [f"Train/{k}/{k:05d}_{t:05d}_{f:05d}.png" for k, t, f in TRAIN]
    wanted = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert tracks(official_names) == tracks(kaggle_names) == wanted
    for name in ("00/00001.png", "00000_00001.png", "00/cat_a.png"):
        with pytest.raises(ValueError, match="expected a name CLASS/TRACK_FRAME.png"):
            tracks([name])


def many(tracks_per_class: tuple[int, ...] = (4, 10), frames: int = 5):
    labels, numbers = [], []
    for k, count in enumerate(tracks_per_class):
        labels += [k] * count * frames
        first = len(set(numbers))
        numbers += [first + i // frames for i in range(count * frames)]
    return labels, numbers


def test_no_track_is_in_both_parts():
    labels, numbers = many()
    rest, held = split_by_track(labels, numbers, 0.3, seed=0)
    assert sorted(rest + held) == list(range(len(labels)))
    assert not {numbers[i] for i in rest} & {numbers[i] for i in held}
    held_tracks = Counter(label for label, _ in {(labels[i], numbers[i]) for i in held})
    assert held_tracks == {0: 1, 1: 3}
    assert split_by_track(labels, numbers, 0.3, seed=0) == (rest, held)
    assert split_by_track(labels, numbers, 0.3, seed=1)[1] != held
    assert split_by_track(labels, numbers, 0.01, seed=0)[1], "one track is held at least"


def test_a_split_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="class 0 has a single track"):
        split_by_track([0, 0], [0, 0], 0.5, seed=0)
    for fraction in (0, 1):
        with pytest.raises(ValueError, match="fraction must be between 0 and 1"):
            split_by_track([0, 0], [0, 1], fraction, seed=0)
    with pytest.raises(ValueError, match="a track for each label"):
        split_by_track([0, 0], [0], 0.5, seed=0)


def test_pictures_come_from_different_tracks_first():
    labels, numbers = many()
    smaller: set[int] = set()
    for per_class in (1, 3, 4, 6, 20):
        picked = pick_by_track(labels, numbers, per_class, seed=0)
        assert picked == sorted(set(picked)) and smaller < set(picked)
        smaller = set(picked)
        for k, count in ((0, 4), (1, 10)):
            frames = Counter(numbers[i] for i in picked if labels[i] == k)
            assert sum(frames.values()) == per_class
            assert len(frames) == min(per_class, count)
            assert max(frames.values()) - min(frames.values()) <= 1
    assert pick_by_track(labels, numbers, 3, 0) != pick_by_track(labels, numbers, 3, 1)
    alone = [i for i in pick_by_track(labels, numbers, 3, 0) if labels[i] == 1]
    only = [i for i, k in enumerate(labels) if k == 1]
    of_one = pick_by_track([1] * len(only), [numbers[i] for i in only], 3, 0)
    assert [only[i] for i in of_one] == alone, "other classes do not change a class's images"


def test_too_many_pictures_are_refused():
    labels, numbers = many()
    with pytest.raises(ValueError, match="class 0 has 20 images, 21 were asked for"):
        pick_by_track(labels, numbers, 21, seed=0)
    with pytest.raises(ValueError, match="per_class must be 1 or more"):
        pick_by_track(labels, numbers, 0, seed=0)
