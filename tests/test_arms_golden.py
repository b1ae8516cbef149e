"""One step of every arm of the evidence gives the images it gave when the golden file was written.

`python -m tests.test_arms_golden` writes tests/golden/arms.json anew: only where an arm is changed on
purpose, as the runs on record are then of another arm.
"""

import json
import sys
import tempfile
import zlib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import timm_nfaug as nfa
from benchmarks.cifar.arms import apply_policy
from benchmarks.cifar.resnet import make_classifier
from benchmarks.cifar.training import normalize, seed_globals
from benchmarks.evidence.arms import ENTRIES, Flow
from timm_nfaug import pixels
from train_flow.data import Images

FILE = Path(__file__).parent / "golden" / "arms.json"
# whose random numbers and pixels are this repository's own, not those of timm, torchvision and Pillow
OWN = ("crop-flip", "cosine", "colour-pca", "noise", "pooled", "class", "flow", "glem", "ce")
# autoencoders are given by the user; a gradient in bfloat16 is another one on another CPU
WITHOUT = ("latent-linear", "latent-deep", "adversarial")
CASES = [
    f"{name} {which}"
    for name, entry in ENTRIES.items()
    if name not in WITHOUT
    for which in range(len(entry.grid))
]


def flow_of(name: str, data: Images, small_flow: nfa.ConditionalFlow) -> nfa.ConditionalFlow:
    """The flow of the fixture, or for `ce` one with a band of labels and modes of its own."""
    if name != "ce":
        return small_flow
    torch.manual_seed(0)
    flow = nfa.create_flow(
        "conv_p4_tiny", num_classes=3, depth=1, hidden=8, prior={"num_modes": 4}, code_rows=8
    )
    x, y = pixels.levels_to_model(data.levels), data.labels
    flow.initialize(x, y)
    flow.prior.set_moments(flow.moments([(x, y)], num_modes=4))
    return flow.eval().requires_grad_(False)


def make(case: str, data: Images, small_flow: nfa.ConditionalFlow, folder: Path):
    """The arm of a case, with its flow from a folder as a training has it."""
    name, which = case.split(" ")
    entry, flow = ENTRIES[name], None
    if entry.flow:
        where = flow_of(name, data, small_flow).save_pretrained(folder / name)
        flow = Flow("toy", "the toy images", where=str(where))
    return entry.make(data, entry.grid[int(which)], flow)


def one_step(case: str, data: Images, small_flow: nfa.ConditionalFlow, folder: Path) -> dict:
    """A sample of the images (uint8) and of what the network sees (in levels), their sums, and the loss."""
    arm = make(case, data, small_flow, folder)
    torch.manual_seed(0)
    model = make_classifier("resnet10_quarter", 3)
    arm.start(model)
    index = torch.arange(0, len(data), 2)
    y, g = data.labels[index], torch.Generator().manual_seed(5)
    seed_globals(g)
    levels = arm.take(data, index, g)
    if arm.before is not None:
        levels = arm.before(levels, y, g)
    levels = arm.images(apply_policy(arm.policy, levels), y, g)
    x, target = arm.tensors(normalize(levels), y)
    loss = arm.loss(model, x, target).item()
    flat, seen = levels.flatten(), (64 * x + 128).flatten()
    pick = torch.arange(24) * 7919 % len(flat)  # a prime: spread over images, channels and places
    return {
        "images": flat[pick].tolist(),
        "seen": [round(v, 1) for v in seen[pick].tolist()],
        "crc32": zlib.crc32(levels.contiguous().numpy().tobytes()),
        "loss": round(loss, 4),
        "next": int(torch.randint(0, 2**62, (), generator=g)) % 2**31,
    }


@pytest.mark.parametrize("case", CASES)
def test_one_step(case, toy_images, small_flow, tmp_path):
    golden, name = json.loads(FILE.read_text()), case.split(" ")[0]
    foreign = not name.startswith(OWN)
    if foreign and golden["versions"] != versions():
        pytest.skip(f"recorded with {golden['versions']}")
    found = one_step(case, Images(*toy_images, ["a", "b", "c"]), small_flow, tmp_path)
    wanted = golden["cases"][case]
    assert found["next"] == wanted["next"], "another count of random numbers was drawn"
    # rounding to levels: another CPU's sums may fall on the other side of a half
    assert max(abs(a - b) for a, b in zip(found["images"], wanted["images"], strict=True)) <= 1
    seen = zip(found["seen"], wanted["seen"], strict=True)
    assert max(abs(a - b) for a, b in seen) <= 1.1
    assert found["loss"] == pytest.approx(wanted["loss"], abs=0.02)  # by those levels


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("timm", "torchvision", "pillow")}


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest

    toy = conftest.make_images(20, seed=1)
    small_flow = conftest._small_flow.__wrapped__(toy)
    data, cases = Images(*toy, ["a", "b", "c"]), {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            cases[case] = one_step(case, data, conftest.copy.deepcopy(small_flow), Path(folder))
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in cases.items())
    text = f'{{"versions": {json.dumps(versions())}, "cases": {{\n{lines}\n}}}}\n'
    FILE.write_text(text)


if __name__ == "__main__":
    main()
