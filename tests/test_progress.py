"""Progress is a bar on a terminal and plain lines in a file; silent in other ranks, when quiet, and for short waits."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import torch
from hub_server import environment, running_hub
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import timm_nfaug as nfa
from tests.test_cache_faults import FORK
from tests.test_train_flow_faults import arguments
from timm_nfaug._utils import progress
from timm_nfaug.integration.fit import _batches_of
from timm_nfaug.reading import count_images

ROOT = Path(__file__).parent.parent
# e.g. NFA cache: 12,800 of 50,000 images, 410 images/s, 01:31 left
LINE = re.compile(
    r"(?P<desc>.+): (?P<n>[\d,]+)( of (?P<total>[\d,]+))? (?P<unit>images|steps), "
    r"(?P<rate>[\d,.]+) (images|steps)/s(, (?P<time>[\d:]+) left|, in (?P<whole>[\d:]+))?(, .*)?"
)


def shown(code, *args, terminal=False, env=None) -> str:
    """What a program of its own writes to stderr, a file or a terminal; it must write nothing to stdout."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    command = [sys.executable, "-c", code, *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": theirs}
    with subprocess.Popen(command, cwd=ROOT, env=env or os.environ, **pipes) as program:
        os.close(theirs)
        found = b""
        try:
            while part := os.read(ours, 4096):
                found += part
        except OSError:  # as a terminal ends
            pass
        os.close(ours)
        assert program.stdout.read() == b""
    assert program.returncode == 0, found.decode()
    return found.decode()


def parts(text: str) -> dict[str, str]:
    """The parts of a text between lines ``== name``."""
    found = re.split(r"== (\w+)\r?\n", text)
    assert not found[0]
    return dict(zip(found[1::2], found[2::2], strict=True))


WAITS = """
import os, sys, time
from timm_nfaug._utils import progress as p
def wait(name, total=50, steps=20, late=0.0):
    print("==", name, file=sys.stderr, flush=True)
    with p.progress(total, "NFA cache", "images", 10) as bar:
        time.sleep(late)
        for _ in range(steps):
            time.sleep(0.05)
            bar.update(2)
wait("default")
p.DELAY, p.EVERY = 0.2, 0.4
wait("whole")
wait("unknown", None)
wait("late", late=1.0)
wait("short", 14, 2)
for name in ("RANK", "TIMM_NFAUG_QUIET"):
    os.environ[name] = "1"
    wait(name)
    p.say("a line")
    del os.environ[name]
stderr, sys.stderr = sys.stderr, None
p.progress(1, "nowhere", "images").close()
p.say("nowhere")
sys.stderr = stderr
"""


def test_a_file_gets_plain_lines():
    text = shown(WAITS)
    found = parts(text)
    assert "\r" not in text and "\x1b" not in text
    assert not any(found[k] for k in ("default", "short", "RANK", "TIMM_NFAUG_QUIET")), found
    lines = [LINE.fullmatch(line) for line in found["whole"].splitlines()]
    assert 2 <= len(lines) <= 4 and all(lines), found["whole"]
    for line in lines:
        assert line["desc"] == "NFA cache" and line["total"] == "50"
        assert 2 < float(line["rate"]) <= 41, (
            "2 images take 0.05 s or more; what was there is not counted"
        )
    *under_way, end = lines
    for line in under_way:
        left = (50 - int(line["n"])) / float(line["rate"])
        minutes, seconds = line["time"].split(":")
        assert 10 < int(line["n"]) < 50 and abs(60 * int(minutes) + int(seconds) - left) <= 1.1
    assert end["n"] == "50" and end["whole"]
    late = [LINE.fullmatch(line) for line in found["late"].splitlines()]
    assert all(int(line["n"]) > 12 for line in late), "the first image waits for its reader's start"
    unknown = [LINE.fullmatch(line) for line in found["unknown"].splitlines()]
    assert unknown[-1]["n"] == "50" and not any(line["total"] or line["time"] for line in unknown)


def test_a_terminal_gets_a_bar():
    found = parts(shown(WAITS, terminal=True))
    assert not any(found[k] for k in ("default", "short", "RANK", "TIMM_NFAUG_QUIET")), found
    for name, end in (("whole", "NFA cache: 100%|"), ("unknown", "NFA cache: 50 images [")):
        assert found[name].count("\r") > 3 and end in found[name] and "images/s" in found[name]
    assert "50/50" in found["whole"] and re.search(r"<00:0\d, ", found["whole"])


CACHE = """
import json, os, pathlib, sys
from tests.build_cache import build
from timm_nfaug._utils import progress as p
folder = sys.argv[1]
p.DELAY, p.EVERY = 0.0, 0.0
for name in ("new", "complete", "resumed"):
    if name == "resumed":
        file = pathlib.Path(folder, "index.json")
        index = json.loads(file.read_text())
        index["shards"] = {k: v for k, v in index["shards"].items() if int(k) < 4}
        file.write_text(json.dumps(index | {"complete": False, "stamps": None}))
    print("==", name, file=sys.stderr, flush=True)
    build(folder, images=256)
print("== rank", file=sys.stderr, flush=True)
os.environ["RANK"] = "1"
build(folder, images=256)
build(folder + "2", images=64)
"""


def test_a_cache_says_its_cost_first_then_how_far_it_is(tmp_path):
    found = parts(shown(CACHE, tmp_path / "cache"))
    cost = f"NFA cache {tmp_path / 'cache'}: 0.0 GB for 256 images, "
    first, *lines = found["new"].splitlines()
    assert first == cost + "of which 0 are there; if stopped, the same command resumes it"
    done = [m["n"] for line in lines if (m := LINE.fullmatch(line)) and m["desc"] == "NFA cache"]
    assert done == [str(n) for n in range(32, 257, 32)], "after each batch"
    assert found["complete"].splitlines()[-1] == cost + "complete"
    first, *lines = found["resumed"].splitlines()
    assert first == cost + "of which 128 are there; if stopped, the same command resumes it"
    done = [m["n"] for line in lines if (m := LINE.fullmatch(line)) and m["desc"] == "NFA cache"]
    assert done == ["160", "192", "224", "256"]
    assert any(line.startswith("NFA cache, checksums: 128 of 128 images") for line in lines)
    assert found["rank"] == ""


class Slow:
    """Images that take a while to read."""

    def __len__(self):
        return 128

    def __getitem__(self, i):
        time.sleep(0.01)
        return torch.full((1, 8, 8), i, dtype=torch.uint8), 0


def build_slowly(folder, rank):
    os.environ["RANK"] = rank
    augment = nfa.NFAugment.from_pretrained("conv_p4_tiny.digits", modes=4)
    nfa.NFACache.build(augment, Slow(), folder, batch_size=16, workers=1)


def test_who_waits_for_another_process_sees_how_far_that_is(
    tmp_path, monkeypatch, capfd, small_shards
):
    """Any rank may be the first to build a cache; rank 0 shows it all the same."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    builder = FORK.Process(target=build_slowly, args=(tmp_path, "1"))
    builder.start()
    while not (tmp_path / "index.json").exists() and builder.is_alive():
        time.sleep(0.002)
    build_slowly(tmp_path, "0")
    builder.join()
    said = capfd.readouterr().err
    lines = [LINE.fullmatch(line) for line in said.splitlines()]
    seen = [m["n"] for m in lines if m and m["desc"] == "NFA cache, made by another process"]
    assert seen and 0 < int(seen[0]) < 128 and seen == sorted(seen, key=int)
    assert not any(m and m["desc"] == "NFA cache" and m["n"] != "128" for m in lines), said
    assert "of which 128 are there" in said or "complete" in said


class Stream(IterableDataset):
    """Images of a stream, which do not say how many they are."""

    def __iter__(self):
        return ((torch.full((3, 8, 8), i, dtype=torch.uint8), i % 2) for i in range(20))


def test_a_fit_shows_how_many_images_it_has_read(monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    own = DataLoader(TensorDataset(images, torch.arange(20) % 2), 8)
    batches = [(images, torch.arange(20) % 2)]
    for loader, of in ((own, " of 20"), (batches, ""), (DataLoader(Stream(), 8), "")):
        nfa.NFAugment.from_data(loader, 2, (3, 8, 8), modes=1, labels="none")
        said = capsys.readouterr()
        assert not said.out and said.err.splitlines()[-1].startswith(f"NFA fit: 20{of} images, ")
    assert count_images(_batches_of(own, 10)) == 10 and count_images(_batches_of(own)) == 20
    assert count_images(_batches_of(batches)) is None


TRAIN = """
import contextlib, sys
from timm_nfaug._utils import progress as p
from train_flow.__main__ import main
p.DELAY, p.EVERY = 0.0, 0.0
printed, config = sys.argv[1:]
for name, more in (("shown", []), ("quiet", ["--quiet"])):
    print("==", name, file=sys.stderr, flush=True)
    with open(printed, "a") as f, contextlib.redirect_stdout(f):
        main(["--config", config, "--out", f"{printed}-{name}", "--device", "cpu", *more])
"""


def test_the_log_of_a_flows_training_is_plain(tmp_path):
    config = arguments(tmp_path / "run", steps=20)[1]
    text = shown(TRAIN, tmp_path / "printed", config)
    found = parts(text)
    assert "\r" not in text and found["quiet"] == ""
    lines = [LINE.fullmatch(line) for line in found["shown"].splitlines()]
    assert all(lines), found["shown"]
    steps = [m for m in lines if m["desc"] == "train_flow"]
    assert [m["n"] for m in steps][-2:] == ["19", "20"] and "bits/dim, accuracy" in steps[-1][0]
    assert {m["desc"] for m in lines} == {
        "train_flow",
        "train_flow, modes",
        "train_flow, evaluation",
    }
    assert (tmp_path / "printed").read_text().count('"bits_per_dim"') == 2


LOAD = """
import os, sys
import timm_nfaug as nfa
for name, quiet in (("quiet", "1"), ("shown", "0")):
    print("==", name, file=sys.stderr, flush=True)
    os.environ["TIMM_NFAUG_QUIET"] = quiet
    nfa.ConditionalFlow.from_pretrained("org/flow", cache_dir=f"{sys.argv[1]}/{name}")
"""


def test_a_download_shows_the_bars_of_the_hub_unless_quiet(small_flow, tmp_path):
    with running_hub() as hub:
        hub.put("org/flow", small_flow.save_pretrained(tmp_path / "flow"))
        env = environment(hub.url, tmp_path / "home")
        del env["HF_HUB_DISABLE_PROGRESS_BARS"]
        found = parts(shown(LOAD, tmp_path, terminal=True, env=env))
    assert found["quiet"] == "" and "model.safetensors: 100%|" in found["shown"]
