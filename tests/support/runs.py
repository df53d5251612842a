"""Programs and evaluations that several tests run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.evaluation.results import mask_metric_record, write_record
from mobilesamv2.metrics.average_recall import AverageRecall
from mobilesamv2.models.fastsam import ScoredMasks
from mobilesamv2.recipes import evaluate as evaluate_recipe
from mobilesamv2.recipes import train as train_recipe
from support import ROOT

PROTOCOL = {"k_caps": "masks", "image_list_sha256": "a", "annotations_sha256": "b"}
QUIET = ["trainer.accelerator=cpu", "+trainer.enable_progress_bar=false", "num_workers=0", "batch_size=2"]
SMALL = [
    "experiment=distill_tinyvit",
    "model=mini",
    "model@teacher=by_name",
    "teacher.name=sam_vit_mini",
    "dataset=synthetic",
]
FAST = ["--model", "mini_conv", "--sampler", "grid_proposals", "--points-per-side", "4"]


def write_run(dataset: LvisDataset, folder: Path, share: float, **protocol: object) -> Path:
    """An evaluation that found this share of each image's objects, and its masks."""
    metric, image_ids, images, masks = AverageRecall(), [], [], []
    for i in range(len(dataset)):
        truth = dataset.ground_truth(i)
        rles = truth.rles[: round(share * len(truth.rles))]
        image_ids.append(truth.image_id)
        images.append(metric.measure(truth, ScoredMasks(rles, torch.zeros(len(rles), 4), torch.ones(len(rles)))))
        masks += [{"image_id": truth.image_id, "segmentation": rle, "score": 1.0} for rle in rles]
    values = {name: np.stack([image[name] for image in images]) for name in images[0]}
    protocol = PROTOCOL | dataset.provenance | protocol
    results, per_image = mask_metric_record(metric, image_ids, values, 0, protocol, {}, None)
    write_record(results, folder, **per_image)
    (folder / "masks").mkdir()
    (folder / "masks" / "a.json").write_text(json.dumps(masks))
    return folder


def evaluate_here(*overrides: str) -> None:
    """In this process, which saves the imports."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("evaluate", list(overrides))
    evaluate_recipe.main(cfg)


def train(*overrides: str) -> float | None:
    """All that a run keeps lies in its own folder."""
    [folder] = [o.split("=", 1)[1] for o in overrides if o.startswith("output_dir=")]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"paths.data={folder}/data", *overrides, *QUIET])
    return train_recipe.main(cfg)


def composed(*overrides: str, primary: str = "evaluate") -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(primary, list(overrides))


def evaluate(*overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "evaluate.py"), *overrides]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=240)
