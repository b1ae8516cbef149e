"""The pages say what is so: links, commands, flags, code blocks, and figures that are typed by hand."""

import argparse
import ast
import importlib.util
import json
import re
from pathlib import Path
from statistics import fmean

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2.functional import to_pil_image

import timm_nfaug as nfa
from benchmarks.cifar import comparison
from benchmarks.core import records
from benchmarks.core.common import RESULTS, ROOT
from benchmarks.core.pages import SECTION
from train_flow.config import list_configs, load_config

README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
OWN = [README, CONTRIBUTING, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*OWN, *sorted((ROOT / "benchmarks").rglob("*.md"))]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
REFUSED = ("data set of another make", "mends", "sturdier", "in vain", "goes on with it")
INSTALL = "pip install ."


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT[page], re.S)


def written(page: Path) -> str:
    """The text without generated tables and sources, whose commands are true at their commit."""
    return re.sub(r"<sub>.*?</sub>", "", SECTION.sub("", TEXT[page]), flags=re.S)


def words(page: Path) -> str:
    """What is written, without code blocks."""
    return re.sub(r"```.*?```", "", written(page), flags=re.S)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", words(page), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def table(mark: str) -> list[list[str]]:
    """The cells of the README's table under ``<!-- checked: MARK -->``, a row a list."""
    (text,) = re.findall(rf"<!-- checked: {mark} -->\n(.*?)<!-- end -->", TEXT[README], re.S)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [rows[0], *rows[2:]]


def source_of(module: str) -> str:
    """The source of a module and of those beside it, where its flags may stand."""
    found = importlib.util.find_spec(module)
    assert found, f"there is no module {module}"
    folder = Path(found.origin).parent
    return "\n".join(p.read_text(encoding="utf-8") for p in folder.rglob("*.py"))


def test_the_first_screen_of_the_readme_has_install_and_a_first_command():
    first = "\n".join(TEXT[README].splitlines()[:30])
    assert INSTALL in first and "package index" in first
    assert "python -m timm_nfaug.train" in first and "make demo" in first
    assert "import timm_nfaug as nfa" in first


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", words(page)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{name(page)}: {link} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_modules_of_commands_and_make_targets_exist(page):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"`make (\w+)|^make (\w+)", written(page), re.M):
        assert "".join(target) in targets
    for module in re.findall(r"python -m ([\w.]+\w)", written(page)):
        if module.split(".")[0] in ("timm_nfaug", "train_flow", "benchmarks"):
            assert importlib.util.find_spec(module), f"{name(page)}: python -m {module}"


@pytest.mark.parametrize("page", OWN, ids=name)
def test_flags_are_those_of_the_commands(page):
    timm = (RESULTS / "timm_matrix.json").read_text()  # every flag of train.py is on record there
    known = timm + "\n".join(source_of(m) for m in ("timm_nfaug", "train_flow", "benchmarks"))
    known += " --nproc-per-node --input-size --img-size --config --seed --naflex-loader "
    known += " --doctest-modules --check --amp-dtype "
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", words(page))):
        assert re.search(rf"{flag}(?![\w-])", known), f"{name(page)} has {flag}"
    for block in blocks(page, "bash"):
        for command in re.sub(r"\\\n", " ", block).splitlines():
            found = re.search(r"-m (timm_nfaug|train_flow|benchmarks)((?:\.\w+)*)(.*)", command)
            for flag in re.findall(r"--[a-z][a-z-]+", found[3] if found else ""):
                own = source_of(found[1] + found[2]) + source_of("timm_nfaug.integration")
                own += timm if found[2] == ".train" else ""
                assert f'"{flag}"' in own or flag in own, f"{name(page)}: {command}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_configs_of_train_flow_exist(page):
    for command in re.sub(r"\\\n", " ", TEXT[page]).splitlines():
        config = re.search(r"train_flow --config ([\w.]+)", command)
        assert config is None or config[1] in list_configs()
        settings = re.findall(r"--set (\w+=\w+)", command) if page in OWN else []
        if settings != ["key=value"]:
            load_config(config[1] if config else "conv_p4_tiny.digits", settings)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_blocks_compile_and_name_what_is_public(page):
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "nfa":
                    assert node.attr in nfa.__all__, f"{name(page)}: nfa.{node.attr}"


def test_the_first_block_of_the_readme_runs(toy_images):
    levels, labels = toy_images
    names = {"loader": DataLoader(TensorDataset(levels, labels), batch_size=60)}
    exec(compile(blocks(README, "python")[0], "README", "exec"), names)
    moved = (names["images"] != levels).flatten(1).any(1)
    assert names["images"].dtype == torch.uint8 and 10 < int(moved.sum()) < 50, "p is 0.5"


def test_the_other_blocks_of_the_readme_run(toy_images):
    levels, labels = toy_images
    base = TensorDataset(levels, labels)
    base.classes = ["a", "b", "c"]
    asked = argparse.ArgumentParser()
    nfa.add_args(asked)
    names = {
        "nfa": nfa, "loader": DataLoader(base, batch_size=60), "images": levels, "labels": labels, "base": base,
        "pil_image": to_pil_image(levels[0]), "label": 0, "parser": argparse.ArgumentParser(),
        "args": asked.parse_args(["--aug", "nfa-lgiven"]), "x": levels[:4] / 127.5 - 1, "y": labels[:4],
    }  # fmt: skip
    for code in blocks(README, "python")[1:]:
        exec(compile(code, "README", "exec"), names)
    assert len(names["train_set"]) == 4 * 60 and names["samples"].shape == (4, 3, 32, 32)
    assert names["moved"].shape == levels.shape and iter(names["loader"])


def run_contributing(word: str) -> dict:
    """Runs the code block of CONTRIBUTING.md that has this word; returns what it defined."""
    (code,) = (code for code in blocks(CONTRIBUTING, "python") if word in code)
    names: dict = {"__name__": "example"}
    exec(compile(code, "CONTRIBUTING", "exec"), names)
    return names


def test_the_bijection_of_contributing_works():
    reverse = run_contributing("class Reverse")["Reverse"]()
    x = torch.randn(2, 5, 3, 4)
    y, log_det = reverse(x)
    assert torch.equal(reverse.inverse(y), x) and log_det.shape == (2,) and not torch.equal(y, x)


def test_the_move_of_contributing_works(monkeypatch, small_flow, toy_images):
    from timm_nfaug.moves import base

    monkeypatch.setattr(base, "_MOVES", dict(base._MOVES))
    run_contributing("class Signs")
    levels, labels = toy_images
    for flow in (small_flow, "conv_p4_small.cifar10_jpeg"):
        augment = nfa.nf_augment_transform("nfa-s1-k4-p1-msigns-lgiven", flow)
        assert (augment(levels, labels)[0] != levels).flatten(1).any(1).all()


def test_the_change_of_contributing_works(toy_images):
    augment, (levels, _) = run_contributing("class Brightness")["augment"], toy_images
    change = augment(levels).int() - levels.int()
    assert 10 < int((change != 0).flatten(1).any(1).sum()) < 50, "p is 0.5"


def test_the_arm_of_contributing_works(monkeypatch):
    from benchmarks.cifar.arms import base

    monkeypatch.setattr(base, "ARMS", dict(base.ARMS))
    run_contributing("class Grey")
    assert base.make_arm("grey", None, None, base.Settings()).policy is not None


@pytest.mark.parametrize("page", [CONTRIBUTING, ROOT / "docs" / "design.md"], ids=name)
def test_files_that_are_named_exist(page):
    for path in re.findall(r"`((?:\w+/)+[\w.]+)`", TEXT[page]):
        if "NAME" not in path:
            assert any((base / path).exists() for base in (ROOT, ROOT / "timm_nfaug")), path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_words_are_those_of_the_field(page):
    refused = (*REFUSED, "data set") if page in OWN else REFUSED
    text = " ".join(TEXT[page].split())
    assert not [phrase for phrase in refused if phrase in text]


def test_controls_are_those_of_the_record():
    """Means over the seeds that all arms of a column have."""
    found = {}
    runs = [r for r in records.read(records.suite_file("cifar_resnet18")) if r["split"] == "test"]
    for (data, _, fraction, recipe), arms in comparison.comparisons(runs).items():
        s = json.loads(recipe)
        if (data, s["model"], s["bf16"]) == ("CIFAR-10 (JPEG)", "resnet10_quarter", True):
            found[fraction] = arms
    columns = {  # fraction, epochs, metric, strength
        1: (0.01, 120, "ece", "1"), 2: (0.05, 96, "ece", "0.5"), 3: (0.1, 48, "ece", "0.5"),
        4: (0.01, 480, "corrupted_top1", "1"),
    }  # fmt: skip
    few = "glem s1-k32-p0.5 shrinkage 100 before the crop, train:conv_p4_small.cifar10_jpeg_few"
    arms = {
        "crop and flip": "baseline", "RandAugment + RandomErasing": "sa", "TrivialAugment": "trivial",
        "CutMix": "cutmix", "NFA": "linear s{}-k32-p0.5", "CutMix + NFA": "cutmix+linear s{}-k32-p0.5 shrinkage 100",
        "NFA, deep flow of the same 500 images": few,
    }  # fmt: skip
    head, *rows = table("controls")
    assert [row[0] for row in rows] == list(arms)
    for column, (fraction, epochs, metric, strength) in columns.items():
        own = {
            row[0]: found[fraction][arms[row[0]].format(strength)][epochs]
            for row in rows
            if row[column]
        }
        shared = set.intersection(*(set(by_seed) for by_seed in own.values()))
        size = next(iter(own["NFA"].values()))["training_images"]
        assert head[column].endswith(f"{size:,} images, {epochs} epochs, {len(shared)} seeds")
        for row in rows:
            if row[column]:
                mean = fmean(own[row[0]][seed]["metrics"][metric] for seed in shared)
                assert row[column] == f"{mean:.1f}", (row[0], head[column])


def test_costs_are_those_of_the_record():
    results = json.loads((RESULTS / "throughput.json").read_text())["results"]["rows"]
    cost = {(r["name"], f"{r['size']} px"): f"{r['us_per_image']:.0f}" for r in results}
    head, *rows = table("throughput")
    assert [row[1:] for row in rows] == [[cost[row[0], px] for px in head[1:]] for row in rows]
    results = json.loads((RESULTS / "throughput_cuda.json").read_text())["results"]["rows"]
    us = {(r["name"], r["size"]): r["us_per_image"] for r in results}
    steps = {size: us[step, size] for step, size in us if step.startswith("training step")}
    shares = [
        f"{100 * us[f'NFA {arm} (uint8 batch)', size] / steps[size]:.0f}%"
        for arm in ("linear", "conv_p4_small")
        for size in (32, 224)
    ]
    (said,) = re.findall(r"On an H100, (.*?)\. ", " ".join(TEXT[README].split()))
    assert re.findall(r"\d+%", said) == shares


def test_the_citation_and_the_package_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == nfa.__version__ and citation["license"] == "Apache-2.0"
    setup = (ROOT / "setup.cfg").read_text()
    assert f"url = {citation['repository-code']}\n" in setup
    assert (ROOT / "timm_nfaug" / "py.typed").exists() and "    py.typed\n" in setup


def test_the_oldest_versions_tested_are_the_lower_bounds():
    version = r"^ *([\w-]+){}([\d.]+)$"
    setup, oldest = ((ROOT / name).read_text() for name in ("setup.cfg", ".ci/oldest.txt"))
    bounds = set(re.findall(version.format(">="), setup, re.M))
    assert {"torch", "timm", "numpy", "PyYAML"} <= {name for name, _ in bounds}
    assert bounds <= set(re.findall(version.format("=="), oldest, re.M))
