"""One step of every arm of the CIFAR comparison gives the images it gave when the golden file was written.

`python -m tests.test_arms_golden` writes tests/golden/arms.json anew: only where an arm is changed on purpose.
"""

import json
import sys
import zlib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import timm_nfaug as nfa
from benchmarks.cifar.arms import Settings, apply_policy, make_arm
from benchmarks.cifar.classifier import make_classifier, normalize, seed_globals
from timm_nfaug import pixels
from train_flow.data import Images

FILE = Path(__file__).parent / "golden" / "arms.json"
# whose random numbers and pixels belong to these packages, not to this repository
FOREIGN = ("sa", "trivial", "mixup", "cutmix", "sa+linear", "trivial+linear", "mixup+linear")
FOREIGN += ("cutmix+linear", "sa+glem")
BOTH = ("linear", "linear-pooled", "linear-rotation", "linear-mode-rotation", "glem", "ml")
BOTH += ("random", "isotropic", "samples", "pixel-pca", "patch-pca", "pooled", "rotation")
BOTH += ("mode-rotation", "own-modes", "deep", "ce", "sa", "trivial", "mixup", "cutmix")
BOTH += ("sa+linear", "trivial+linear", "mixup+linear", "cutmix+linear", "sa+glem")
AFTER = ("baseline", "isda", "adversarial", "safe", "linear-safe")
CASES = [f"{name} {place}" for name in BOTH for place in ("after", "before")]
CASES += [f"{name} after" for name in AFTER] + ["tangent before"]


def flow_of(name: str, data: Images, small_flow: nfa.ConditionalFlow) -> nfa.ConditionalFlow:
    """The flow of the fixture, or one with a band of labels (`ce`) or with scales (`deep`)."""
    if name not in ("ce", "deep"):
        return small_flow
    torch.manual_seed(0)
    if name == "deep":
        flow = nfa.create_flow("resnet_ms3", num_classes=3, levels=2, steps=2, blocks=1, hidden=8)
        flow.initialize(pixels.levels_to_model(data.levels))
        return flow.eval()
    flow = nfa.create_flow(
        "conv_p4_tiny", num_classes=3, depth=1, hidden=8, prior={"num_modes": 4}, code_rows=8
    )
    x, y = pixels.levels_to_model(data.levels), data.labels
    flow.initialize(x, y)
    flow.prior.set_moments(flow.moments([(x, y)], num_modes=4))
    return flow.eval().requires_grad_(False)


def one_step(case: str, data: Images, small_flow: nfa.ConditionalFlow) -> dict:
    """A sample of the images (uint8) and of what the network sees (in levels), their sums, and the loss."""
    name, place = case.split(" ")
    flow = None if name.startswith("linear") else flow_of(name, data, small_flow)
    arm = make_arm(name, data, flow, Settings(strength=0.5, modes=4, p=0.5, place=place))
    torch.manual_seed(0)
    model = make_classifier("resnet10_quarter", 3)
    arm.start(model, 10)
    levels, y = data.levels[::2], data.labels[::2]
    g = torch.Generator().manual_seed(5)
    seed_globals(g)
    if arm.before is not None:
        levels = arm.before(levels, y, g)
    levels = arm.images(apply_policy(arm.policy, levels), y, g)
    x, target = arm.tensors(normalize(levels), y)
    loss = arm.loss(model, x, target, 3).item()
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
def test_one_step(case, toy_images, small_flow):
    golden = json.loads(FILE.read_text())
    if case.split(" ")[0] in FOREIGN and golden["versions"] != versions():
        pytest.skip(f"recorded with {golden['versions']}")
    found = one_step(case, Images(*toy_images, ["a", "b", "c"]), small_flow)
    wanted = golden["cases"][case]
    assert found["next"] == wanted["next"], "another count of random numbers was drawn"
    # rounding to levels: another CPU's sums may fall on the other side of a half
    assert max(abs(a - b) for a, b in zip(found["images"], wanted["images"], strict=True)) <= 1
    seen = zip(found["seen"], wanted["seen"], strict=True)
    assert max(abs(a - b) for a, b in seen) <= 1.1
    assert found["loss"] == pytest.approx(wanted["loss"], abs=0.02)  # by those levels


def test_every_arm_is_here():
    from benchmarks.cifar.arms import ARMS

    assert {case.split(" ")[0] for case in CASES} >= set(ARMS)


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("timm", "torchvision", "pillow")}


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest

    toy = conftest.make_images(20, seed=1)
    small_flow = conftest._small_flow.__wrapped__(toy)
    data = Images(*toy, ["a", "b", "c"])
    cases = {case: one_step(case, data, conftest.copy.deepcopy(small_flow)) for case in CASES}
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in cases.items())
    text = f'{{"versions": {json.dumps(versions())}, "cases": {{\n{lines}\n}}}}\n'
    FILE.write_text(text)


if __name__ == "__main__":
    main()
