"""Lists flows with their figures: ``timm-nfaug flows [NAME ...]``."""

import argparse
import json
from typing import Any

from .. import hub
from ..stored import CONFIG_NAME, WEIGHTS_NAME, read_config

WITHOUT_FILE = [
    {"name": hub.LINEAR, "about": "modes of your own data: no file"},
    {"name": hub.COSINE, "about": "smooth shading, modes of no data: no file"},
]
COLUMNS = ("name", "size", "classes", "data", "bits/dim", "class accuracy", "file")


def describe(name: str) -> dict[str, Any]:
    """What is known of a flow: a bundled name, a directory, or an id on the Hub.

    >>> describe("conv_p4_tiny.digits")["size"]
    [1, 8, 8]

    Raises:
        ValueError, OSError: there is no such flow, or its config.json is damaged.
    """
    folder = hub.resolve(name)
    config, _ = read_config(folder / CONFIG_NAME)
    metrics = config.info.get("metrics", {})
    own = {"latent": config.latent, "nats_per_dim": metrics.get("nats_per_dim")}
    return {
        "name": name,
        "size": list(config.input_size),  # (C, H, W)
        "classes": config.num_classes,
        "data": config.info.get("data"),
        "bits_per_dim": metrics.get("bits_per_dim"),
        "class_accuracy": metrics.get("class_accuracy"),
        "file_bytes": (folder / WEIGHTS_NAME).stat().st_size,
        **(own if config.latent else {}),
    }


def _row(flow: dict[str, Any]) -> list[str]:
    bits, accuracy, nats = flow["bits_per_dim"], flow["class_accuracy"], flow.get("nats_per_dim")
    of = f", latents of {flow['latent']['size']} px" if "latent" in flow else ""
    bits = f"{bits:.2f}" if bits is not None else "-" if nats is None else f"{nats:.2f} nats"
    return [
        flow["name"],
        " x ".join(map(str, flow["size"])) + of,
        str(flow["classes"]),
        flow["data"] or "not stated",
        bits,
        "-" if accuracy is None else f"{accuracy:.1%}",
        f"{flow['file_bytes'] / 1e6:.1f} MB",
    ]


def _table(flows: list[dict[str, Any]]) -> str:
    rows = [list(COLUMNS), *map(_row, flows)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows]
    lines[1:1] = [f"{known['name']:{widths[0]}}  {known['about']}" for known in WITHOUT_FILE]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Prints the table, or JSON.

    >>> main(["conv_p4_tiny.digits"])  # doctest: +ELLIPSIS
    name ...
    linear               modes of your own data: no file
    cosine               smooth shading, modes of no data: no file
    conv_p4_tiny.digits  1 x 8 x 8  10 ...
    """
    parser = argparse.ArgumentParser(
        "timm-nfaug flows", description="Lists flows with their figures."
    )
    known = "directories of flows or ids on the Hub (default: those that come with the package)"
    parser.add_argument("names", nargs="*", metavar="NAME", help=known)
    parser.add_argument("--json", action="store_true", help="a list of objects, for programs")
    args = parser.parse_args(argv)
    try:
        flows = [describe(name) for name in args.names or hub.bundled_flows()]
    except (ValueError, OSError) as e:
        parser.exit(1, f"error: {e}\n")
    print(json.dumps([*WITHOUT_FILE, *flows], indent=1) if args.json else _table(flows))
