"""Box AR@K, reached objects and calibration: by hand, and against pycocotools."""

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mobilesamv2.metrics.average_recall import AREA_GROUPS
from mobilesamv2.metrics.box_recall import CONFIDENCES, BoxRecall, count_boxes


def test_by_hand() -> None:
    """One object of IoU .6 with the second box, one of .8 with the first, one that no box reaches."""
    truths = torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 150, 150]], dtype=torch.float)
    boxes = torch.tensor([[0, 0, 10, 6], [20, 20, 30, 28], [0, 0, 10, 6]], dtype=torch.float)
    recall = BoxRecall((1, 10))
    recall.update(count_boxes(boxes, torch.tensor([0.42, 0.88, 0.31]), truths, torch.tensor([100, 100, 1e4]), (1, 10)))
    recall.update(count_boxes(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 4), torch.zeros(0), (1, 10)))
    report = recall.compute()
    # .8 reaches 7 of 10 thresholds, .6 reaches 3
    expected = {"ar_1": 7 / 30, "ar_10": 10 / 30, "ar_s_10": 10 / 20, "ar_l_10": 0.0}
    expected |= {"recall_50": 2 / 3, "recall_75": 1 / 3, "recall_s_50": 1.0, "recall_s_75": 0.5, "recall_l_50": 0.0}
    assert {name: report.values[name] for name in expected} == pytest.approx(expected)
    assert not any("_m_" in name for name in report.values)  # there is no object of that size
    table = {round(confidence, 2): row for confidence, *row in report.calibration}
    assert table[0.3] == pytest.approx([3 / 2, 2 / 3])
    assert table[0.4] == pytest.approx([2 / 2, 2 / 3])
    assert table[0.45] == pytest.approx([1 / 2, 1 / 3])
    assert table[0.9] == [0.0, 0.0]
    assert [row[0] for row in report.calibration] == list(CONFIDENCES)


def test_no_objects_and_no_sensible_ks() -> None:
    recall = BoxRecall()
    recall.update(count_boxes(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 4), torch.zeros(0)))
    assert recall.compute().values == {}
    with pytest.raises(ValueError, match=r"each at least 1, got \[0\]"):
        BoxRecall([0])


def random_image(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (N, 4) xyxy around objects and elsewhere, their confidence with ties, and the objects (G, 4)."""
    corners = rng.uniform(0, 300, (rng.integers(0, 25), 2))
    truths = np.concatenate([corners, corners + np.exp(rng.uniform(1, 5.3, corners.shape))], 1)
    near = truths[rng.integers(len(truths), size=3 * len(truths))] if len(truths) else truths
    sizes = (near[:, 2:] - near[:, :2]).repeat(2, 1)
    near = near + rng.normal(0, 0.08, near.shape) * sizes
    far = rng.uniform(0, 300, (5, 2))
    boxes = np.concatenate([near, np.concatenate([far, far + 30], 1)])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return boxes, rng.integers(0, 12, len(boxes)) / 12, truths


def test_against_pycocotools() -> None:
    rng = np.random.default_rng(0)
    images = [random_image(rng) for _ in range(30)]
    recall = BoxRecall((10, 100, 320))
    coco, results = {"images": [], "annotations": [], "categories": [{"id": 1}]}, []
    for i, (boxes, confidence, truths) in enumerate(images):
        areas = 0.7 * (truths[:, 2:] - truths[:, :2]).prod(1)  # of the masks, say
        tensors = (torch.from_numpy(x) for x in (boxes, confidence, truths, areas))
        recall.update(count_boxes(*tensors, (10, 100, 320)))
        coco["images"].append({"id": i})
        for box, area in zip(truths, areas, strict=True):
            whole = {"id": len(coco["annotations"]) + 1, "image_id": i, "category_id": 1, "iscrowd": 0, "area": area}
            coco["annotations"].append(whole | {"bbox": [*box[:2], *(box[2:] - box[:2])]})
        for box, score in zip(boxes, confidence, strict=True):
            results.append({"image_id": i, "category_id": 1, "score": score, "bbox": [*box[:2], *(box[2:] - box[:2])]})
    truth = COCO()
    truth.dataset = coco
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.params.maxDets = [10, 100, 320]
    evaluation.params.areaRng = [[0, 1e10], *([low, high] for low, high in AREA_GROUPS.values())]
    evaluation.params.areaRngLbl = ["all", *AREA_GROUPS]
    evaluation.evaluate()
    evaluation.accumulate()
    expected = evaluation.eval["recall"][:, 0].mean(0)  # (groups, Ks)
    values = recall.compute().values
    for g, size in enumerate(("", "s_", "m_", "l_")):
        for k, count in enumerate((10, 100, 320)):
            assert values[f"ar_{size}{count}"] == pytest.approx(expected[g, k], abs=1e-12)
    assert 0.2 < values["ar_10"] < values["ar_320"] < 0.95
