"""Results of images on disk: photos replaced or annotations repaired between two parts of a run, and errors."""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.runs import evaluate_here

from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.writers import write_sa1b_tar
from mobilesamv2.evaluation.shards import ImageResult, ResultShards, photos_fingerprint, read_images, truth_fingerprint
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


def test_environments_are_in_the_order_of_their_files(tmp_path: Path) -> None:
    for image_id, commit in ((6, "b"), (7, "a"), (8, "b")):
        shards = ResultShards(tmp_path, {}, environment={"commit": commit})
        shards.add(result(image_id))
        shards.flush()
        [new] = (path for path in (tmp_path / "progress").glob("*.npz") if not path.stem.startswith("old"))
        os.utime(new, (image_id, image_id))
        new.rename(new.with_name(f"old{9 - image_id}.npz"))
    assert [each["commit"] for each in ResultShards(tmp_path, {}).environments] == ["a", "b"]


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


def photo_of(image_id: int) -> str:
    return f"photo {image_id}"


def test_an_image_whose_photo_was_replaced_leaves_the_files(tmp_path: Path) -> None:
    same: dict[str, Any] = {"keep_masks": True, "annotations_sha256": "x", "truth_of": truth_of}
    shards = ResultShards(tmp_path, {"a": 1}, **same, content_hash_of=photo_of)
    for image_id in (6, 7, 8):
        shards.add(replace(result(image_id), content_hash=photo_of(image_id)), [{"image_id": image_id}])
    shards.flush()
    assert len(ResultShards(tmp_path, {"a": 1}, **same, content_hash_of=photo_of).done) == 3
    assert [image.content_hash for image in read_images(tmp_path)[0]] == ["photo 6", "photo 7", "photo 8"]
    again = ResultShards(
        tmp_path, {"a": 1}, **same, content_hash_of=lambda i: "another photo" if i == 7 else photo_of(i)
    )
    assert ([image.image_id for image in again.done], again.outdated) == ([6, 8], {7})
    [masks] = (tmp_path / "masks").glob("*.json")
    assert json.loads(masks.read_text()) == [{"image_id": 6}, {"image_id": 8}]
    assert ResultShards(tmp_path, {"a": 1}, **same, content_hash_of=lambda _: "another photo").outdated == {6, 8}


@pytest.mark.parametrize("absent", ["content_hash", "truth", "annotations_sha256"])
def test_folders_of_earlier_versions_are_read_and_not_resumed(tmp_path: Path, absent: str) -> None:
    """They do not say of which photos their results are."""
    shards = ResultShards(tmp_path, {"a": 1}, annotations_sha256="x")
    shards.add(result(6))
    shards.flush()
    [path] = (tmp_path / "progress").glob("*.npz")
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != absent}
    np.savez_compressed(path, **arrays)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"of an earlier version, which .* photos' hashes\. Name another output_dir"):
        ResultShards(tmp_path, {"a": 1}, annotations_sha256="x", truth_of=truth_of, content_hash_of=photo_of)
    assert path.read_bytes() == content
    assert [image.image_id for image in read_images(tmp_path)[0]] == [6]


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


BOXES = [{"image_id": i, "category_id": 1, "bbox": [10, 10, 40, 50], "score": 0.5} for i in (1, 2, 3)]

TASKS = {
    "evaluate_proposals": ["prompt_sampler.points_per_side=2", "task.save_masks=true"],
    "evaluate_prompts": ["task.kinds=[box]"],
    "evaluate_clicks": ["task.max_clicks=1"],
    "evaluate_boxes": ["task.boxes=boxes.json"],
    "evaluate_detector": ["detector=yolov8n", "detector.image_size=160"],
    "evaluate_fastsam": ["detector=by_name", "detector.architecture=yolov8n-seg", "detector.image_size=160"],
}


@pytest.mark.parametrize("task", TASKS)
def test_a_photo_that_is_replaced_in_place_is_evaluated_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    """By one with as many bytes, with the same time of writing, and one photo alone."""
    monkeypatch.chdir(tmp_path)
    Path("boxes.json").write_text(json.dumps(BOXES))
    photo = dataset / "images" / "3.png"
    Image.open(photo).save(photo, "BMP")  # whose number of bytes goes by its pixels alone
    given = [f"task={task}", *TASKS[task], "dataset=coco", f"dataset.annotations={dataset / 'lvis.json'}", "model=mini"]
    given += ["trainer.accelerator=cpu", "num_workers=0", "+trainer.enable_progress_bar=false"]
    evaluate_here(*given, f"dataset.images={dataset / 'images'}", "output_dir=out")
    before = photo.stat()
    noise = np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photo, "BMP")
    os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert photo.stat().st_size == before.st_size
    (dataset / "images").rename(dataset / "moved")  # photos that are the same count wherever they lie
    capsys.readouterr()
    evaluate_here(*given, f"dataset.images={dataset / 'moved'}", "output_dir=out")
    assert "2 of 3 images were done before; resuming with 1.\n1 of these" in capsys.readouterr().out
    evaluate_here(*given, f"dataset.images={dataset / 'moved'}", "output_dir=anew")
    resumed, anew = (json.loads(Path(name, "results.json").read_text()) for name in ("out", "anew"))
    for key in ("metrics", "interval", "n_gt", "protocol"):
        assert resumed[key] == anew[key]


def test_other_photos_of_the_same_ids_are_all_evaluated(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["task=evaluate_prompts", "task.kinds=[box]", f"dataset.annotations={dataset / 'lvis.json'}", "model=mini"]
    given += ["trainer.accelerator=cpu", "num_workers=0", "+trainer.enable_progress_bar=false"]
    other = dataset / "other"
    other.mkdir()
    for i in (1, 2, 3):
        noise = np.random.default_rng(i).integers(0, 255, (90, 130, 3), dtype=np.uint8)
        Image.fromarray(noise).save(other / f"{i}.png")
    found = {}
    for images, out in ((dataset / "images", "out"), (other, "out"), (other, "anew")):
        evaluate_here(*given, f"dataset.images={images}", f"output_dir={tmp_path / out}")
        found[images.name, out] = json.loads((tmp_path / out / "results.json").read_text())
    assert "0 of 3 images were done before; resuming with 3.\n3 of these" in capsys.readouterr().out
    assert found["other", "out"]["metrics"] == found["other", "anew"]["metrics"] != found["images", "out"]["metrics"]


@pytest.mark.parametrize("extracted", [False, True])
def test_a_replaced_tar_or_its_extracted_photos_are_evaluated_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extracted: bool
) -> None:
    """Photo 1 alone differs; the tar is otherwise the same, and keeps its index."""
    scenes, tar = SyntheticDataset(3, (64, 96)), tmp_path / "data" / "sa_000000.tar"
    tar.parent.mkdir()
    given = ["task=evaluate_prompts", "task.kinds=[box]", "dataset=sa1b", f"dataset.tars={tar.parent}", "model=mini"]
    given += ["trainer.accelerator=cpu", "num_workers=0", "+trainer.enable_progress_bar=false"]
    given += [f"dataset.index_folder={tmp_path / 'index'}", f"output_dir={tmp_path / 'out'}"]
    for replaced in (None, 1):
        write_sa1b_tar(
            ((255 - image if i == replaced else image, truth) for i, (image, truth) in scenes_of(scenes)), tar
        )
        if extracted:
            with tarfile.open(tar) as archive:
                archive.extractall(tar.parent, filter="data")
            tar.unlink()
        evaluate_here(*given)
    assert "2 of 3 images were done before; resuming with 1.\n1 of these" in capsys.readouterr().out


def scenes_of(dataset: SyntheticDataset) -> Iterator[tuple[int, tuple[np.ndarray, GroundTruth]]]:
    return ((i, dataset[i]) for i in range(len(dataset)))


def test_the_fingerprint_of_photos_is_that_of_their_content() -> None:
    """By their ids, in whatever order; results of earlier versions, which know no content, have none."""

    def of(*hashes: tuple[int, str]) -> str | None:
        return photos_fingerprint([ImageResult(i, {}, None, 0, content_hash=content) for i, content in hashes])

    assert of((1, "a"), (2, "b")) == of((2, "b"), (1, "a")) != of((1, "b"), (2, "a"))
    assert of((1, "a"), (2, "b")) != of((1, "a"), (2, "blurred"))
    assert of((1, "a"), (2, "")) is None
