"""create_flow and list_flows: flows by name, in timm's idiom ``architecture.tag``."""

import fnmatch
from typing import Any

from .. import hub
from ..config import FlowConfig
from .architectures import ARCHITECTURES
from .model import ConditionalFlow

CONFIG_KEYS = (
    "input_size", "num_classes", "bits", "code_rows", "prior", "class_names", "info", "latent",
)  # fmt: skip
DEFAULTS: dict[str, Any] = {"input_size": (3, 32, 32), "num_classes": 10}
Patterns = str | list[str]


def list_flows(
    filter: Patterns = "", pretrained: bool = False, exclude_filters: Patterns = ""
) -> list[str]:
    """Lists the names of the architectures, or with `pretrained` of the bundled flows, sorted.

    Filters are a wildcard pattern or several; one without a tag, as "linear", matches every tag.

    >>> list_flows("conv_p4*")
    ['conv_p4_base', 'conv_p4_small', 'conv_p4_tiny']
    """
    names = hub.bundled_flows() if pretrained else sorted(ARCHITECTURES)
    wanted = [n for n in names if not filter or _matches(n, filter)]
    return [n for n in wanted if not _matches(n, exclude_filters)]


def _matches(name: str, patterns: Patterns) -> bool:
    every = [p for p in ([patterns] if isinstance(patterns, str) else patterns) if p]
    every += [f"{p}.*" for p in every if "." not in p]
    return any(fnmatch.fnmatchcase(name, p) for p in every)


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
        name: of `list_flows()`; if pretrained with its ``.tag``, unless there is only one.
        input_size, num_classes, bits: of `FlowConfig`; (3, 32, 32), 10 and 8 unless given.
        **kwargs: others of `FlowConfig`, and arguments of the network (depth, hidden, ...).

    >>> create_flow("conv_p4_tiny", num_classes=3, depth=2).dim
    3072
    """
    named = {"input_size": input_size, "num_classes": num_classes, "bits": bits}
    given = {k: v for k, v in named.items() if v is not None} | kwargs
    if pretrained:
        if given:
            raise ValueError(f"a pretrained flow brings its own {', '.join(given)}; leave them out")
        return ConditionalFlow.from_pretrained(_with_tag(name))
    if name in hub.bundled_flows():
        raise ValueError(f"{name} is a pretrained flow: pass pretrained=True for it")
    own = {k: given.pop(k) for k in CONFIG_KEYS if k in given}
    return ConditionalFlow.from_config(FlowConfig(name, network=given, **DEFAULTS | own))


def _with_tag(name: str) -> str:
    bundled = hub.bundled_flows()
    tagged = [n for n in bundled if name in (n, n.split(".", 1)[0])]
    if len(tagged) == 1:
        return tagged[0]
    known = ", ".join(bundled)
    raise ValueError(f"no pretrained flow named {name!r}{hub.similar(name)}; known: {known}")
