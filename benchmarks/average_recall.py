"""Mask AR@K of 20,000 detections: this project, pycocotools and faster-coco-eval, on the same input in one run.

    python benchmarks/average_recall.py            # wants faster-coco-eval, as the tests do; or: make bench

The clock starts with the JSON loaded and the RLEs undecoded. Every program gives AR@10, 100 and 1000 for all objects,
by size and by frequency; the two COCO evaluators know no frequencies, and run once more for each.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mobilesamv2.masks import to_rles
from mobilesamv2.metrics.average_recall import DEFAULT_KS, AverageRecall, count_matches
from mobilesamv2.structures import GroundTruth

HEIGHT, WIDTH = 480, 640


def blob(rng: np.random.Generator, centre: np.ndarray, radius: float) -> dict[str, Any]:
    """RLE of a wobbly ellipse, as JSON has it."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    reach = radius * (1 + 0.25 * np.sin(rng.integers(2, 9) * angles + rng.uniform(0, 6)))
    x, y = centre[1] + reach * np.cos(angles) * rng.uniform(0.6, 1.6), centre[0] + reach * np.sin(angles)
    outline = np.stack([x.clip(0, WIDTH), y.clip(0, HEIGHT)], 1).ravel().tolist()
    rle: Any = coco_mask.frPyObjects([outline], HEIGHT, WIDTH)[0]
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def draw(num_images: int, detections: int, objects: int, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth of one category beside LVIS's frequencies, and results: some near an object, the others anywhere."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        places = [(rng.uniform((0, 0), (HEIGHT, WIDTH)), float(np.exp(rng.uniform(1.5, 5)))) for _ in range(objects)]
        for centre, radius in places:
            rle: Any = blob(rng, centre, radius)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "segmentation": rle,
                    "area": float(coco_mask.area(rle)),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "iscrowd": 0,
                    "frequency": "rcf"[int(rng.integers(3))],
                }
            )
        for i in range(detections):
            centre, radius = (
                places[i % objects] if i % 2 else (rng.uniform((0, 0), (HEIGHT, WIDTH)), rng.uniform(3, 90))
            )
            rle = blob(rng, centre + rng.normal(0, radius / 8, 2), radius * rng.uniform(0.9, 1.1))
            results.append({"image_id": image_id, "category_id": 1, "segmentation": rle, "score": float(rng.random())})
    images = [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, num_images + 1)]
    return {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }, results


def ours(truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float | None]:
    """AR by name; every RLE is checked, as ``evaluate.py predictions=`` does."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    found: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    for entry in results:
        found[entry["image_id"]].append(entry)
    recall = AverageRecall(DEFAULT_KS)
    for image_id, wanted in objects.items():
        size = sizes[image_id]
        rles = to_rles([a["segmentation"] for a in wanted], size, str)
        areas, frequencies = ([a[key] for a in wanted] for key in ("area", "frequency"))
        detections = to_rles([entry["segmentation"] for entry in found[image_id]], size, str)
        scores = [entry["score"] for entry in found[image_id]]
        recall.update(count_matches(GroundTruth(image_id, size, rles, areas, frequencies), detections, scores))
    return recall.compute()


def by_coco_api(coco: Any, evaluation: Any) -> Callable[..., dict[str, float | None]]:
    """Run COCOeval, or what takes its place, once for all and each size, and once for each frequency.

    It writes into what it is given, so it is given copies, outside the clock.
    """

    def run(truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float | None]:
        values: dict[str, float | None] = {}
        for group in ("", "r", "c", "f"):
            annotations = [a for a in truth["annotations"] if group in ("", a["frequency"])]
            with contextlib.redirect_stdout(io.StringIO()):
                api = coco()
                api.dataset = truth | {"annotations": annotations}
                api.createIndex()
                evaluator = evaluation(api, api.loadRes([dict(entry) for entry in results]), "segm")
                evaluator.params.useCats = 0
                evaluator.params.maxDets = list(DEFAULT_KS)
                if group:  # sizes are asked for once
                    evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
                evaluator.evaluate()
                evaluator.accumulate()
            recall = np.asarray(evaluator.eval["recall"])  # (thresholds, 1, areas, Ks)
            for a, size in enumerate(("", "s", "m", "l") if group == "" else (group,)):
                for k, cap in enumerate(DEFAULT_KS):
                    values[f"AR{size}@{cap}"] = float(recall[:, 0, a, k].mean())
        return values

    return run


def main() -> None:
    """Time each program, the best of several runs, and print the ratios and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--detections", type=int, default=200, help="of an image")
    parser.add_argument("--objects", type=int, default=12, help="of an image")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    import faster_coco_eval
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = draw(args.images, args.detections, args.objects, seed=0)
    print(f"{len(results)} detections and {len(truth['annotations'])} objects on {args.images} images of 640 x 480")
    programs = {
        "mobilesamv2": ours,
        "faster-coco-eval": by_coco_api(faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
        "pycocotools": by_coco_api(COCO, COCOeval),
    }
    seconds: dict[str, float] = {}
    values: dict[str, dict[str, float | None]] = {}
    for name, program in programs.items():
        times = []
        for _ in range(args.repeats):
            inputs = copy.deepcopy((truth, results))
            start = time.perf_counter()
            values[name] = program(*inputs)
            times.append(time.perf_counter() - start)
        seconds[name] = min(times)
    reference = values["pycocotools"]
    for name, taken in seconds.items():
        difference = max(abs((values[name][k] or 0.0) - (v or 0.0)) for k, v in reference.items())
        ratio = taken / seconds["mobilesamv2"]
        print(f"{name:<18}{taken:8.3f} s{ratio:8.1f} times ours   largest difference from pycocotools {difference:.1e}")


if __name__ == "__main__":
    main()
