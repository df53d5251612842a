"""The figures of ``lvis_scale.py`` as the documentation states them, and hours on LVIS by published times."""

from __future__ import annotations

from collections.abc import Mapping

from result_pages import RESULTS, ROOT, digits, paragraph, read_figures, write_figures, write_pages

from mobilesamv2.reports.table import as_markdown

LVIS_SCALE = RESULTS / "lvis_scale.csv"
PAGES = [ROOT / "docs" / "evaluate.md"]
LVIS_IMAGES = 19_809
GPUS = 64

PUBLISHED_MS = {
    "grid of 64 x 64, 3 masks": 8 + 6464,
    "grid of 32 x 32, 3 masks": 8 + 1616,
    "object-aware, at most 320 boxes": 8 + 97,
}
"""Of an image on one GPU, TinyViT's encoder, prompts and mask decoder, ms: published, not measured here.

Source: MobileSAM, table 3 (encoder); MobileSAMv2, table 2 (the rest)."""


def gpu_hours(name: str, own_ms: float = 0) -> float:
    """Return the hours of one GPU for LVIS's validation split by a sampler, with so many ms of an image beside."""
    return (PUBLISHED_MS[name] + own_ms) * LVIS_IMAGES / 3.6e6


def write_lvis_scale(figures: Mapping[str, float]) -> None:
    """Write the file of results, and the guide's texts."""
    write_figures(LVIS_SCALE, figures)
    write_pages(PAGES, stated())


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return texts(read_figures(LVIS_SCALE))


def texts(figures: Mapping[str, float]) -> dict[str, str]:
    """Return the texts of the guide by their names, of figures by theirs."""
    one = {name: digits(value) for name, value in figures.items()}
    memory = {name: f"{figures[name]:,.0f}" for name in ("first MB", "last MB", "peak MB")}
    all_masks = figures["saved KB an image"] * LVIS_IMAGES / 1e6
    measured = (
        f"Measured on {figures['images']:,.0f} images, by processor time of one core: {one['loop ms']} ms an image, "
        f"{one['fastest tenth ms']} to {one['slowest tenth ms']} in each tenth of the run; resident memory "
        f"{memory['first MB']} MB after the first tenth and {memory['last MB']} MB at the end (peak "
        f"{memory['peak MB']} MB), {one['growth KB']} KB more with each image; metrics, intervals and files "
        f"{one['end s']} s; {one['disk MB']} MB on disk; {one['minutes']} minutes of a core in all.",
        f"With every mask kept (`--save-masks`, {figures['saved images']:,.0f} images) it is {one['saved ms']} ms and "
        f"{one['saved KB an image']} KB an image, hence {digits(all_masks)} GB for all.",
        "A run that was killed and resumed, and one of two processes, wrote the same metrics, intervals and counts as "
        f"one that was left alone ({figures['checked images']:.0f} images).",
    )
    grid, boxes = (gpu_hours(name) for name in ("grid of 64 x 64, 3 masks", "object-aware, at most 320 boxes"))
    published = (
        f"By default the prompts are those of SAM's protocol, 64 x 64 points: {grid:.0f} hours of one GPU for the "
        "whole of LVIS by the papers' times, where 320 boxes (`prompt_sampler=object_aware`) take "
        f"{60 * boxes:.0f} minutes."
    )
    return {
        "lvis_scale": paragraph(*measured),
        "lvis_hours": as_markdown(_hours(figures["ms"])),
        "lvis_published": paragraph(published),
    }


def _hours(own_ms: float) -> list[list[str]]:
    rows = [["sampler, TinyViT", "one GPU", f"{GPUS} GPUs, without their starts"]]
    return rows + [[name, *(_time(gpu_hours(name, own_ms) / gpus) for gpus in (1, GPUS))] for name in PUBLISHED_MS]


def _time(hours: float) -> str:
    """Return hours as hours, minutes or seconds."""
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{hours * 60:.0f} minutes" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"
