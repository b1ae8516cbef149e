"""The preview's pictures, from the command line, on real files."""

import numpy as np
import pytest
from PIL import Image

from timm_nfaug import grid, pictures
from timm_nfaug.preview import find_images, main


@pytest.fixture
def flow_dir(small_flow, tmp_path):
    return str(small_flow.save_pretrained(tmp_path / "flow"))


def test_three_pictures(flow_dir, image_folder, tmp_path):
    sizes = {}
    for name, flags in {
        "augment": ["--images", str(image_folder / "val"), "--count", "4"],
        "samples": ["--samples", "--temperatures", "1", "0.5"],
        "interpolate": ["--images", str(image_folder / "val"), "--count", "3", "--interpolate"],
    }.items():
        out = tmp_path / f"{name}.png"
        main(["--flow", flow_dir, "--out", str(out), *flags])
        with Image.open(out) as sheet:
            sheet.load()
            sizes[name] = sheet.size
            assert sum(v > 0 for v in sheet.convert("L").histogram()) > 50  # not an empty sheet
    assert sizes["augment"][1] > sizes["samples"][1] > sizes["interpolate"][1]  # 4, 3 and 2 rows


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP")]
)
def test_the_name_says_the_format(flow_dir, tmp_path, name, kind):
    main(["--flow", flow_dir, "--samples", "--temperatures", "1", "--out", str(tmp_path / name)])
    with Image.open(tmp_path / name) as sheet:
        assert sheet.format == kind


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "a.pdf"], "--out takes a name that ends in .png, .jpg, .jpeg, .webp, got a.pdf"),
        (["--out", "a"], "--out takes a name that ends in"),
        (["--count", "0"], "--count takes at least 1 image, got 0"),
        (["--cell", "8"], "--cell takes 16 to 1024 pixels, got 8"),
    ],
)
def test_refused_flags(flow_dir, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["--flow", flow_dir, "--samples", *flags])
    assert message in capsys.readouterr().err and not list(tmp_path.glob("a*"))


def test_eigen_images_of_a_folder(image_folder, tmp_path, capsys):
    """--flow linear takes no weights: it shows what a training on these class folders would do."""
    for images in (image_folder, image_folder / "val"):
        out = tmp_path / f"{images.name}.png"
        flags = [
            "--images",
            str(images),
            "--count",
            "3",
            "--modes",
            "3",
            "--strengths",
            "0.5",
            "--out",
            str(out),
        ]
        main(["--flow", "linear", *flags])
        sheet = np.asarray(Image.open(out).convert("RGB")).astype(int)
        cells = [
            sheet[26:122, sheet.shape[1] - 100 * (3 - i) : sheet.shape[1] - 100 * (3 - i) + 96]
            for i in range(3)
        ]
        assert np.abs(cells[1] - cells[0]).mean() > 2 < np.abs(cells[2] - cells[0]).mean()
    (tmp_path / "none").mkdir()
    (tmp_path / "webp").mkdir()  # which timm's reader of folders does not look for
    Image.new("RGB", (8, 8)).save(tmp_path / "webp" / "a.webp")
    for flags, message in (
        (["--samples"], "--images is required"),
        (["--images", str(tmp_path / "none")], "holds no images"),
        (["--images", str(tmp_path / "webp")], "found 0 images"),
    ):
        with pytest.raises(SystemExit):
            main(["--flow", "linear", *flags])
        assert message in capsys.readouterr().err.lower()


def test_same_seed_same_picture(flow_dir, image_folder, tmp_path):
    outs = []
    for seed in (0, 0, 1):
        out = tmp_path / f"{len(outs)}.png"
        main(
            [
                "--flow",
                flow_dir,
                "--images",
                str(image_folder / "val"),
                "--count",
                "2",
                "--out",
                str(out),
                "--seed",
                str(seed),
            ]
        )
        outs.append(out.read_bytes())
    assert outs[0] == outs[1] != outs[2]


def test_images_are_spread_over_folders_and_labelled_by_name(image_folder):
    found = find_images(image_folder / "val", 3, 0, ["a", "b", "c"])
    assert [label for _, label in found] == [0, 1, 2]
    assert [label for _, label in find_images(image_folder / "val", 6, 0, [])] == [None] * 6


@pytest.mark.parametrize("case", ["unreadable", "empty", "missing"])
def test_errors(flow_dir, tmp_path, capsys, case):
    folder = tmp_path / "images"
    if case != "missing":
        folder.mkdir()
    if case == "unreadable":
        (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit):
        main(["--flow", flow_dir, "--images", str(folder), "--out", str(tmp_path / "out.png")])
    message = {"unreadable": "broken.png", "empty": "holds no images", "missing": "no directory"}[
        case
    ]
    assert message in capsys.readouterr().err and not (tmp_path / "out.png").exists()


def spans(sheet, cell, count, images):
    """The cells of a row of a sheet, from the right end, as arrays (cell, cell, 3)."""
    pixels = np.asarray(sheet.convert("RGB")).astype(int)
    left = pixels.shape[1] - count * (cell + 4)
    return [pixels[26 : 26 + cell, left + j * (cell + 4) :][:, :cell] for j in range(images)]


def test_without_a_flow_named_it_is_cosine_and_names_space_and_strength(image_folder, tmp_path):
    """Columns of one strength share their title: the flow's name and s."""
    titles, draw = [], grid.draw_grid

    def seen(rows, columns, names, cell, caption):
        titles.append((columns, names, cell, caption))
        return draw(rows, columns, names, cell, caption)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw_grid", seen)
        flags = ["--images", str(image_folder / "val"), "--count", "2", "--modes", "3"]
        main([*flags, "--out", str(tmp_path / "a.png")])
    ((columns, names, cell, caption),) = titles
    pairs = [f"cosine, s {s}" for s in ("0.25", "0.5", "1") for _ in range(2)]
    assert columns == ["original", *pairs] and names == ["a", "b"] and cell == 96
    assert "moved 2 times at each strength s, along 3 modes of the flow cosine" in caption


def test_photographs_have_larger_cells_and_keep_their_aspect(flow_dir, tmp_path):
    for i in range(2):
        Image.new("RGB", (200, 100), (200, 30 + i, 30)).save(tmp_path / f"{i}.jpg")
    widths = {}
    for flags, cell in (([], 160), (["--cell", "224"], 224), (["--cell", "64"], 64)):
        out = tmp_path / "out.png"
        flow = ["--flow", flow_dir, "--modes", "2", "--strengths", "0"]
        main([*flow, "--images", str(tmp_path), "--count", "1", "--out", str(out), *flags])
        with Image.open(out) as sheet:
            widths[cell] = sheet.width
            (first, *_) = spans(sheet, cell, 3, 3)
        red = (first[..., 0] > 150) & (first[..., 1] < 100)
        assert red[cell // 2].all() and red.any(1).sum() == cell // 2, "twice as wide as high"
        assert not red[: cell // 4 - 1].any() and not red[3 * cell // 4 + 1 :].any(), "centred"
        out.unlink()
    assert widths[224] - widths[160] == 3 * 64


def test_a_grid_says_what_it_is_below_and_shares_titles():
    image = Image.new("L", (8, 8))
    plain = grid.draw_grid([[image] * 3], ["a", "b b", "b b"], [""], cell=60)
    told = grid.draw_grid([[image] * 3], ["a", "b b", "b b"], [""], cell=60, caption="word " * 12)
    assert told.width == plain.width and told.height > plain.height + 18, "two lines and more"
    assert np.array_equal(np.asarray(told)[: plain.height], np.asarray(plain))
    dark = np.asarray(plain.convert("L"))[:26].min(0) < 128  # columns with ink of titles
    left = plain.width - 3 * 64
    assert dark[left : left + 64].any() and dark[left + 64 + 50 : left + 64 + 78].any()
    assert not dark[left + 64 : left + 64 + 40].any() and not dark[left + 2 * 64 + 30 :].any()
