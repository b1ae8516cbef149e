"""The harness that kills, fills and fuzzes: at a small scale it runs whole, and what is broken counts as broken."""

import json
import os
import signal
import sys

import numpy as np
import pytest

import timm_nfaug as nfa
from benchmarks.core import common
from benchmarks.core.schema import validate
from benchmarks.reliability import __main__ as reliability
from benchmarks.reliability import data, disks, images, inputs, kills, rows, targets
from benchmarks.reliability.children import Child, Ended
from timm_nfaug.hub import WEIGHTS_NAME

HERE = f"{__name__}:"


@pytest.fixture
def small(monkeypatch):
    """A short training and a small cache."""
    monkeypatch.setattr(kills, "STEPS", 10)
    monkeypatch.setitem(kills.SETTINGS, "steps", 10)
    monkeypatch.setattr(targets, "IMAGES", 64)


def hostile(index, seed, folder):
    """A target that does all that a target must not."""
    if index == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory runs out
    while index == 2:
        pass
    if index == 3:
        raise RuntimeError("raw")
    if index == 4:
        return "kind", "broken", "silently"
    if index == 5:
        return "large", "loaded", str(np.ones(40_000_000).sum())
    return "kind", ("loaded", "refused")[index % 2], ""


def test_inputs_that_kill_hang_or_break_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "CPU_SECONDS", 1)
    row = inputs.run(rows.Row("fuzz", "x"), HERE + "hostile", 8, 0, tmp_path, fork=True)
    found = row.record()
    assert [found[k] for k in ("tried", *rows.COLUMNS)] == [8, 4, 1, 2, 1]
    assert found["kinds"]["kind"] == {"loaded": 2, "broken": 1, "refused": 1}
    assert found["kinds"]["ended its process"] == {"killed": 2, "hang": 1}
    assert found["peak_mb"] > 320 and len(found["problems"]) == 4
    assert reliability.failures([found]) == 4


def noted(index, seed, folder):
    with open(os.environ["NOTED"], "a") as f:
        f.write(f"{index} ")
    return "kind", "loaded", ""


def test_inputs_that_are_done_are_not_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTED", str(tmp_path / "noted"))
    again = lambda count: inputs.run(
        rows.Row("x", "x"), HERE + "noted", count, 0, tmp_path, fork=True
    )
    assert again(3).tried == 3
    (file,) = tmp_path.glob("*.jsonl")
    with file.open("a") as f:
        f.write('[3, "loaded", "ki')  # a kill in the middle of a line
        f.write("\n")
    assert again(5).tried == 5
    assert (tmp_path / "noted").read_text() == "0 1 2 3 4 "


def test_a_row_refuses_an_end_that_has_no_column():
    with pytest.raises(ValueError, match="a try ends as one of survived"):
        rows.Row("x", "x").add("fine")


def test_the_record_names_no_path_of_this_machine(tmp_path):
    row = rows.Row("x", "x")
    row.add(
        "raw",
        problem=f"[Errno 2] cannot read {tmp_path / 'a b.png'}: '{tmp_path}' (~/x)\nTraceback",
    )
    (said,) = row.problems
    assert (
        str(tmp_path) not in said and "~" not in said and "\n" not in said and "cannot read" in said
    )


@pytest.mark.parametrize("name", ["images", "fuzz"])
def test_odd_images_and_hostile_flows(name, tmp_path):
    (row,) = reliability.importlib.import_module(f"benchmarks.reliability.{name}").run(
        16, 0, tmp_path, fork=True
    )
    assert row.tried == 16 and not row.failures, row.problems
    assert 100 < row.peak_mb < 2000


def test_an_image_that_a_broken_transform_changes_is_counted(tmp_path, monkeypatch):
    def broken(self, *inputs, **more):
        return inputs if type(inputs[0]).__module__.startswith("PIL") else 1 / 0

    monkeypatch.setattr(nfa.NFAugment, "forward", broken)
    (row,) = images.run(8, 0, tmp_path, fork=True)
    assert row.kinds["tensor in NFAugment"] == {"raw": 2} and row.column("crashes") >= 2


def test_kills(small, tmp_path):
    found = {row.name: row for row in kills.run(1, 0, tmp_path, fork=True)}
    assert list(found) == [
        "training, SIGKILL", "training, SIGTERM and SIGINT", "cache, SIGKILL", "save_pretrained, SIGKILL",
    ]  # fmt: skip
    assert [row.tried for row in found.values()] == [1] * 4
    for name in ("training, SIGKILL", "cache, SIGKILL"):
        assert not found[name].failures, found[name].problems


def test_a_save_in_two_steps_loses_flows(tmp_path, monkeypatch):
    def broken(self, directory):
        (directory / WEIGHTS_NAME).write_bytes(b"half")

    whole = nfa.ConditionalFlow.save_pretrained
    saves = []

    def first_whole(self, directory):
        saves.append(directory)
        return (whole if len(saves) == 1 else broken)(self, directory)

    monkeypatch.setattr(nfa.ConditionalFlow, "save_pretrained", first_whole)
    row = kills.kill_save(1, 0, tmp_path, fork=True)
    assert row.column("lost") == 1 and "cannot be loaded" in row.problems[0]


def test_faults_of_disks(small, tmp_path):
    only = ["full disk, cache", "read-only directory, save_pretrained", "two builds, one cache"]
    faults, *damaged = disks.run(1, 0, tmp_path, fork=True, only=only)
    assert list(faults.kinds) == only and not faults.failures, faults.problems
    assert [row.tried for row in damaged] == [1, 1, 1] and faults.notes[0].startswith(
        "the disk was"
    )
    assert not (tmp_path / "disk").exists()


@pytest.mark.parametrize(
    ("ended", "end"),
    [
        (Ended(2, "", "error: no room\n", 1.0), None),
        (Ended(0, "", "", 1.0), "raw"),
        (Ended(1, "", "Traceback (most recent call last):\nOSError: no room\n", 1.0), "raw"),
        (Ended(-signal.SIGBUS, "", "", 1.0), "killed"),
        (Ended(None, "", "", 1.0), "hang"),
    ],
)
def test_only_a_message_of_one_line_is_a_clear_error(ended, end):
    unclear = disks._unclear(ended)
    assert (unclear and unclear[0]) == end


def test_wrong_images_are_counted(tmp_path, monkeypatch):
    (row, untouched) = data.run(50, 0, tmp_path, fork=True, contexts=("fork",))
    assert row.kinds["wrap_loader, fork"].total() == 50 and untouched.tried == 2
    assert row.kinds["NFACache.build, fork"] == {"survived": 5}
    monkeypatch.setattr(data, "write", lambda path, count: path.write_bytes(b"\0" * 200 * count))
    (row, _) = data.run(10, 0, tmp_path, fork=True, contexts=("fork",))
    assert row.kinds["wrap_loader, fork"] == {"lost": 10}


def test_a_process_of_its_own_is_measured():
    """As in the long run; the tests fork, which is quicker."""
    ended = Child("json.tool", ["no such file"]).wait(60)
    assert ended.code == 2 and "No such file" in ended.err and ended.peak_mb > 1
    assert Child("json.tool", []).wait(60).code == 1, "nothing comes from its standard input"


def test_the_command_writes_a_record_that_is_valid(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(reliability, "COUNTS", {"images": 100})
    monkeypatch.setattr(sys, "argv", ["reliability", "--work", str(tmp_path)])
    argv = ["--fork", "--scale", "0.04", "--work", str(tmp_path / "work")]
    assert reliability.main(argv) == 0
    written = json.loads((tmp_path / "results" / "reliability.json").read_text())
    validate(written)
    (row,) = written["results"]["rows"]
    assert row["tried"] == row["survived"] == 4 and set(row) >= {*rows.COLUMNS, "peak_mb", "kinds"}
    assert "| images: odd images | 4 | 4 | 0 | 0 | 0 |" in capsys.readouterr().out
    (row["survived"], row["crashes"]) = (3, 1)
    assert reliability.failures([row]) == 1
    monkeypatch.setattr(reliability.importlib, "import_module", None)  # nothing runs again
    assert reliability.main(argv) == 0
