"""The figures of ``recipes.py`` as the documentation states them."""

from __future__ import annotations

import textwrap

from accuracy_texts import TRAIN, count
from figures import Figure, Figures, read_evaluations
from result_pages import RESULTS

from mobilesamv2.reports.stated import LINE_WIDTH
from mobilesamv2.reports.table import as_markdown

RECIPES = RESULTS / "recipes.csv"
PAGES = (TRAIN,)
START = "start"
BY_EMBEDDING = {
    "distill": "decoupled, and EfficientViT-SAM's stage 1: squared error of the embedding",
    "edgesam_encoder": "EdgeSAM, phase 1: without the padding",
    "efficientsam3_encoder": "EfficientSAM3: and cosine distance",
}
BY_MASKS = {
    "distill_semi_coupled": "semi-coupled: the teacher's masks, decoder frozen",
    "distill_coupled": "coupled: decoder trained too",
    "distill_prompt_in_loop": "prompt in the loop: and points where student and teacher disagree",
    "edgesam_prompts": "EdgeSAM, phase 2: prompts in the loop, its own losses",
    "tinysam": "TinySAM: full stage, hard prompts and masks",
    "efficientvit_sam_end_to_end": "EfficientViT-SAM, stage 2: annotated masks, end to end",
}
WAYS = BY_EMBEDDING | BY_MASKS
"""Tasks of conf/task, the values of ``experiment=ablation_recipes``, in the order of the table."""

KINDS = {"box": "box", "points_1": "one point", "points_3": "three points"}
AGAINST = {"teacher": "teacher's masks", "objects": "objects"}


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return texts(read_evaluations(RECIPES))


def texts(figures: Figures) -> dict[str, str]:
    """Return the texts of the documentation by their names."""
    return {"recipes": f"{table(figures)}\n\n{_summary(figures)}"}


def table(figures: Figures) -> str:
    """Return mean IoUs in percent with their intervals, and below the start their changes from it."""
    head = [f"{kind}, {of}" for of in AGAINST.values() for kind in KINDS.values()]
    rows = [["way", "CPU s", *head]]
    pairs = [(against, f"mIoU {kind}") for against in AGAINST for kind in KINDS]
    rows.append(["the start", "-", *(figures[f"{START}_{against}"][name].interval() for against, name in pairs)])
    for way, name in WAYS.items():
        cells = [f"{_value(figures, way, *pair).percent()}, {_change(figures, way, *pair).change()}" for pair in pairs]
        rows.append([name, f"{figures[way]['cpu_s'].value:.0f}", *cells])
    return as_markdown(rows)


def _summary(figures: Figures) -> str:
    settings, start = figures["settings"], figures[f"{START}_objects"]
    return textwrap.fill(
        f"{count(settings['start'])} steps for the start and {count(settings['steps'])} for each way, at a learning "
        f"rate of {settings['lr'].value:g}; {count(start['images'])} scenes of the test split, "
        f"{count(start['objects'])} objects. In these steps the mean IoU with the teacher's masks changes, from boxes, "
        f"by {_range(figures, BY_EMBEDDING, 'box')} points by the embedding and by {_range(figures, BY_MASKS, 'box')} "
        f"by masks; from single points by {_range(figures, BY_EMBEDDING, 'points_1')} and "
        f"{_range(figures, BY_MASKS, 'points_1')}.",
        LINE_WIDTH,
        break_on_hyphens=False,
    )


def _range(figures: Figures, ways: dict[str, str], kind: str) -> str:
    changes = [100 * _change(figures, way, "teacher", f"mIoU {kind}").value for way in ways]
    return f"{min(changes):+.1f} to {max(changes):+.1f}"


def _value(figures: Figures, way: str, against: str, name: str) -> Figure:
    return figures[f"{way}_{against}"][name]


def _change(figures: Figures, way: str, against: str, name: str) -> Figure:
    return figures[f"{way}_{against}_change"][name]
