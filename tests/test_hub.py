"""Flows on disk and over the Hub's protocol: exact round trips, atomic writes, and a clear error for every broken file."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import environment, running_hub
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import timm_nfaug as nfa
from timm_nfaug import hub
from timm_nfaug.card import model_card
from timm_nfaug.config import FlowConfig

ROOT = Path(__file__).parents[1]
load = nfa.ConditionalFlow.from_pretrained


@pytest.fixture
def saved(small_flow, tmp_path) -> Path:
    return small_flow.save_pretrained(tmp_path / "flow")


def test_round_trip_is_exact(small_flow, saved):
    before = torch.get_rng_state()
    loaded = load(saved)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.config == small_flow.config and not loaded.training
    wanted, found = small_flow.state_dict(), loaded.state_dict()
    assert wanted.keys() == found.keys()
    for key in wanted:
        assert found[key].dtype == wanted[key].dtype and torch.equal(found[key], wanted[key]), key
    z = torch.randn(2, small_flow.dim)
    with torch.no_grad():
        assert torch.equal(loaded.inverse(z), small_flow.inverse(z))
    assert torch.equal(load(f"local-dir:{saved}").prior.mu, small_flow.prior.mu)
    assert torch.equal(load(os.fspath(saved)).prior.mu, small_flow.prior.mu)


def test_a_flow_of_another_dtype_is_loaded_in_float32(small_flow, tmp_path):
    loaded = load(small_flow.double().save_pretrained(tmp_path))
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.prior.mu, small_flow.prior.mu.float())


def test_half_lowers_kernels_and_modes_only(small_flow, tmp_path):
    whole = load(small_flow.save_pretrained(tmp_path / "whole")).state_dict()
    half = load(small_flow.save_pretrained(tmp_path / "half", half=True)).state_dict()
    assert {t.dtype for t in half.values()} == {torch.float32}
    lowered = {k for k in whole if not torch.equal(whole[k], half[k])}
    assert lowered == {k for k, v in whole.items() if ".net." in k and k.endswith("weight")} | {
        "prior.modes"
    }
    for key in lowered:
        assert torch.equal(half[key], whole[key].half().float()), key
    size = lambda name: (tmp_path / name / hub.WEIGHTS_NAME).stat().st_size
    assert size("half") < 0.8 * size("whole")  # the kernels and modes are most of this flow


def test_half_lowers_the_matrices_of_a_transformer_too(tmp_path):
    flow = nfa.create_flow("jet_p4", input_size=(1, 8, 8), num_classes=2, depth=1, hidden=16)
    stored = load_file(flow.save_pretrained(tmp_path, half=True) / hub.WEIGHTS_NAME)
    lowered = {k for k, v in stored.items() if v.dtype == torch.float16 and ".net." in k}
    assert {k.split(".net.")[1] for k in lowered} == {
        "position", "embed.weight", "head.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight",
    }  # fmt: skip
    assert all(
        v.dtype == torch.float32
        for k, v in stored.items()
        if ".net." not in k and k != "prior.modes"
    )


def test_the_bundled_flows_load_by_name():
    names = nfa.list_flows(pretrained=True)
    assert names, "no flow is bundled"
    for name in names:
        flow = nfa.create_flow(name, pretrained=True)
        assert flow.config.architecture == name.split(".")[0]
        assert not flow.training
        card = (hub.BUNDLED / name / "README.md").read_text()
        assert "license:" in card and f"# {name}" in card


def break_config(edit):
    def run(directory: Path):
        values = json.loads((directory / "config.json").read_text())
        edit(values)
        (directory / "config.json").write_text(json.dumps(values))

    return run


def break_weights(edit):
    def run(directory: Path):
        tensors = load_file(directory / "model.safetensors")
        edit(tensors)
        save_file(tensors, directory / "model.safetensors")

    return run


def truncate(directory: Path):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


BROKEN = {
    "truncated weights": (truncate, ValueError, "cannot be read as safetensors.*truncated"),
    "empty weights": (
        lambda d: (d / "model.safetensors").write_bytes(b""),
        ValueError,
        "cannot be read as safetensors",
    ),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        FileNotFoundError,
        "holds no model.safetensors",
    ),
    "no config": (
        lambda d: (d / "config.json").unlink(),
        FileNotFoundError,
        "holds no config.json",
    ),
    "missing tensor": (
        break_weights(lambda t: t.pop("prior.mu")),
        ValueError,
        r"missing \['prior.mu'\]",
    ),
    "extra tensor": (
        break_weights(lambda t: t.update(more=torch.zeros(1))),
        ValueError,
        r"unknown \['more'\]",
    ),
    "wrong shape": (
        break_weights(lambda t: t.update({"log_prior": torch.zeros(4)})),
        ValueError,
        r"log_prior: \(4,\) instead of \(3,\)",
    ),
    "bad JSON": (
        lambda d: (d / "config.json").write_text('{"architecture": '),
        ValueError,
        "not valid JSON",
    ),
    "bytes": (
        lambda d: (d / "config.json").write_bytes(b"\xff\xfe\x00"),
        ValueError,
        "not valid JSON",
    ),
    "a list": (
        lambda d: (d / "config.json").write_text("[]"),
        ValueError,
        "must hold a JSON object, got list",
    ),
    "unknown key": (
        break_config(lambda c: c.update(input_sizes=3)),
        ValueError,
        "'input_sizes'.*'input_size'",
    ),
    "unknown network key": (
        break_config(lambda c: c["network"].update(depths=3)),
        ValueError,
        "'depths'.*'depth'",
    ),
    "lacking key": (
        break_config(lambda c: c.pop("input_size")),
        ValueError,
        "config lacks input_size",
    ),
    "new version": (
        break_config(lambda c: c.update(format_version=3)),
        ValueError,
        "format_version 3 .*upgrade",
    ),
    "no version": (
        break_config(lambda c: c.pop("format_version")),
        ValueError,
        "format_version None",
    ),
    "other library": (
        break_config(lambda c: c.update(library="timm")),
        ValueError,
        "not of a timm_nfaug flow",
    ),
    "architecture": (
        break_config(lambda c: c.update(architecture="conv_p4_tin")),
        ValueError,
        "'conv_p4_tiny'",
    ),
    "a number for a dict": (break_config(lambda c: c.update(network=3)), ValueError, "network"),
    "other network": (
        break_config(lambda c: c["network"].update(depth=1)),
        ValueError,
        "unknown .*network.layers",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_explained(case, saved):
    break_it, error, match = BROKEN[case]
    break_it(saved)
    with pytest.raises(error, match=match):
        load(saved)


def test_a_revision_of_what_is_not_on_the_hub_is_refused(saved):
    bundled = nfa.list_flows(pretrained=True)[0]
    for name, kind in (
        (bundled, "bundled flow"),
        (str(saved), "directory"),
        (saved, "directory"),
        (f"local-dir:{saved}", "dir"),
    ):
        with pytest.raises(
            ValueError,
            match=f"a revision goes with a Hub id such as hf-hub:org/name, .* is a {kind}",
        ):
            load(name, revision="v1")


def test_a_path_is_a_directory_even_under_a_bundled_name(small_flow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundled = nfa.list_flows(pretrained=True)[0]
    path = small_flow.save_pretrained(bundled)
    assert torch.equal(load(path).prior.mu, small_flow.prior.mu)
    assert load(bundled).config != small_flow.config
    with pytest.raises(FileNotFoundError, match="org/name holds no config.json"):
        load(Path("org/name"))


def test_unknown_names_are_explained(tmp_path):
    bundled = nfa.list_flows(pretrained=True)[0]
    with pytest.raises(ValueError, match=f"did you mean '{bundled}'"):
        load(bundled[:-1])
    for name in ("./nowhere", "/nowhere/at/all"):
        with pytest.raises(ValueError, match="no flow named.*local-dir:PATH, or a Hub id"):
            load(name)
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load(f"local-dir:{tmp_path / 'nothing'}")


# -- writing -----------------------------------------------------------------------------------------------------------


def test_saving_again_leaves_no_other_files(small_flow, saved):
    with torch.no_grad():
        small_flow.prior.mu.add_(1)
    small_flow.save_pretrained(saved)
    assert sorted(p.name for p in saved.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert torch.equal(load(saved).prior.mu, small_flow.prior.mu)
    umask = os.umask(0)
    os.umask(umask)
    assert {p.stat().st_mode & 0o777 for p in saved.iterdir()} == {0o666 & ~umask}


def test_a_config_that_is_no_json_leaves_the_old_flow(small_flow, saved):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with torch.no_grad():
        small_flow.prior.mu.add_(1)
    small_flow.config.info["data"] = {1, 2}
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        small_flow.save_pretrained(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_a_failing_write_leaves_the_old_file(small_flow, saved):
    """The disk's end, played by the operating system's limit on the size of a file."""
    resource = pytest.importorskip("resource")
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    assert len(before["model.safetensors"]) > 100_000
    with torch.no_grad():
        small_flow.prior.mu.add_(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(Exception, match=r"(?i)too large|os error 27|errno 27"):
            small_flow.save_pretrained(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_write_atomically_keeps_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path):
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.write_atomically(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_text() == "old"


def test_the_card_is_called_as_the_directory(small_flow, tmp_path, monkeypatch):
    (tmp_path / "my_flow").mkdir()
    monkeypatch.chdir(tmp_path / "my_flow")
    small_flow.save_pretrained(".")
    assert "# my_flow\n" in Path("README.md").read_text()


def test_the_card_states_what_the_config_knows(small_flow, tmp_path):
    info = {
        "data": "some data",
        "license": "mit",
        "metrics": {"bits_per_dim": 3.25, "error": 1.5e-6},
        "training": "Trained.",
    }
    small_flow.config.info = info
    card = (small_flow.save_pretrained(tmp_path / "my_flow") / "README.md").read_text()
    for part in (
        "license: mit",
        "# my_flow",
        "some data",
        "3.25",
        "1.5e-06",
        "conv_p4_tiny",
        "3 x 32 x 32, 8-bit",
        "Trained.",
    ):
        assert part in card, part


CARDS = {
    "conv_p4_tiny": {"depth": 1, "hidden": 8},
    "linear": {"num_classes": 1, "input_size": (1, 8, 8)},
    "no modes": {"depth": 1, "hidden": 8, "prior": {"num_modes": 0}},
    "label band": {"depth": 1, "hidden": 8, "num_classes": 2, "code_rows": 8},
}


@pytest.mark.parametrize("case", CARDS)
def test_the_code_of_a_card_runs_beside_it(case, tmp_path, monkeypatch):
    name = case if "_" in case or case == "linear" else "conv_p4_tiny"
    folder = nfa.create_flow(name, **CARDS[case]).save_pretrained(tmp_path / 'own "37"')
    monkeypatch.chdir(folder)
    found = run_card(folder)
    assert found["images"].dtype == torch.uint8 and len(found["log_det"]) == 4
    assert ("augment" in found) == (case != "no modes")


@pytest.mark.parametrize("name", nfa.list_flows(pretrained=True))
def test_bundled_cards_are_those_that_would_be_written_and_run(name, tmp_path, monkeypatch):
    card = (hub.BUNDLED / name / "README.md").read_text(encoding="utf-8")
    assert card == model_card(load(name).config, name, name)
    monkeypatch.chdir(tmp_path)  # where the autoencoder of one's own is
    Path("taef2.py").write_text("from test_bundled import EightTimes as load")
    found = run_card(hub.BUNDLED / name)
    flow = found["flow"] if "flow" in found else found["augment"].flow
    assert flow.config == load(name).config


def run_card(folder: Path) -> dict:
    (code,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    found: dict = {}
    exec(code, found)
    return found


HOSTILE = [
    'a "b" | c\n---\n# d <e> & \\|: {f} `g', "---\nlicense: mit\n---", "```\n# x\n```", "`a`` <!-- ", "[x](y) ![](z)",
    "__a__ *b* _c_ ~~d~~ $e$", "1. x", "- x", "+ x", "> x", "=== x", "#", "</details><script>", "&#124; &lt;", "yes", "null",
    "1e3", "'", "%x", "@y", "\U0001f600 \u202ecba", "a\r\n\tb", "mit",
]  # fmt: skip
TEXTS = st.sampled_from(HOSTILE) | st.text(st.characters(codec="utf-8"), max_size=40)


def shown(text: str) -> str:
    """What a page shows of a text: one line, without what hides or turns others."""
    return re.sub("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "", " ".join(text.split()))


def free(text: str, augment: bool) -> tuple[FlowConfig, str]:
    """A config with this text in every free place, and a card of it."""
    info = {
        "license": text, "data": text, "network": text, "training": f"x{text}", "metrics": {text: text, "n": 1.5},
        "images": 60,
    }  # fmt: skip
    own = {"strength": 0.5, "modes": 4, "labels": "none"} if augment else {}
    config = FlowConfig("linear", (3, 8, 8), 2, network={"x": [text]}, info=info, augment=own)
    return config, model_card(config, f"x{text}", "org/mine", preview=True)


def skeleton(card: str) -> list[str]:
    """The lines of a card, without what stands in free places."""
    return [re.sub(r"^(# x|x|\|[^|]*\|).*", lambda m: m[1][:2], line) for line in card.split("\n")]


@settings(derandomize=True, deadline=None, max_examples=150, database=None)
@given(TEXTS, st.booleans())
@example(HOSTILE[0], False)
def test_no_word_of_the_config_breaks_the_card(text, augment):
    _, card = free(text, augment)
    _, front, page = card.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values.keys() - {"license_name"} in (
        {"license", "library_name", "tags"},
        {"library_name", "tags"},
    )
    for key in ("license", "license_name"):
        assert re.fullmatch(r"[a-z0-9.+-]+", values.get(key, "mit"))
    assert (values.get("license") == text) == bool(re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", text))
    usual = free(
        "A text" if "license_name" in values else "mit" if "license" in values else "", augment
    )[1]
    assert skeleton(page) == skeleton(usual.split("---\n", 2)[2])
    table = [line for line in page.split("\n") if line.startswith("| ")][1:]
    assert all(row.count("|") == 3 for row in table)
    cells = [[html.unescape(cell.strip()) for cell in row.split("|")[1:3]] for row in table]
    assert ["data", f"{shown(text)}; modes of 60 images".strip()] in cells
    assert f"# {shown(f'x{text}')}" in html.unescape(page).split("\n")


@settings(derandomize=True, deadline=None, max_examples=150, database=None)
@given(TEXTS, st.booleans())
def test_a_page_made_of_the_card_shows_every_word_as_it_is(text, augment):
    markdown_it = pytest.importorskip("markdown_it")
    page = free(text, augment)[1].split("---\n", 2)[2]
    made = markdown_it.MarkdownIt("commonmark").enable("table").parse(page)
    texts = ["".join(t.content for t in line.children) for line in made if line.type == "inline"]
    kinds = {t.type for line in made for t in line.children or ()}
    assert kinds <= {"text", "text_special", "code_inline", "image"}  # no HTML, link or emphasis
    assert [t.type for t in made if t.level == 0 and t.nesting >= 0] == [
        t.type
        for t in markdown_it.MarkdownIt("commonmark")
        .enable("table")
        .parse(free("A text", augment)[1].split("---\n", 2)[2])
        if t.level == 0 and t.nesting >= 0
    ]
    bare = lambda line: re.sub(r"`([\w.-]+)`", r"\1", line)  # code of one word is shown as code
    for place in (shown(f"x{text}"), f"{shown(text)}; modes of 60 images"):
        assert bare(place).strip() in [bare(t) for t in texts], (place, texts)


STARTS = [
    "1. x",
    "23) x",
    "- x",
    "+ x",
    "* x",
    "> x",
    "# x",
    "=== x",
    "    x",
    "~~~ x",
    "| x |",
    "x",
]


@pytest.mark.parametrize("start", STARTS)
def test_a_note_that_starts_like_a_list_or_a_heading_is_a_paragraph(start):
    markdown_it = pytest.importorskip("markdown_it")
    config = FlowConfig("linear", (3, 8, 8), 2, info={"training": start})
    made = markdown_it.MarkdownIt("commonmark").parse(model_card(config, "x").split("---\n", 2)[2])
    assert [t.type for t in made[-3:]] == ["paragraph_open", "inline", "paragraph_close"]
    assert "".join(t.content for t in made[-2].children) == start.strip()


def test_a_card_names_no_licence_that_nobody_chose(tmp_path):
    flow = nfa.create_flow("linear", input_size=(3, 8, 8), num_classes=1)
    assert "license" not in (flow.save_pretrained(tmp_path) / "README.md").read_text()
    flow.config.info["license"] = 'Mine, all mine: "v2"'
    front, page = (flow.save_pretrained(tmp_path) / "README.md").read_text().split("---\n", 2)[1:]
    found = yaml.safe_load(front)
    assert (found["license"], found["license_name"]) == ("other", "mine-all-mine-v2")
    assert '| license | Mine, all mine: "v2" |' in page


def test_the_card_shows_the_picture_that_lies_beside_it(small_flow, tmp_path):
    card = lambda: (small_flow.save_pretrained(tmp_path) / "README.md").read_text()
    assert "preview.png" not in card()
    hub.write_preview(tmp_path, Image.new("RGB", (8, 8)))
    assert "](preview.png)" in card()


# -- the Hub -----------------------------------------------------------------------------------------------------------

CLIENT = """
import sys
import torch
import timm_nfaug as nfa

load = nfa.ConditionalFlow.from_pretrained
flow, out = load(sys.argv[1]), sys.argv[2]
print(flow.push_to_hub("org/first", commit_message="the first"))
with torch.no_grad():
    flow.prior.mu.add_(1)
print(flow.push_to_hub("org/first", revision="v2"))
for i, (name, revision) in enumerate(
    [("org/first", None), ("hf-hub:org/first", None), ("hf-hub:org/first@v2", None), ("org/first", "v2")]
):
    load(name, revision).save_pretrained(f"{out}/{i}")
for name in ("org/none", "org/first@none"):
    try:
        load(name)
    except Exception as e:
        print(type(e).__name__)
"""


def test_upload_and_download(small_flow, saved, tmp_path):
    with running_hub() as server:
        env = environment(server.url, tmp_path / "home", HF_TOKEN="hf_test")
        command = [sys.executable, "-c", CLIENT, str(saved), str(tmp_path / "out")]
        done = subprocess.run(
            command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr + "\n".join(server.requests)
        first, second, *errors = done.stdout.split()
    assert server.messages == ["the first", "Upload flow"]
    branches = server.repos["org/first"]
    assert first == f"{server.url}/org/first/commit/{branches['main']}"
    assert second == f"{server.url}/org/first/commit/{branches['v2']}"
    files = server.commits[branches["main"]]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert files["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    assert 'from_pretrained("org/first"' in files["README.md"].decode()
    for i, move in enumerate((0, 0, 1, 1)):
        loaded = load(tmp_path / "out" / str(i))
        assert torch.equal(loaded.prior.mu, small_flow.prior.mu + move)
        assert torch.equal(loaded.prior.modes, small_flow.prior.modes)
    assert errors == ["OSError", "OSError"]
