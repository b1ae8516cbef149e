"""The pages' pictures at toy size: right pixels in the right place, every arm in every chart; the gallery shows what exists."""

import argparse
import itertools
import math
import re
import shlex

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from small_autoencoder import HALVES, Halves
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from benchmarks import figures, gallery, latent_gallery
from benchmarks.core.charts import STYLE, TEXT, WIDTH
from benchmarks.core.common import ROOT
from benchmarks.figures import FIGURES, main
from benchmarks.gallery import CELL, LARGE
from timm_nfaug import NFAugment, create_flow, lift, pixels
from timm_nfaug.reading import read_image

GAP, TOP = 4, 26  # of draw_grid
CLASSES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def control(toy_images):
    fitted = NFAugment.from_data([toy_images], len(CLASSES), labels="given")
    fitted.flow.config.class_names = CLASSES
    return fitted.flow


@pytest.fixture(scope="module")
def flow_dirs(_small_flow, control, tmp_path_factory):
    root = tmp_path_factory.mktemp("flows")
    return [
        str(flow.save_pretrained(root / name))
        for name, flow in (("flow", _small_flow), ("control", control))
    ]


def cells(
    sheet: Image.Image, rows: int, columns: int, scale: int = 2, top: int = TOP
) -> np.ndarray:
    """(rows, columns, side, side, 3) of a grid, at the size that its images had; the columns counted from the right."""
    pixels = np.asarray(sheet)
    side = CELL * scale // 2
    out = np.empty((rows, columns, side // scale, side // scale, 3), dtype=np.uint8)
    for i in range(rows):
        for j in range(columns):
            y, x = top + i * (side + GAP), pixels.shape[1] - (columns - j) * (side + GAP)
            cell = pixels[y : y + side, x : x + side]
            out[i, j] = cell[::scale, ::scale]
            assert (
                cell == out[i, j].repeat(scale, 0).repeat(scale, 1)
            ).all()  # every pixel a block of its own
    return out


def left_cells(sheet: Image.Image, rows: int, columns: int) -> np.ndarray:
    """The first columns of a picture with rows named by one letter."""
    return cells(sheet.crop((0, 0, left_width(columns), sheet.height)), rows, columns)


def left_width(columns: int) -> int:
    return gallery.draw_grid([[]] * 3, [""] * columns, CLASSES, CELL).width


def test_augmented_images_stand_right_of_their_originals(small_flow, control, image_folder):
    images = figures.validation_images(small_flow, str(image_folder), 1, seed=0)
    assert [label for _, label in images] == [0, 1, 2]
    sheet = gallery.augment(small_flow, control, images, 0.5, "given", seed=0)
    originals = np.stack([np.asarray(image) for image, _ in images])
    assert (left_cells(sheet, 3, 1)[:, 0] == originals).all()
    of_flow, of_control = cells(without_last_block(sheet), 3, 3), cells(sheet, 3, 3)
    for moved in (of_flow, of_control):
        assert (moved != originals[:, None]).any((2, 3, 4)).all()
        for a, b in itertools.combinations(range(3), 2):
            assert (moved[:, a] != moved[:, b]).any((1, 2, 3)).all()
    assert (of_flow != of_control).any((2, 3, 4)).all()
    still = gallery.augment(small_flow, control, images, 0.0, "given", seed=0)
    for part in (still, without_last_block(still)):
        assert (cells(part, 3, 3) == originals[:, None]).all()


def without_last_block(sheet: Image.Image) -> Image.Image:
    return sheet.crop((0, 0, sheet.width - 12 - 3 * (CELL + GAP), sheet.height))


def test_interpolation_starts_and_ends_at_images_within_and_between_classes(
    small_flow, image_folder
):
    images = figures.validation_images(small_flow, str(image_folder), 2, seed=0)
    assert [label for _, label in images] == [0, 0, 1, 1, 2, 2]
    grid = cells(gallery.interpolate(small_flow, images), 3, 8, scale=3)
    for row, ((start, _), (end, _)) in zip(grid, itertools.pairwise(images[:4]), strict=True):
        for frame, image in ((row[0], start), (row[-1], end)):
            # float32 through the flow and back can round to a neighbouring level
            assert np.abs(frame.astype(int) - np.asarray(image)).max() <= 1
        assert (row[1:-1] != row[0]).any((1, 2, 3)).all() and (row[1:-1] != row[-1]).any(
            (1, 2, 3)
        ).all()


def test_variation_falls_with_the_temperature(small_flow):
    one, two = (
        cells(gallery.temperatures(small_flow, 1.0, seed), 5, 3).astype(float) for seed in (0, 1)
    )
    variation = np.abs(one - two).mean((1, 2, 3, 4))
    assert (np.diff(variation) < 0).all() and variation[-1] < 0.3 * variation[0]
    with torch.no_grad():  # the same noise: every row lies on the line from the class mean
        means = small_flow.prior.mu
        z = [
            small_flow.prior.sample(torch.arange(3), t, generator=torch.Generator().manual_seed(0))
            for t in (1.0, 0.1)
        ]
        assert torch.allclose(z[1] - means, 0.1 * (z[0] - means), atol=1e-5)
        lowest = pixels.model_to_levels(small_flow.inverse(z[1])).permute(0, 2, 3, 1).numpy()
    assert (one[-1] == lowest).all()


def test_flows_that_do_not_fit(small_flow, control, image_folder):
    small_flow.config.class_names = ["a", "b", "x"]
    with pytest.raises(ValueError, match="in folders named a, b, x"):
        figures.validation_images(small_flow, str(image_folder), 1, 0)
    with pytest.raises(ValueError, match="know other classes"):
        gallery.augment(small_flow, control, [], 0.5, "given", 0)
    small_flow.prior.mu.fill_(float("inf"))
    with pytest.raises(ValueError, match="3 of 3 samples are not finite"):
        gallery.temperatures(small_flow, 1.0, 0)


def test_moves_stand_right_of_their_originals_and_grow_with_strength(toy_images):
    augment = NFAugment.from_data([toy_images], 3, labels="none")
    images = [to_pil_image(x) for x in toy_images[0][:2]]
    sheet = gallery.moves(augment, images, (0.0, 0.5, 1.0), seed=0)
    block = 12 + 3 * (LARGE + GAP)
    assert sheet.size == (12 + LARGE + GAP + 3 * block, TOP + 2 * (LARGE + GAP))
    x = np.asarray(sheet).astype(int)
    original, still, half, whole = (block_of(x, i) for i in range(4))
    assert (still == original).all()
    gentle, strong = ([np.abs(b - original).mean() for b in rows] for rows in (half, whole))
    assert all(2 < g < s for g, s in zip(gentle, strong, strict=True))


def block_of(sheet: np.ndarray, index: int) -> np.ndarray:
    """The originals (2, 1, ...), or the moves (2, 3, ...) of a block, at the size they are shown."""
    left = 12 + (index and LARGE + GAP + 12 + (index - 1) * (12 + 3 * (LARGE + GAP)))
    columns = [left + j * (LARGE + GAP) for j in range(3 if index else 1)]
    rows = [TOP + i * (LARGE + GAP) for i in range(2)]
    return np.stack([[sheet[y : y + LARGE, x : x + LARGE] for x in columns] for y in rows])


@pytest.fixture(scope="module")
def latent(toy_images):
    """Linear modes of latents (3, 8, 8) of images of 16 pixels."""
    return NFAugment.from_data([toy_images], autoencoder=Halves(), size=16, modes=8)


def block(sheet: Image.Image, row: int, column: int, left: int, cell: int) -> np.ndarray:
    y, x = TOP + row * (cell + GAP), left + column * (cell + GAP)
    return np.asarray(sheet)[y : y + cell, x : x + cell].astype(int)


def test_latent_moves_stand_beside_those_of_pixels(toy_images, latent):
    images = [to_pil_image(x) for x in toy_images[0][:2]]
    spaces = {"linear": NFAugment.from_data([toy_images], labels="none"), "latent": latent}
    sheet = latent_gallery.moves(spaces, images, seed=0, cell=64)
    rows = [[block(sheet, i, 0, 12, 64) for i in range(2)]]
    for b in range(2):
        left = 12 + 64 + GAP + 12 + b * (12 + 3 * (64 + GAP))
        rows.append([block(sheet, i, 1, left, 64) for i in range(2)])
    original, pixel, moved = (np.stack(r) for r in rows)
    assert (original[0, ::2, ::2] == np.asarray(images[0])).all()
    assert all(2 < np.abs(b - original).mean() < 60 for b in (pixel, moved))
    assert (pixel != moved).any()
    still = latent_gallery.moves({"latent": latent.replace(strength=0.0)}, images, 0, cell=64)
    assert (block(still, 1, 2, 12 + 64 + GAP + 12, 64) == original[1]).all()
    assert sheet.height > TOP + 2 * (64 + GAP) + 18, "a caption with the PSNR"


def test_psnr_is_that_of_the_autoencoder_at_its_side(latent):
    g = torch.Generator().manual_seed(0)
    image = to_pil_image(torch.randint(0, 256, (3, 16, 16), generator=g, dtype=torch.uint8))
    x = latent_gallery.batch([image])
    error = (Halves().decode(Halves().encode(x)) - x).square().mean().item()
    assert latent_gallery.psnr(latent, [image]) == pytest.approx(10 * math.log10(4 / error), 1e-4)
    flat = Image.new("RGB", (16, 16), "gray")
    assert latent_gallery.psnr(latent, [flat]) > 90
    assert "16 px" in latent_gallery.caption(latent, [image], "")


def test_rows_of_strengths_grow_and_modes_are_symmetric(toy_images, latent):
    image = to_pil_image(toy_images[0][0])
    sheet = latent_gallery.strengths(latent, image, seed=0, cell=64)
    left = sheet.width - 6 * (64 + GAP)
    change = [
        np.abs(block(sheet, i, 2, left, 64) - block(sheet, i, 0, left, 64)).mean() for i in range(5)
    ]
    assert all(a < b for a, b in itertools.pairwise(change)) and change[0] > 0.5
    gray = Image.new("RGB", (16, 16), (128, 128, 128))  # nothing is clipped
    sheet = latent_gallery.modes(latent.replace(modes=4), gray, cell=16)
    left = sheet.width - 5 * (16 + GAP)
    for mode in range(4):
        far, near, own, over, beyond = (block(sheet, mode, j, left, 16) for j in range(5))
        assert (own == 128).all() and (over != own).any()
        assert np.abs((over - own) + (near - own)).max() <= 1  # of rounding
        assert np.abs((beyond - own) - 2 * (over - own)).max() <= 2
        assert np.abs((far - own) - 2 * (near - own)).max() <= 2


def test_lines_between_latents_end_at_the_decoded_images(toy_images, latent):
    images = [to_pil_image(x) for x in toy_images[0][:3]]
    sheet = latent_gallery.interpolate(latent, images, ["", ""], cell=16)
    x = lift.down(latent_gallery.batch(images), (16, 16))
    wanted = pixels.model_to_levels(Halves().decode(Halves().encode(x))).permute(0, 2, 3, 1).numpy()
    for row in range(2):
        for column, image in ((0, wanted[row]), (latent_gallery.STEPS - 1, wanted[row + 1])):
            assert np.abs(block(sheet, row, column, 12, 16) - image).max() <= 1  # of rounding


@pytest.fixture(scope="module")
def deep_latent(toy_images):
    """A deep flow over latents standardised by a mean and a spread, with the modes of three classes."""
    known = {"size": 16, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    flow = create_flow(
        "conv_p4_tiny", input_size=(3, 8, 8), num_classes=3, depth=1, hidden=8,
        prior={"num_modes": 4}, latent=known, class_names=CLASSES,
    )  # fmt: skip
    augment = NFAugment(flow, modes=4, labels="given", autoencoder=Halves())
    return augment.fit([toy_images], 3)


def test_samples_and_walks_are_decoded_from_latents(deep_latent):
    sheet = latent_gallery.temperatures(deep_latent, 1.0, seed=0)
    flow, y = deep_latent.flow, torch.arange(3)
    z = flow.sample(y, 0.1, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    wanted = pixels.model_to_levels(Halves().decode(z * std + mean)).permute(0, 2, 3, 1).numpy()
    left = sheet.width - 3 * (LARGE + GAP)
    for k in range(3):
        shown = block(sheet, 4, k, left, LARGE)  # the last temperature, enlarged
        assert np.abs(shown[::8, ::8][:15, :15].mean() - wanted[k].mean()) < 12
    walked = latent_gallery.walk(deep_latent, 1)
    left = walked.width - 5 * (LARGE + GAP)
    means = [block(walked, i, 2, left, LARGE) for i in range(4)]
    assert all((m == means[0]).all() for m in means)
    assert all((block(walked, i, 4, left, LARGE) != means[0]).any() for i in range(4))
    with pytest.raises(ValueError, match="--label must be from 0 to 2, got 3"):
        latent_gallery.walk(deep_latent, 3)


def test_flows_of_latents_from_the_command_line(deep_latent, image_folder, tmp_path, capsys):
    name = str(deep_latent.save_pretrained(tmp_path / "glem"))
    common = ["--autoencoder", HALVES, "--latent-flow", name]
    photos = [
        "--photos",
        str(image_folder),
        "--latent-modes",
        str(tmp_path / "kept"),
        "--size",
        "16",
    ]
    for figure, more in (("augment", photos), ("temperatures", []), ("walk", ["--label", "2"])):
        out = tmp_path / f"{figure}.jpg"
        assert main([f"latent_{figure}", *common, *more, "--out", str(out)]) == 0
        check_picture(out)
    kept = NFAugment.from_pretrained(tmp_path / "kept", autoencoder=Halves())
    assert (kept.size, kept.modes, kept.flow.is_linear) == (16, 32, True)
    with pytest.raises(SystemExit):
        main(["latent_walk", *common[:2], "--out", str(tmp_path / "no.jpg")])
    assert "give --latent-flow DIR" in capsys.readouterr().err


def test_moves_shows_the_first_image_of_each_class(image_folder, monkeypatch):
    shown = []
    monkeypatch.setattr(
        gallery, "moves", lambda augment, images, *rest: shown.append((augment, images))
    )
    args = figures.make_parser().parse_args(["moves", "--photos", str(image_folder)])
    FIGURES["moves"][0](args)
    ((augment, images),) = shown
    assert augment.flow.config.title == "cosine"
    folders = sorted((image_folder / "val").iterdir())
    assert [image.size for image in images] == [(224, 224)] * len(folders)
    for image, folder in zip(images, folders, strict=True):
        first = Image.open(min(folder.iterdir())).convert("RGB")
        assert (np.asarray(image) == np.asarray(v2.functional.resize(first, 224))).all()


def test_all_figures_from_the_command_line(flow_dirs, image_folder, tmp_path, monkeypatch, capsys):
    flow, control = flow_dirs
    folder, out = str(image_folder), tmp_path / "out"
    flags = ["--photos", folder, "--data-dir", folder, "--flow", flow, "--control", control]
    flags += ["--images", folder, "--autoencoder", HALVES, "--size", "16"]
    assert main(["all", *flags, "--out", str(out)]) == 0
    drawn = FIGURES.keys() - set(figures.LATENT_FLOWS)
    assert {p.name for p in out.iterdir()} == {figures.file_name(name) for name in drawn}
    for path in out.iterdir():
        check_picture(path)
    # one figure alone is the same file
    main(["temperatures", "--flow", flow, "--out", str(tmp_path / "one.png")])
    assert (tmp_path / "one.png").read_bytes() == (out / "temperatures.png").read_bytes()
    assert "one.png: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, message",
    [
        (["augmented", "--data-dir", "x"], "invalid choice: 'augmented'"),
        ([], "required: NAME"),
        (["moves"], "required: --photos"),
        (["augment"], "required: --data-dir"),
        (["throughput", "--seed", "3"], "unrecognized arguments: --seed"),
        (["temperatures", "--flow", "no_such_flow"], "no flow named 'no_such_flow'"),
        (["interpolate", "--data-dir", "no_such_dir"], "no directory"),
        (["moves", "--photos", "no_such_dir"], "No such file or directory"),
        (["latent_moves", "--photos", "x", "--images", "x"], "required: --autoencoder"),
        (
            ["latent_walk", "--autoencoder", "x:y", "--latent-flow", "no_flow"],
            "make an autoencoder",
        ),
    ],
)
def test_refused_command_lines(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_picture_is_small_and_white_stays_white(tmp_path):
    noise = torch.randint(
        0, 256, (250, 220, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    ).numpy()
    noise[:20] = 255
    assert figures.save(Image.fromarray(noise[:100]), tmp_path / "small.png") == "8 bits a channel"
    assert (np.asarray(read_image(tmp_path / "small.png", 3)) == noise[:100]).all()
    bits = int(figures.save(Image.fromarray(noise), tmp_path / "large.png")[0])
    stored = np.asarray(read_image(tmp_path / "large.png", 3)).astype(int)
    assert bits < 8 and (tmp_path / "large.png").stat().st_size <= figures.LIMITS[".png"]
    assert np.abs(stored - noise).max() <= 2 ** (8 - bits) / 2 + 0.5 and (stored[:20] == 255).all()
    too_much = Image.fromarray(np.tile(noise, (3, 3, 1)) ^ np.arange(660, dtype=np.uint8)[:, None])
    assert figures.save(too_much.crop((0, 0, 660, 430)), tmp_path / "some.jpg") != "quality 92"
    assert (tmp_path / "some.jpg").stat().st_size <= figures.LIMITS[".jpg"]
    for name, most in (("no.png", 150000), ("no.jpg", 250000)):
        with pytest.raises(ValueError, match=f"{most} at most"):
            figures.save(too_much, tmp_path / name)
        assert not (tmp_path / name).exists()


def check_picture(path):
    assert path.stat().st_size <= figures.LIMITS[path.suffix]
    with Image.open(path) as image:
        image.load()
        assert image.format == {".png": "PNG", ".jpg": "JPEG"}[path.suffix]
        assert image.convert("RGBA").getextrema()[3] == (255, 255), "readable on a dark page"
        sheet = image.convert("RGB")
        corners = ((0, 0), (sheet.width - 1, sheet.height - 1))
        assert all(min(sheet.getpixel(corner)) >= 240 for corner in corners)
        assert sum(v > 0 for v in sheet.convert("L").histogram()) > 15, "an empty sheet"


def test_the_gallery_shows_the_pictures_that_exist_and_their_commands():
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    links = re.findall(r"!\[[^\]]+\]\((figures/[\w.-]+)\)", text)
    assert len(links) == len(set(links))
    hidden = set(figures.LATENT_FLOWS) - {"latent_temperatures"}  # of flows of one's own
    shown = [name for name in FIGURES if name not in hidden]
    assert set(links) == {f"figures/{figures.file_name(name)}" for name in shown}
    assert {ROOT / "docs" / link for link in links} == set(figures.FOLDER.iterdir())
    for path in figures.FOLDER.iterdir():
        check_picture(path)
    parser, commands = figures.make_parser(), {}
    for section in text.split("![")[1:]:
        for line in re.findall(r"^python -m benchmarks\.figures (.+)$", section, re.M):
            figure = parser.parse_args(shlex.split(line)).figure
            if figure not in figures.LATENT_FLOWS:
                assert f"(figures/{figures.file_name(figure)})" in section.partition("```")[0]
            commands[figure] = commands.get(figure, 0) + 1
    assert commands == dict.fromkeys(FIGURES, 1), "one command for each, beside its picture"


@pytest.mark.parametrize("name", ["throughput", "flow_pareto", "proposition"])
def test_text_of_a_chart_is_of_nine_points_or_more_and_inside(name):
    with matplotlib.rc_context(STYLE):
        figure = chart_figure(name)
        FigureCanvasAgg(figure).draw()
    assert figure.get_size_inches()[0] == WIDTH and figure.get_suptitle().endswith("?")
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip("−-0123456789.,% "):
            assert text.get_fontsize() >= TEXT, text
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, text


def chart_figure(name: str) -> Figure:
    """The figure that a command of `benchmarks.figures` renders."""
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "render", lambda draw: drawn.append(draw()))
        FIGURES[name][0](argparse.Namespace())
    return drawn[0]
