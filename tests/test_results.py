"""Every result file is complete, finite and free of the machine's paths; the check refuses what it should."""

import copy
import importlib.util
import json
import math
import re
import subprocess
import time
from itertools import pairwise, product

import pytest

import timm_nfaug as nfa
from benchmarks import finetune
from benchmarks.analysis import drift
from benchmarks.cifar.quick import QuickRecipe
from benchmarks.core import common, pages, records
from benchmarks.core.schema import validate, validate_file
from benchmarks.evidence import run as evidence
from benchmarks.evidence.cells import CELLS, Cell
from benchmarks.evidence.choices import reported
from benchmarks.evidence.plan import describe
from benchmarks.evidence.questions import of_cell
from benchmarks.evidence.tables import differences, gain, line
from benchmarks.generation import run as generation
from benchmarks.imagenet import real as imagenet_real
from benchmarks.speed import latent
from train_flow.config import load_config

FILES = sorted(common.RESULTS.glob("*.json"))
RUNS = sorted(common.RESULTS.rglob("*.jsonl"))  # those in the archive, too


@pytest.fixture
def good():
    return {
        "benchmark": "flow_speed",
        "command": "python -m benchmarks.speed.flow_speed --threads 2",
        "data": "CIFAR-10 (JPEG), 10,000 validation images, 1/2 of them",
        "seeds": [0],
        "environment": {
            "machine": {"cpu": "AMD EPYC (AVX512)", "cores": 2, "memory_gb": 25.3, "gpu": None},
            "versions": dict.fromkeys(
                ["python", "torch", "torchvision", "timm", "timm_nfaug"], "1.0"
            ),
            "commit": "0" * 40,
            "dirty": False,
            "threads": 2,
            "date": "2025-01-01",
        },
        "results": {"images/s": [1.5, 2], "holds": True},
    }


@pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
def test_result_file(path):
    validate_file(path)


@pytest.mark.parametrize("path", RUNS, ids=[p.stem for p in RUNS])
def test_runs_file(path):
    runs = records.read(path)
    assert runs and len({records.key(r) for r in runs}) == len(runs), "a run is on record twice"
    assert {r["suite"] for r in runs} == {path.stem}


def a_run(**changes) -> dict:
    run = {
        "suite": "s", "data": "d", "split": "test", "fraction": 1.0, "arm": "sa", "seed": 0, "flow": None, "settings": {},
        "metrics": {"top1": 50.0, "nll": 1.0, "ece": 2.0}, "images_seen": 10, "seconds": 1.0, "flow_seconds": 0.0,
        "device": "cpu", "versions": {}, "commit": "unknown", "command": "python -m x",
    }  # fmt: skip
    return run | changes


def test_record_refuses_what_is_incomplete(tmp_path):
    path = tmp_path / "r.jsonl"
    records.append(a_run(), path)
    for wrong, match in (
        ({k: v for k, v in a_run().items() if k != "flow_seconds"}, "lacks 'flow_seconds'"),
        (a_run(metrics={"top1": 50.0, "nll": 1.0}), "lacks 'ece'"),
        (a_run(seconds=math.nan), "seconds is nan"),
        (a_run(command="python /home/me/x.py"), "absolute path"),
    ):
        with pytest.raises(ValueError, match=match):
            records.append(wrong, path)
    assert len(records.read(path)) == 1
    path.write_text(path.read_text() + json.dumps(a_run())[:40])
    with pytest.raises(ValueError, match="line 2.*repair or remove the line"):
        records.read(path)


def test_good_result(good):
    validate(good)
    validate(json.loads(json.dumps(good)))


@pytest.mark.parametrize("key", ["benchmark", "command", "data", "seeds", "environment", "results"])
def test_missing_key(good, key):
    del good[key]
    with pytest.raises(ValueError, match=key):
        validate(good)


@pytest.mark.parametrize("key", ["machine", "versions", "commit"])
def test_missing_environment_key(good, key):
    del good["environment"][key]
    with pytest.raises(ValueError, match=key):
        validate(good)


@pytest.mark.parametrize(
    "keys, value, message",
    [
        (["results", "x"], float("nan"), "results.x is nan"),
        (["results", "x"], [{"y": float("inf")}], r"results.x\[0\].y is inf"),
        (["results", "x"], object(), "object"),
        (["results"], {}, "'results' is empty"),
        (["results"], 3.0, "'results' in the result must be dict or list, got float"),
        (["seeds"], [0.5], "integers"),
        (["seeds"], [True], "integers"),
        (["note"], "?", "unknown key 'note'"),
        (["environment", "commit"], "main", "full hash"),
        (["environment", "threads"], "2", "'threads' in environment must be int, got str"),
        (["environment", "versions", "torch"], 2.6, "'torch' in environment.versions must be str"),
    ],
)
def test_bad_value(good, keys, value, message):
    with pytest.raises(ValueError, match=message):
        validate(_with(good, keys, value))


@pytest.mark.parametrize(
    "text",
    [
        "/tmp/data",
        "~/data",
        "~someone/data",
        "python -m x --data-dir /home/me/data",
        "--data-dir=/data",
        "local-dir:/data/flow",
        "file:///data",
        r"C:\data",
        "('/root',)",
    ],
)
def test_absolute_path(good, text):
    for keys, value in ((["results", "x"], [text]), (["results", text], 1), (["command"], text)):
        with pytest.raises(ValueError, match="absolute path"):
            validate(_with(good, keys, value))


@pytest.mark.parametrize(
    "text", ["images/s", "1.2 / 3.4", "https://example.org", "a/b", "~5%", "of: 3/4"]
)
def test_no_path(good, text):
    validate(_with(good, ["results", text], text))


def test_validate_file_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json"):
        validate_file(tmp_path / "x.json")


def test_write_result(good, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    good["environment"] = common.environment()
    assert validate_file(common.write_result("x", good)) == good
    with pytest.raises(ValueError, match="is nan"):
        common.write_result("y", _with(good, ["results", "x"], float("nan")))
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_command_line():
    argv = ["--data-dir", "/tmp/data", "--data-name", "CIFAR-10 (JPEG)"]
    expected = "python -m benchmarks.x --data-dir PATH --data-name 'CIFAR-10 (JPEG)'"
    assert common.command_line("benchmarks.x", argv) == expected


def test_timed():
    functions = {"a": lambda: time.sleep(0.001), "b": lambda: time.sleep(0.004)}
    found = common.timed(functions, repeats=3, min_seconds=0.01)
    for timing in found.values():
        assert len(timing["seconds"]) == len(timing["cpu_per_wall"]) == 3
        assert timing["min"] <= timing["median"] <= timing["max"]
    assert found["a"]["median"] >= 0.001 and found["b"]["median"] >= 0.004
    assert common.disturbed(found["a"], threads=1)  # asleep: the core did something else


def _with(result, keys, value):
    """A copy with the value at a nested place."""
    result = copy.deepcopy(result)
    place = result
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return result


def test_the_documents_show_what_the_results_say():
    """Every table of the pages is the one its record gives, and every table stands in a page."""
    from benchmarks.tables import TABLES

    shown = set()
    for path in pages.pages():
        text = path.read_text(encoding="utf-8")
        assert pages.SECTION.search(text), f"{path.name} shows no results"
        shown |= {m[2] for m in pages.SECTION.finditer(text)}
        assert pages.filled(text, TABLES) == text, (
            f"{path.name} is out of date: python -m benchmarks.tables"
        )
    assert shown <= set(TABLES) and not set(TABLES) - shown - tables_without_runs()


def tables_without_runs() -> set[str]:
    """The tables of cells that no run is on record of, which need no section yet."""
    ran = {r["settings"]["cell"] for r in records.read(records.suite_file("evidence"))}
    heads = [f"evidence_{name.replace('-', '_')}" for name in CELLS if name not in ran]
    return {head + end for head in heads for end in ("", "_search", "_tuning")}


INTERVAL = re.compile(r"[+-]?\d+(?:\.\d+)? ± \d+(?:\.\d+)?")
PROSE = [common.ROOT / "README.md", *sorted((common.ROOT / "docs").glob("*.md"))]
PROSE += [common.ROOT / "benchmarks" / "README.md"]


def differences_on_record(runs: list[dict]) -> set[str]:
    """Every difference of the evidence, "1.2 ± 0.8", with its sign and without."""
    known = set()
    for cell, other in product(CELLS.values(), ("crop-flip", "randaugment")):
        found = reported(runs, cell)
        metrics = [set(r["metrics"]) for own in found.values() for r in own.values()]
        for measure in set.intersection(*metrics) if metrics else ():
            known |= {gain(d) for d in differences(line(found, measure), other, cell).values()}
            known |= {gain(d) for d in of_cell(cell, runs, measure).values()}
    return known | {text.lstrip("+-") for text in known}


def invented(text: str, known: set[str]) -> list[str]:
    """The intervals of a text, outside of its generated tables, that are no difference on record."""
    said = INTERVAL.findall(" ".join(pages.SECTION.sub("", text).split()))  # over line breaks
    return [interval for interval in said if interval not in known]


@pytest.mark.parametrize("path", PROSE, ids=[p.stem for p in PROSE])
def test_intervals_in_the_prose_are_of_the_record(path):
    known = differences_on_record(records.read(records.suite_file("evidence")))
    assert not invented(path.read_text(encoding="utf-8"), known), "no difference of evidence.jsonl"


def test_an_interval_that_is_not_on_record_is_found(monkeypatch):
    toy = Cell("toy", "toy", 5, 0.1, "none", QuickRecipe(), arms=("crop-flip", "crop-flip-long"))
    monkeypatch.setitem(CELLS, "toy", toy)
    runs = [
        describe(toy, arm, toy.recipe, {}, seed, "test") | {"metrics": {"top1": top1}}
        for arm, values in {"crop-flip": (50, 52, 51), "crop-flip-long": (51.1, 52.4, 53.0)}.items()
        for seed, top1 in enumerate(values)
    ]
    known = differences_on_record(runs)
    assert known == {"+1.2 ± 2.0", "1.2 ± 2.0"}
    text = "It gains 1.2 ± 2.0 points.\n<!-- table: x -->\n+9.9 ± 0.1\n<!-- end -->\n"
    assert invented(text, known) == []
    assert invented(text + "And -1.2 ± 2.0, or 7 ± 2.", known) == ["-1.2 ± 2.0", "7 ± 2"]
    assert invented("It gains 7 ±\n  2 points, or 8\n± 2.", known) == ["7 ± 2", "8 ± 2"]


def test_links_of_the_pages_lead_somewhere():
    """Files exist, and so do the headings that are linked to."""
    own = {path for path in pages.pages() if "benchmarks" in path.parts}
    for path in {*own, common.ROOT / "benchmarks" / "gpu_queue.md"}:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if target.startswith("http"):
                continue
            name, _, anchor = target.partition("#")
            other = (path.parent / name).resolve() if name else path
            assert other.exists(), f"{path.name} links to {target}"
            if anchor:
                heads = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.M)
                slugs = {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in heads}
                assert anchor in slugs, f"{path.name} links to {target}"


def test_the_readme_is_short():
    text = (common.ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200


def test_commands_are_shown_by_the_present_names_of_their_modules():
    record = {"command": "python -m benchmarks.flow_speed --record x"}
    assert pages.command(record) == "python -m benchmarks.speed.flow_speed --record x"
    for path in FILES:
        module = pages.command(validate_file(path)).split(" ")[2]
        assert importlib.util.find_spec(module), f"{path.name} was written by {module}"


def test_the_gpu_queue_is_made_of_commands_that_exist():
    """Every command, as the shell expands it, is understood by the parser of its module, and every item has one."""
    text = (common.ROOT / "benchmarks" / "gpu_queue.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S))
    shell = 'python() { printf "%s\\0" "$@"; printf "\\n"; }\n' + blocks
    lines = subprocess.run(
        ["bash", "-euc", shell], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    commands = [line.rstrip("\0").split("\0") for line in lines]
    assert {c[1] for c in commands} == {
        "benchmarks.speed.throughput", "benchmarks.speed.flow_speed", "benchmarks.evidence.run",
        "benchmarks.finetune", "benchmarks.generation.run", "benchmarks.imagenet.real", "train_flow",
        "benchmarks.speed.latent", "benchmarks.analysis.drift", "timm_nfaug.materialise",
    }  # fmt: skip
    parsers = {
        "benchmarks.evidence.run": evidence.parse, "benchmarks.finetune": finetune.parse,
        "benchmarks.generation.run": generation.parse,
        "benchmarks.imagenet.real": imagenet_real.make_parser().parse_args,
        "benchmarks.analysis.drift": drift.make_parser().parse_args,
        "benchmarks.speed.latent": latent.parse,
    }  # fmt: skip
    for _, module, *argv in commands:
        if module in parsers:
            parsers[module](argv)
        if "--config" in argv:
            settings = [value for flag, value in pairwise(argv) if flag == "--set"]
            assert load_config(argv[argv.index("--config") + 1], settings).flow in nfa.list_flows()
    items = re.findall(r"\[(\w)\]\(#commands\)", text)
    assert items == re.findall(r"^(\w)\. ?", text, re.M) == sorted(items)
