"""The pages say what is so: links, commands, flags, code blocks, and figures that are typed by hand."""

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

import timm_nfaug as nfa
from benchmarks.cifar import comparison
from benchmarks.core import records
from benchmarks.core.common import RESULTS, ROOT
from benchmarks.core.pages import SECTION
from timm_nfaug.integration.fit import FIT_IMAGES_POOLED
from train_flow.config import list_configs, load_config

README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
EVIDENCE = ROOT / "docs" / "evidence.md"
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


def checked(mark: str, page: Path) -> str:
    """What stands under ``<!-- checked: MARK -->``."""
    (text,) = re.findall(rf"<!-- checked: {mark} -->\n(.*?)<!-- end -->", TEXT[page], re.S)
    return text


def table(mark: str, page: Path) -> list[list[str]]:
    """The cells of such a table, a row a list."""
    text = checked(mark, page)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [rows[0], *rows[2:]]


def source_of(module: str) -> str:
    """The source of a module and of those beside it, where its flags may stand."""
    found = importlib.util.find_spec(module)
    assert found, f"there is no module {module}"
    folder = Path(found.origin).parent
    return "\n".join(p.read_text(encoding="utf-8") for p in folder.rglob("*.py"))


def test_the_first_screen_of_the_readme_has_install_and_a_first_command():
    lines = TEXT[README].splitlines()
    first = "\n".join(lines[:55])
    assert INSTALL in first and "package index" in first and "docs/figures/moves.jpg" in first
    assert "timm-nfaug train train.py" in first and "import timm_nfaug as nfa" in first
    assert len(lines) <= 150


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
    dataset = TensorDataset(levels, labels)
    aug = nfa.NFAugment.from_data(DataLoader(dataset, batch_size=60))
    names = {"nfa": nfa, "dataset": dataset, "aug": aug, "loader": DataLoader(dataset, 60)}
    for code in blocks(README, "python")[1:]:
        exec(compile(code, "README", "exec"), names)
    moved = torch.stack([names["train_set"][i][0] for i in range(60)])
    assert 10 < int((moved != levels).flatten(1).any(1).sum()) < 50, "p is 0.5"
    assert (names["deep"](levels) != levels).any()


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
    for flow in (small_flow, "conv_p4_small.cifar10"):
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
    head, *rows = table("controls", EVIDENCE)
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


def test_help_is_that_of_the_record():
    """Each gain in the README stands in the table of wins or losses, for the cell named beside it."""
    wins_and_losses = TEXT[ROOT / "benchmarks" / "README.md"]
    record = set()
    for line in re.findall(r"^\| (?:CIFAR|Tiny).*top-1, points.*$", wins_and_losses, re.M):
        data, images, network, epochs, _, over, _, _, gain, seeds = line.strip("| ").split(" | ")
        rounded = " ± ".join(f"{float(part):+.1f}" for part in gain.split(" ± ")).replace(
            "± +", "± "
        )
        record.add((data, images, network, epochs, over.split(" + ")[0], rounded, seeds))
    _, *rows = table("help", README)
    assert len(rows) <= 6
    for case, gains, cell in rows:
        data, images, epochs = re.search(r"(\w.*?), (\d+) images per class.*?(\d+) epochs", cell).groups()  # fmt: skip
        network = "ResNet18" if "ResNet18" in cell else "quarter-width ResNet10"
        network += ", fine-tuned" * ("pretrained" in cell)
        said = re.findall(r"([+-]?\d\.\d(?: ± \d\.\d)?)\W+(?:over|on top of) (it|[\w ]+)", gains)
        assert said, case
        for gain, over in said:
            over = {"it": "RandAugment", "RandAugment": "RandAugment"}.get(over, "crop and flip")
            gain = gain if gain[0] in "+-" else f"+{gain}"
            found = [r for r in record if r[:6] == (data, images, network, epochs, over, gain)]
            assert found, (case, gain, over)
            assert ("one seed" in gains) == (found[0][6] == "1")
        for images, epochs, gain in re.findall(r"With (\d+) and (\d+) epochs: (\S+ ± \S+)", cell):
            assert any(
                (data, images, network, epochs, "crop and flip", gain) == r[:6] for r in record
            )


def test_costs_are_those_of_the_record():
    results = json.loads((RESULTS / "throughput.json").read_text())["results"]["rows"]
    cost = {(r["name"], f"{r['size']} px"): f"{r['us_per_image']:.0f}" for r in results}
    head, *rows = table("throughput", EVIDENCE)
    assert [row[1:] for row in rows] == [[cost[row[0], px] for px in head[1:]] for row in rows]
    results = json.loads((RESULTS / "throughput_cuda.json").read_text())["results"]["rows"]
    us = {(r["name"], r["size"]): r["us_per_image"] for r in results}
    steps = {size: us[step, size] for step, size in us if step.startswith("training step")}
    shares = [
        f"{100 * us[f'NFA {arm} (uint8 batch)', size] / steps[size]:.0f}%"
        for arm in ("linear", "conv_p4_small")
        for size in (32, 224)
    ]
    (said,) = re.findall(r"On an H100, (.*?)\. ", " ".join(TEXT[EVIDENCE].split()))
    assert re.findall(r"\d+%", said) == shares
    names = ("NFA linear (uint8 batch)", "NFA linear (PIL)", "timm RandAugment (PIL)")
    known = [cost[name, px] for px in ("224 px", "32 px") for name in names]
    number = r"(?<![\w\[-])\d{1,3}(?:,\d{3})*%?(?![\d\]]| px)"  # but for sizes and [0, 1]
    said = re.findall(number, checked("costs", README))
    assert said == [*known, shares[1], f"{FIT_IMAGES_POOLED:,}"]


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
