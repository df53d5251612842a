"""The one style of the figures: sizes, colours, ticks that do not touch, and the formats that are written."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import style
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from mobilesamv2.files import atomic_write

STYLE = Path(__file__).with_name("paper.mplstyle")

COLUMN, PAGE = 3.4, 6.9
"""Inches of one column of a paper, and of both."""

MARKERS = "osD^vPX*"
"""Shapes, so that runs differ in more than their colours."""

FORMATS = ("png", "pdf", "svg")
"""The first one is what a page shows; the others are for papers."""

_NO_DATE = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def write_figure(draw: Callable[[], Figure], path: Path) -> Path:
    """Draw a figure in the style, write it as PNG, PDF and SVG, and return the path of the PNG.

    The same results give the same files.

    Args:
        draw: makes the figure.
        path: of the PNG; the others lie beside it.

    Raises:
        OSError: if a file can't be written.
    """
    with style.context(STYLE):
        figure = draw()
        figure.draw_without_rendering()  # lays it out, once for all formats
        figure.set_layout_engine("none")
        for kind in FORMATS:
            with atomic_write(path.with_suffix(f".{kind}")) as partial:
                figure.savefig(partial, format=kind, metadata=_NO_DATE[kind])
    return path


def run_style(number: int) -> tuple[str, str]:
    """Return the colour and the marker of the run of a number; no two of the first fifty have both in common."""
    colours = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    turn, place = divmod(number, len(colours))
    return colours[place], MARKERS[(turn + place) % len(MARKERS)]


def wrapped(text: str, width: int) -> str:
    """Return a label in at most three lines."""
    return "\n".join(textwrap.wrap(text, width, max_lines=3, placeholder=" ...", break_long_words=True)) or text


def set_log_ticks(axis: Axis, low: float, high: float, most: int = 5) -> None:
    """Set the ticks of a logarithmic axis: a few round numbers, written out.

    Args:
        axis: whose limits are set.
        low: its lower limit, above 0.
        high: its upper limit.
        most: number of ticks.
    """
    decades = [10.0**n for n in range(-16, 17)]
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * d for d in decades for f in factors if low <= f * d <= high]
        if len(ticks) <= most:
            break
    if len(ticks) < 2:  # less than a factor of 5 from end to end
        ticks = [tick for tick in MaxNLocator(most - 1).tick_values(low, high) if low <= tick <= high]
    set_ticks(axis, ticks[:: -(-len(ticks) // most)], plain_number)


def set_ticks(axis: Axis, ticks: Sequence[float], text: Callable[[float], str]) -> None:
    """Set ticks and what is written at them."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def plain_number(value: float) -> str:
    """Return a number as in a text: 0.5, 200, 10,000; as a power of ten where that would be long."""
    return f"{value:.0e}" if value >= 1e7 or 0 < value < 1e-3 else f"{value:,.10g}"
