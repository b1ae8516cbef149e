"""Files that are written whole or not at all, locks that name their holder, and reserved space."""

import errno
import os
import subprocess
import sys
import time
import warnings

import pytest

from timm_nfaug import NFAError, NFAWarning
from timm_nfaug._utils import files
from timm_nfaug._utils.files import InUseError, locked, reserve, write_atomically
from timm_nfaug._utils.notices import Notices

HOLDER = """
import sys, time
from pathlib import Path
from timm_nfaug._utils.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""
KILLED = """
import os, sys
from pathlib import Path
from timm_nfaug._utils.files import write_atomically
def die(p):
    p.write_text("half")
    os.kill(os.getpid(), 9)
write_atomically(Path(sys.argv[1]), die)
"""


def holder(folder, seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_killed_writer_leaves_the_old_file_and_its_leftover_goes_at_the_next_write(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, lambda p: p.write_text("old"))
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    write_atomically(path, lambda p: p.write_text("new"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and path.read_text() == "new"


def test_the_temporary_file_of_a_living_writer_stays(tmp_path):
    path, seen = tmp_path / "a.txt", []

    def write(p):
        write_atomically(path, lambda q: q.write_text("second"))
        seen.append(p.exists())
        p.write_text("first")

    write_atomically(path, write)
    assert seen == [True] and path.read_text() == "first"


def test_a_write_that_fails_names_the_file_and_keeps_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(p):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"cannot write .*a\.txt.*No space left.*nothing .* changed"):
        write_atomically(path, full)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_file_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(files.os, "fsync", lambda fd: calls.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda *a: (calls.append("rename"), replace(*a)))
    write_atomically(tmp_path / "a.txt", lambda p: p.write_text("x"))
    assert calls == ["fsync", "rename", "fsync"]


def test_a_locked_directory_names_its_holder(tmp_path):
    process = holder(tmp_path, 60)
    with (
        pytest.raises(InUseError, match=rf"process {process.pid} on .*name another directory"),
        locked(tmp_path, wait=False),
    ):
        pass
    process.kill()
    process.wait()
    with locked(tmp_path, wait=False):  # a killed holder leaves no lock
        pass


def test_a_lock_waits_for_its_holder(tmp_path):
    process, start = holder(tmp_path, 1), time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - start > 0.5
    process.wait()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    import fcntl

    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(NFAWarning, match="file system without locks"), locked(tmp_path):
        pass


def test_space_is_reserved_and_its_lack_is_said_before_anything_is_written(tmp_path):
    reserve(tmp_path / "a.bin", 100_000)
    assert (tmp_path / "a.bin").stat().st_blocks * 512 >= 100_000
    with pytest.raises(OSError, match=r"b\.bin takes .* GB, .* GB are free") as e:
        reserve(tmp_path / "b.bin", 10**17)
    assert e.value.errno == errno.ENOSPC and not (tmp_path / "b.bin").exists()


def test_notices_say_each_cause_once_and_count_on():
    notices = Notices()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for cause in ("no modes", "no modes", "not finite", "guessed label", "no modes"):
            notices.say(cause, f"{cause}: do this", images=2)
    assert [str(w.message) for w in said] == [
        f"{c}: do this" for c in ("no modes", "not finite", "guessed label")
    ]
    assert {w.category for w in said} == {NFAWarning} and {w.filename for w in said} == {__file__}
    assert notices.count("no modes") == 6
    assert notices.summary(80) == (
        "NFA left 8 of 80 images as they were (10.0%): 2 for not finite, 6 for no modes"
    )
    with pytest.raises(NFAError, match="no modes: do this .*strict"):
        Notices(strict=True).say("no modes", "no modes: do this")
