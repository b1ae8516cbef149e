"""How every chart of the pages is drawn: white, 8 inches for 800 pixels, text of 9 points or more.

Colour-blind readers can tell the colours apart: Okabe & Ito, "Color Universal Design" (2008).
"""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

WIDTH = 8.0  # inches; pages show 100 pixels an inch
DPI = 140  # stored finer than shown, for dense screens
TEXT = 9  # points, the smallest
COLOURS = BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#9F5585"
PALETTE = 64  # lines and letters in few colours: a third of the bytes

STYLE = {
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.titlelocation": "left",
    "axes.labelsize": TEXT,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT,
    "legend.fontsize": TEXT,
    "legend.title_fontsize": TEXT,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "figure.facecolor": "white",
    "figure.titlesize": TEXT + 3,
    "figure.titleweight": "bold",
}


def render(draw: Callable[[], Figure]) -> Image.Image:
    """Draws a figure in the style of the pages, as a picture of few colours.

    >>> render(lambda: chart(1, "Which is best?")).size
    (1120, 140)
    """
    drawn = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        draw().savefig(drawn, format="png", dpi=DPI)
    return Image.open(drawn).convert("RGB").quantize(PALETTE)


def plain(axis: Axis) -> None:
    """Writes the ticks of a log axis as 0.01, 1, 1,000: the exponents of 10 are too small to read."""
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def chart(height: float, question: str) -> Figure:
    """Makes an empty figure of `height` inches whose title is the question that it answers."""
    figure = Figure((WIDTH, height), layout="constrained")
    figure.suptitle(question, x=0.01, ha="left")
    return figure
