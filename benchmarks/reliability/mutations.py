"""The kinds of damage to a flow: to its config.json, then to its model.safetensors."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

import timm_nfaug as nfa

CONFIG, WEIGHTS = "config.json", "model.safetensors"

Mutation = Callable[[Path, random.Random], None]
MUTATIONS: dict[str, Mutation] = {}

NASTY: list[Any] = [
    None, True, False, "", "no", "\ud800", "x" * 10_000, [], {}, [[]], [1, 2], {"a": 1}, [None] * 3,
    -1, 0, 0.0, -0.5, 1.5, 6000, 10**9, 2**31, 2**63, 10**25, 1e308, -1e308, 1e-300, 5e-324,
    float("nan"), float("inf"), float("-inf"), [10**9] * 3, [3, 10**9, 8], [0, 8, 8], [3, 8, 8, 8],
    ["a"] * 1000, {"depth": 6000}, {"num_modes": 10**9}, [1] * 2000,
]  # fmt: skip
NUMBERS = (torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e20, 1e-40, 1e9, -1e5, 1e4, 80)
ARGUMENTS = (
    "depth", "hidden", "blocks", "heads", "levels", "steps", "patch", "clamp", "whiten", "a", "c",
    "num_modes", "low_rank", "data", "license", "training", "metrics", "depht",
)  # fmt: skip


# -- config.json -----------------------------------------------------------------------------------


def kind(mutation: Mutation) -> Mutation:
    """Adds a function to the kinds of damage, under its name.

    >>> "config_cut" in MUTATIONS
    True
    """
    MUTATIONS[mutation.__name__] = mutation
    return mutation


def _values(directory: Path) -> dict[str, Any]:
    return json.loads((directory / CONFIG).read_text())


def _nasty(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(NASTY))


def _put(directory: Path, values: Any) -> None:
    (directory / CONFIG).write_text(json.dumps(values))


def _places(values: Any) -> list[tuple[Any, Any]]:
    """Every place in nested dicts and lists, as the container and the key."""
    keys = values if isinstance(values, dict) else range(len(values))
    inner = [values[k] for k in keys if isinstance(values[k], (dict, list))]
    return [(values, k) for k in keys] + [place for v in inner for place in _places(v)]


@kind
def config_value(directory, rng):
    values = _values(directory)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        container, key = rng.choice(_places(values))
        container[key] = _nasty(rng)
    _put(directory, values)


@kind
def config_argument(directory, rng):
    values = _values(directory)
    part = rng.choice(("network", "prior", "info"))
    values[part][rng.choice(ARGUMENTS)] = _nasty(rng)
    _put(directory, values)


@kind
def config_number(directory, rng):
    values = _values(directory)
    places = [(c, k) for c, k in _places(values) if isinstance(c[k], (int, float))]
    container, key = rng.choice(places)
    container[key] = rng.choice((0, -1, 1, 2, 3, 7, 6000, 10**6, 10**9, 2**63, 1e308, 1e-9, 0.5))
    _put(directory, values)


@kind
def config_architecture(directory, rng):
    name = rng.choice([*nfa.list_flows(), "x", "", 3])
    _put(directory, _values(directory) | {"architecture": name})


@kind
def config_lacks(directory, rng):
    values = _values(directory)
    container, key = rng.choice(_places(values))
    del container[key]
    _put(directory, values)


@kind
def config_more(directory, rng):
    container, _ = rng.choice(_places(values := _values(directory)))
    container.update(more=1) if isinstance(container, dict) else container.append(_nasty(rng))
    _put(directory, values)


@kind
def config_version(directory, rng):
    version = rng.choice((0, 2, 99, -1, "1", None, True, 1.0, [1], 10**30))
    _put(directory, _values(directory) | {"format_version": version})


@kind
def config_digest(directory, rng):
    digest = rng.choice((None, 3, "", "0" * 64, [], {}, "\ud800", "é" * 10))
    _put(directory, _values(directory) | {"weights_sha256": digest})


@kind
def config_kind(directory, rng):
    _put(directory, rng.choice(([], 3, "text", None, True, [{}], {}, {"library": "timm_nfaug"})))


@kind
def config_nested(directory, rng):
    deep = rng.choice(("[", '{"a":')) * rng.choice((20, 900, 100_000))
    text = json.dumps(_values(directory))
    (directory / CONFIG).write_text(rng.choice((deep, text[:-1] + ', "info": ' + deep)))


@kind
def config_nested_closed(directory, rng):
    n = rng.choice((18, 500, 100_000))
    text = json.dumps(_values(directory))[:-1] + ', "more": ' + "[" * n + "]" * n + "}"
    (directory / CONFIG).write_text(text)


@kind
def config_twice(directory, rng):
    text = json.dumps(_values(directory))
    key = rng.choice(list(_values(directory)))
    (directory / CONFIG).write_text(text[:-1] + f', "{key}": 1}}')


@kind
def config_digits(directory, rng):
    text = '{"num_classes": ' + "9" * rng.choice((30, 5000, 1_000_000)) + "}"
    (directory / CONFIG).write_text(text)


@kind
def config_large(directory, rng):
    (directory / CONFIG).write_bytes(b" " * (2**24 + 1) if rng.random() < 0.1 else b" " * 10**5)


@kind
def config_names(directory, rng):
    n = rng.choice((1, 2, 3, 100_000))
    names = rng.choice(("abc", ["a"] * n, list(range(n)), [["a"]] * n, {"a": 1}, [None] * n))
    _put(directory, _values(directory) | {"class_names": names})


@kind
def config_encoding(directory, rng):
    text = json.dumps(_values(directory))
    marked = b"\xef\xbb\xbf" + text.encode(), b"\xff" + text.encode()
    (directory / CONFIG).write_bytes(rng.choice((text.encode("utf-16"), *marked)))


@kind
def config_cut(directory, rng):
    data = (directory / CONFIG).read_bytes()
    (directory / CONFIG).write_bytes(data[: rng.randrange(len(data))])


@kind
def config_flipped(directory, rng):
    _flip(directory / CONFIG, rng)


@kind
def config_of_another(directory, rng):
    values = _values(directory) | rng.choice(({"num_classes": 3}, {"input_size": [1, 8, 8]}))
    if rng.random() < 0.5:
        values.pop("weights_sha256")
    _put(directory, values | {"class_names": []})


@kind
def file_odd(directory, rng):
    """Nothing, a directory, a broken link, an empty file or garbage where a file should be."""
    path = directory / rng.choice((CONFIG, WEIGHTS))
    path.unlink()
    make: list[Callable[[], Any]] = [
        lambda: None,
        path.mkdir,
        lambda: path.symlink_to(directory / "nothing"),
        path.touch,
        lambda: path.write_bytes(rng.randbytes(rng.randrange(1, 5000))),
    ]
    rng.choice(make)()


# -- model.safetensors -----------------------------------------------------------------------------


def _flip(path: Path, rng: random.Random, low: int = 0, high: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(low, high or len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _sign(directory: Path, rng: random.Random) -> None:
    """Leaves the digest as it was, takes it away, or puts the one of the damaged weights there."""
    try:
        values, choice = _values(directory), rng.choice(("stale", "none", "own", "own"))
    except ValueError:
        return
    digest = hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()
    if choice != "stale":
        values["weights_sha256"] = digest
    if choice == "none":
        del values["weights_sha256"]
    _put(directory, values)


def _tensors(directory: Path, rng: random.Random, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load((directory / WEIGHTS).read_bytes())
    edit(tensors)
    (directory / WEIGHTS).write_bytes(save(tensors))
    _sign(directory, rng)


def _pick(tensors: dict[str, Tensor], rng: random.Random) -> str:
    return rng.choice(sorted(k for k, v in tensors.items() if v.numel()))


@kind
def weights_numbers(directory, rng):
    def edit(tensors):
        for _ in range(rng.choice((1, 3))):
            flat = tensors[_pick(tensors, rng)].view(-1)
            flat[rng.randrange(len(flat))] = rng.choice(NUMBERS)

    _tensors(directory, rng, edit)


@kind
def weights_scaled(directory, rng):
    factor = rng.choice((-1.0, 0.0, 1e-30, 1e-6, 1e3, 1e6, 1e12, 1e30))
    _tensors(directory, rng, lambda t: t[_pick(t, rng)].mul_(factor))


@kind
def weights_singular(directory, rng):
    def edit(tensors):
        keys = [k for k, v in tensors.items() if v.ndim == 2 and v.shape[0] == v.shape[1]]
        for key in [rng.choice(keys)] if keys else []:
            w = tensors[key]
            w[0] = w[1] * (1 + rng.choice((0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)))
            if rng.random() < 0.3:
                w.mul_(rng.choice((0.0, 1e-20)))

    _tensors(directory, rng, edit)


@kind
def weights_random(directory, rng):
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    scale = rng.choice((0.1, 1.0, 30.0))
    _tensors(directory, rng, lambda t: t[_pick(t, rng)].normal_(generator=g).mul_(scale))


@kind
def weights_dtype(directory, rng):
    names = ("int64", "int8", "uint8", "bool", "float16", "bfloat16", "float64")
    dtype = getattr(torch, rng.choice(names))

    def edit(tensors):
        for key in [_pick(tensors, rng)] if rng.random() < 0.5 else list(tensors):
            tensors[key] = tensors[key].to(dtype)

    _tensors(directory, rng, edit)


@kind
def weights_missing(directory, rng):
    def edit(tensors):
        for _ in range(rng.choice((1, 2, len(tensors)))):
            tensors.popitem()

    _tensors(directory, rng, edit)


@kind
def weights_more(directory, rng):
    more = lambda tensors: tensors.update({rng.choice(("more", "", "a" * 9999)): torch.ones(2)})
    _tensors(directory, rng, more)


@kind
def weights_shape(directory, rng):
    def edit(tensors):
        key = _pick(tensors, rng)
        v, flat = tensors[key], tensors[key].view(-1)
        tensors[key] = rng.choice((v[None], flat, flat[:1], flat[:0], flat.repeat(2))).clone()

    _tensors(directory, rng, edit)


@kind
def weights_swapped(directory, rng):
    def edit(tensors):
        a, b = _pick(tensors, rng), _pick(tensors, rng)
        tensors[a], tensors[b] = tensors[b], tensors[a]

    _tensors(directory, rng, edit)


@kind
def weights_cut(directory, rng):
    data = (directory / WEIGHTS).read_bytes()
    cut = rng.choice((data[: rng.randrange(len(data))], data[:-1], data[:8], data + b"x" * 100))
    (directory / WEIGHTS).write_bytes(cut)
    _sign(directory, rng)


@kind
def weights_flipped(directory, rng):
    _flip(directory / WEIGHTS, rng)
    _sign(directory, rng)


@kind
def header_flipped(directory, rng):
    size = int.from_bytes((directory / WEIGHTS).read_bytes()[:8], "little")
    _flip(directory / WEIGHTS, rng, 0, 8 + size)
    _sign(directory, rng)


@kind
def header_length(directory, rng):
    data = (directory / WEIGHTS).read_bytes()
    size = rng.choice((0, 1, 2, len(data), 10**6, 10**8, 2**40, 2**63, 2**64 - 1))
    (directory / WEIGHTS).write_bytes(size.to_bytes(8, "little") + data[8:])
    _sign(directory, rng)


@kind
def header_value(directory, rng):
    data = (directory / WEIGHTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for _ in range(rng.choice((1, 2))):
        container, key = rng.choice(_places(header))
        odd = rng.choice(("F16", "F64", "I32", "F8_E4M3", [2**62] * 8, [0, 2**63]))
        container[key] = rng.choice((odd, _nasty(rng)))
    text = json.dumps(header).encode()
    (directory / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    _sign(directory, rng)


@kind
def save_cut_short(directory, rng):
    """New weights under an older config: not damaged, so it is to load."""
    values = _values(directory) | {"class_names": [], "info": {"data": "older"}}
    _put(directory, values | {"weights_sha256": "0" * 64})


@kind
def nothing(directory, rng):
    """No damage at all."""
