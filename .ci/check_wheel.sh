#!/usr/bin/env bash
# Checks that a wheel is small and works alone: a fresh environment, away from the checkout, offline flows.
#   .ci/check_wheel.sh [wheel]      without a wheel, builds one from this checkout
set -euo pipefail

python=${PYTHON:-python3}
limit=16000000  # bytes
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

"$python" -m venv "$tmp/venv"
if [ $# -gt 0 ]; then
    wheel=$(realpath "$1")
else
    rm -rf "$root/build"  # setuptools would pack what an older build left there
    "$tmp/venv/bin/python" -m pip wheel -q --no-deps -w "$tmp/dist" "$root"
    wheel=$(echo "$tmp"/dist/*.whl)
fi

size=$(wc -c < "$wheel")
echo "$(basename "$wheel"): $size bytes"
[ "$size" -le "$limit" ] || { echo "the wheel may have at most $limit bytes" >&2; exit 1; }

cd "$tmp"
venv/bin/python -m pip install -q "$wheel"
HF_HUB_OFFLINE=1 venv/bin/timm-nfaug flows
HF_HUB_OFFLINE=1 venv/bin/python -I - <<'PY'
import sys
from importlib.metadata import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import timm_nfaug as nfa

assert Path(nfa.__file__).resolve().is_relative_to(Path(sys.prefix).resolve()), nfa.__file__
shipped = files("timm_nfaug")
own = {"timm_nfaug", "train_flow", ".."}  # the last: the command timm-nfaug, in bin/
extra = {f.parts[0] for f in shipped if not f.parts[0].endswith(".dist-info")} - own
assert not extra, f"the wheel must ship timm_nfaug and train_flow only, not {extra}"  # benchmarks, tests
for pattern in ("train_flow/configs/*.yaml", "timm_nfaug/py.typed"):
    assert any(f.match(pattern) for f in shipped), f"{pattern} is missing"

names = nfa.list_flows(pretrained=True)
assert names, "no bundled flow"
noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
for name in names:
    flow = nfa.create_flow(name, pretrained=True)
    assert all(p.isfinite().all() for p in flow.parameters()), name
    aug = nfa.NFAugment.from_pretrained(name, p=1.0)
    pixels = noise[:, :, : flow.config.input_size[0]]
    pil, tensor = Image.fromarray(pixels.squeeze()), torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (pil, tensor):
        out, _ = aug(image, 0)
        assert type(out) is type(image), (name, type(out))
        assert np.asarray(out).shape == np.asarray(image).shape, name
        assert (np.asarray(out) != np.asarray(image)).any(), f"{name} left the image as it was"
    print("ok", name)
PY
