"""The command that segments everything in images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage
from support.runs import FAST

from mobilesamv2 import SegEvery, load_pretrained
from mobilesamv2.cli.main import main
from mobilesamv2.cli.segment import segment_images
from mobilesamv2.data.images import find_images, read_rgb
from mobilesamv2.data.synthetic.render import render_scene
from mobilesamv2.masks import decode
from mobilesamv2.prompts import GridProposals
from mobilesamv2.structures import Masks


def photo(path: Path, size: tuple[int, int] = (60, 90), **options: object) -> Path:
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path, **options)
    return path


def test_a_folder_a_pattern_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(tmp_path / "in" / "b.jpg")
    photo(tmp_path / "in" / "a.PNG")
    (tmp_path / "in" / "notes.txt").write_text("no photo")
    photo(tmp_path / "deep" / "er" / "c.webp")
    out = tmp_path / "out"
    main(
        [
            "segment",
            str(tmp_path / "in"),
            f"{tmp_path}/deep/**/*.webp",
            str(tmp_path / "in/b.jpg"),
            "-o",
            str(out),
            *FAST,
        ]
    )
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    photos = [f"{name}.{kind}" for name in ("deep/er/c", "in/a", "in/b") for kind in ("json", "png")]
    assert found == [*photos, "masks.json"]
    coco = COCO(str(out / "masks.json"))
    assert [Path(image["file_name"]).name for image in coco.dataset["images"]] == ["a.PNG", "b.jpg", "c.webp"]
    annotations = coco.dataset["annotations"]
    assert len(annotations) > 3
    assert f"{len(annotations)} masks on 3 images" in capsys.readouterr().out
    for annotation in annotations[:5]:
        mask = coco.annToMask(annotation)
        assert mask.shape == (60, 90)
        assert mask.sum() == annotation["area"]
    assert np.asarray(Image.open(out / "in" / "b.png")).shape == (60, 90, 3)


def test_a_photo_taken_sideways_is_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(tmp_path / "a.jpg", exif=exif)
    main(["segment", str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out"), *FAST])
    written = json.loads((tmp_path / "out" / "masks.json").read_text())
    assert (written["images"][0]["height"], written["images"][0]["width"]) == (90, 60)
    assert read_rgb(tmp_path / "a.jpg", "a").shape == (60, 90, 3)


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = [photo(tmp_path / "in" / f"{i}.png", (40 + i, 60)) for i in range(4)]
    asked: list[int] = []
    every = SegEvery(load_pretrained("mini_conv"), GridProposals(points_per_side=2))

    def segment(image: np.ndarray) -> Masks:
        asked.append(len(image))
        if asked == [40, 41, 42]:
            raise KeyboardInterrupt
        return every(image)

    given = {"model": "x"}
    with pytest.raises(KeyboardInterrupt):
        segment_images(photos, segment, tmp_path / "out", given)
    assert not (tmp_path / "out" / "masks.json").exists()
    done = segment_images(photos, segment, tmp_path / "out", given)
    assert asked == [40, 41, 42, 42, 43]
    assert done.kept == 2
    assert [image["height"] for image in json.loads(done.written.read_text())["images"]] == [40, 41, 42, 43]
    photo(photos[0], (50, 60))  # another photo of that name
    (tmp_path / "out" / "1.json").write_text("{")
    assert segment_images(photos, segment, tmp_path / "out", given).kept == 2
    assert asked[5:] == [50, 41]
    assert segment_images(photos, segment, tmp_path / "out", {"model": "y"}).kept == 0
    for said in ("", "4 images were already segmented with these settings and are kept"):
        main(["segment", str(tmp_path / "in"), "-o", str(tmp_path / "cli"), *FAST])
        assert said in capsys.readouterr().out


def test_names_that_meet(tmp_path: Path) -> None:
    for name in ("x/1.jpg", "y/1.png", "y/2.jpg", "y/2.png", "masks.jpg"):
        photo(tmp_path / "in" / name)
    main(["segment", f"{tmp_path}/in/**/*.*", "-o", str(tmp_path / "out"), *FAST])
    pictures = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")}
    assert pictures == {"x/1.png", "y/1.png", "y/2.jpg.png", "y/2.png.png", "masks.jpg.png"}
    assert len(json.loads((tmp_path / "out" / "masks.json").read_text())["images"]) == 5


def test_modes_of_photos(tmp_path: Path) -> None:
    grey = np.array([[0, 257, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert read_rgb(tmp_path / "deep.png", "deep").tolist() == [[[0] * 3, [1] * 3, [255] * 3]]
    Image.fromarray(np.array([[0.0, 99.6, float("nan")]], dtype=np.float32)).save(tmp_path / "real.tif")
    assert read_rgb(tmp_path / "real.tif", "real")[0, :, 0].tolist() == [0, 100, 0]
    Image.fromarray(np.array([[3, 4]], dtype=np.uint8)).save(tmp_path / "grey.png")
    assert read_rgb(tmp_path / "grey.png", "grey").tolist() == [[[3] * 3, [4] * 3]]
    Image.new("RGBA", (2, 1), (1, 2, 3, 128)).save(tmp_path / "clear.png")
    assert read_rgb(tmp_path / "clear.png", "clear").tolist() == [[[1, 2, 3]] * 2]


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (900, 5)])
def test_extreme_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    photo(tmp_path / "a.png", size)
    main(["segment", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), *FAST])
    [image] = json.loads((tmp_path / "out" / "masks.json").read_text())["images"]
    assert (image["height"], image["width"]) == size


def test_a_broken_photo_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "good.jpg")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"not a photo")
    with pytest.raises(SystemExit, match=r"1 of 2 images were skipped. .*bad.jpg can't be decoded"):
        main(["segment", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *FAST])
    assert (tmp_path / "out" / "good.png").is_file()


@pytest.mark.slow
def test_the_shipped_files_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(render_scene(3, (96, 128))[0]).save(tmp_path / "scene.png")
    monkeypatch.chdir(tmp_path)
    given = ["--checkpoint", "mini_conv.safetensors", "--sampler", "object_aware", "--detector", "mini_detector.pt"]
    main(["segment", "scene.png", "-o", "out", *given, "--confidence", "0.1"])
    assert json.loads((tmp_path / "out" / "scene.json").read_text())["made_by"]["detector_size"] == 384


def test_object_aware_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mobilesamv2.models.object_detector import build_detector, save_detector

    save_detector(build_detector("yolov8n"), tmp_path / "detector.pt")
    given = ["--model", "mini_conv", "--sampler", "object_aware", "--detector", str(tmp_path / "detector.pt")]
    given += ["--detector-size", "64", "--confidence", "0.99"]
    main(["segment", str(photo(tmp_path / "a.jpg")), "-o", str(tmp_path / "out"), *given])
    # no box is as sure as that
    assert json.loads((tmp_path / "out" / "masks.json").read_text())["annotations"] == []
    assert "No mask passed the thresholds; lower them with --confidence." in capsys.readouterr().err
    other = build_detector("yolov8n")
    next(other.parameters()).data.add_(1)
    save_detector(other, tmp_path / "detector.pt")
    main(["segment", str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out"), *given])
    assert "are kept" not in capsys.readouterr().out
    main(["segment", str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out"), *given])
    assert "1 images were already segmented with these settings and are kept" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"--points-per-side can't be combined with --sampler object_aware"):
        main(["segment", str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out"), *given, "--points-per-side", "4"])
    with pytest.raises(SystemExit, match=r"--detector, .* and --confidence require --sampler object_aware"):
        main(["segment", str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out"), *FAST, "--detector", "x.pt"])


@pytest.mark.slow
def test_thresholds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model that ships has masks with its own thresholds; the highest leave none, and none leave more."""
    drawn = tmp_path / "scene.png"
    Image.fromarray(render_scene(0)[0]).save(drawn)
    given = ["segment", str(drawn), "-o", str(tmp_path), "--model", "mini_conv", "--points-per-side", "16"]
    counts = []
    for options in (
        [],
        ["--pred-iou-thresh", "1", "--stability-score-thresh", "0.95"],
        ["--pred-iou-thresh", "0", "--stability-score-thresh", "0"],
    ):
        for sampler in ("grid", "hierarchical"):
            out = tmp_path / "out"
            main([*given[:3], str(out), *given[4:], "--sampler", sampler, *options])
            counts.append(len(json.loads((out / "masks.json").read_text())["annotations"]))
    own, own_hierarchical, strict, _, lower, _ = counts
    assert 0 == strict < own < lower
    assert 0 < own_hierarchical <= own
    err = capsys.readouterr().err
    assert "lower them with --pred-iou-thresh and --stability-score-thresh" in err
    assert err.count("mini_conv ships with this package, was trained on synthetic scenes only") == 6  # once a command
    assert len(SegEvery.from_pretrained("mini_conv")(render_scene(0)[0])) > 0


@pytest.mark.slow
def test_small_regions_are_removed(tmp_path: Path) -> None:
    drawn = tmp_path / "scene.png"
    Image.fromarray(render_scene(0)[0]).save(drawn)
    smallest = []
    for area in ("0", "40"):
        out = tmp_path / area
        main(
            [
                "segment",
                str(drawn),
                "-o",
                str(out),
                *FAST[:2],
                "--points-per-side",
                "12",
                "--min-mask-region-area",
                area,
            ]
        )
        record = json.loads((out / "scene.json").read_text())
        assert record["made_by"].get("min_mask_region_area", 0) == int(area)
        masks = [decode(annotation["segmentation"]) for annotation in record["annotations"]]
        labels = [ndimage.label(pixels, np.ones((3, 3)))[0] for mask in masks for pixels in (mask, ~mask)]
        areas = [np.bincount(regions[regions > 0]) for regions in labels]
        smallest.append(min(area[1:].min() for area in areas if len(area) > 2))  # a mask's only region stays
    assert smallest[0] < 40 <= smallest[1]
    with pytest.raises(SystemExit, match="min_mask_region_area must be at least 0, got -1"):
        main(["segment", str(drawn), "-o", str(tmp_path / "out"), *FAST, "--min-mask-region-area", "-1"])


def test_mistakes(tmp_path: Path) -> None:
    out = ["-o", str(tmp_path / "out"), *FAST]
    with pytest.raises(SystemExit, match=r"There is no image at .*nothing.jpg"):
        main(["segment", str(tmp_path / "nothing.jpg"), *out])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"There is no image at .*empty. Of a folder, .jpg"):
        main(["segment", str(tmp_path / "empty"), *out])
    photo(tmp_path / "x" / "a.jpg")
    photo(tmp_path / "y" / "a.png")
    for given, into in (("*/a.*", ""), ("x/*.jpg", "x")):
        with pytest.raises(SystemExit, match=r"would be written beside the images of .*choose another folder"):
            main(["segment", f"{tmp_path}/{given}", "-o", str(tmp_path / into), *FAST])
    with pytest.raises(SystemExit, match=r"would be written beside the images of .*choose another folder"):
        main(["segment", str(tmp_path / "y"), "-o", str(tmp_path / "y"), *FAST])
    with pytest.raises(
        SystemExit, match=r"no weight file .*mobile_sam.pt.* or run: mobilesamv2 download mobile_sam.pt"
    ):
        main(["segment", str(tmp_path / "x"), "-o", str(tmp_path / "out"), "--weights", str(tmp_path)])
    assert find_images([str(tmp_path / "x"), str(tmp_path / "x" / "a.jpg")]) == [tmp_path / "x" / "a.jpg"]


def test_a_sampler_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["segment", "x.jpg", "-o", "out", "--sampler", "gird"])
    assert "there is no prompt sampler 'gird'. Did you mean 'grid'? Available: grid," in capsys.readouterr().err
