"""Tables, comparisons and pictures of evaluations, and the commands that synthesize and report."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import write_run

from mobilesamv2.cli.main import main
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.masks import decode, encode
from mobilesamv2.metrics.average_recall import average_recall, paired_intervals
from mobilesamv2.reports.picture import result_picture
from mobilesamv2.visualize import overlay


@pytest.fixture
def scenes(tmp_path: Path) -> LvisDataset:
    main(["synthesize", str(tmp_path / "scenes"), "--scenes", "4", "--size", "64", "--workers", "0"])
    return LvisDataset(tmp_path / "scenes" / "annotations.json", tmp_path / "scenes" / "images")


def test_synthesize_writes_both_layouts(tmp_path: Path, scenes: LvisDataset) -> None:
    main(["synthesize", str(tmp_path / "more" / "scenes.tar"), "--scenes", "4", "--size", "64", "--workers", "0"])
    tar = SA1BDataset(tmp_path / "more" / "scenes.tar")
    assert [tar.ground_truth(i).rles for i in range(4)] == [scenes.ground_truth(i).rles for i in range(4)]
    with pytest.raises(SystemExit, match="error: --scenes must be at least 1"):
        main(["synthesize", str(tmp_path / "none"), "--scenes", "0"])


def test_table_has_a_row_for_each_run(tmp_path: Path, scenes: LvisDataset, capsys: pytest.CaptureFixture[str]) -> None:
    all_of_them, none = write_run(scenes, tmp_path / "all", 1.0), write_run(scenes, tmp_path / "none", 0.0)
    main(["report", "table", f"every one={all_of_them}", str(none)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| run")
    assert re.match(r"\| every one +\|.*\| +100.0 \| +100.0 \|", lines[2])
    assert lines[3].startswith("| none")
    assert "4 images" in lines[-1]
    other = write_run(scenes, tmp_path / "other", 1.0, image_list_sha256="c")
    with pytest.raises(
        SystemExit,
        match=r"other can't be compared with all: image_list_sha256 in its results\.json must be a, got c",
    ):
        main(["report", "table", str(all_of_them), str(other)])
    with pytest.raises(SystemExit, match=r"error: There is no result .*gone"):
        main(["report", "table", str(tmp_path / "gone")])
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"error: .*bad\.json must be a results\.json of evaluate\.py"):
        main(["report", "table", str(tmp_path / "bad.json")])


def test_compare_pairs_the_images(tmp_path: Path, scenes: LvisDataset, capsys: pytest.CaptureFixture[str]) -> None:
    half, whole = write_run(scenes, tmp_path / "half", 0.5), write_run(scenes, tmp_path / "whole", 1.0)
    main(["report", "compare", str(half), str(whole / "results.json")])
    printed = capsys.readouterr().out
    before = json.loads((half / "results.json").read_text())["metrics"]["AR@1000"]
    line = next(line for line in printed.splitlines() if line.startswith("AR@1000"))
    assert line.split()[1:3] == [f"{100 * before:.1f}", "100.0"]
    assert f"{100 * (1 - before):+.1f} [" in line
    assert line.endswith("*")
    main(["report", "compare", str(half), str(half)])
    assert "+0.0 [+0.0, +0.0]" in capsys.readouterr().out
    fewer = LvisDataset(scenes.annotations, scenes.images, limit=3)
    with pytest.raises(SystemExit, match=r"can't be compared with .*: their image_ids must be the same"):
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
    assert pixels.shape == (57 + 3 * 8 + 2 * 512, 4 * 8 + 3 * 512, 3)  # 64 pixels, enlarged
    photo, objects, found = (pixels[65:577:8, 8 + 520 * i : 520 + 520 * i : 8] for i in range(3))
    assert (photo == scenes.load_image(0)).all()
    assert (objects == found).all()
    assert (objects != photo).any()
    part = write_run(scenes, tmp_path / "part", 0.5)  # with a mask of no object, and without masks of half of them
    masks = json.loads((part / "masks" / "a.json").read_text())
    truth = scenes.ground_truth(0)
    corner = np.zeros((1, *truth.size), dtype=bool)
    corner[:, :2, :2] = True
    [stray] = encode(torch.from_numpy(corner).transpose(1, 2))
    masks.append({"image_id": truth.image_id, "segmentation": stray, "score": 2.0})
    (part / "masks" / "a.json").write_text(json.dumps(masks))
    image, kept = scenes.load_image(0), truth.rles[: round(0.5 * len(truth.rles))]
    with result_picture({"part": part}, num_images=1) as picture:
        drawn = np.asarray(picture)[65:577:8, 8 + 520 * 2 : 520 + 520 * 2 : 8]
    assert (drawn == overlay(image, kept, objects=range(len(kept)))).all()
    (run / "masks" / "a.json").unlink()
    (run / "masks").rmdir()
    with pytest.raises(SystemExit, match=r"error: .*run has no saved masks; .* task.save_masks=true"):
        main(["report", "picture", str(run), "-o", str(tmp_path / "picture.png")])


def test_overlay_colours_masks_alone() -> None:
    image = np.full((20, 30, 3), 100, dtype=np.uint8)
    photo, objects = SyntheticDataset(1, (64, 64))[0]
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
