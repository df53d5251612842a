"""Tables, comparisons and pictures of evaluations, and the commands that draw and report."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilesamv2.cli import main
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.shapes import ShapesDataset
from mobilesamv2.masks import decode
from mobilesamv2.metrics.average_recall import AverageRecall, average_recall, count_matches, paired_intervals
from mobilesamv2.metrics.proposal_report import per_image_arrays, proposal_results
from mobilesamv2.metrics.result_record import write_record
from mobilesamv2.visualize import overlay

PROTOCOL = {"k_caps": "masks", "image_list_sha256": "a", "annotations_sha256": "b"}


@pytest.fixture
def scenes(tmp_path: Path) -> LvisDataset:
    main(["draw", str(tmp_path / "scenes"), "--scenes", "4", "--size", "64", "--workers", "0"])
    return LvisDataset(tmp_path / "scenes" / "annotations.json", tmp_path / "scenes" / "images")


def write_run(dataset: LvisDataset, folder: Path, share: float, **protocol: object) -> Path:
    """An evaluation that found this share of each image's objects, and its masks."""
    recall, images, masks = AverageRecall(), [], []
    for i in range(len(dataset)):
        truth = dataset.ground_truth(i)
        rles = truth.rles[: round(share * len(truth.rles))]
        images.append(count_matches(truth, rles, [1.0] * len(rles)))
        recall.update(images[-1])
        masks += [{"image_id": truth.image_id, "segmentation": rle, "score": 1.0} for rle in rles]
    results = proposal_results(recall, images, 0, PROTOCOL | dataset.provenance | protocol, {})
    write_record(results, folder, **per_image_arrays(images, recall.ks))
    (folder / "masks").mkdir()
    (folder / "masks" / "a.json").write_text(json.dumps(masks))
    return folder


def test_draw_writes_both_layouts(tmp_path: Path, scenes: LvisDataset) -> None:
    main(["draw", str(tmp_path / "more" / "scenes.tar"), "--scenes", "4", "--size", "64", "--workers", "0"])
    tar = SA1BDataset(tmp_path / "more" / "scenes.tar")
    assert [tar.ground_truth(i).rles for i in range(4)] == [scenes.ground_truth(i).rles for i in range(4)]
    with pytest.raises(SystemExit, match="error: Scenes are one or more"):
        main(["draw", str(tmp_path / "none"), "--scenes", "0"])


def test_table_has_a_row_for_each_run(tmp_path: Path, scenes: LvisDataset, capsys: pytest.CaptureFixture[str]) -> None:
    all_of_them, none = write_run(scenes, tmp_path / "all", 1.0), write_run(scenes, tmp_path / "none", 0.0)
    main(["report", "table", f"every one={all_of_them}", str(none)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| run")
    assert "| every one" in lines[2]
    assert "| 100.0  | 100.0   |" in lines[2]
    assert lines[3].startswith("| none")
    assert "4 images" in lines[-1]
    other = write_run(scenes, tmp_path / "other", 1.0, image_list_sha256="c")
    with pytest.raises(SystemExit, match="error: other is not like all: its image_list_sha256 is c instead of a"):
        main(["report", "table", str(all_of_them), str(other)])
    with pytest.raises(SystemExit, match=r"error: There is no result .*gone"):
        main(["report", "table", str(tmp_path / "gone")])
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"error: .*bad\.json is not a result of evaluate\.py"):
        main(["report", "table", str(tmp_path / "bad.json")])


def test_compare_pairs_the_images(tmp_path: Path, scenes: LvisDataset, capsys: pytest.CaptureFixture[str]) -> None:
    half, whole = write_run(scenes, tmp_path / "half", 0.5), write_run(scenes, tmp_path / "whole", 1.0)
    main(["report", "compare", str(half), str(whole / "results.json")])
    printed = capsys.readouterr().out
    before = json.loads((half / "results.json").read_text())["metrics"]["AR@1000"]
    line = next(line for line in printed.splitlines() if line.startswith("AR@1000"))
    assert f"{100 * before:.1f}   100.0" in line
    assert f"{100 * (1 - before):+.1f} [" in line
    assert line.endswith("*")
    main(["report", "compare", str(half), str(half)])
    assert "+0.0 [+0.0, +0.0]" in capsys.readouterr().out
    fewer = LvisDataset(scenes.annotations, scenes.images, limit=3)
    with pytest.raises(SystemExit, match=r"can't be compared with .*: the image_ids"):
        main(["report", "compare", str(half), str(write_run(fewer, tmp_path / "fewer", 1.0))])


def test_paired_intervals_are_those_of_shared_draws() -> None:
    """Of two results that differ by a constant share, the difference has an interval of width 0."""
    rng = np.random.default_rng(0)
    n_gt = np.full((30, 7), 10)
    first = rng.integers(0, 5, size=(30, 7, 1, 10))
    interval = paired_intervals(first, first + 5, n_gt, [100], resamples=50)["AR@100"]
    assert interval == pytest.approx([0.5, 0.5])
    second = rng.integers(0, 10, size=first.shape)
    low, high = paired_intervals(first, second, n_gt, [100], resamples=400)["AR@100"] or (0.0, 0.0)
    change = average_recall(second.sum(0), n_gt.sum(0)) - average_recall(first.sum(0), n_gt.sum(0))
    assert low < change[0, 0] < high


def test_picture_shows_what_was_kept(tmp_path: Path, scenes: LvisDataset) -> None:
    run = write_run(scenes, tmp_path / "run", 1.0)
    main(["report", "picture", f"found={run}", "-o", str(tmp_path / "new" / "picture.png"), "--images", "2"])
    with Image.open(tmp_path / "new" / "picture.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (22 + 3 * 8 + 2 * 64, 4 * 8 + 3 * 64, 3)
    photo, objects, found = (pixels[30:94, 8 + 72 * i : 72 + 72 * i] for i in range(3))
    assert (photo == scenes.load_image(0)).all()
    assert (objects == found).all()
    assert (objects != photo).any()
    (run / "masks" / "a.json").unlink()
    (run / "masks").rmdir()
    with pytest.raises(SystemExit, match=r"error: .*run kept no masks; .* save_masks=true"):
        main(["report", "picture", str(run), "-o", str(tmp_path / "picture.png")])


def test_overlay_colours_masks_alone() -> None:
    image = np.full((20, 30, 3), 100, dtype=np.uint8)
    photo, objects = ShapesDataset(1, (64, 64))[0]
    drawn = overlay(photo, objects.rles)
    covered = np.any([decode(rle) for rle in objects.rles], axis=0)
    assert (drawn[~covered] == photo[~covered]).all()
    assert (drawn[covered] != photo[covered]).any(1).mean() > 0.9
    assert (overlay(image, []) == image).all()
    pixels = np.stack([decode(rle) for rle in objects.rles])
    assert (overlay(photo, pixels) == drawn).all()
    nothing = np.zeros((1, 64, 64), dtype=bool)
    assert (overlay(photo, np.concatenate([nothing, pixels])) == drawn).all()
    half = overlay(image, np.arange(600).reshape(1, 20, 30) % 30 < 10)  # half red, its edge darker
    assert half[10, 5].tolist() == [round(v) for v in (50 + 127.5, 50 + 127.5 / 4, 50 + 127.5 / 4)]
    assert half[10, 9].tolist() == [153, 38, 38]
    assert half[10, 10].tolist() == [100] * 3
