"""What is pinned exactly: names, flags, configs, keys, what a string means.

A later version may add to it, not take away.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from safetensors import safe_open

import timm_nfaug as nfa

from .inputs import CACHE, FLOWS, MODES, Pictures, augment, flow, flow_names, levels

GOOD = (
    "nfa", "nfa-s0.5-k32-p0.5", "nfa-s1", "nfa-k3-mpca", "nfa-maxes-p1", "nfa-misotropic-s2.5e-1",
    "nfa-lposterior", "nfa-lgiven-s0-p0", "nfa-p0.25-k4-s0.75-maxes-lposterior",
    "nfa-lnone",
)  # fmt: skip
BAD = (
    "", "rand-m9", "nfas0.5", "nfa-", "nfa-s", "nfa-x1", "nfa-s0.5-s1", "nfa-k2.5", "nfa-shigh",
    "nfa-mfoo", "nfa-m0.5", "nfa-lfoo", "nfa-p2", "nfa-s-1", "nfa-k0", "nfa-k33", "nfa-p-0.1",
)  # fmt: skip
ATTRIBUTES = ("strength", "modes", "p", "kind", "labels", "mean", "std", "seed")


def covers(found, recorded) -> bool:
    """Whether `found` holds all that is recorded: more keys and names are no fault."""
    if isinstance(recorded, dict):
        return isinstance(found, dict) and all(
            k in found and covers(found[k], v) for k, v in recorded.items()
        )
    if isinstance(recorded, list) and recorded and all(isinstance(v, str) for v in recorded):
        return isinstance(found, list) and set(recorded) <= set(found)
    return type(found) is type(recorded) and found == recorded


def flags() -> dict[str, dict]:
    """Each option that `add_args` adds."""
    parser = argparse.ArgumentParser(add_help=False)
    nfa.add_args(parser)
    return {a.dest: option(a) for a in parser._actions}


def option(action: argparse.Action) -> dict:
    return {
        "names": list(action.option_strings), "default": action.default, "nargs": action.nargs,
        "const": action.const, "metavar": action.metavar,
        "choices": None if action.choices is None else list(action.choices),
    }  # fmt: skip


def strings() -> dict[str, dict | str]:
    """What each string of timm's idiom makes, or the kind of its error."""
    found, linear = {}, nfa.ConditionalFlow.from_pretrained("linear.cifar10")
    for text in (*GOOD, *BAD):
        try:
            t = nfa.nf_augment_transform(text, linear)
        except ValueError:
            found[text] = "ValueError"
        else:
            found[text] = {name: getattr(t, name) for name in ATTRIBUTES} | {"repr": repr(t)}
    t = nfa.nf_augment_transform("nfa-s1", str(FLOWS / "linear"), mean=(0.5,), std=(0.25,), seed=3)
    found["by name"] = {name: getattr(t, name) for name in ("modes", "seed")} | {
        "mean": list(t.mean)
    }
    return found


def refused_flags() -> dict[str, bool]:
    """Whether the parser refuses these at once."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    nfa.add_args(parser)
    found = {}
    for words in (
        ["--aug", "nfa-q1"],
        ["--nfa-place", "moon"],
        ["--aug", "rand"],
        ["--aug", "nfa-s1"],
    ):
        try:
            parser.parse_args(words)
        except argparse.ArgumentError:
            found[" ".join(words)] = True
        else:
            found[" ".join(words)] = False
    return found


def stored(folder: Path) -> dict:
    """config.json and the tensors of a flow's directory."""
    with safe_open(folder / "model.safetensors", "pt") as f:
        tensors = {k: [f.get_slice(k).get_dtype(), f.get_slice(k).get_shape()] for k in f.keys()}  # noqa: SIM118
    return {"config": json.loads((folder / "config.json").read_text()), "tensors": tensors}


def saved_again() -> dict[str, dict]:
    """What `save_pretrained` writes of each flow on disk: config, keys and shapes of its state."""
    found = {}
    for name in flow_names():
        with tempfile.TemporaryDirectory() as folder:
            one = flow(name)
            one.save_pretrained(Path(folder) / name, half=name == "conv_p4_base")
            found[name] = stored(Path(folder) / name)
            found[name]["files"] = sorted(p.name for p in (Path(folder) / name).iterdir())
            assert one.state_dict().keys() == found[name]["tensors"].keys()
    return found


def architectures() -> dict[str, dict]:
    """The default config of every architecture."""
    return {name: nfa.create_flow(name).config.to_dict() for name in nfa.list_flows()}


def listed() -> dict[str, list[str]]:
    return {
        "all": nfa.list_flows(), "pretrained": nfa.list_flows(pretrained=True),
        "conv": nfa.list_flows("conv_p4*"),
        "untagged": nfa.list_flows("linear", pretrained=True),
        "without": nfa.list_flows("conv*", exclude_filters=["*base", "*tiny"]),
    }  # fmt: skip


def attributes() -> dict[str, dict]:
    """Of flows and transforms, as other people's code reads them."""
    found = {}
    for name in flow_names():
        one = flow(name)
        names = ("num_classes", "dim", "is_linear")
        found[name] = {k: getattr(one, k) for k in names} | {
            "dtype": str(one.dtype),
            "device": str(one.device),
        }
        found[name] |= {k: getattr(one.prior, k) for k in ("a", "c", "low_rank", "num_modes")}
        found[name]["repr"] = repr(augment(name, strength=0.5, p=0.25))
    return found


def cache_index() -> dict[str, dict]:
    """The index of a cache that is built now, and that the one on disk opens with its flow."""
    with tempfile.TemporaryDirectory() as folder:
        t = nfa.NFAugment(flow("conv_p4_tiny"), modes=MODES, labels="given")
        cache = nfa.NFACache.build(t, Pictures(levels(6, seed=3)), folder)
        index = json.loads((Path(folder) / "index.json").read_text())
        files = sorted(p.name for p in Path(folder).iterdir() if not p.name.startswith("."))
    for name in ("stamps", "shards"):  # when it was written, and a checksum of rounded floats
        del index[name]
    kept = nfa.NFACache(CACHE, t.flow)
    known = {"kind": kept.kind, "modes": kept.modes, "count": len(kept)}
    return {"built": index, "files": files, "kept": known, "length": len(cache)}


def copies_folder() -> dict[str, list[str]]:
    """Where copies are kept: names of folders and files, by which a later version finds them."""
    with tempfile.TemporaryDirectory() as folder:
        data = nfa.NFAugmentedDataset(
            Pictures(levels(3)), augment("linear", p=0.5), copies=2, cache=folder, seed=7
        )
        for i in range(len(data)):
            data[i]
        return {
            "files": sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*.png")),
            "length": [len(data)],
        }


FACTS = {
    "names": lambda: sorted(nfa.__all__),
    "flags": flags,
    "refused_flags": refused_flags,
    "strings": strings,
    "listed": listed,
    "architectures": architectures,
    "attributes": attributes,
    "saved_again": saved_again,
    "cache_index": cache_index,
    "copies_folder": copies_folder,
}


def compute(name: str):
    """One fact as it comes back from JSON."""
    return json.loads(json.dumps(FACTS[name]()))
