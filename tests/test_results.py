"""Every result file is complete, finite and free of the machine's paths; the check refuses what it should."""

import copy
import importlib.util
import json
import re
import subprocess
import time
from itertools import pairwise

import pytest

import timm_nfaug as nfa
from benchmarks import finetune
from benchmarks.analysis import drift
from benchmarks.core import common, pages, records
from benchmarks.core.schema import validate, validate_file
from benchmarks.evidence import run as evidence
from benchmarks.generation import run as generation
from benchmarks.imagenet import real as imagenet_real
from benchmarks.speed import latent
from train_flow.config import load_config

FILES = sorted(common.RESULTS.glob("*.json"))
RUNS = sorted(common.RESULTS.glob("*.jsonl"))


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
    assert shown == set(TABLES)


def test_intervals_in_the_prose_are_of_the_record():
    """Each "1.2 ± 0.8" outside of the tables is a paired difference of the table of quoted ones, rounded."""
    from benchmarks.cifar.tables import cifar_quoted

    interval = re.compile(r"(\d+\.\d+) ± (\d+\.\d+)")
    known = {(float(m[1]), float(m[2])) for m in interval.finditer(cifar_quoted())}
    said = [
        (path.name, m)
        for path in pages.pages()
        for m in interval.finditer(pages.SECTION.sub("", path.read_text(encoding="utf-8")))
    ]
    assert len(said) > 10
    for name, m in said:
        reach = 0.5 * 10 ** -len(m[1].partition(".")[2]) + 0.0051  # rounded twice
        near = [
            k
            for k in known
            if all(abs(float(v) - w) < reach for v, w in zip(m.groups(), k, strict=True))
        ]
        assert near, f"{name} says {m[0]}, which is no difference of benchmarks/cifar/quoted.py"


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
