"""The top-level keys of conf/: a mistyped one is an error that names it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class EvaluateConfig:
    """Keys of conf/evaluate.yaml; each group is checked against the signature of what it builds."""

    paths: Any = MISSING
    model: Any = MISSING
    encoder: Any = None
    onnx_encoder: str | None = None
    detector: Any = None
    prompt_sampler: Any = MISSING
    dataset: Any = MISSING
    trainer: Any = MISSING
    task: Any = None
    optimizer: Any = None
    logger: Any = None
    experiment: Any = None
    predictions: str | None = None
    skip_images_without_results: bool = False
    boxes: str | None = None
    max_boxes: int | None = None
    teacher: Any = None
    save_masks: bool = False
    compile: bool = False
    seed: int = 0
    batch_size: int = 1
    num_workers: int = 1
    output_dir: str = MISSING


@dataclass
class TrainConfig:
    """Keys of conf/train.yaml; each group is checked against the signature of what it builds."""

    paths: Any = MISSING
    task: Any = MISSING
    samples: Any = MISSING
    model: Any = None
    encoder: Any = None
    teacher: Any = None
    detector: Any = None
    prompt_sampler: Any = None
    cache: Any = MISSING
    dataset: Any = MISSING
    optimizer: Any = MISSING
    trainer: Any = MISSING
    logger: Any = None
    experiment: Any = None
    validation_images: int = 0
    max_broken: float = 0.01
    batch_size: int = 1
    num_workers: int = 0
    seed: int = 0
    ema: float | None = None
    compile: bool = False
    channels_last: bool = False
    objective: str | None = None
    checkpoint_minutes: float = 15.0
    resume: str | None = "auto"
    requeue: bool = True
    output_dir: str = MISSING


def register() -> None:
    """Makes the schemas known to Hydra, and this folder to the jobs of a sweep, which unpickle them elsewhere."""
    here = str(Path(__file__).parent)
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != here]
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *others])
    ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
