"""The pages say what is so: links, commands, flags, code blocks, and figures that are typed by hand."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

import timm_nfaug as nfa
from benchmarks.core.common import RESULTS, ROOT
from benchmarks.core.pages import SECTION
from benchmarks.evidence.cells import CELLS
from benchmarks.evidence.choices import best, tuning_runs
from benchmarks.evidence.tables import all_runs
from timm_nfaug.integration.fit import FIT_IMAGES_POOLED
from train_flow.config import list_configs, load_config

README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
OWN = [README, CONTRIBUTING, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FROZEN = sorted((RESULTS / "archive").glob("cifar*.md"))  # of code that is no longer here
PAGES = [*OWN, *sorted({*(ROOT / "benchmarks").rglob("*.md")} - {*FROZEN})]
TEXT = {page: page.read_text(encoding="utf-8") for page in [*PAGES, *FROZEN]}
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


@pytest.mark.parametrize("page", [*PAGES, *FROZEN], ids=name)
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
    from benchmarks.evidence import arms

    monkeypatch.setattr(arms, "ENTRIES", dict(arms.ENTRIES))
    run_contributing("def grey")
    entry = arms.ENTRIES["grey"]
    assert len(entry.grid) == 4 and entry.make(None, entry.grid[0], None).policy is not None


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


def test_costs_are_those_of_the_record():
    results = json.loads((RESULTS / "throughput.json").read_text())["results"]["rows"]
    cost = {(r["name"], f"{r['size']} px"): f"{r['us_per_image']:.0f}" for r in results}
    results = json.loads((RESULTS / "throughput_cuda.json").read_text())["results"]["rows"]
    us = {(r["name"], r["size"]): r["us_per_image"] for r in results}
    steps = {size: us[step, size] for step, size in us if step.startswith("training step")}
    shares = [f"{100 * us['NFA linear (float batch)', px] / steps[px]:.0f}%" for px in (224, 32)]
    deep = "NFA conv_p4_small (uint8 batch)"
    known_deep = [
        f"{float(cost[deep, '32 px']):,.0f}", f"{100 * us[deep, 32] / steps[32]:.0f}%",
    ]  # fmt: skip
    names = ("NFA linear (uint8 batch)", "NFA linear (PIL)", "timm RandAugment (PIL)")
    known = [cost[name, px] for px in ("224 px", "32 px") for name in names]
    number = r"(?<![\w\[-])\d{1,3}(?:,\d{3})*%?(?![\d\]]| px)"  # but for sizes and [0, 1]
    said = re.findall(number, checked("costs", README))
    assert said == [*known, *shares, *known_deep, f"{FIT_IMAGES_POOLED:,}"]


def test_costs_in_words_are_those_of_the_record():
    rows = json.loads((RESULTS / "throughput.json").read_text())["results"]["rows"]
    us = {(r["name"], r["size"]): r["us_per_image"] for r in rows}
    deep = us["NFA conv_p4_small (uint8 batch)", 32]
    settings, timm = (
        " ".join((ROOT / "docs" / page).read_text().split()) for page in ("settings.md", "timm.md")
    )
    times = round(deep / us["timm RandAugment (PIL)", 32], -1)
    assert f"about {times:.0f} times RandAugment on a CPU" in settings
    rows = json.loads((RESULTS / "throughput_single.json").read_text())["results"]["rows"]
    own = {r["name"]: r["us_per_image"] for r in rows if r["size"] == 32}
    single = own["NFA conv_p4_small (PIL)"]
    assert f"takes a worker about {single / 1000:.0f} ms for each image that it moves" in timm
    assert round(single / own["NFA conv_p4_small (uint8 batch)"]) == 3
    assert "three times as much as single images" in " ".join(README.read_text().split())
    cached = [
        us["NFA, cached tangents (PIL)", px] / us["timm RandAugment (PIL)", px] for px in (32, 224)
    ]
    assert cached == pytest.approx([2.5, 1.25], rel=0.05)
    assert "two and a half times RandAugment at 32 px and a quarter more at 224 px" in timm


def test_the_times_of_trainings_in_words_are_those_of_the_record():
    record = json.loads((RESULTS / "evidence_cost_cifar10_50.json").read_text())
    times = {arm: f"{ratio:.1f} times" for arm, ratio in record["results"]["ratios"].items()}
    text = " ".join((ROOT / "docs" / "evidence.md").read_text().split())
    assert f"That takes RandAugment {times['randaugment-long']} the CPU time of crop" in text
    assert f"The deep flow at the usual length takes {times['flow-joint']}" in text
    assert f"RandAugment or deep flow takes {times['randaugment|flow']}" in text
    longest = times["flow-joint-long"].split()[0], times["randaugment|flow-long"]
    assert f"at {' and '.join(longest)}" in text


def test_the_recipe_that_is_calibrated_without_augmentation_is_that_of_the_record():
    cell = CELLS["finetune-cifar10-25"]
    runs = [r for r in tuning_runs(all_runs(), cell) if r]
    chosen = runs[best(runs)]
    (other,) = [r for r in runs if r["metrics"]["ece"] == min(x["metrics"]["ece"] for x in runs)]
    a, b = chosen["settings"], other["settings"]
    assert a["smoothing"] > b["smoothing"] == 0 and a["lr"] > b["lr"]
    behind = chosen["metrics"]["top1"] - other["metrics"]["top1"]
    assert 0.4 < behind < 0.6 and round(other["metrics"]["ece"]) == 7
    text = " ".join((ROOT / "docs/evidence.md").read_text().split())
    assert "was half a point behind and had an ECE of 7 on the held-out images (one seed)" in text


def test_the_trainings_outside_of_the_grid_are_those_of_the_record():
    longer = [
        r["metrics"]["top1"]
        for r in all_runs()
        if r["settings"].get("cell") == "cifar10-50" and r["split"] == "held"
        if r["arm"] == "crop-flip" and r["settings"]["epochs"] == 240
    ]
    chosen = [r for r in tuning_runs(all_runs(), CELLS["cifar10-50"]) if r]
    best_of_grid = chosen[best(chosen)]["metrics"]["top1"]
    text = " ".join((ROOT / "docs/evidence.md").read_text().split())
    reached = " and ".join(f"{top1:.1f}" for top1 in sorted(longer))
    assert f"240 epochs reached {reached}% on held-out images, the best of 120" in text
    assert f"the best of 120 has {best_of_grid:.1f}%" in text


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
