"""The figures of ``accuracy.py`` as the documentation states them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from figures import Figure, Figures, read_evaluations
from result_pages import RESULTS, ROOT

from mobilesamv2.reports.stated import LINE_WIDTH
from mobilesamv2.reports.table import as_markdown

ACCURACY = RESULTS / "accuracy.csv"
WEIGHTS, TRAIN, EVALUATE = (
    ROOT / "mobilesamv2" / "weights" / "README.md", ROOT / "docs" / "train.md", ROOT / "docs" / "evaluate.md",
)  # fmt: skip
PAGES = (WEIGHTS, TRAIN, EVALUATE)
"""Pages that have a place for one of the texts."""

SCENES, SCENE_SEED, CHOICE_IMAGES = 100, 11, 12
HEADS = {"mini_detector": "`mini_detector`", "mini_prompt_head": "prompt head"}
RECALLS = ("AR@10", "AR@50", "AR@100", "mAR")


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return texts(read_evaluations(ACCURACY))


def texts(figures: Figures) -> dict[str, str]:
    """Return the texts of the documentation by their names."""
    return {
        "accuracy_weights": _weights(figures),
        "accuracy_prompt_head": _prompt_head(figures),
        "accuracy_photos": _photos(figures),
        "accuracy_choices": _choices(figures),
    }


def _weights(figures: Figures) -> str:
    prompts = figures["scenes_prompts"]
    found = [figures[f"scenes_reached_{detector}"]["recall_50"].value for detector in HEADS]
    box, centre, points = (_short(prompts[f"mIoU {kind}"]) for kind in ("box", "centre", "points_3"))
    return textwrap.fill(
        f"On {count(prompts['images'])} scenes of the test split ({count(prompts['objects'])} objects), whose shape "
        f"families and textures training does not draw (`dataset=synthetic dataset.split=test "
        f"dataset.seed={SCENE_SEED} dataset.limit={SCENES}`), the masks of `mini_conv` have a mean IoU of {box} with "
        f"the objects from boxes, {centre} from centres and {points} from three points (`task=evaluate_prompts`), and "
        f"100 boxes of `mini_detector.pt` find {found[0]:.0%} of the objects at an IoU of .5, those of the prompt head "
        f"{found[1]:.0%} (`task=evaluate_detector`).",
        LINE_WIDTH,
        break_on_hyphens=False,
    )


def _prompt_head(figures: Figures) -> str:
    kinds = {"scenes": ("synthetic test split", "scenes", "objects"),
             "photos": ("BSDS500 validation", "photographs", "regions")}  # fmt: skip
    rows = [["images", "", "box recall at IoU .5, .75", "AR@10", "AR@50", "AR@100", "mean AR"]]
    for key, (data, images, objects) in kinds.items():
        counts = figures[f"{key}_prompts"]
        about = f"{data}, {count(counts['images'])} {images}, {count(counts['objects'])} {objects}"
        for detector, name in HEADS.items():
            reached, masks = figures[f"{key}_reached_{detector}"], figures[f"{key}_masks_{detector}"]
            recall = f"{reached['recall_50'].percent()}, {reached['recall_75'].percent()}"
            rows.append([about, name, recall, *(masks[metric].percent() for metric in RECALLS)])
            about = ""
        change = figures[f"{key}_masks_change"]
        rows.append(["", "difference [95%]", "", *(change[metric].change() for metric in RECALLS)])
    return as_markdown(rows)


def _photos(figures: Figures) -> str:
    prompts, reached = figures["photos_prompts"], figures["photos_reached_mini_detector"]
    boxes, grid = figures["photos_sampled_boxes"], figures["photos_sampled_grid"]
    large, medium, small = (f"{reached[f'recall_{size}_50'].value:.0%}" for size in "lms")
    return textwrap.fill(
        f"On the {count(prompts['images'])} validation images of BSDS500 ({count(prompts['objects'])} regions) "
        f"`mini_conv` has a prompt mIoU of {prompts['mIoU box'].interval()} percent from boxes, "
        f"{prompts['mIoU centre'].percent()} from centres and {prompts['mIoU points_3'].percent()} from three points; "
        f"from boxes {prompts['mIoUl box'].percent()} on large regions and {prompts['mIoUs box'].percent()} on small "
        f"ones. 100 boxes of `mini_detector` reach {reached['recall_50'].value:.0%} of the regions with an IoU of .5: "
        f"{large} of the large, {medium} of the medium and {small} of the small ones. AR@1000 is "
        f"{boxes['AR@1000'].percent()} with {boxes['prompts'].value:.0f} boxes and {grid['AR@1000'].percent()} with a "
        f"grid of 16 x 16, the mean AR {boxes['mAR'].interval()} and {grid['mAR'].interval()}.",
        LINE_WIDTH,
        break_on_hyphens=False,
    )


def _choices(figures: Figures) -> str:
    choices = {name.removeprefix("choice_"): each for name, each in figures.items() if name.startswith("choice_")}
    single, large = choices["single"], choices["large"]
    names = ("single", "predicted_iou", "oracle")
    box = {name: choices[name]["mIoU box"] for name in ("single", "predicted_iou", "box_overlap", "oracle")}
    few = f"{count(large['objects'])} of {count(single['objects'])}"
    rows = [
        ["choice", "mIoU (%)"],
        ["box: the one mask; most confident of three; the one that overlaps the box most; best by the object",
         "; ".join(figure.percent() for figure in box.values())],
        [f"box, the one mask: all objects; those of 32 x 32 pixels and more (`task.min_area=1024`, {few})",
         f"{single['mIoU box'].percent()}; {large['mIoU box'].percent()}"],
        ["box, the one mask: boundary mIoU at .02 of the diagonal; at .01",
         f"{single['mBIoU box'].percent()}; {choices['boundary']['mBIoU box'].percent()}"],
        ["centre: the one mask; most confident of three; best by the object",
         "; ".join(choices[name]["mIoU centre"].percent() for name in names)],
        ["one point at random: the same", "; ".join(choices[name]["mIoU points_1"].percent() for name in names)],
        [f"5 clicks on the {count(large['objects'])}, after 1, 3 and 5: in the middle of the error, nothing fed back",
         _clicks(choices["clicks"])],
        ["the same, most confident of three at every click", _clicks(choices["clicks_predicted_iou"])],
        ["the same, on random wrong pixels", _clicks(choices["clicks_random"])],
        ["the same, the last mask fed back, which these weights never saw in training",
         _clicks(choices["clicks_fed_back"])],
    ]  # fmt: skip
    values = [figure.value for figure in box.values()]
    span, size = max(values) - min(values), large["mIoU box"].value - single["mIoU box"].value
    moved = (
        f"First {count(single['images'])} images, {count(single['objects'])} regions: the choice of the mask moves "
        f"the figure of a box by {100 * span:.0f} points and the size of the objects by {100 * size:.0f}."
    )
    return f"{as_markdown(rows)}\n\n{textwrap.fill(moved, LINE_WIDTH)}"


def _clicks(metrics: Mapping[str, Figure]) -> str:
    return ", ".join(metrics[f"mIoU@{click}"].percent() for click in (1, 3, 5))


def count(figure: Figure) -> str:
    """Return a count with separators."""
    return f"{figure.value:,.0f}"


def _short(figure: Figure) -> str:
    """Return a fraction as .65."""
    return f"{figure.value:.2f}".removeprefix("0")
