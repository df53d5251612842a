"""The figures of ``loading.py`` as the documentation states them."""

from __future__ import annotations

from collections.abc import Mapping

from result_pages import RESULTS, ROOT, digits, paragraph, read_figures, write_figures, write_pages

from mobilesamv2.data.sa1b import NUM_IMAGES
from mobilesamv2.reports.table import as_markdown

LOADING = RESULTS / "loading.csv"
PAGES = [ROOT / "docs" / "train.md"]
SHARES = (0.01, 0.1, 1.0)


def write_loading(figures: Mapping[str, float]) -> None:
    """Write the file of results, and the guide's texts."""
    write_figures(LOADING, figures)
    write_pages(PAGES, stated())


def terabytes(megabytes: float) -> list[float]:
    """Return what the pixels of 1%, 10% and all of SA-1B take, TB, if each of its photos takes so many MB."""
    return [megabytes * NUM_IMAGES * share / 1e6 for share in SHARES]


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return texts(read_figures(LOADING))


def texts(figures: Mapping[str, float]) -> dict[str, str]:
    """Return the texts of the guide by their names, of figures by theirs: ms of a stage, ms of a photo by a loader."""
    decoding = sum(figures[f"stage {name}"] for name in ("decode", "resize", "normalise, pad"))
    photos = f"{figures['photos']:.0f} photos of SA-1B"
    rates = {name.removeprefix("loader "): 1e3 / ms for name, ms in figures.items() if name.startswith("loader ")}
    shown = {name: f"{rate:.0f}" for name, rate in rates.items()}
    ours = rates["this project, no cache"]
    raw = sorted(rates[name] / ours for name in ("raw, warm", "raw, warm, from disk"))
    size = figures["stage webp: bytes, MB"] / figures["stage raw: bytes, MB"]
    measured = (
        f"On {photos}, by processor time of one core: plain loop {shown['plain loop']} images/s, "
        f"torchvision's folder {shown['torchvision folder']}"
        + (f", webdataset {shown['webdataset']}" if "webdataset" in shown else "")
        + f"; this project {shown['this project, no cache']} ({shown['without keeping pixels']} with normalisation in "
        f"the loader); `cache.pixels=raw` {shown['raw, warm']} from memory and {shown['raw, warm, from disk']} from "
        f"disk, `webp` {shown['webp, warm']}.",
        f"So `raw` is {raw[0]:.0f} to {raw[1]:.0f} times as fast, and `webp` {rates['webp, warm'] / ours:.1f} times, "
        f"in {size:.0%} of the bytes of `raw`.",
        f"Where the device is a CPU, normalising took it {digits(figures['normalise on the device'])} ms an image.",
    )
    cost = f"Decoding, resizing and normalising one takes a core {digits(decoding)} ms (mean of {photos})."
    return {"loading_cost": paragraph(cost), "loading": f"{_table(figures)}\n\n{paragraph(*measured)}"}


def _table(figures: Mapping[str, float]) -> str:
    rows = [["`cache.pixels`", "MB per photo of SA-1B", "1%, 10%, all of SA-1B, TB", "a photo, ms of a core"]]
    rows.append(["`off`", "0", "0", "decodes in each epoch"])
    for name in ("raw", "webp"):
        megabytes = figures[f"stage {name}: bytes, MB"]
        read, encode = (digits(figures[f"stage {name}: {what}"]) for what in ("read, check", "encode"))
        shown = ", ".join(digits(each) for each in terabytes(megabytes))
        label, more = ("`webp`, lossless", f", encode once {encode}") if name == "webp" else (f"`{name}`", "")
        rows.append([label, digits(megabytes), shown, f"read and check {read}{more}"])
    return as_markdown(rows)
