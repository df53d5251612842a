"""evaluate.py as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from mobilesamv2 import SegEvery, build_sam
from mobilesamv2.prompts import GridProposals


def evaluate(*overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "evaluate.py"), *overrides]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=240)


@pytest.fixture
def dataset(tmp_path: Path, photo: np.ndarray) -> Path:
    """Two photos with three objects, one photo without any, in LVIS's layout."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in (1, 2, 3):
        Image.fromarray(np.roll(photo, 10 * i, axis=1)).save(folder / "images" / f"{i}.png")
        images.append({"id": i, "height": 90, "width": 130, "file_name": f"{i}.png"})
    for i, (image_id, x) in enumerate([(1, 10.0), (1, 60.0), (3, 30.0)]):
        polygon = [x, 10.0, x + 40, 10.0, x + 40, 60.0, x, 60.0]
        annotations.append({"id": i, "image_id": image_id, "category_id": 1, "segmentation": [polygon], "area": 2000.0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "frequency": "r"}]}
    (folder / "lvis.json").write_text(json.dumps(content))
    return folder


def test_scores_a_results_file_without_images_or_model(dataset: Path, tmp_path: Path) -> None:
    annotations = json.loads((dataset / "lvis.json").read_text())["annotations"]
    results = [a | {"score": 0.5} for a in annotations[:2]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    given = [f"dataset.annotations={dataset / 'lvis.json'}", "dataset.images=/nowhere"]
    given += [f"predictions={tmp_path / 'results.json'}", f"output_dir={tmp_path / 'out'}"]
    done = evaluate("dataset=lvis", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "AR@1000" in done.stdout
    assert "2 of 3 images have no mask" in done.stdout

    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["metrics"]["AR@10"] == pytest.approx(2 / 3)
    for name in ("ARm@1000", "ARr@100", "mAR"):
        assert result["metrics"][name] == pytest.approx(2 / 3)
    assert result["metrics"]["ARs@10"] is None
    assert result["n_gt"] == {"all": 3, "s": 0, "m": 3, "l": 0, "r": 3, "c": 0, "f": 0}
    assert result["interval"].keys() == result["metrics"].keys()
    assert result["ms"] is None
    assert result["run"]["model"] is None
    assert result["protocol"]["images_without_proposals"] == 2
    counts = np.load(tmp_path / "out" / "per_image.npz")
    assert counts["image_ids"].tolist() == [1, 2, 3]
    assert counts["matches"].shape == (3, 7, 3, 10)
    assert counts["matches"][:, 0, 0, 0].tolist() == [2, 0, 0]
    assert counts["n_gt"][:, 0].tolist() == [2, 0, 1]

    done = evaluate("dataset=lvis", *given, "skip_images_without_results=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["metrics"]["AR@10"] == 1.0
    assert result["protocol"]["num_images"] == 1


@pytest.mark.parametrize(
    "sampler",
    [
        ["prompt_sampler=grid_proposals", "prompt_sampler.points_per_side=6"],
        [
            "prompt_sampler=object_aware",
            "prompt_sampler.confidence=0.001",
            "detector=yolov8n",
            "detector.image_size=160",
        ],
    ],
    ids=["grid", "object_aware"],
)
def test_runs_a_model_from_end_to_end(dataset: Path, tmp_path: Path, sampler: list[str]) -> None:
    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}"]
    done = evaluate("model=mini", *given, *sampler, "output_dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("AR@10 ", "AR@1000", "objects", "mask_decoder", "image_encoder"):
        assert word in done.stdout
    assert "random" in done.stderr
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["n_gt"]["all"] == 3
    assert all(ms > 0 for ms in result["ms"].values())
    assert result["protocol"]["mean_prompts_decoded"] == (36 if "grid" in sampler[0] else pytest.approx(320, abs=320))
    assert 0 < result["protocol"]["mean_proposals"] <= 1000
    assert result["run"]["model"]["weights"]["name"] == "mini"
    assert result["run"]["dtype"] == "32-true"
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"results.json", "per_image.npz"}


def test_a_model_and_its_results_file_score_the_same(dataset: Path, tmp_path: Path) -> None:
    """What Trainer.test counts is what predictions= counts of the same masks."""
    import pytorch_lightning as pl

    from mobilesamv2.data.lvis import LvisDataset
    from mobilesamv2.metrics.average_recall import AverageRecall, count_matches
    from mobilesamv2.tasks.evaluate import EvaluateProposals, evaluation_loader

    data = LvisDataset(dataset / "lvis.json", dataset / "images")
    segevery = SegEvery(build_sam("mini"), GridProposals(points_per_side=5))
    task = EvaluateProposals(segevery)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    logged = trainer.test(task, evaluation_loader(data, num_workers=0), verbose=False)[0]
    recall = AverageRecall()
    for i in range(len(data)):
        image, truth = data[i]
        results = segevery(image).to_coco(truth.image_id)
        recall.update(count_matches(truth, [r["segmentation"] for r in results], [r["score"] for r in results]))
    assert task.recall.compute() == recall.compute()
    assert logged["test/ar_1000"] == pytest.approx(recall.compute()["AR@1000"])
    assert [c.image_id for c in task.images] == [1, 2, 3]


def test_missing_files_are_all_named_at_once(tmp_path: Path) -> None:
    done = evaluate("dataset=lvis", "prompt_sampler=object_aware", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for phrase in (
        "no annotation file data/lvis/lvis_v1_val.json",
        "no folder of images data/coco",
        "published at https://dl.fbaipublicfiles.com/LVIS/lvis_v1_val.json.zip",
        "no weight file weights/mobile_sam.pt",
        "no weight file weights/ObjectAwareModel.pt",
        "put it at weights/mobile_sam.pt",
    ):
        assert phrase in done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=mobil_sam"], "Did you mean 'mobile_sam'"),
        (["predictions=none.json"], "There is no file none.json"),
        (
            ["prompt_sampler=object_aware", "detector=yolov8n", "prompt_sampler.prompt=box"],
            "prompt is one of boxes, points",
        ),
        (["sede=1"], "sede"),
    ],
)
def test_errors_are_sentences(dataset: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}", "model=mini"]
    done = evaluate(*given, *overrides, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
