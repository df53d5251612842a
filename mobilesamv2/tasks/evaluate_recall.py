"""Mask AR@K, whatever the masks come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mobilesamv2.metrics.average_recall import AverageRecall, ImageCounts, count_matches
from mobilesamv2.metrics.result_shards import ResultShards
from mobilesamv2.structures import RLE, GroundTruth
from mobilesamv2.tasks.evaluate import EvaluateImages


class EvaluateRecall(EvaluateImages):
    """Counts the objects that the masks of each image find.

    Args:
        ks: how many of the best masks, or prompts, of an image count.
        shards: where results are kept as they come, and those of an interrupted run are found; None keeps nothing.
    """

    def __init__(self, ks: Sequence[int], shards: ResultShards | None) -> None:
        super().__init__(shards)
        self.recall = AverageRecall(ks)

    @property
    def images(self) -> list[ImageCounts]:
        """The counts of every image."""
        return [
            ImageCounts(r.image_id, r.values["matched"], r.values["n_gt"], *map(int, r.values["detections"]))
            for r in self.results
        ]

    @property
    def keeps_masks(self) -> bool:
        """Whether an outcome's masks are read."""
        return self.shards is not None and self.shards.keep_masks

    def count(
        self, truth: GroundTruth, rles: list[RLE], scores: Sequence[float], prompt_ranks: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """Adds an image to the sums, and gives the values of its outcome.

        Args:
            truth: its objects.
            rles: its masks.
            scores: of the masks, higher is better.
            prompt_ranks: of each mask, the rank of its prompt, where K caps prompts.
        """
        counts = count_matches(truth, rles, scores, self.recall.ks, prompt_ranks)
        self.recall.update(counts)
        detections = np.array([counts.num_detections, counts.num_counted])
        return {"matched": counts.matched, "n_gt": counts.n_gt, "detections": detections}

    def on_test_epoch_start(self) -> None:
        """Counts what an interrupted run has left."""
        super().on_test_epoch_start()
        self.recall.reset()
        for counts in self.images:
            self.recall.update(counts)

    def on_test_epoch_end(self) -> None:
        """Sums over all processes, and logs AR."""
        super().on_test_epoch_end()
        metrics: dict[str, Any] = self.recall.compute()
        self.log_dict(
            {f"test/{name.replace('@', '_').lower()}": value for name, value in metrics.items() if value is not None}
        )
