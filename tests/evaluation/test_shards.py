"""Results of images on disk: annotations that are repaired between two parts of a run, and runs that an error ends."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs import evaluate_here

from mobilesamv2.evaluation.shards import ImageResult, ResultShards, read_images, truth_fingerprint
from mobilesamv2.segevery import SegEvery
from mobilesamv2.structures import GroundTruth


def truth_of(image_id: int, area: float = 4.0) -> GroundTruth:
    return GroundTruth(image_id, (4, 4), [{"size": [4, 4], "counts": "04<"}], [area], [None])


def result(image_id: int) -> ImageResult:
    return ImageResult(image_id, {"n": np.array(image_id)}, None, 0, truth=truth_fingerprint(truth_of(image_id)))


def test_an_image_with_other_annotations_leaves_the_files(tmp_path: Path) -> None:
    shards = ResultShards(tmp_path, {"a": 1}, keep_masks=True, annotations_sha256="x", truth_of=truth_of)
    for image_id in (6, 7, 8):
        shards.add(result(image_id), [{"image_id": image_id}])
    shards.flush()
    same = ResultShards(tmp_path, {"a": 1}, keep_masks=True, annotations_sha256="y", truth_of=truth_of)
    assert (len(same.done), same.outdated) == (3, set())

    def repaired(image_id: int) -> GroundTruth:
        return truth_of(image_id, 5.0 if image_id == 7 else 4.0)

    for outdated in ({7}, set()):  # the second time it is gone
        again = ResultShards(tmp_path, {"a": 1}, keep_masks=True, annotations_sha256="y", truth_of=repaired)
        assert [image.image_id for image in again.done] == [6, 8]
        assert again.outdated == outdated
    [masks] = (tmp_path / "masks").glob("*.json")
    assert json.loads(masks.read_text()) == [{"image_id": 6}, {"image_id": 8}]
    with pytest.raises(ValueError, match=r"holds another run \(a was 1 and is 2\)"):
        ResultShards(tmp_path, {"a": 2}, keep_masks=True, annotations_sha256="x", truth_of=truth_of)


def test_what_a_folder_keeps_is_read_by_its_ids(tmp_path: Path) -> None:
    measured = ImageResult(4, {"n": np.array(4)}, {"encoder": 2.0}, 3, {"encoder": 1.0}, "truth", 12.5)
    for images in ([result(6), measured], [result(5)]):
        shards = ResultShards(tmp_path, {"a": 1}, environment={"commit": str(len(images))})
        for image in images:
            shards.add(image)
        shards.flush()
    images, environments = read_images(tmp_path)
    assert [image.image_id for image in images] == [4, 5, 6]
    assert images[0] == measured
    assert [image.peak_mib for image in images] == [12.5, None, None]
    assert sorted(environment["commit"] for environment in environments) == ["1", "2"]
    again = ResultShards(tmp_path, {"a": 1})
    again.add(result(5))
    again.flush()
    with pytest.raises(ValueError, match="has an image twice"):
        read_images(tmp_path)


def test_folders_of_earlier_versions_resume_with_the_same_annotations_alone(tmp_path: Path) -> None:
    """They have the hash of all annotations in their identity, and none for each image."""
    shards = ResultShards(tmp_path, {"a": 1})
    shards.add(result(6))
    shards.flush()
    (tmp_path / "progress" / "identity.json").write_text('{"a": 1, "save_masks": false, "annotations_sha256": "x"}')
    [path] = (tmp_path / "progress").glob("*.npz")
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name not in ("truth", "annotations_sha256")}
    np.savez_compressed(path, **arrays)
    assert len(ResultShards(tmp_path, {"a": 1}, annotations_sha256="x", truth_of=truth_of).done) == 1
    with pytest.raises(ValueError, match="annotations_sha256 was x and is y"):
        ResultShards(tmp_path, {"a": 1}, annotations_sha256="y", truth_of=truth_of)


@pytest.mark.slow
def test_repairing_one_image_recounts_it_alone(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}", "model=mini"]
    given += ["prompt_sampler.points_per_side=4", "trainer.accelerator=cpu", "task.save_masks=true", "num_workers=0"]
    content = json.loads((dataset / "lvis.json").read_text())
    broken: dict[str, Any] = {"id": 77, "image_id": 2, "category_id": 1, "area": 9.0, "segmentation": []}
    content["annotations"].append(broken)
    (dataset / "lvis.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"(?s)1 with neither a mask nor a box.*77.*bad_annotations=leave_out"):
        evaluate_here(*given, f"output_dir={tmp_path / 'out'}")
    given += [f"output_dir={tmp_path / 'out'}"]
    evaluate_here(*given, "dataset.bad_annotations=leave_out")
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    assert first["protocol"]["annotations_left_out"] == {"neither a mask nor a box": 1}

    calls, real = [], SegEvery.generate_batch
    monkeypatch.setattr(SegEvery, "generate_batch", lambda self, images: calls.extend(images) or real(self, images))
    broken["segmentation"] = [[0, 0, 130, 0, 130, 90, 0, 90]]
    (dataset / "lvis.json").write_text(json.dumps(content))
    evaluate_here(*given)
    assert len(calls) == 1
    assert "2 of 3 images were done before; resuming with 1." in capsys.readouterr().out
    resumed = json.loads((tmp_path / "out" / "results.json").read_text())
    assert resumed["n_gt"]["all"] == first["n_gt"]["all"] + 1
    assert resumed["protocol"]["annotations_left_out"] == {}
    evaluate_here(*given[:-1], f"output_dir={tmp_path / 'anew'}")
    anew = json.loads((tmp_path / "anew" / "results.json").read_text())
    for key in ("metrics", "interval", "n_gt", "protocol"):
        assert resumed[key] == anew[key]
    given.remove("task.save_masks=true")
    evaluate_here(*given[:-1], f"predictions={tmp_path / 'out' / 'masks'}", f"output_dir={tmp_path / 'kept'}")
    assert json.loads((tmp_path / "kept" / "results.json").read_text())["metrics"] == anew["metrics"]


def test_a_run_that_an_error_ends_keeps_what_is_done(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}", "model=mini"]
    given += ["prompt_sampler.points_per_side=2", f"output_dir={tmp_path / 'out'}", "num_workers=0"]
    photo = (dataset / "images" / "3.png").read_bytes()
    (dataset / "images" / "3.png").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match=r"3\.png can't be decoded"):
        evaluate_here(*given)
    (dataset / "images" / "3.png").write_bytes(photo)
    evaluate_here(*given)
    assert "2 of 3 images were done before; resuming with 1." in capsys.readouterr().out
