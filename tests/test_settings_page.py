"""docs/settings.md holds every setting with the name and default that the code has in each place."""

import argparse
import inspect
import re

import pytest
from torch.utils.data import DataLoader, TensorDataset

import timm_nfaug as nfa
from benchmarks.core.statistics import verdict
from benchmarks.evidence.cells import BASELINE, CELLS
from benchmarks.evidence.choices import reported
from benchmarks.evidence.tables import MARGIN, all_runs, degrees, differences, line
from tests import recipes
from timm_nfaug import preview
from timm_nfaug.advice import DEEP, FEW, FINE_TUNED, FROM_SCRATCH, LARGEST, advise
from timm_nfaug.hub import COSINE, LINEAR
from timm_nfaug.integration.flags import flow_of
from timm_nfaug.spec import parse_config
from train_flow.config import load_config

TEXT = (recipes.DOCS / "settings.md").read_text(encoding="utf-8")


def rows(table: str) -> list[list[str]]:
    """The cells of a table's lines, without its head and the ticks of code."""
    lines = table.splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines]


ROWS, AUTO_ROWS, FIT_ROWS = map(rows, re.findall(r"(?:^\|.*\n)+", TEXT, re.M))


class Parsed(Exception):
    """Carries a command's parser out of it."""


def actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {flag: action for action in parser._actions for flag in action.option_strings}


@pytest.fixture
def preview_flags(monkeypatch):
    def stop(parser, *_):
        raise Parsed(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed) as caught:
        preview.main([])
    return actions(caught.value.args[0])


def defaults_of(function) -> dict[str, str]:
    parameters = inspect.signature(function).parameters.values()
    given = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return {p.name: str(p.default) for p in given if p.name not in ("self", "loader")}


def test_the_string_has_its_letters():
    lettered = [row for row in ROWS if row[0]]
    usual = "nfa-" + "-".join(f"{row[0]}{row[4]}" for row in lettered)
    assert f"`{usual}`" in TEXT
    found = {name: str(value) for name, value in parse_config(usual).items()}
    assert found == {row[1]: row[4] for row in lettered}


def test_arguments_of_the_class_and_their_defaults():
    wanted = defaults_of(nfa.NFAugment.__init__) | {"flow": COSINE}  # which from_cosine makes
    assert {row[1]: row[4] for row in ROWS if row[1]} == wanted


def test_arguments_of_from_data_and_their_defaults():
    assert {row[0]: row[1] for row in FIT_ROWS} == defaults_of(nfa.NFAugment.from_data)


def test_flags_of_trainings_and_their_defaults():
    parser = argparse.ArgumentParser(add_help=False)
    nfa.add_args(parser)
    flags = {row[2]: row[4] for row in ROWS if row[2] not in ("", "--aug")}
    assert {*flags, "--aug"} == set(actions(parser))
    assert flow_of(parser.parse_args([])) == flags.pop("--nfa-flow") == COSINE
    for flag, default in flags.items():
        own = actions(parser)[flag].default
        unset = own is None or (own is False and not default)  # which means None in Python
        assert default == ("" if unset and default != "None" else str(own)), flag


def test_flags_of_the_preview_and_their_defaults(preview_flags):
    """Where the preview has no default of its own, it takes that of the table."""
    for row in ROWS:
        if flag := row[3]:
            own = preview_flags[flag].default
            same = own is None or str(own) == row[4]
            assert same or flag in ("--strengths", "--seed"), flag


def test_settings_of_flow_trainings_exist():
    text = (recipes.DOCS / "train_flow.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `(\w+=\w+)` \|", text, re.M)
    assert len(found) >= 7
    of_latents = text.partition("## Latents")[2]
    for setting in found:
        latent = f"| `{setting}` |" in of_latents
        load_config(
            "conv_latent.imagenette" if latent else "conv_p4_small.cifar10_unlabelled", [setting]
        )


def test_the_example(toy_images):
    data = TensorDataset(*toy_images)
    data.classes = ["a", "b", "c"]
    found = recipes.run_recipe("settings.md", "places", {"loader": DataLoader(data, 60)})
    assert (found["aug"].strength, found["aug"].p, found["aug"].labels) == (0.25, 1.0, "given")
    assert found["weaker"].strength == 0.1 and found["weaker"].flow is found["aug"].flow


@pytest.mark.parametrize("fine_tuned", [False, True])
@pytest.mark.parametrize(
    ("flow", "arms"), [(LINEAR, ("pooled", "cosine")), (DEEP, ("flow-joint",))]
)
def test_a_rule_gains_where_the_record_says_so(flow, arms, fine_tuned):
    """In one of its cells the flow, or shading in the place of modes, is ahead of crop and flip."""
    rule, verdicts = advise(FEW, fine_tuned, flow), []
    for name in rule.cells:
        cell = CELLS[name]
        values = line(reported(all_runs(), cell))
        found = differences(values, BASELINE, cell)
        verdicts += [verdict(found[arm], MARGIN, degrees(values), len(cell.seeds)) for arm in arms]
    assert ("ahead" in verdicts) == rule.gains


def test_nfa_alone_is_what_the_rules_say():
    *known, rest = AUTO_ROWS
    how = {"from scratch": FROM_SCRATCH, "from pretrained weights": FINE_TUNED}
    for row in known:
        rule = how[row[1]]
        assert (row[0], row[4], row[5].replace("`", "")) == (
            f"up to {FEW}",
            rule.aug,
            ", ".join(rule.cells),
        )
    assert [row[1] for row in known] == [start for start in how for _ in range(2)]
    assert {row[2] for row in known[::2]} == {f"in colour, up to {LARGEST} px (`--img-size`)"}
    assert {row[2] for row in known[1::2]} == {"others"}
    assert {row[3] for row in known[::2]} == {f"{DEEP}`, fitted to them"}
    assert {row[3] for row in known[1::2]} == {COSINE}
    usual = advise(None, flow=None, size=(3, 32, 32))
    assert rest[3:5] == [usual.flow, usual.aug]
    assert usual == advise(FEW + 1, flow=None, size=(3, 32, 32))


@pytest.mark.parametrize(
    ("size", "flow"),
    [
        ((3, LARGEST, LARGEST), DEEP),
        ((3, 32, LARGEST + 1), COSINE),
        ((1, 28, 28), COSINE),
        (None, COSINE),
    ],
)
def test_the_deep_flow_is_for_small_colour_images(size, flow):
    assert advise(FEW, False, None, size).flow == flow
    assert advise(FEW, True, None, size).flow == flow
    assert advise(FEW, False, LINEAR, size).flow == LINEAR
