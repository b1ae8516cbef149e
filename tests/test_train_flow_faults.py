"""Trainings that are killed, signalled, started twice, on a full disk, or resumed from damaged files lose nothing."""

import contextlib
import gc
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import TORCHRUN

from timm_nfaug import NFAWarning
from timm_nfaug._utils.files import InUseError, write_atomically
from train_flow.__main__ import main
from train_flow.checkpoint import read_checkpoint
from train_flow.config import TrainConfig
from train_flow.data import Images
from train_flow.signals import StopSignals
from train_flow.trainer import Trainer

ROOT = Path(__file__).parents[1]
WEIGHTS = "flow/model.safetensors"
FILES = [".lock", "checkpoint.previous.pt", "checkpoint.pt", "flow", "log.jsonl"]
SETTINGS = {
    "flow": "conv_p4_tiny", "data": "digits", "in_chans": 1, "batch_size": 16, "steps": 40,
    "network": {"depth": 2, "hidden": 8}, "prior": {"num_modes": 2}, "warmup_steps": 2,
    "gaussian_every": 5, "gaussian_images": 64, "log_every": 1, "eval_every": 0,
}  # fmt: skip


def arguments(out: Path, *more: str, **settings) -> list[str]:
    """A training of the digits on the command line."""
    path = out.parent / f"{out.name}.json"
    path.write_text(json.dumps(SETTINGS | settings))  # JSON is YAML
    return ["--config", str(path), "--out", str(out), "--device", "cpu", *more]


def command(out: Path, *more: str, **settings) -> list[str]:
    return [sys.executable, "-m", "train_flow", *arguments(out, *more, **settings)]


def run(out: Path, *more: str, **settings) -> subprocess.CompletedProcess:
    argv = command(out, *more, **settings)
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=240)


def start(out: Path, *more: str, **settings) -> subprocess.Popen:
    return subprocess.Popen(
        command(out, *more, **settings), cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen, happened) -> None:
    deadline = time.monotonic() + 240
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)


def logged(out: Path, lines: int):
    log = out / "log.jsonl"
    return lambda: log.exists() and log.read_bytes().count(b"\n") >= lines


@pytest.fixture
def toys() -> Images:
    g = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (48, 1, 8, 8), dtype=torch.uint8, generator=g)
    return Images(levels, torch.arange(48) % 2, ["a", "b"])


@pytest.fixture
def toy(toys, tmp_path):
    """Makes trainers of random images in tmp_path/run; closes them at the end."""
    with contextlib.ExitStack() as made:

        def make(resume=False, **settings) -> Trainer:
            settings = SETTINGS | {"steps": 6, "gaussian_images": 0} | settings
            trainer = Trainer(TrainConfig(**settings), toys, toys, tmp_path / "run", resume=resume)
            made.callback(trainer.close)
            return trainer

        yield make


def steps_taken(trainer: Trainer, count: int) -> None:
    """Takes steps with a checkpoint after each."""
    for _ in range(count):
        trainer.run(time_limit=0)


# -- kills and signals -------------------------------------------------------------------------------------------------


def test_kills_at_any_moment_change_nothing(tmp_path):
    """SIGKILL at three moments of real processes that write a checkpoint after every step."""
    chance = random.Random(23)
    assert main(arguments(tmp_path / "whole")) == 0
    out = tmp_path / "killed"
    for lines in (chance.randint(2, 9), chance.randint(12, 20), chance.randint(24, 34)):
        with start(out, "--resume", checkpoint_seconds=0) as process:
            wait_for(process, logged(out, lines))
            time.sleep(chance.uniform(0, 0.02))
            process.kill()
        assert process.returncode == -signal.SIGKILL
    assert not (out / "flow").exists()
    done = run(out, "--resume", checkpoint_seconds=0)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    steps = [row["step"] for row in map(json.loads, (out / "log.jsonl").open()) if "loss" in row]
    assert steps == list(range(1, 41))
    assert sorted(p.name for p in out.iterdir()) == FILES


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint_of_the_last_step(number, code, tmp_path):
    out = tmp_path / "run"
    with start(out, steps=100_000, checkpoint_seconds=1e6) as process:
        wait_for(process, logged(out, 3))
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    state = read_checkpoint(out / "checkpoint.pt")
    rows = (out / "log.jsonl").read_text().splitlines()
    assert state["step"] == json.loads(rows[-1])["step"] >= 3
    line = f"stopped by {number.name} at step {state['step']} of 100000; continue with --resume"
    assert error.rstrip().endswith(line) and "Traceback" not in error


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_after_the_steps_ends_with_its_code_and_no_temporary_file(
    number, code, tmp_path, monkeypatch, capsys
):
    """While the flow is exported: the checkpoint of the last step is there."""
    export = Trainer.finish

    def interrupted(trainer):
        write_atomically(tmp_path / "flow.txt", lambda path: signal.raise_signal(number))
        return export(trainer)

    monkeypatch.setattr(Trainer, "finish", interrupted)
    words = ["--config", "conv_p4_tiny.digits", "--out", str(tmp_path / "run"), "--device", "cpu"]
    with pytest.raises(SystemExit) as e:
        main([*words, "--set", "steps=2", "--set", "batch_size=8"])
    assert e.value.code == code and capsys.readouterr().err.endswith("continue with --resume\n")
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_signal_of_a_training_in_a_program_ends_it_with_a_checkpoint(toy):
    """Whoever ignores what run() returns must not take a training cut short for a whole one."""
    trainer, step = toy(), None

    def interrupted():
        signal.raise_signal(signal.SIGTERM)
        return step()

    step, trainer.take_step = trainer.take_step, interrupted
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as e:
        trainer.run()
    assert e.value.code == 143 and read_checkpoint(trainer.checkpoints.newest)["step"] == 1
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_signal_ends_at_once_and_ignored_ones_stay_ignored():
    script = """
import signal, sys, time
from train_flow.signals import StopSignals
if "nohup" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
with StopSignals() as signals:
    signal.raise_signal(signal.SIGINT)
    print(signals.received, flush=True)
    signal.raise_signal(signal.SIGINT)
    print("alive", flush=True)
"""
    python = lambda *a: subprocess.run(
        [sys.executable, "-c", script, *a], cwd=ROOT, capture_output=True, text=True
    )
    ended, kept = python(), python("nohup")
    assert ended.returncode == -signal.SIGINT and ended.stdout == f"{signal.SIGINT.value}\n"
    assert kept.returncode == 0 and kept.stdout == "0\nalive\n"


def test_a_training_runs_in_a_thread(toy):
    trainer, found = toy(steps=2), []
    thread = threading.Thread(target=lambda: found.append(trainer.run()))
    thread.start()
    thread.join()
    assert found == [True]
    with StopSignals() as signals:
        assert signals.received == 0


def test_all_processes_stop_where_one_is_signalled(tmp_path):
    """SIGTERM for the second process alone; both save and end at the same step."""
    out, pids = tmp_path / "run", tmp_path / "pids"
    pids.mkdir()
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, sys, train_flow.__main__ as cli\n"
        f"open(r'{pids}/' + os.environ['RANK'], 'w').write(str(os.getpid()))\n"
        "try:\n    cli.main(sys.argv[1:])\n"
        f"except SystemExit as e:\n    open(r'{pids}/code' + os.environ['RANK'], 'w').write(str(e.code)); raise\n"
    )
    own = command(out, steps=100_000)[3:]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*TORCHRUN, str(worker), *own],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(process, logged(out, 2))
        second = int((pids / "1").read_text())
        refused = subprocess.run(
            [*TORCHRUN, str(worker), *own, "--resume"],
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        codes = sorted(p.read_text() for p in pids.glob("code*"))
        assert codes == ["2", "2"] and f"error: {out} is in use by process " in refused.stderr
        assert "as the first process says" in refused.stderr
        for path in pids.glob("code*"):
            path.unlink()
        os.kill(second, signal.SIGTERM)
        _, error = process.communicate(timeout=120)
    assert [(pids / f"code{r}").read_text() for r in range(2)] == ["143", "143"], error[-3000:]
    step = read_checkpoint(out / "checkpoint.pt")["step"]
    assert f"stopped by SIGTERM at step {step} of 100000; continue with --resume" in error
    assert step == json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"]


# -- two trainings in one directory ------------------------------------------------------------------------------------


def test_a_second_training_in_a_directory_ends_at_once(tmp_path):
    out = tmp_path / "run"
    with start(out, steps=100_000, checkpoint_seconds=0) as holder:
        wait_for(holder, logged(out, 3))
        second = run(out, "--resume", "--set", "seed=1", steps=100_000)
        assert second.returncode == 2 and second.stdout == ""
        assert f"error: {out} is in use by process {holder.pid} on " in second.stderr
        assert "train_flow --config" in second.stderr, "the command of the holder"
        assert second.stderr.strip().endswith("wait until it ends, or name another directory")
        before = len((out / "log.jsonl").read_bytes())
        wait_for(holder, lambda: len((out / "log.jsonl").read_bytes()) > before)
        holder.kill()
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()[:-1]]
    assert steps == list(range(1, len(steps) + 1)), "of one training alone"


def test_a_directory_is_free_after_finish_close_failure_or_when_forgotten(toy, toys, tmp_path):
    first = toy(steps=1)
    with pytest.raises(InUseError, match=f"run is in use by process {os.getpid()} on "):
        toy(resume=True)
    first.run()
    with pytest.raises(InUseError):
        toy(resume=True)
    first.finish()
    with pytest.raises(FileExistsError, match="checkpoint.pt exists; continue with --resume"):
        toy()
    toy(resume=True, steps=1).close()
    config = TrainConfig(**SETTINGS | {"steps": 1})
    forgotten = Trainer(config, toys, toys, tmp_path / "other")
    with pytest.raises(InUseError):
        Trainer(config, toys, toys, tmp_path / "other")
    del forgotten
    gc.collect()
    Trainer(config, toys, toys, tmp_path / "other").close()


def test_what_a_living_process_writes_is_not_deleted(toy, tmp_path):
    trainer = toy()
    steps_taken(trainer, 1)
    trainer.close()
    living = tmp_path / "run" / f".checkpoint.new.pt.{os.uname().nodename}-{os.getppid()}.abc"
    living.write_bytes(b"half")
    steps_taken(toy(resume=True), 1)
    assert living.read_bytes() == b"half"


# -- damaged checkpoints -----------------------------------------------------------------------------------------------


def edited(change):
    """Damage by a change of what a whole checkpoint holds."""

    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return damage


def flipped(path: Path) -> None:
    """One bit of a weight, which torch reads without a word."""
    with zipfile.ZipFile(path) as file:
        largest = max(
            (i for i in file.infolist() if "/data/" in i.filename), key=lambda i: i.file_size
        )
        place = path.read_bytes().index(file.read(largest)) + largest.file_size // 2
    data = bytearray(path.read_bytes())
    data[place] ^= 64
    path.write_bytes(data)
    torch.load(path, weights_only=True)


def unsafe(path: Path) -> None:
    torch.save(
        {"config": TrainConfig(data="digits")}, path
    )  # an object, which code would have to make


def first_key(d: dict) -> str:
    return next(k for k, v in d.items() if isinstance(v, torch.Tensor) and v.is_floating_point())


DAMAGE = {
    "empty": lambda p: p.write_bytes(b""),
    "cut": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "cut at the end": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "text": lambda p: p.write_text("not a checkpoint"),
    "a flipped bit": flipped,
    "an object": unsafe,
    "a list": lambda p: torch.save([1, 2], p),
    "no keys": lambda p: torch.save({}, p),
    "no flow": edited(lambda s: s.pop("flow")),
    "no optimizer": edited(lambda s: s.pop("optimizer")),
    "no average": edited(lambda s: s.pop("averaged")),
    "step as text": edited(lambda s: s.update(step="3")),
    "step below 0": edited(lambda s: s.update(step=-1)),
    "step past the end": edited(lambda s: s.update(step=7)),
    "seconds not a number": edited(lambda s: s.update(seconds=math.nan)),
    "config a list": edited(lambda s: s.update(config=[])),
    "config of tensors": edited(lambda s: s["config"].update(lr=torch.ones(2))),
    "flow of numbers": edited(lambda s: s["flow"].update({first_key(s["flow"]): 3})),
    "another shape": edited(lambda s: s["flow"].update({first_key(s["flow"]): torch.zeros(7, 7)})),
    "weights not finite": edited(lambda s: s["flow"][first_key(s["flow"])].fill_(math.inf)),
    "average not finite": edited(lambda s: s["averaged"][first_key(s["averaged"])].fill_(math.nan)),
    "another optimizer": edited(lambda s: s["optimizer"].update(param_groups=[])),
    "optimizer of text": edited(lambda s: s.update(optimizer="adamw")),
    "another shape in Adam": edited(
        lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.zeros(7, 7))
    ),
    "text in Adam": edited(lambda s: s["optimizer"]["state"][0].update(exp_avg_sq="much")),
    "another shape for the Gaussians": edited(
        lambda s: s["gaussian_adam"]["state"].update(
            {0: {"step": torch.ones(()), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}}
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_or_the_one_before_is_used(kind, toy, tmp_path):
    trainer = toy()
    steps_taken(trainer, 3)
    trainer.close()
    out = tmp_path / "run"
    states = [read_checkpoint(out / f"checkpoint{word}.pt")["step"] for word in (".previous", "")]
    assert states == [2, 3]
    DAMAGE[kind](out / "checkpoint.pt")
    with pytest.warns(NFAWarning) as said:
        trainer = toy(resume=True)
    (text,) = (str(w.message) for w in said)
    assert text.startswith(f"{out / 'checkpoint.pt'} is damaged or no checkpoint (")
    assert text.endswith(
        "; checkpoint.previous.pt is used instead: step 2 is next, and 1 logged steps are repeated"
    )
    assert trainer.step == 2 and trainer.run() and trainer.step == 6
    trainer.close()
    # without a whole one: an error that names the file and what to do
    whole = (out / "checkpoint.pt").read_bytes()
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (out / name).write_bytes(whole)
        DAMAGE[kind](out / name)
    with pytest.raises(ValueError) as e:
        toy(resume=True)
    assert type(e.value) is ValueError and "\n" not in str(e.value)
    assert str(e.value).startswith(f"{out / 'checkpoint.pt'} is damaged or no checkpoint (")
    assert str(e.value).endswith("put back a copy, or delete the checkpoints to start from scratch")


def test_damaged_bytes_of_a_checkpoint_are_found(toy, tmp_path):
    """Any bit: the checkpoint is read as it was, or named."""
    trainer = toy()
    steps_taken(trainer, 2)
    path = tmp_path / "run" / "checkpoint.pt"
    whole, state = path.read_bytes(), read_checkpoint(path)
    flow = torch.cat([v.flatten().double() for v in state["flow"].values()])
    chance, named = random.Random(0), 0
    for _ in range(200):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            found = read_checkpoint(path)
        except ValueError as e:
            assert str(e).startswith(f"{path} is damaged or no checkpoint (")
            named += 1
        else:  # a bit of padding or of a date
            assert found["step"] == 2 and found["config"] == state["config"]
            assert torch.equal(
                flow, torch.cat([v.flatten().double() for v in found["flow"].values()])
            )
    assert named > 100


@pytest.mark.parametrize(
    "kept, step", [("new", 3), ("previous", 2), ("new previous", 3), ("pt new previous", 3)]
)
def test_a_kill_between_two_renames_loses_nothing(kept, step, toy, tmp_path):
    """The files that each moment of a save leaves."""
    out = tmp_path / "run"
    trainer = toy()
    steps_taken(trainer, 3)
    trainer.close()
    newest, before = (out / f"checkpoint{word}.pt" for word in ("", ".previous"))
    states = {
        "pt": newest.read_bytes(),
        "new": newest.read_bytes(),
        "previous": before.read_bytes(),
    }
    for path in out.glob("checkpoint*"):
        path.unlink()
    for word in kept.split():
        (out / ("checkpoint.pt" if word == "pt" else f"checkpoint.{word}.pt")).write_bytes(
            states[word]
        )
    with pytest.raises(FileExistsError, match="continue with --resume"):
        toy()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = toy(resume=True)
    missing = [str(w.message) for w in said if w.category is NFAWarning]
    assert bool(missing) == ("pt" not in kept.split()) and all("is missing" in m for m in missing)
    assert trainer.step == step and trainer.run()
    assert read_checkpoint(out / "checkpoint.pt")["step"] == 6


def test_a_damaged_log_is_repaired(toy, tmp_path):
    trainer = toy()
    steps_taken(trainer, 2)
    trainer.close()
    log = tmp_path / "run" / "log.jsonl"
    good = log.read_bytes()
    odd = [
        b"[1]",
        b"3",
        b"null",
        b'{"step": "2"}',
        b'{"step": true}',
        b'{"step": 1',
        b"\xff\xfe",
        b"[" * 5000,
    ]
    log.write_bytes(good + b"\n".join(odd))
    trainer = toy(resume=True)
    assert log.read_bytes() == good and trainer.step == 2


# -- weights that are not finite ---------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_replace_no_checkpoint(toy, tmp_path):
    trainer = toy(average="none")
    steps_taken(trainer, 2)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        next(trainer.flow.network.parameters()).fill_(math.inf)
    for write in (trainer.save, trainer.finish):
        with pytest.raises(
            FloatingPointError,
            match=r"(not finite|no modes).*train again with a lower lr .* and another --out",
        ):
            write()
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert not (tmp_path / "run" / "flow").exists()


@pytest.mark.parametrize("average", ["ema", "none"])
def test_a_training_that_diverges_ends_with_one_line_and_exports_nothing(average, tmp_path, capsys):
    out = tmp_path / "run"
    settings = {"lr": 1e3, "clip_grad": 0.0, "warmup_steps": 0, "steps": 6, "average": average}
    with pytest.raises(SystemExit) as e:
        main(arguments(out, checkpoint_seconds=0, snapshots=[1, 2, 3], **settings))
    assert e.value.code == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and "train again with a lower lr" in last
    assert not list(out.glob("flow*"))
    for path in out.glob("checkpoint*"):
        read_checkpoint(path)  # only whole and finite ones


# -- disks -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_up_to(size: int):
    """The system refuses to write larger files, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_checkpoint(toy, tmp_path):
    trainer, out = toy(), tmp_path / "run"
    steps_taken(trainer, 2)
    before = (out / "checkpoint.pt").read_bytes()
    with files_up_to(len(before) // 2), pytest.raises(OSError) as e:
        trainer.run(time_limit=0)
    text = str(e.value)
    assert text.startswith("no checkpoint of step 3: ") and "File too large" in text
    assert f"cannot write {out}" in text and text.endswith("; the checkpoint before is kept")
    assert (out / "checkpoint.pt").read_bytes() == before
    assert not list(out.glob(".checkpoint*")), "nothing half written stays"
    trainer.close()
    again = toy(resume=True)
    assert again.step == 2 and again.run()


def test_a_full_disk_is_named_by_the_log(toy, tmp_path):
    trainer, log = toy(), tmp_path / "run" / "log.jsonl"
    steps_taken(trainer, 2)
    rows = log.read_bytes()
    log.unlink()
    log.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot write .*log\.jsonl: No space left on device"):
        trainer.run(time_limit=0)
    trainer.close()
    log.unlink()
    log.write_bytes(rows + b'{"step": 3, "lo')
    assert toy(resume=True).run()
    assert [json.loads(line)["step"] for line in log.open()] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_that_reads_back_otherwise_replaces_nothing(toy, tmp_path, monkeypatch):
    """A disk that loses what it was given."""
    trainer = toy()
    steps_taken(trainer, 2)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    whole = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: whole(self, bytes(data)[:-9]))
    with pytest.raises(
        OSError, match=r"no checkpoint of step 3: .*damaged.*; the checkpoint before is kept"
    ):
        trainer.run(time_limit=0)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_a_directory_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as e:
        main(arguments(tmp_path / "run", "--out", str(tmp_path / "file" / "run")))
    error = capsys.readouterr().err
    assert e.value.code == 2 and error.startswith("error: ") and str(tmp_path / "file") in error
