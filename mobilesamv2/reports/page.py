"""A report as one HTML page that needs no other file: claims, tables, figures, masks, and what is behind them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

from mobilesamv2.files import write_text_atomic
from mobilesamv2.reports.figures import CAPTIONS
from mobilesamv2.reports.provenance import provenance
from mobilesamv2.reports.sweep import Run

LARGEST_SIDE = 1600
"""Pixels of the longer side of a mask's picture; a larger one is scaled down."""

LOSSLESS_SIDE = 512
"""Pixels of the longer side up to which a picture is a PNG; a larger one is a JPEG, a tenth of the size."""


PIXELS_PER_INCH = 130
"""Pixels of a page for an inch of a figure, whose letters are then a little smaller than the text."""


@dataclass(frozen=True)
class Panels:
    """Images beside the masks of runs.

    Attributes:
        titles: of the columns.
        rows: the pictures of each row, as addresses of data.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """What a report shows, in its order.

    Attributes:
        title: of the page.
        summary: one line below it.
        tables: cells by title; a first cell that is the label of a run leads to what is behind it.
        figures: of ``write_figures``.
        runs: of which the numbers are.
        labels: of the runs, by name.
        claims: with their outcome, text and measurement.
        notes: by table or figure that they explain, or below the summary under "".
        masks: of the runs; None if they kept none.
        failed: the command of each job without a result.
    """

    title: str
    summary: str
    tables: Mapping[str, Sequence[Sequence[str]]]
    figures: Sequence[Path]
    runs: Sequence[Run]
    labels: Mapping[str, str]
    claims: Sequence[Any] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    masks: Panels | None = None
    failed: Mapping[str, str] = field(default_factory=dict)


def write_page(page: Page, path: Path) -> None:
    """Render a page and write it.

    Raises:
        OSError: if it can't be written.
        ValueError: if the record of a run's command can't be read.
    """
    environment = Environment(
        loader=PackageLoader("mobilesamv2.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    figures = [(CAPTIONS[png.stem], _vector(png.with_suffix(".svg")), _shown_width(png)) for png in page.figures]
    shared, behind = provenance(page.runs, page.labels)
    anchors = {one.label: f"run-{number}" for number, one in enumerate(behind, 1)}
    template = environment.get_template("report.html")
    text = template.render(page=page, figures=figures, shared=shared, behind=behind, anchors=anchors)
    write_text_atomic(path, text + "\n")


def mask_panels(titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]]) -> Panels:
    """Return pictures for a page.

    Args:
        titles: of the columns, of one or several lines.
        rows: RGB uint8 (H, W, 3) each.
    """
    return Panels(
        [", ".join(title.splitlines()) for title in titles], [[_picture(image) for image in row] for row in rows]
    )


def _picture(pixels: np.ndarray) -> str:
    """Encode an image of (H, W, 3) uint8 RGB."""
    image, content = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    kind = "png" if max(image.size) <= LOSSLESS_SIDE else "jpeg"
    image.save(content, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def _shown_width(png: Path) -> int:
    """Return the width of a figure on a page, pixels: all figures have letters of one size."""
    with Image.open(png) as image:
        return round(image.width * PIXELS_PER_INCH / image.info["dpi"][0])


def _vector(svg: Path) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode()}"
