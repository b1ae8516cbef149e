"""The command timm-nfaug: its five commands, from the command line, on real folders."""

import importlib
import json
import re
import shlex
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TORCHRUN
from PIL import Image

import timm_nfaug as nfa
from timm_nfaug import hub
from timm_nfaug.__main__ import COMMANDS, main
from timm_nfaug.advice import DEEP, FINE_TUNED, FROM_SCRATCH
from timm_nfaug.commands import flows, survey

ROOT = Path(__file__).parent.parent
SCRIPT = Path(__file__).parent / "toy_train.py"
PAGE = ROOT / "docs" / "commands.md"


def ended(capsys, *argv):
    """Exit code and what was printed, to stdout and to stderr."""
    try:
        code = main([str(a) for a in argv])
    except SystemExit as e:
        code = e.code
    said = capsys.readouterr()
    return code or 0, said.out, said.err


def test_the_version_is_that_of_the_package(capsys):
    assert ended(capsys, "--version")[1] == f"timm-nfaug {nfa.__version__}\n"


def test_help_has_a_line_for_each_command(capsys):
    for flags in (["--help"], ["-h"], []):
        code, out, _ = ended(capsys, *flags)
        assert code == 0
        assert [re.search(rf"^  {name} +\w.+$", out, re.M) is not None for name in COMMANDS] == [
            True
        ] * len(COMMANDS)


def test_an_unknown_command_names_the_nearest(capsys):
    code, _, err = ended(capsys, "docter", "DATA")
    assert code == 2 and "no command 'docter' (did you mean 'doctor'?)" in err
    assert "known: train, preview, fit, materialise, flows, doctor" in err


def test_public_names_are_found_when_they_are_asked_for():
    assert all(getattr(nfa, name).__name__ == name for name in nfa.__all__)
    assert set(nfa.__all__) <= set(dir(nfa)) and nfa.pixels.__name__ == "timm_nfaug.pixels"
    with pytest.raises(AttributeError, match="no attribute 'NFAugmnt'"):
        _ = nfa.NFAugmnt


def test_train_equals_the_launcher(run_script, image_folder, flow_dir, tmp_path, monkeypatch):
    flags = ["--aug", "nfa-s0.5-k4-p1-lgiven", "--nfa-flow", str(flow_dir)]
    run_script(*flags, name="launcher")
    monkeypatch.setattr(sys, "argv", ["timm-nfaug"])
    paths = ["--data-dir", str(image_folder), "--output", str(tmp_path / "command")]
    main(["train", str(SCRIPT), *paths, *flags])
    first, second = (torch.load(tmp_path / n / "seen.pt") for n in ("launcher", "command"))
    assert first["losses"] == second["losses"] and len(first["losses"]) > 0


def test_train_under_torchrun(image_folder, tmp_path):
    done = subprocess.run(
        [*TORCHRUN, "-m", "timm_nfaug", "train", str(SCRIPT), "--data-dir", str(image_folder),
         "--output", str(tmp_path), "--aug", "nfa-s0.5-k4-p1"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("NFA on: flow cosine") == 1
    a, b = (torch.load(tmp_path / f"seen{rank}.pt")["losses"] for rank in (0, 1))
    assert len(a) == len(b) > 0 and a != b


def test_train_by_the_console_script_finds_the_timm_beside_a_script(tmp_path, script_beside_timm):
    """It starts itself again; spawned workers find the script's classes."""
    console = tmp_path / "bin" / "timm-nfaug"  # as pip writes it
    console.parent.mkdir()
    console.write_text(
        f"#!{sys.executable}\nimport sys\nfrom timm_nfaug.__main__ import main\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    console.chmod(0o755)
    done = subprocess.run(
        [console, "train", script_beside_timm], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip() == "True [0, 1, 2]", done.stderr


def test_the_plugin_says_that_the_command_needs_none(run_script, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm_nfaug.__main__", sys.modules["timm_nfaug.__main__"])
    with pytest.raises(SystemExit, match="the launcher needs no plugin"):
        importlib.import_module("timm_nfaug.plugin")


def test_flows_lists_linear_first_and_every_bundled_flow(capsys):
    code, out, _ = ended(capsys, "flows")
    head, first, second, *rest = out.splitlines()
    assert code == 0 and head.split()[:2] == ["name", "size"]
    assert first.split(maxsplit=1) == ["linear", "modes of your own data: no file"]
    assert second.split(maxsplit=1) == ["cosine", "smooth shading, modes of no data: no file"]
    assert [line.split()[0] for line in rest] == hub.bundled_flows()
    (digits,) = (line for line in rest if "digits" in line.split()[0])
    assert re.search(r" 1 x 8 x 8  +10  +scikit-learn digits .+ 6\.43 +95\.5% +0\.3 MB$", digits)


def test_flows_of_directories_and_as_json(capsys, flow_dir):
    code, out, _ = ended(capsys, "flows", flow_dir, "--json")
    linear, cosine, own = json.loads(out)
    assert code == 0 and (linear["name"], cosine["name"]) == ("linear", "cosine")
    size = (Path(flow_dir) / "model.safetensors").stat().st_size
    assert own == {
        "name": str(flow_dir), "size": [3, 32, 32], "classes": 3, "data": None,
        "bits_per_dim": None, "class_accuracy": None, "file_bytes": size,
    }  # fmt: skip
    assert "not stated  -         -" in flows._table([own])
    code, _, err = ended(capsys, "flows", "conv_p4_tiny.digit")
    assert code == 1 and err.startswith("error: ") and "did you mean 'conv_p4_tiny.digits'" in err


# --- doctor


def noise(seed=0, size=(20, 20)):
    g = np.random.default_rng(seed)
    return Image.fromarray(g.integers(0, 256, (*size, 3), dtype=np.uint8))


def fill(folder, classes=("a", "b"), count=20):
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise(1000 * k + i).save(folder / name / f"{i:03d}.png")
    return folder


@pytest.fixture
def look(capsys, tmp_path, monkeypatch):
    """Runs the doctor: exit code, problems, and the other lines by name."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code, out, err = ended(capsys, "doctor", *argv)
        assert not err, err
        lines = [(line[:10].strip(), line[10:]) for line in out.splitlines()]
        heads = [head for head, _ in lines]
        problems = [text for head, text in lines if head == "problem"]
        assert heads[: len(problems)] == ["problem"] * len(problems), "problems come first"
        return code, problems, dict(lines[len(problems) :])

    return run


def test_an_ordinary_dataset(look, image_folder, tmp_path):
    code, problems, lines = look(image_folder)
    assert code == 0 and problems == []
    assert lines["data"] == f"{image_folder / 'train'}: 60 images in 3 classes"
    assert lines["per class"] == "20 images" and lines["labels"] == "folder names: a, b, c"
    assert lines["images"] == "32 x 32 pixels; 60 colour; 60 of 60 opened"
    deep = f"--aug nfa-s1-p0.5 --nfa-flow {DEEP} --nfa-fit"
    wanted = f"{deep} from scratch, {deep.replace('s1', 's0.5')} fine-tuned"
    assert lines["try"] == f"{wanted}; --aug nfa chooses between them"
    why = f"from scratch: {FROM_SCRATCH.why}; fine-tuned: {FINE_TUNED._replace(gains=True).why}"
    assert lines["measured"] == f"{why} (docs/evidence.md)"
    assert lines["modes"] == "32 of 32, of all images together"
    assert re.fullmatch(r"\d+ us an image at 32 px, RandAugment \d+ us .+", lines["cost"])
    with Image.open(tmp_path / "preview.png") as sheet:
        sheet.load()
        assert len(set(sheet.convert("L").tobytes())) > 100
    assert len(lines) == 10


def test_nfa_alone_is_looked_at_as_a_training_takes_it(look, image_folder):
    _, _, lines = look(image_folder, "--aug", "nfa")
    assert lines["next"].endswith(f"--aug nfa-s1-p0.5 --nfa-flow {DEEP} --nfa-fit")


def test_grey_images_are_moved_by_their_own_modes(look, tmp_path):
    for path in fill(tmp_path / "d").rglob("*.png"):
        with Image.open(path) as image:
            image.convert("L").save(path)
    assert look(tmp_path / "d")[2]["next"].endswith("--aug nfa-s1-p0.5 --nfa-flow linear")


@pytest.mark.parametrize("flags", [("--img-size", "128"), ("--nfa-flow", "cosine")])
def test_other_than_small_photographs_are_shaded(look, image_folder, flags):
    _, _, lines = look(image_folder, *flags)
    assert lines["try"].startswith("--aug nfa-s1-p0.5 from scratch, --aug nfa-s0.5-p0.5 fine-tuned")
    assert lines["modes"].startswith("32, cosine images")
    assert lines["measured"].startswith(f"from scratch: {FROM_SCRATCH.why}; ")
    assert lines["next"].endswith(" --aug nfa-s1-p0.5")


def test_the_line_to_type_next_is_a_training(
    look, image_folder, tmp_path, capsys, monkeypatch, run_script
):
    """With the tests' train.py, which has no models."""
    monkeypatch.setattr(sys, "argv", ["timm-nfaug"])
    _, _, lines = look(image_folder)
    command = shlex.split(lines["next"].replace(" --model resnet18", ""))
    assert command[:3] == ["timm-nfaug", "train", "path/to/train.py"]
    assert "nfa-s1-p0.5" in command
    code, _, err = ended(capsys, "train", SCRIPT, *command[3:], "--output", tmp_path / "o")
    assert code == 0 and (tmp_path / "o" / "seen.pt").exists()
    assert "s 1, k 32" in err


def test_flags_of_the_doctor(look, image_folder, tmp_path):
    flags = ["--aug", "nfa-s0.25-k5", "--img-size", "96", "--out", tmp_path / "a.jpg"]
    _, problems, lines = look(image_folder / "train", *flags)
    assert problems == [] and lines["modes"].startswith("5, cosine images")
    assert lines["next"].endswith("--img-size 96 --aug nfa-s0.25-k5")
    assert Image.open(tmp_path / "a.jpg").format == "JPEG"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "a.pdf"], "--out takes a name that ends in"),
        (["--img-size", "2"], "--img-size takes at least 8"),
        (["--aug", "nfa-q"], "cannot read 'q'"),
    ],
)
def test_refused_flags_of_the_doctor(capsys, image_folder, flags, message):
    code, _, err = ended(capsys, "doctor", image_folder, *flags)
    assert code == 2 and message in err


def test_one_image_a_class(look, tmp_path):
    fill(tmp_path / "d", [f"c{i:02d}" for i in range(40)], count=1)
    code, (said,), lines = look(tmp_path / "d")
    assert code == 0 and "one image in 40 of 40 classes, c00, c01, c02, ... (40)" in said
    assert "keep -lnone" in said and lines["per class"] == "1 image"


def test_images_of_16_bits_end_in_1(look, tmp_path):
    fill(tmp_path / "d")
    deep = tmp_path / "d" / "a" / "deep.png"
    Image.fromarray((np.arange(1024, dtype=np.uint16) * 64).reshape(32, 32)).save(deep)
    code, (said,), lines = look(tmp_path / "d")
    assert code == 1 and said.startswith(
        "1 of 41 images have more than 8 bits a channel (mode I;16)"
    )
    assert str(deep) in said and "convert them to 8 bits" in said
    assert "1 grey of 16 bits" in lines["images"] and "try" in lines


def test_broken_files_are_named_and_the_rest_is_looked_at(look, tmp_path):
    fill(tmp_path / "d")
    (tmp_path / "d" / "a" / "text.jpg").write_text("<html>")
    cut = tmp_path / "d" / "b" / "cut.png"
    cut.write_bytes((tmp_path / "d" / "b" / "000.png").read_bytes()[:300])
    code, problems, lines = look(tmp_path / "d")
    assert code == 0 and len(problems) == 2 and "try" in lines
    for name, said in zip((tmp_path / "d" / "a" / "text.jpg", cut), problems):
        assert said.startswith(f"{name} cannot be read (") and "repair it, or leave it out" in said
    for i in range(5):
        (tmp_path / "d" / "a" / f"x{i}.png").write_bytes(b"")
    assert look(tmp_path / "d")[1][3] == "4 more of 47 files cannot be read"


def test_a_class_without_images_and_files_that_timm_skips(look, tmp_path):
    fill(tmp_path / "d")
    (tmp_path / "d" / "empty").mkdir()
    noise().save(tmp_path / "d" / "b" / "a.webp")
    code, (empty, skipped), _ = look(tmp_path / "d")
    assert code == 0 and empty.startswith(f"1 class folder without images, {tmp_path / 'd/empty'}")
    assert skipped == "timm skips the files 1 .webp: convert them to .png or .jpg"


def test_splits_among_the_classes(look, tmp_path):
    fill(tmp_path / "one", ["cat", "dog", "test"])
    fill(tmp_path / "two" / "train")
    fill(tmp_path / "two" / "train" / "val")
    fill(tmp_path / "three" / "train")
    fill(tmp_path / "three" / "val", ["b", "c"])
    for name, message in {
        "one": "test is taken for a class: put training images into DATA/train/CLASS/",
        "two": "val lies among the class folders, so that its images are trained on",
        "three": "val and train have other class folders (a, c in one alone)",
    }.items():
        code, (said,), _ = look(tmp_path / name)
        assert code == 0 and said.startswith(message), said


def test_images_without_class_folders(look, tmp_path):
    fill(tmp_path, ["d"], count=40)
    code, (said,), _ = look(tmp_path / "d")
    assert code == 0 and said.startswith("no class folders: images lie in")


def test_fewer_images_than_modes(look, tmp_path):
    fill(tmp_path / "d", count=5)
    code, (said,), lines = look(tmp_path / "d")
    assert code == 0 and said.startswith("10 images give 9 modes, not 32")
    assert "--aug nfa-s1-p0.5-k9" in said and lines["modes"].startswith("9 of 32")
    assert look(tmp_path / "d", "--aug", "nfa-k9")[1] == []


def test_where_nfa_would_do_nothing(look, tmp_path):
    fill(tmp_path / "one", ["a"], count=1)
    fill(tmp_path / "same", ["a", "b"], count=1)
    noise().save(tmp_path / "same" / "b" / "000.png")
    for name in ("one", "same"):
        code, problems, lines = look(tmp_path / name)
        assert code == 1 and "need 2 images that differ" in problems[-1]
        assert "next" not in lines and not (tmp_path / "preview.png").exists()


@pytest.mark.parametrize("case", ["missing", "empty"])
def test_where_there_are_no_images(capsys, tmp_path, case):
    if case == "empty":
        (tmp_path / "d" / "train").mkdir(parents=True)
    code, _, err = ended(capsys, "doctor", tmp_path / "d")
    assert code == 1 and err.startswith("error: ") and "Traceback" not in err
    assert {"missing": "no directory", "empty": "Found 0 images"}[case] in err


def test_kinds_of_images_are_counted(look, tmp_path):
    fill(tmp_path / "d")
    for i, mode in enumerate(("L", "P", "CMYK", "1")):
        path = tmp_path / "d" / "a" / f"k{i}.{'jpg' if mode == 'CMYK' else 'png'}"
        noise(size=(10, 30)).convert(mode).save(path)
    exif = Image.Exif()
    exif[survey.ORIENTATION] = 6
    noise(size=(90, 60)).save(tmp_path / "d" / "a" / "turned.jpg", exif=exif)
    _, problems, lines = look(tmp_path / "d")
    assert problems == []
    assert lines["images"] == (
        "30 x 10 to 60 x 90, median 20 x 20 pixels; 41 colour, 1 grey, 1 palette, 1 CMYK, 1 of 1 bit; "
        "1 with EXIF rotation, which timm ignores; 45 of 45 opened"
    )


def test_a_thousand_small_classes_are_quick(look, tmp_path):
    data = noise(size=(8, 8))
    data.save(tmp_path / "a.png")
    png = [noise(i, (8, 8)) for i in range(4)]
    for k in range(1000):
        (tmp_path / "d" / f"{k:04d}").mkdir(parents=True)
        png[k % 4].save(tmp_path / "d" / f"{k:04d}" / "a.png")
    start = time.process_time()
    code, _, lines = look(tmp_path / "d")
    assert code == 0 and time.process_time() - start < 10
    assert "512 of 1,000 opened" in lines["images"] and "--num-classes 1000" in lines["next"]


def test_same_dataset_same_words_and_picture(look, image_folder, tmp_path):
    found = []
    for _ in range(2):
        _, _, lines = look(image_folder)
        found.append((lines | {"cost": ""}, (tmp_path / "preview.png").read_bytes()))
    assert found[0] == found[1]


def test_a_dataset_by_its_name(look, image_folder):
    code, problems, lines = look(image_folder / "train", "--dataset", "torch/image_folder")
    assert code == 0 and problems == [] and lines["labels"] == "of the dataset: a, b, c"
    assert "--dataset torch/image_folder" in lines["next"]


def test_more_images_of_a_class_than_were_measured(look, tmp_path):
    fill(tmp_path / "d", count=151)
    _, _, lines = look(tmp_path / "d")
    assert lines["try"].startswith("--aug nfa-s0.5-p0.5 from scratch, --aug nfa-s0.5-p0.5 fine")
    assert lines["measured"].startswith("not yet with so many images of a class")
    assert lines["next"].endswith("--aug nfa-s0.5-p0.5")


def test_images_of_a_class_are_counted_as_a_training_counts_them(look, tmp_path):
    """On average: two classes of 2 images and one of 452 have 152 each."""
    fill(tmp_path / "d", "ab", count=2)
    fill(tmp_path / "d", "c", count=452)
    _, _, lines = look(tmp_path / "d")
    assert lines["measured"].startswith("not yet with so many images of a class")


# --- docs/commands.md


def shown():
    """The commands of the page, each with the output under it."""
    found = re.findall(r"```bash\n(.*?)\n```\n\n```text\n(.*?)```", PAGE.read_text(), re.S)
    return [pytest.param(*pair, id=pair[0].split()[1]) for pair in found]


@pytest.mark.parametrize(("command", "output"), shown())
def test_the_page_shows_what_is_printed(
    command, output, capsys, image_folder, tmp_path, monkeypatch, run_script
):
    """Where it says ... anything may stand; spaces between columns do not count."""
    if "fit" in command.split() and find_spec("timm_nfaug.commands.fit") is None:
        pytest.skip("timm-nfaug fit is not there yet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["timm-nfaug"])
    given = shlex.split(
        command.replace("DATA", str(image_folder)).replace("path/to/train.py", str(SCRIPT))
    )
    code, out, err = ended(capsys, *given[1:])
    assert given[0] == "timm-nfaug" and code == 0
    said = " ".join((out + err).replace(str(image_folder), "DATA").split())
    pattern = ".*?".join(re.escape(" ".join(part.split())) for part in output.split("..."))
    assert re.fullmatch(pattern.replace(r".*?", r"\s*.*?\s*"), said, re.S), said


def test_the_page_shows_every_command_once():
    assert sorted(p.id for p in shown()) == sorted(COMMANDS)
    assert len(PAGE.read_text().splitlines()) <= 130
