"""Files that cannot be shown as they are: the preview names each in one line, and writes no picture."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from timm_nfaug import NFAWarning
from timm_nfaug.preview import LARGEST, _shown, main
from timm_nfaug.reading import read_image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".bmp": "BMP", ".webp": "WEBP", ".ppm": "PPM", ".tif": "TIFF"}  # fmt: skip


def noise(seed=0, side=32):
    g = np.random.default_rng(seed)
    return Image.fromarray(g.integers(0, 256, (side, side, 3), dtype=np.uint8))


def bytes_of(image, kind, **options):
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def png_header(side):
    """A PNG of a few bytes that says it has side x side pixels."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def deep_png():
    levels = (np.arange(1024, dtype=np.uint16) * 64).reshape(32, 32)
    return bytes_of(Image.fromarray(levels), "PNG")


FAULTS = {
    "bomb.png": (lambda: png_header(60_000), "3600000000 pixels"),
    "cut.jpg": (lambda: bytes_of(noise(side=64), "JPEG")[:1500], "truncated"),
    "deep.png": (deep_png, "more than 8 bits a channel; convert it to 8 bits first"),
    "float.tif": (lambda: bytes_of(Image.new("F", (8, 8), 0.5), "TIFF"), "mode F has more than 8"),
    "empty.png": (lambda: b"", "cannot identify image file"),
    "text.webp": (lambda: b"<html>404</html>", "cannot identify image file"),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for i in range(4):
        noise(i).save(tmp_path / "images" / "a" / f"{i}.png")
    return tmp_path / "images"


def refused(capsys, *flags):
    """What the preview says on its way out, which is one line."""
    with pytest.raises(SystemExit) as e:
        main([str(flag) for flag in flags])
    said = capsys.readouterr().err
    assert e.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("flow", ["pretrained", "linear"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_cannot_be_shown_is_named(flow_dir, folder, tmp_path, capsys, name, flow):
    """Also where the linear flow is fitted to all of the folder: a training would leave it out."""
    if flow == "linear" and name.endswith(".webp"):
        pytest.skip("timm does not read it")
    content, message = FAULTS[name]
    (folder / "a" / name).write_bytes(content())
    flags = ["--flow", flow_dir if flow == "pretrained" else flow, "--images", folder, "--modes", 2]
    said = refused(capsys, *flags, "--out", tmp_path / "out.png")
    assert f"cannot read {folder / 'a' / name}: " in said and message in said
    assert not list(tmp_path.glob("*out.png*"))


def test_images_of_8_bits_in_any_mode_are_shown_as_they_are(tmp_path):
    levels = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "grey.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "grey.png", 1)), levels)
    for mode in ("1", "P", "LA", "RGBA", "CMYK"):
        path = tmp_path / f"{mode}.tif"
        Image.new("RGB", (8, 6), "white").convert(mode).save(path)
        assert read_image(path, 3).getextrema() == ((255, 255),) * 3, mode


def test_a_very_large_image_is_shown_with_a_warning_that_names_it(
    flow_dir, folder, tmp_path, monkeypatch
):
    """Pillow's own warning has no name."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # as if 120 x 120 were 13,000 x 13,000
    noise(side=120).save(folder / "a" / "large.png")
    with pytest.warns(NFAWarning, match=r"large\.png has 120 x 120 pixels"):
        main(["--flow", str(flow_dir), "--images", str(folder), "--out", str(tmp_path / "out.png")])
    assert (tmp_path / "out.png").exists()


def test_an_image_beyond_what_a_cell_shows_is_augmented_smaller(tmp_path):
    """13,000 x 13,000 pixels would take gigabytes for each column."""
    for size, shown in (((4 * LARGEST, 8), (LARGEST, 2)), ((LARGEST, 5), (LARGEST, 5))):
        Image.new("RGB", size, "red").save(tmp_path / "a.png")
        assert _shown(tmp_path / "a.png", 3).size == shown


def test_warnings_as_errors_end_in_one_line(flow_dir, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NFAWarning)
        flags = ["--flow", flow_dir, "--images", folder, "--out", tmp_path / "out.png"]
        assert "0.png has 32 x 32 pixels" in refused(capsys, *flags)


def test_bytes_changed_at_random_are_an_image_or_a_named_error(tmp_path):
    """Decoders raise SyntaxError, struct.error, IndexError and more."""
    g, outcomes = np.random.default_rng(0), {True: 0, False: 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(300):
            suffix, kind = list(FORMATS.items())[i % len(FORMATS)]
            data = bytearray(bytes_of(noise(i, side=16), kind))
            head = min(len(data), 64)
            for at in g.integers(0, head if i % 2 else len(data), 1 + i % 5):
                data[at] = g.integers(0, 256)
            path = tmp_path / f"{i}{suffix}"
            path.write_bytes(data[: len(data) if i % 3 else int(g.integers(1, len(data)))])
            try:
                read_image(path, 3)
            except ValueError as e:
                assert str(e).startswith(f"cannot read {path}: ")
                outcomes[False] += 1
            else:
                outcomes[True] += 1
    assert min(outcomes.values()) > 50, outcomes


def test_images_without_a_class_are_no_false_alarm(flow_dir, folder, tmp_path):
    """Their names stand in brackets; the warning of a guess is for callers of the transform."""
    (folder / "a").rename(folder / "unknown")
    with warnings.catch_warnings():
        warnings.simplefilter("error", NFAWarning)
        main(["--flow", str(flow_dir), "--images", str(folder), "--out", str(tmp_path / "out.png")])
