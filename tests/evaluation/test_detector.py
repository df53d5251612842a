"""Box recall of a detector, by hand and by the program."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs import evaluate_here
from torch import nn

from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.evaluation.detector import EvaluateDetector
from mobilesamv2.masks import boxes_from_rles

SCENES = SyntheticDataset(3)


class Knowing(nn.Module):
    """Finds the exact boxes of the first objects of a scene."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def detect(self, image: np.ndarray, **settings: object) -> tuple[torch.Tensor, torch.Tensor]:
        [truth] = [truth for seen, truth in (SCENES[i] for i in range(len(SCENES))) if np.array_equal(seen, image)]
        boxes = boxes_from_rles(truth.rles)
        boxes[:, 2:] += 1
        boxes = boxes[: round(self.share * len(boxes))]
        return boxes, torch.linspace(0.9, 0.1, len(boxes))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_the_share_of_found_objects_is_counted(share: float) -> None:
    task = EvaluateDetector(Knowing(share), ks=[1, 100])  # pyright: ignore
    for i in range(len(SCENES)):
        image, truth = SCENES[i]
        values, masks = task.evaluate_image(image, truth)
        found = round(share * len(truth.rles))
        assert masks == []
        assert values["n_gt"][0] == len(truth.rles)
        assert values["matched"][0, :, 0].tolist() == [min(1, found), found]
        assert values["reached"][0].min() >= found  # a box may reach a neighbour too
    with pytest.raises(ValueError, match=r"task\.ks must be one or more numbers of boxes, .* got \[0\]"):
        EvaluateDetector(Knowing(1.0), ks=[0])  # pyright: ignore


@pytest.mark.parametrize("detector", ["mini_detector", "mini_prompt_head"])
def test_the_detectors_that_ship_find_objects(
    detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    evaluate_here(
        "task=evaluate_detector", f"detector={detector}", "model=mini_conv", "dataset=synthetic",
        "dataset.split=test", "dataset.limit=4", "num_workers=0", "+trainer.enable_progress_bar=false",
        "trainer.accelerator=cpu", f"output_dir={tmp_path}",
    )  # fmt: skip
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["metrics"]["recall_50"] > 0.6
    recorded = result["run"]["detector"]  # a prompt head has the input of its model
    assert recorded.get("image_size") == (384 if detector == "mini_detector" else None)
    low, high = result["interval"]["recall_50"]
    assert low <= result["metrics"]["recall_50"] <= high
    assert result["metrics"]["ar_10"] <= result["metrics"]["ar_100"]
    assert "IoU 0.50" in capsys.readouterr().out
    assert not any("another image encoder" in str(warning.message) for warning in recwarn.list)
