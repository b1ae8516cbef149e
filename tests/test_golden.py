"""The package computes what it computed before its internals were moved.

Random streams, changes of images, files, flags. The values lie in tests/golden and are written by
``python -m tests.golden.make``; only public names are used.
"""

import json

import numpy as np
import pytest

import timm_nfaug as nfa
from tests.golden import cases, facts, jobs
from tests.golden.inputs import HERE

# Threads, BLAS and torch's kernels sum in another order and round exp, log and cos otherwise: some
# 1e-6 of a value (2e-7 was seen between one thread and two), which whitening can magnify. A changed
# random stream moves values by 1e-2 and more.
RTOL, ATOL = 1e-4, 2e-5
# For the same reason a pixel next to the middle between two levels may be rounded to the other one.
LEVELS, SHARE = 1, 0.01
# Eight steps of Adam magnify the rounding of gradients.
TRAINING_RTOL = 1e-3


@pytest.fixture(scope="module")
def values():
    with np.load(HERE / "values.npz") as found:
        return dict(found)


@pytest.fixture(scope="module")
def known():
    return json.loads((HERE / "facts.json").read_text())


def fault(name: str, found: np.ndarray, wanted: np.ndarray) -> str:
    """What is wrong with an array, or '': integers and truth values are the same, others nearly."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{name}: {found.dtype} {found.shape} instead of {wanted.dtype} {wanted.shape}"
    if found.dtype == np.uint8:
        off = np.abs(found.astype(int) - wanted.astype(int))
        wrong, share = off.max(initial=0) > LEVELS or (off > 0).mean() > SHARE, (off > 0).mean()
        return f"{name}: {share:.1%} of the levels differ, by up to {off.max()}" if wrong else ""
    if found.dtype.kind in "bi":
        return (
            ""
            if np.array_equal(found, wanted)
            else f"{name}: {found.tolist()} instead of {wanted.tolist()}"
        )
    rtol = TRAINING_RTOL if name.startswith("job/flow_") else RTOL
    near = np.isclose(found, wanted, rtol=rtol, atol=ATOL, equal_nan=True)
    off = np.abs(found - wanted).max(initial=0)
    return (
        ""
        if near.all()
        else f"{name}: {1 - near.mean():.1%} of the numbers differ, by up to {off:.3g}"
    )


def check(found: dict[str, np.ndarray], values: dict[str, np.ndarray], prefix: str) -> None:
    wanted = {k: v for k, v in values.items() if f"{k}/".startswith(f"{prefix}/")}
    assert found.keys() == wanted.keys()
    faults = [fault(k, found[k], v) for k, v in wanted.items()]
    assert not any(faults), "\n".join(filter(None, faults))


@pytest.mark.parametrize("name", cases.CASES)
def test_values(name, values):
    check(cases.compute(name), values, name)


@pytest.mark.parametrize("name", facts.FACTS)
def test_facts(name, known):
    found = facts.compute(name)
    assert facts.covers(found, known[name]), difference(found, known[name])


def difference(found, wanted, at: str = "") -> str:
    """Where a fact is another one."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        wrong = [k for k in wanted if k not in found or not facts.covers(found[k], wanted[k])]
        return "\n".join(difference(found.get(k), wanted[k], f"{at}/{k}") for k in wrong)
    return f"{at}: {found!r} instead of {wanted!r}"


def test_modules(values, known, tmp_path):
    """The launcher, the plugin, the preview and the training of flows, in a subprocess."""
    arrays, found = jobs.results(tmp_path)
    assert facts.covers(found, known["jobs"]), difference(found, known["jobs"])
    check(arrays, values, "job")


def test_public_names():
    assert all(hasattr(nfa, name) for name in nfa.__all__)


def test_every_value_is_of_a_case(values, known):
    mine = (
        *cases.CASES,
        *(f"job/{name}" for name in (*jobs.TRAININGS, "flow_resumed", "flow_whole")),
    )
    assert {k for k in values if not any(f"{k}/".startswith(f"{name}/") for name in mine)} == set()
    assert known.keys() == {*facts.FACTS, "jobs"}
