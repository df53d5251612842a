"""The table that an evaluation prints of its own result."""

from __future__ import annotations

from collections.abc import Sequence

from mobilesamv2.evaluation.results import Results, percent, percent_range, time_lines
from mobilesamv2.metrics.average_recall import GROUPS, metric_name
from mobilesamv2.metrics.box_recall import GROUPS as BOX_GROUPS
from mobilesamv2.metrics.box_recall import IOU_REACHED
from mobilesamv2.metrics.clicks import SHOWN_CLICKS, threshold_name
from mobilesamv2.metrics.prompt_iou import GROUPS as SIZE_GROUPS

WIDTH = 14
"""Characters of a column."""


def format_results(results: Results) -> str:
    """Return a result as text, percent with 95% intervals, in the layout that suits its protocol."""
    protocol = results["protocol"]
    if "ks" in protocol:
        lines = _recall_lines(results)
    elif "noc_ious" in protocol:
        lines = _click_lines(results)
    elif "kinds" in protocol:
        lines = _prompt_iou_lines(results)
    elif "box_ks" in protocol:
        lines = _box_recall_lines(results)
    elif "boxes" in protocol:
        lines = _precision_lines(results)
    else:
        lines = _metric_lines(results)
    named = [f"protocol {protocol['name']}"] if "name" in protocol else []
    return "\n".join([*lines, *named, *time_lines(results)])


def _recall_lines(results: Results) -> list[str]:
    """AR: a row for each K, a column for each group."""
    protocol = results["protocol"]
    lines = ["mask AR@K (%)".ljust(WIDTH) + "".join(group.rjust(WIDTH) for group in GROUPS)]
    for k in protocol["ks"]:
        lines += _rows(f"AR@{k}", [metric_name(group, k) for group in GROUPS], results)
    lines.append(_objects(results, GROUPS))
    lines.append(f"mean AR over K: {_with_interval(results, 'mAR')}".rstrip())
    if protocol["mean_proposals"] is not None:
        lines.append(
            f"{protocol['num_images']} images, {protocol['mean_proposals']:.1f} masks counted per image on average, "
            f"{protocol['images_without_proposals']} without any; K caps {protocol['k_caps']}"
        )
    return lines


def _prompt_iou_lines(results: Results) -> list[str]:
    """Prompt mIoU: a row for each kind of prompt, a column for each size."""
    protocol = results["protocol"]
    lines = ["mIoU (%)".ljust(WIDTH) + "".join(group.rjust(WIDTH) for group in SIZE_GROUPS)]
    for kind in protocol["kinds"]:
        lines += _rows(kind, [f"mIoU{'' if g == 'all' else g} {kind}" for g in SIZE_GROUPS], results)
    for kind in protocol["kinds"] if protocol["boundary_dilation_ratio"] else ():
        lines += _rows(f"{kind}, edge", [f"mBIoU{'' if g == 'all' else g} {kind}" for g in SIZE_GROUPS], results)
    lines.append(_objects(results, SIZE_GROUPS))
    return [
        *lines,
        f"{protocol['num_images']} images; against {protocol['against']}; mask_choice={protocol['mask_choice']}",
    ]


def _click_lines(results: Results) -> list[str]:
    """Clicks: mIoU after some of them, the number of clicks to an IoU, and the share of objects that never reach it."""
    protocol = results["protocol"]
    lines = ["mIoU@K (%)".ljust(WIDTH) + "".join(group.rjust(WIDTH) for group in SIZE_GROUPS)]
    counts = sorted({k for k in SHOWN_CLICKS if f"mIoU@{k}" in results["metrics"]} | {protocol["max_clicks"]})
    rows = [("mIoU", f"{k}") for k in counts]
    rows += [(name, threshold_name(iou)) for name in ("NoC", "NoF") for iou in protocol["noc_ious"]]
    for name, at in rows:
        names = [f"{name}{'' if g == 'all' else g}@{at}" for g in SIZE_GROUPS]
        lines += _rows(f"{name}@{at}", names, results, in_percent=name != "NoC")
    lines.append(_objects(results, SIZE_GROUPS))
    start = f"{protocol['num_images']} images; first {protocol['first_prompt']}, then {protocol['next_click']}"
    return [*lines, f"{start}, at most {protocol['max_clicks']} clicks; mask_choice={protocol['mask_choice']}"]


def _box_recall_lines(results: Results) -> list[str]:
    """Box recall: a row for each K and each IoU, a column for each size."""
    protocol = results["protocol"]
    lines = ["boxes (%)".ljust(WIDTH) + "".join(group.rjust(WIDTH) for group in BOX_GROUPS)]
    ks = protocol["box_ks"]
    rows = {f"AR@{k}": ("ar_", k) for k in ks} | {
        f"IoU {iou:.2f}": ("recall_", round(100 * iou)) for iou in IOU_REACHED
    }
    for title, (name, value) in rows.items():
        lines += _rows(title, [f"{name}{'' if g == 'all' else g + '_'}{value}" for g in BOX_GROUPS], results)
    lines.append(_objects(results, BOX_GROUPS))
    reached = f"IoU .50 and .75: the share of objects that one of at most {max(ks)} boxes reaches"
    return [*lines, f"{protocol['num_images']} images; {reached}"]


def _precision_lines(results: Results) -> list[str]:
    """AP of instance masks."""
    protocol = results["protocol"]
    lines = [
        f"{name:<12}{percent(value):>8}  {percent_range((results['interval'] or {}).get(name))}".rstrip()
        for name, value in results["metrics"].items()
    ]
    images = f"{protocol['num_images']} images, {protocol['images_without_boxes']} without boxes"
    return ["mask AP (%)", *lines, f"{images}; boxes of {protocol['boxes']}"]


def _metric_lines(results: Results) -> list[str]:
    """Any other metric, one a line."""
    width = max(map(len, results["metrics"])) + 2
    lines = [
        f"{name:<{width}}{percent(value):>6} %  {percent_range(results['interval'][name])}".rstrip()
        for name, value in results["metrics"].items()
    ]
    return [*lines, f"{results['protocol']['num_images']} images, {results['n_gt']['all']} objects"]


def _rows(title: str, names: list[str], results: Results, in_percent: bool = True) -> list[str]:
    """Return a row of values, and one of their intervals."""
    metrics, interval = results["metrics"], results["interval"]
    shown, shown_range = (percent, percent_range) if in_percent else (_number, _number_range)
    return [
        title.ljust(WIDTH) + "".join(shown(metrics[name]).rjust(WIDTH) for name in names),
        " " * WIDTH + "".join(shown_range(interval[name]).rjust(WIDTH) for name in names),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _number_range(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"[{bounds[0]:.2f}, {bounds[1]:.2f}]"


def _objects(results: Results, groups: tuple[str, ...]) -> str:
    return "objects".ljust(WIDTH) + "".join(str(results["n_gt"][group]).rjust(WIDTH) for group in groups)


def _with_interval(results: Results, name: str) -> str:
    return f"{percent(results['metrics'][name])} {percent_range(results['interval'][name])}"
