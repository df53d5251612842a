"""The top-level keys of conf/: a mistyped one is an error that names it."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class EvaluateConfig:
    """Keys of conf/evaluate.yaml; each group is checked against the signature of what it builds."""

    paths: Any = MISSING
    model: Any = MISSING
    encoder: Any = None
    detector: Any = None
    prompt_sampler: Any = MISSING
    dataset: Any = MISSING
    trainer: Any = MISSING
    experiment: Any = None
    predictions: str | None = None
    skip_images_without_results: bool = False
    ks: list[int] = field(default_factory=list)
    seed: int = 0
    num_workers: int = 1
    output_dir: str = MISSING


def register() -> None:
    """Makes the schema known to Hydra."""
    ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)
