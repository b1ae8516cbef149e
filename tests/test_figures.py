"""The gallery's pictures from the toy flow: right size, right pixels in the right place; the gallery shows what exists."""

import argparse
import itertools
import re
import shlex

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file, save_model
from timm.utils import CheckpointSaver

from benchmarks import figures, gallery
from benchmarks.cifar.classifier import make_classifier, normalize
from benchmarks.core.common import ROOT
from benchmarks.demo import fitted_linear
from benchmarks.figures import FIGURES, main
from benchmarks.gallery import CELL
from timm_nfaug import pixels
from timm_nfaug.flows.label_band import nearest_label
from timm_nfaug.reading import read_image
from train_flow.data import Images, load_folder

GAP, TOP = 4, 26  # of draw_grid
CLASSES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def control(toy_images):
    return fitted_linear(Images(*toy_images, CLASSES), 0.5).flow


@pytest.fixture(scope="module")
def flow_dirs(_small_flow, control, tmp_path_factory):
    root = tmp_path_factory.mktemp("flows")
    return [
        str(flow.save_pretrained(root / name))
        for name, flow in (("flow", _small_flow), ("control", control))
    ]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "toy.yaml"
    path.write_text(
        "flow: conv_p4_tiny\nimage_size: 32\nnetwork: {depth: 2, hidden: 16}\nprior: {num_modes: 0}\nbatch_size: 16\n"
        "gaussian_every: 1\ngaussian_fraction: 0\naverage: none\nlr: 1.0e-3\neval_every: 0\n"
    )
    return str(path)


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
    sheet = gallery.augment(small_flow, control, images, strength=0.5, seed=0)
    originals = np.stack([np.asarray(image) for image, _ in images])
    assert (left_cells(sheet, 3, 1)[:, 0] == originals).all()
    of_flow, of_control = cells(without_last_block(sheet), 3, 3), cells(sheet, 3, 3)
    for moved in (of_flow, of_control):
        assert (moved != originals[:, None]).any((2, 3, 4)).all()
        for a, b in itertools.combinations(range(3), 2):
            assert (moved[:, a] != moved[:, b]).any((1, 2, 3)).all()
    assert (of_flow != of_control).any((2, 3, 4)).all()
    still = gallery.augment(small_flow, control, images, strength=0.0, seed=0)
    for part in (still, without_last_block(still)):
        assert (cells(part, 3, 3) == originals[:, None]).all()


def without_last_block(sheet: Image.Image) -> Image.Image:
    return sheet.crop((0, 0, sheet.width - 12 - 3 * (CELL + GAP), sheet.height))


def test_interpolation_starts_and_ends_at_images_within_and_between_classes(
    small_flow, image_folder
):
    images = figures.validation_images(small_flow, str(image_folder), 2, seed=0)
    assert [label for _, label in images] == [0, 0, 1, 1, 2, 2]
    grid = cells(gallery.interpolate(small_flow, images), 5, 8, scale=3)
    for row, ((start, _), (end, _)) in zip(grid, itertools.pairwise(images), strict=True):
        for frame, image in ((row[0], start), (row[-1], end)):
            # float32 through the flow and back can round to a neighbouring level
            assert np.abs(frame.astype(int) - np.asarray(image)).max() <= 1
        assert (row[1:-1] != row[0]).any((1, 2, 3)).all() and (row[1:-1] != row[-1]).any(
            (1, 2, 3)
        ).all()


def test_the_filter_keeps_what_the_classifier_likes_best(small_flow):
    def bright(x):  # likes bright images, whatever the class
        return x.mean((1, 2, 3)).unsqueeze(1) * torch.tensor([[1.0, 0.0, 0.0]])

    sheet = gallery.samples(small_flow, bright, draws=12, temperature=0.7, mean_scale=1.0, seed=3)
    assert sheet.size == (left_width(2) + 12 + 5 * (CELL + GAP), TOP + 3 * (CELL + GAP))
    with torch.no_grad():
        x = small_flow.sample(
            torch.zeros(12, dtype=torch.int64), 0.7, 1.0, torch.Generator().manual_seed(3)
        )
    levels = pixels.model_to_levels(x).permute(0, 2, 3, 1).numpy()
    assert (left_cells(sheet, 3, 2)[0] == levels[:2]).all()
    best = levels.astype(float).mean((1, 2, 3)).argsort()[::-1][:5]
    kept = cells(sheet, 3, 5)
    assert (kept[0] == levels[best]).all()
    means = (
        kept[1:].astype(float).mean((2, 3, 4))
    )  # class b and c: the same classifier likes dark images
    assert (np.diff(means, axis=1) >= 0).all()
    with pytest.raises(ValueError, match="--draws must be at least the 5"):
        gallery.samples(small_flow, bright, 4, 0.7, 1.0, 0)


def test_margin_does_not_saturate():
    logits = torch.tensor([[2000.0, 0.0, 0.0], [1000.0, 0.0, 0.0], [0.5, 0.0, 1.0]])
    assert gallery.margin(logits, 0).argsort(descending=True).tolist() == [0, 1, 2]
    p = logits[2].softmax(0)[0]
    assert gallery.margin(logits[2:], 0).item() == pytest.approx(
        (p / (1 - p)).log().item(), rel=1e-5
    )


def test_classifier_from_a_checkpoint_of_timm(small_flow, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    args = argparse.Namespace(
        model="test_resnet", num_classes=3, model_kwargs={}, img_size=64, mean=mean, std=std
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    CheckpointSaver(model, optimizer, args, checkpoint_dir=str(tmp_path)).save_checkpoint(0, 50.0)
    classify = figures.load_classifier(str(tmp_path / "last.pth.tar"), small_flow)
    levels = torch.randint(
        0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    with torch.no_grad():
        large = (
            torch.nn.functional.interpolate(
                levels.float(), (64, 64), mode="bilinear", antialias=True
            )
            / 255
        )
        expected = model(
            (large - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        )
        found = classify(pixels.levels_to_model(levels))
    assert torch.allclose(found, expected, atol=1e-4) and found.std() > 1e-3
    small_flow.config.num_classes = 4
    with pytest.raises(ValueError, match="knows 3 classes, the flow 4"):
        figures.load_classifier(str(tmp_path / "last.pth.tar"), small_flow)
    for content in (b"no checkpoint", b""):
        (tmp_path / "broken").write_bytes(content)
        with pytest.raises(ValueError, match=r"no checkpoint of timm's train\.py"):
            figures.load_classifier(str(tmp_path / "broken"), small_flow)


def test_classifier_of_the_comparison(small_flow, tmp_path):
    torch.manual_seed(0)
    model = make_classifier("resnet10_half", 3)
    save_model(model, tmp_path / "own.safetensors")
    levels = torch.randint(
        0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    with torch.no_grad():
        expected = model.eval()(normalize(levels))
        found = figures.load_classifier(str(tmp_path / "own.safetensors"), small_flow)(
            pixels.levels_to_model(levels)
        )
    assert torch.allclose(found, expected, atol=1e-5) and found.std() > 1e-3
    save_file({"fc.bias": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds none of the models resnet18, resnet10_half"):
        figures.load_classifier(str(tmp_path / "other.safetensors"), small_flow)
    small_flow.config.num_classes = 4
    with pytest.raises(ValueError, match="knows 3 classes, not 4"):
        figures.load_classifier(str(tmp_path / "own.safetensors"), small_flow)


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


def test_codes_of_a_class_lie_together(small_flow, image_folder):
    data = load_folder(image_folder / "train", 32)
    points = gallery.embed(small_flow, data, seed=0)
    assert points.shape == (60, 2) and (points == gallery.embed(small_flow, data, seed=0)).all()
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    neighbours = data.labels.numpy()[distance.argmin(1)]
    assert (
        neighbours == data.labels.numpy()
    ).mean() > 0.7  # the toy classes differ in colour; chance is 0.33
    sheet = gallery.tsne({"one": small_flow, "two": small_flow}, data, seed=0)
    found = set(map(tuple, np.asarray(sheet).reshape(-1, 3)))
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= found and (
        214,
        39,
        40,
    ) not in found  # tab10: three, not four


def trained_args(config, image_folder, runs, steps, *flags):
    values = [
        "--data-dir",
        str(image_folder),
        "--config",
        config,
        "--runs",
        str(runs),
        "--steps",
        str(steps),
    ]
    return [*values, *flags]


def test_arms_differ_by_kld_and_reparametrisation_and_resume(config, image_folder, tmp_path):
    args = figures.make_parser().parse_args(
        ["tsne", *trained_args(config, image_folder, tmp_path, 10)]
    )
    flows = {
        title: figures.trained(name, settings, args)
        for title, (name, settings) in figures.ARMS.items()
    }
    kld, without, free = (flow.prior.pairwise_kl().sum() for flow in flows.values())
    assert kld > 1.3 * without and free > 1.3 * without
    assert [flow.prior.a for flow in flows.values()] == [1.0, 1.0, None]
    before = {p: p.stat().st_size for p in tmp_path.rglob("log.jsonl")}
    again = figures.trained(*figures.ARMS["with KLD"], args)
    assert all(
        torch.equal(v, flows["with KLD"].state_dict()[k]) for k, v in again.state_dict().items()
    )
    assert before == {
        p: p.stat().st_size for p in tmp_path.rglob("log.jsonl")
    }  # nothing was trained twice


def test_bands_under_inputs_and_samples(config, image_folder, tmp_path, monkeypatch):
    args = figures.make_parser().parse_args(
        ["bands", *trained_args(config, image_folder, tmp_path, 5)]
    )
    flow = figures.trained("ce", ["objective=ce"], args)
    data = load_folder(image_folder / "val", 32)
    titles = []
    draw = gallery.draw_grid
    monkeypatch.setattr(
        gallery,
        "draw_grid",
        lambda rows, columns, *rest: titles.append(columns) or draw(rows, columns, *rest),
    )
    sheet = gallery.bands(flow, figures.first_images(data, 1), 0.7, seed=0)
    side = 80
    assert sheet.height == 4 * (TOP + side + GAP)
    for i, row in enumerate(titles):
        for j, name in enumerate(row):
            x, y = sheet.width - (3 - j) * (side + GAP), TOP + i * (TOP + side + GAP)
            cell = np.asarray(sheet)[y : y + side : 2, x : x + side : 2]
            assert (cell[:, :4] == 255).all() and (
                cell[:, -4:] == 255
            ).all()  # 32 x 40 in the middle of 40 x 40
            image = torch.from_numpy(cell[:, 4:-4].copy()).permute(2, 0, 1)
            if i == 0:
                own = int(torch.nonzero(data.labels == j)[0])
                assert torch.equal(image, torch.cat([data.levels[own], flow.codes[j]], dim=1))
            band = pixels.levels_to_model(image[None, :, 32:])
            assert CLASSES[int(nearest_label(band, pixels.levels_to_model(flow.codes)))] == name
    assert titles[0] == CLASSES


def test_flows_that_do_not_fit(small_flow, control, config, image_folder, tmp_path):
    with pytest.raises(ValueError, match="no code band"):
        gallery.bands(small_flow, load_folder(image_folder / "val", 32), 0.7, 0)
    small_flow.config.class_names = ["a", "b", "x"]
    with pytest.raises(ValueError, match="in folders named a, b, x"):
        figures.validation_images(small_flow, str(image_folder), 1, 0)
    with pytest.raises(ValueError, match="know other classes"):
        gallery.augment(small_flow, control, [], 0.5, 0)
    small_flow.prior.mu.fill_(float("inf"))
    with pytest.raises(ValueError, match="3 of 3 samples are not finite"):
        gallery.temperatures(small_flow, 1.0, 0)


def test_all_figures_from_the_command_line(flow_dirs, config, image_folder, tmp_path, capsys):
    flow, control = flow_dirs
    flags = trained_args(
        config,
        image_folder,
        tmp_path / "runs",
        2,
        "--flow",
        flow,
        "--control",
        control,
        "--draws",
        "6",
    )
    assert main(["all", *flags, "--out", str(tmp_path / "out")]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"{name}.png" for name in FIGURES}
    for path in (tmp_path / "out").iterdir():
        check_picture(path)
    # one figure alone is the same file
    main(["temperatures", "--flow", flow, "--out", str(tmp_path / "one.png")])
    assert (tmp_path / "one.png").read_bytes() == (
        tmp_path / "out" / "temperatures.png"
    ).read_bytes()
    assert "one.png: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, message",
    [
        (["augmented", "--data-dir", "x"], "invalid choice: 'augmented'"),
        ([], "required: NAME"),
        (["augment"], "required: --data-dir"),
        (["temperatures", "--steps", "3"], "unrecognized arguments: --steps"),
        (["tsne", "--data-dir", "x", "--steps", "0"], "must be at least 1, got 0"),
        (["temperatures", "--flow", "no_such_flow"], "no flow named 'no_such_flow'"),
        (["interpolate", "--data-dir", "no_such_dir"], "no directory"),
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
    assert figures.save(Image.fromarray(noise[:100]), tmp_path / "small.png") == 8
    assert (np.asarray(read_image(tmp_path / "small.png", 3)) == noise[:100]).all()
    bits = figures.save(Image.fromarray(noise), tmp_path / "large.png")
    stored = np.asarray(read_image(tmp_path / "large.png", 3)).astype(int)
    assert bits < 8 and (tmp_path / "large.png").stat().st_size <= figures.LIMIT
    assert np.abs(stored - noise).max() <= 2 ** (8 - bits) / 2 + 0.5 and (stored[:20] == 255).all()
    with pytest.raises(ValueError, match="150000 at most"):
        figures.save(
            Image.fromarray(np.tile(noise, (1, 2, 1)) ^ np.arange(440, dtype=np.uint8)[:, None]),
            tmp_path / "no.png",
        )
    assert not (tmp_path / "no.png").exists()


def check_picture(path):
    assert path.stat().st_size <= figures.LIMIT
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and image.convert("RGBA").getextrema()[3] == (
            255,
            255,
        )  # opaque: readable on a dark page
        sheet = image.convert("RGB")
        assert (
            sheet.getpixel((0, 0))
            == sheet.getpixel((sheet.width - 1, sheet.height - 1))
            == (255, 255, 255)
        )
        assert sum(v > 0 for v in image.convert("L").histogram()) > 30  # not an empty sheet


def test_the_gallery_shows_the_pictures_that_exist_and_their_commands():
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    links = re.findall(r"!\[[^\]]+\]\((figures/[\w.-]+\.png)\)", text)
    assert len(links) == len(set(links))
    assert {ROOT / "docs" / link for link in links} == set(
        (ROOT / "docs" / "figures").glob("*.png")
    )
    assert {f"figures/{name}.png" for name in FIGURES} <= set(links)
    for path in (ROOT / "docs" / "figures").glob("*.png"):
        check_picture(path)
    parser = figures.make_parser()
    for name in FIGURES:
        section = text[text.index(f"(figures/{name}.png)") :].partition("\n## ")[0]
        commands = re.findall(r"^python -m benchmarks\.figures (.+)$", section, re.M)
        assert len(commands) == 1, f"{name}: one command beside the picture"
        assert parser.parse_args(shlex.split(commands[0])).figure == name
