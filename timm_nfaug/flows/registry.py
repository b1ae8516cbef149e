"""create_flow and list_flows: flows by name, in timm's idiom ``architecture.tag``."""

from __future__ import annotations

import fnmatch
from typing import Any

from .. import hub
from .._utils.checks import closest
from ..config import FlowConfig
from .architectures import ARCHITECTURES
from .model import ConditionalFlow


def list_flows(
    filter: str | list[str] = "", pretrained: bool = False, exclude_filters: str | list[str] = ""
) -> list[str]:
    """Names of architectures, or with `pretrained` of the bundled flows, sorted; as timm's `list_models`.

    Args:
        filter: a wildcard pattern such as ``"conv_p4*"``, or several, one of which must match. A pattern without a tag
            matches every tag: ``"linear"`` also ``linear.cifar10_jpeg``.
        exclude_filters: patterns of names to leave out.
    """
    names = hub.bundled_flows() if pretrained else sorted(ARCHITECTURES)
    return [
        n for n in names if (not filter or _matches(n, filter)) and not _matches(n, exclude_filters)
    ]


def _matches(name: str, patterns: str | list[str]) -> bool:
    every = [patterns] if isinstance(patterns, str) else patterns
    return any(
        fnmatch.fnmatchcase(name, p) or ("." not in p and fnmatch.fnmatchcase(name, f"{p}.*"))
        for p in every
        if p
    )


def create_flow(
    name: str,
    pretrained: bool = False,
    input_size: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    bits: int | None = None,
    **kwargs: Any,
) -> ConditionalFlow:
    """Makes a flow, with random weights or pretrained.

    Args:
        name: an architecture of `list_flows()`, with ``.tag`` when pretrained (the only bundled tag may be left out).
        pretrained: load the bundled flow; its config then gives all else, and other arguments are refused.
        input_size: (C, H, W) of the images; (3, 32, 32) unless given.
        num_classes: K; 10 unless given.
        bits: dequantisation depth; 8 unless given.
        **kwargs: `code_rows`, `prior` (dict of a, c, num_modes, low_rank), `class_names`, `info`; all others go to the
            network (depth, hidden, clamp, ...).
    """
    if pretrained:
        named = {"input_size": input_size, "num_classes": num_classes, "bits": bits}
        given = [k for k, v in named.items() if v is not None] + list(kwargs)
        if given:
            raise ValueError(f"a pretrained flow brings its own {', '.join(given)}; leave them out")
        return ConditionalFlow.from_pretrained(_with_tag(name))
    if name not in ARCHITECTURES:
        if name in hub.bundled_flows():
            raise ValueError(f"{name} is a pretrained flow: pass pretrained=True for it")
        raise ValueError(
            f"unknown flow {name!r}{closest(name, [*ARCHITECTURES, *hub.bundled_flows()])}; known: {', '.join(list_flows())}"
        )
    own = {k: kwargs.pop(k) for k in ("code_rows", "prior", "class_names", "info") if k in kwargs}
    size, classes, depth = (
        input_size or (3, 32, 32),
        10 if num_classes is None else num_classes,
        8 if bits is None else bits,
    )
    return ConditionalFlow.from_config(
        FlowConfig(name, size, classes, depth, network=kwargs, **own)
    )


def _with_tag(name: str) -> str:
    """A bundled name; the architecture alone stands for its only tag."""
    bundled = hub.bundled_flows()
    if name in bundled:
        return name
    tagged = [n for n in bundled if n.split(".", 1)[0] == name]
    if len(tagged) == 1:
        return tagged[0]
    known = ", ".join(tagged or bundled)
    what = (
        f"{name!r} has several tags"
        if tagged
        else f"no pretrained flow named {name!r}{closest(name, bundled)}"
    )
    raise ValueError(f"{what}; known: {known}")
