"""Intervals of AP: an image that is drawn twice counts as the evaluators count it if it is there twice."""

from typing import Any

import numpy as np
import pytest
from support.masks import rectangle

from mobilesamv2.metrics.ap_interval import bootstrap_ap, weighted_ap
from mobilesamv2.metrics.average_precision import coco_ap, lvis_ap

SIZE = (48, 48)
NUM_IMAGES, NUM_CATEGORIES = 12, 3


def scenes(times: np.ndarray, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
    """Annotations, masks and ids of random images, each as often as it is drawn; the first is without objects.

    The masks are the objects, shifted; more masks find nothing, and one object of COCO's is a crowd.
    """
    rng = np.random.default_rng(seed)
    images, objects, masks = [], [], []
    for i in range(NUM_IMAGES):
        own, found = [], []
        for _ in range(0 if i == 0 else int(rng.integers(1, 6))):
            x, y, width, height = (*rng.integers(0, 20, 2).tolist(), *rng.integers(8, 20, 2).tolist())
            category = int(rng.integers(1, NUM_CATEGORIES + 1))
            crowd = int(rng.random() < 0.1)
            own.append({"category_id": category, "segmentation": rectangle(x, y, width, height, SIZE),
                        "area": float(width * height), "iscrowd": crowd, "bbox": [x, y, width, height]})  # fmt: skip
            shift = int(rng.integers(0, 4))
            found.append({"category_id": category, "segmentation": rectangle(x + shift, y, width, height, SIZE)})
        for _ in range(int(rng.integers(0, 4))):
            category = int(rng.integers(1, NUM_CATEGORIES + 1))
            found.append({"category_id": category, "segmentation": rectangle(*rng.integers(1, 20, 4), SIZE)})
        scores = rng.random(len(found))
        for copy in range(int(times[i])):
            image_id = 100 * i + copy + 1
            images.append({"id": image_id, "height": 48, "width": 48})
            objects += [each | {"image_id": image_id, "id": len(objects) + n} for n, each in enumerate(own)]
            masks += [each | {"image_id": image_id, "score": float(s)} for each, s in zip(found, scores, strict=True)]
    categories = [{"id": k, "name": str(k)} for k in range(1, NUM_CATEGORIES + 1)]
    content = {"images": images, "annotations": objects, "categories": categories}
    return content, masks, [image["id"] for image in images]


@pytest.mark.parametrize("score", [coco_ap, lvis_ap])
@pytest.mark.parametrize("seed", range(4))
def test_weights_are_repeated_images(score, seed: int) -> None:
    once = np.ones(NUM_IMAGES)
    matches = score(*scenes(once, seed)).matches
    times = np.random.default_rng(seed).integers(0, 3, NUM_IMAGES).astype(float)
    for weights in (once, times):
        wanted = score(*scenes(weights, seed)).values
        assert 0.05 < wanted["AP"] < 0.95
        found = weighted_ap(matches, weights)
        assert found == pytest.approx({name: wanted[name] for name in ("AP", "AP50", "AP75")}, abs=1e-12)


def test_the_interval_holds_the_value_and_is_that_of_the_seed() -> None:
    values, matches = coco_ap(*scenes(np.ones(NUM_IMAGES)))
    interval = bootstrap_ap(matches, seed=3, resamples=200)
    assert list(interval) == ["AP", "AP50", "AP75"]
    for name, ends in interval.items():
        assert ends is not None
        assert ends[0] < values[name] < ends[1]
    assert interval == bootstrap_ap(matches, seed=3, resamples=200)
    assert interval != bootstrap_ap(matches, seed=4, resamples=200)


def test_without_objects_or_matches_there_is_no_value() -> None:
    content, masks, ids = scenes(np.ones(NUM_IMAGES))
    matches = coco_ap(content, masks, ids).matches
    only_empty = np.eye(NUM_IMAGES)[0]
    assert weighted_ap(matches, only_empty) == {"AP": None, "AP50": None, "AP75": None}
    missed = [mask | {"segmentation": rectangle(40, 40, 2, 2, SIZE)} for mask in masks]
    assert weighted_ap(coco_ap(content, missed, ids).matches, np.ones(NUM_IMAGES)) == {"AP": 0, "AP50": 0, "AP75": 0}
