"""Milliseconds per stage of segmenting an image."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

STAGES = ("image_encoder", "prompt_sampling", "mask_decoder", "postprocessing")
"""Stages of SegEvery, as in MobileSAMv2's table 2, where post-processing is not listed."""

PROMPT_FREE_STAGES = ("network", "postprocessing")
"""Stages of a network without prompts."""


class StageTimer:
    """Timer that adds up the time of each stage of the current image.

    On an accelerator a stage waits for the device at its start and end, so that work counts for the stage that issued
    it. On a CPU the processor's time over all threads is added up too, which hardly changes where other programs run.

    Args:
        device: the device of the model.
        stages: their names.
    """

    def __init__(self, device: torch.device, stages: Sequence[str] = STAGES) -> None:
        self.device = device
        self._stages = tuple(stages)
        self.start_image()

    def start_image(self) -> None:
        """Start a new image: set times and prompts to zero."""
        self.cpu_ms: dict[str, float] = dict.fromkeys(self._stages, 0.0)
        self.ms: dict[str, float] = dict.fromkeys(self._stages, 0.0)
        self.num_prompts = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage, in ms."""
        self._wait()
        start, cpu_start = time.perf_counter(), time.process_time()
        yield
        self._wait()
        self.cpu_ms[name] += (time.process_time() - cpu_start) * 1000
        self.ms[name] += (time.perf_counter() - start) * 1000

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def summarize(images: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the median, 10th and 90th percentile over images of each stage and of their sum, ms; empty without images.

    Args:
        images: ``StageTimer.ms`` of each image, all with the same stages.
    """
    if not images:
        return {}
    columns = {name: [image[name] for image in images] for name in images[0]}
    columns["total"] = [sum(image.values()) for image in images]
    quantiles = {"median": 0.5, "p10": 0.1, "p90": 0.9}
    return {stage: {name: float(np.quantile(ms, q)) for name, q in quantiles.items()} for stage, ms in columns.items()}
