"""The commands of README and docs, run in the order of the page, on a small DATA and with a toy train.py.

Those of docs/commands.md are run by tests/test_commands.py, those of the gallery by tests/test_figures.py.
"""

import re
import shlex
import shutil

import pytest
from small_diffusers import write_autoencoder

from benchmarks.core.common import ROOT
from timm_nfaug import __main__ as command
from timm_nfaug import train as launcher
from timm_nfaug.integration.flags import augment_from_args
from train_flow.__main__ import main as train_flow

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = ("commands.md", "gallery.md")
NOT_RUN = ("git clone ", "pip install ", "wget ", "make ")  # installation, downloads
RECORDS = "python -m benchmarks."  # hours; their tests run them at toy size
SHORT = "--set steps=1 --set batch_size=8 --set eval_every=0 --set net_dtype=float32 --set network={depth:\\ 1}"


def commands(page) -> list[str]:
    text = "\n".join(re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
    lines = re.sub(r"\\\n", " ", text).splitlines()
    found = [line.partition(" #")[0].strip() for line in lines]
    return [line for line in found if line and not line.startswith((*NOT_RUN, RECORDS))]


PAGES = [page for page in PAGES if page.name not in ELSEWHERE and commands(page)]


@pytest.fixture
def here(tmp_path, image_folder, monkeypatch):
    """A directory with DATA and train.py, and one of the name that pages give an autoencoder."""
    shutil.copytree(image_folder, tmp_path / "DATA")
    shutil.copy(ROOT / "tests" / "toy_train.py", tmp_path / "train.py")
    write_autoencoder(tmp_path / "madebyollin" / "taesd")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def launch(words: list[str]) -> None:
    """Asks the launcher's parser for these flags, and makes the augmentation that they name."""
    module = launcher.load_script(ROOT / "tests" / "toy_train.py")
    launcher.add_args(module.parser)
    assert words[0] == "train.py"
    args = module.parser.parse_args(words[1:])
    assert augment_from_args(args) is not None


def run(line: str, here, capsys) -> None:
    words = shlex.split(line)
    variables = {}
    while "=" in words[0]:
        key, _, variables[key] = words.pop(0).partition("=")
    if words[:2] == ["timm-nfaug", "train"]:
        launch(words[2:])
    elif "timm_nfaug.train" in words:
        launch(words[words.index("timm_nfaug.train") + 1 :])
    elif "TIMM_NFAUG" in variables:
        launch([*words[1:], *shlex.split(variables["TIMM_NFAUG"])])
    elif words[0] == "timm-nfaug":
        assert not command.main(words[1:]), capsys.readouterr().out
        if "--out" in words:
            assert (here / words[words.index("--out") + 1]).exists()
    elif words[:3] == ["python", "-m", "train_flow"]:
        assert train_flow([*words[3:], *shlex.split(SHORT)]) == 0
        if "--plan" in words:
            assert "images" in capsys.readouterr().out
            return
        assert (here / words[words.index("--out") + 1] / "flow" / "config.json").is_file()
    else:
        raise AssertionError(f"no test runs {line}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page, here, small_flow, capsys):
    if page.name != "train_flow.md":  # which makes it
        small_flow.save_pretrained(here / "runs" / "mine" / "flow")
    for line in commands(page):
        run(line, here, capsys)


def test_pages_with_commands_are_found():
    assert {"README.md", "timm.md", "train_flow.md"} <= {page.name for page in PAGES}
