"""Training that is stopped, killed, resumed or spread over two processes gives the weights of one undisturbed run."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TORCHRUN
from safetensors.torch import load_file
from test_train_flow import TOY, read_log, run_cli

from train_flow.config import TrainConfig
from train_flow.data import load_data
from train_flow.schedule import NOISE
from train_flow.trainer import Trainer

ROOT = Path(__file__).parents[1]
WEIGHTS = "flow/model.safetensors"

VARIANTS = {
    "glem": {"objective": "glem", "net_dtype": "bfloat16", "discriminative": 0.01, "half": True},
    "joint": {
        "objective": "joint",
        "discriminative": 0.05,
        "temperature": 5.0,
        "shift": 3,
        "gaussian_until": 0.8,
    },
    "modes": {
        "objective": "joint",
        "prior": {"num_modes": 4, "low_rank": True, "a": None},
        "modes_every": 3,
    },
    "ce": {
        "objective": "ce",
        "bits": 5,
        "average": "swa",
        "optimizer": "adamax",
        "schedule": "halving",
        "halve_from": 2,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(
    variant, image_folder, tmp_path, capsys
):
    settings = {**VARIANTS[variant], "steps": 10, "gaussian_every": 2}
    run_cli(settings, image_folder, tmp_path / "whole")
    out, resumes = tmp_path / "parts", 0
    while not (out / WEIGHTS).exists():
        run_cli(settings, image_folder, out, "--time-limit", "0", "--resume")  # one step
        resumes += 1
    assert resumes == 10
    assert (
        f"stopped at step 1 of {settings['steps']}; continue with --resume"
        in capsys.readouterr().out
    )
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    losses = [
        [line["loss"] for line in read_log(o) if "loss" in line] for o in (out, tmp_path / "whole")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 10
    # once more on a finished run: nothing is left to do, and nothing changes
    run_cli(settings, image_folder, out, "--resume")
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_what_a_checkpoint_does_not_fit_is_refused(image_folder, tmp_path, capsys):
    out = tmp_path / "run"
    run_cli({}, image_folder, out, "--time-limit", "0")
    before = (out / "checkpoint.pt").read_bytes()

    def error(settings, *arguments, data=image_folder) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            run_cli(settings, data, out, *arguments)
        assert e.value.code == 2
        return capsys.readouterr().err

    assert "checkpoint.pt exists; continue with --resume, or choose another --out" in error({})
    message = error({"lr": 0.1, "seed": 1}, "--resume")
    assert "lr=0.003 instead of 0.1, seed=0 instead of 1" in message
    # other data: a class less, then an image less of each
    for name, keep in (
        ("classes", lambda p: p.parent.name != "c"),
        ("images", lambda p: p.name != "000.png"),
    ):
        other = tmp_path / name
        ignore = lambda folder, names, keep=keep: [
            n for n in names if n.endswith(".png") and not keep(Path(folder) / n)
        ]
        shutil.copytree(image_folder, other, ignore=ignore)
        for empty in (p for p in list(other.glob("*/*")) if not any(p.iterdir())):
            empty.rmdir()
        assert "other data" in error({}, "--resume", data=other)
    assert (out / "checkpoint.pt").read_bytes() == before


def test_settings_that_change_no_step_may_change(image_folder, tmp_path):
    settings = {"steps": 4, "prior": {"num_modes": 2}}
    run_cli(settings, image_folder, tmp_path / "whole")
    out = tmp_path / "parts"
    run_cli({**settings, "mode_images": 30, "half": True}, image_folder, out, "--time-limit", "0")
    other = {
        "data_name": "toys",
        "log_every": 2,
        "eval_every": 3,
        "eval_images": 6,
        "checkpoint_seconds": 1,
    }
    run_cli({**settings, **other}, image_folder, out, "--resume")
    parts, whole = (load_file(folder / WEIGHTS) for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(parts[k], whole[k]) for k in parts.keys() | whole.keys())
    assert "toys" in (out / "flow" / "README.md").read_text()


def test_a_run_killed_before_its_first_checkpoint_starts_its_log_anew(image_folder, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "log.jsonl").write_text('{"step": 1, "loss": 7.0}\n{"step": 2, "lo')
    log = run_cli({"steps": 2}, image_folder, out, "--resume")
    assert [line["step"] for line in log if "loss" in line] == [1, 2] and log[0]["loss"] != 7.0


# the command line itself, keeping hold of the trainer to write down what this process ends with
WORKER = """
import sys
import torch
import train_flow.__main__ as cli

made = []

class Kept(cli.Trainer):
    def __init__(self, *args):
        super().__init__(*args)
        made.append(self)

cli.Trainer = Kept
cli.main(sys.argv[2:])
state = {"flow": made[0].flow.state_dict(), "averaged": made[0].averaged.state_dict()}
torch.save(state, f"{sys.argv[1]}/rank{made[0].processes.rank}.pt")
"""


def test_two_processes(image_folder, tmp_path):
    settings = {
        **TOY,
        "objective": "glem",
        "steps": 6,
        "gaussian_every": 2,
        "eval_every": 3,
        "discriminative": 0.01,
    }
    config, worker, out = tmp_path / "config.yaml", tmp_path / "worker.py", tmp_path / "out"
    config.write_text(yaml.safe_dump(settings))
    worker.write_text(WORKER)
    arguments = [
        tmp_path,
        "--config",
        config,
        "--data-dir",
        image_folder,
        "--out",
        out,
        "--device",
        "cpu",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*TORCHRUN, str(worker), *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout[: done.stdout.rindex("}") + 1])["images"] == 24
    # both processes hold the same flow, Gaussians and average, bit for bit
    ranks = [torch.load(tmp_path / f"rank{r}.pt") for r in range(2)]
    for part in ("flow", "averaged"):
        for key, value in ranks[0][part].items():
            if "prior.mode" not in key:  # the first process alone estimates the modes, at the end
                assert torch.equal(value, ranks[1][part][key]), key
    averaged = {k.removeprefix("module."): v for k, v in ranks[0]["averaged"].items()}
    assert torch.equal(load_file(out / WEIGHTS)["prior.mu"], averaged["prior.mu"])
    # the first loss is the mean of the losses of the two halves of the batch, which one process can compute
    train, val = load_data("folder", image_folder, 32)
    trainer = Trainer(TrainConfig(**settings), train, val, tmp_path / "alone")
    trainer.processes.world, halves, images = 2, [], []
    for trainer.processes.rank in range(2):
        x, y = trainer.images(trainer.order(0), 0, NOISE)
        images.append(x)
        halves.append(trainer.loss(x, y)[0].item())
    assert len(images[0]) == len(images[1]) == 9 and not torch.equal(images[0], images[1])
    # the log keeps 5 decimals
    assert read_log(out)[0]["loss"] == pytest.approx(sum(halves) / 2, abs=2e-5)
