"""What tasks that train a detector log of its boxes: recall, and the calibration of its confidence."""

from __future__ import annotations

import csv
from pathlib import Path

import pytorch_lightning as pl

from mobilesamv2.metrics.box_recall import BoxRecall

PROGRESS_BAR_METRICS = ("val/box_recall_50", "val/box_recall_75")

DEMO_CONFIDENCE = 0.4
"""Confidence threshold of MobileSAMv2's demo."""


def log_box_recall(task: pl.LightningModule, recall: BoxRecall) -> None:
    """Log the recall of an epoch's validation boxes, write ``calibration.csv``, and reset the metric."""
    report = recall.compute()  # summed over all processes
    recall.reset()
    if task.trainer.sanity_checking:
        return
    values = {f"val/box_{name}": value for name, value in report.values.items()}
    for confidence, boxes, reached in report.calibration:
        if confidence == DEMO_CONFIDENCE:
            suffix = f"conf_{round(100 * confidence)}"
            values |= {f"val/boxes_{suffix}": boxes, f"val/box_recall_50_{suffix}": reached}
    for name, value in values.items():  # the same in all processes
        task.log(name, value, prog_bar=name in PROGRESS_BAR_METRICS, sync_dist=True)
    if task.trainer.is_global_zero:
        with (Path(task.trainer.default_root_dir) / "calibration.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("confidence", "boxes_per_image", "box_recall_50"))
            rows.writerows([f"{value:.6g}" for value in row] for row in report.calibration)
