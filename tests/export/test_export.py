"""Exported graphs agree with torch, for other numbers of prompts than they were traced with."""

import json
import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from support import ROOT, relative_difference
from support.random_weights import stir
from support.runs import evaluate_here

from mobilesamv2 import SegAny, build_sam
from mobilesamv2.checkpoints import weights_sha256
from mobilesamv2.cli.main import main as cli
from mobilesamv2.export.onnx import check_export, export_encoder, export_onnx
from mobilesamv2.export.quantize import calibration_images, quantize_encoder
from mobilesamv2.export.runtime import OnnxEncoder, labelled_points, open_session, read_export_metadata
from mobilesamv2.models.sam import Sam

WEIGHTS = ROOT / "mobilesamv2" / "weights" / "mini_conv.safetensors"
OUTPUTS = {"image_embedding", "low_res_logits", "predicted_iou"}


class Exported(NamedTuple):
    sam: Sam
    folder: Path
    printed: str


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The small model with trained weights, by the command line."""
    folder = tmp_path_factory.mktemp("exported")
    with redirect_stdout(StringIO()) as printed:
        cli(["export", "mini_conv", "-o", str(folder), "--int8"])
    return Exported(build_sam("mini_conv", WEIGHTS), folder, printed.getvalue())


def test_the_command_line(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(path.name for path in exported.folder.iterdir())
    assert files == ["decoder.onnx", "encoder.int8.onnx", "encoder.onnx"]
    for phrase in (*(f"{name} (" for name in files), *(f"{name}: differs from torch by" for name in OUTPUTS)):
        assert phrase in exported.printed
    assert "cosine similarity with float32 0.99" in exported.printed
    assert max(check_export(exported.sam, exported.folder, tolerance=2e-5).values()) > 0
    with pytest.raises(SystemExit):
        cli(["export", "--help"])
    assert "labels: (N, P) int64" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["mini", "sam_vit_mini"])
def test_every_kind_of_encoder_agrees_with_torch(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sam = build_sam(name)
    stir(sam, seed=1)
    encoder = OnnxEncoder(export_encoder(sam, tmp_path / "encoder.onnx"), sam)
    images = torch.randn(2, 3, 256, 256)
    with torch.inference_mode():
        expected = sam.image_encoder(images)
    assert relative_difference(encoder(images), expected) < 2e-5


def test_large_weights_are_in_a_separate_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of SAM ViT-H do, which are beyond the 2 GiB of a protobuf."""
    monkeypatch.setattr("mobilesamv2.export.onnx.MAX_GRAPH_BYTES", 1_000_000)
    sam = build_sam("mini_conv", WEIGHTS)
    export_encoder(sam, tmp_path / "first" / "encoder.onnx")
    files = {path.name: path.stat().st_size for path in (tmp_path / "first").iterdir()}
    assert files.keys() == {"encoder.onnx", "encoder.onnx.data"}
    assert files["encoder.onnx"] < 500_000 < files["encoder.onnx.data"]
    moved = (tmp_path / "first").rename(tmp_path / "moved") / "encoder.onnx"
    image = torch.randn(1, 3, 256, 256)
    with torch.inference_mode():
        assert relative_difference(OnnxEncoder(moved, sam)(image), sam.image_encoder(image)) < 1e-5
    with pytest.raises(ValueError, match="GB for onnxruntime to quantize"):
        quantize_encoder(moved.parent)
    monkeypatch.undo()
    export_encoder(sam, moved)
    assert [path.name for path in moved.parent.iterdir()] == ["encoder.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobile_sam", "sam_vit_b", "efficientvit_l0", "repvit", "timm/convnext_atto"])
def test_full_size(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sam = build_sam(name)
    stir(sam, seed=1)
    export_onnx(sam, tmp_path)
    assert check_export(sam, tmp_path, tolerance=1e-4).keys() == OUTPUTS


@pytest.mark.parametrize(
    ("num_prompts", "num_points", "with_boxes"),
    [(1, 1, False), (2, 3, False), (64, 1, False), (1, 0, True), (9, 0, True), (4, 5, True), (0, 1, False)],
)
def test_any_number_of_prompts_and_points(
    exported: Exported, num_prompts: int, num_points: int, with_boxes: bool
) -> None:
    rng = torch.Generator().manual_seed(num_prompts)
    embedding = torch.randn(1, 128, 16, 16, generator=rng)
    points = torch.rand(num_prompts, num_points, 2, generator=rng) * 256 if num_points else None
    labels = torch.randint(-1, 2, (num_prompts, num_points), generator=rng) if num_points else None
    boxes = torch.rand(num_prompts, 4, generator=rng).sort().values * 256 if with_boxes else None
    as_arrays = [None if value is None else value.numpy() for value in (points, labels, boxes)]
    fed = dict(zip(("points", "labels"), labelled_points(*as_arrays), strict=True))
    logits, predicted_iou = open_session(exported.folder / "decoder.onnx").run(
        None, {"image_embedding": embedding.numpy(), **fed}
    )
    assert logits.shape == (num_prompts, 4, 64, 64)
    assert predicted_iou.shape == (num_prompts, 4)
    if num_prompts == 0:
        return
    for kept, multimask_output in ((slice(0, 1), False), (slice(1, 4), True)):
        with torch.inference_mode():
            ours, our_iou = exported.sam.decode(embedding, points, labels, boxes, multimask_output=multimask_output)
        np.testing.assert_allclose(logits[:, kept], ours, atol=1e-5 * float(ours.abs().max()))
        np.testing.assert_allclose(predicted_iou[:, kept], our_iou, atol=1e-5)


def test_points_without_labels_are_foreground() -> None:
    points, labels = labelled_points(np.array([[[5, 6]]]))
    assert points.tolist() == [[[5, 6], [0, 0]]]
    assert labels.tolist() == [[1, -1]]


def test_metadata_describe_the_inputs(exported: Exported) -> None:
    for name in ("encoder.onnx", "decoder.onnx"):
        metadata = read_export_metadata(open_session(exported.folder / name))
        assert metadata["model"] == "mini_conv"
        assert metadata["image_size"] == 256
        assert metadata["pixel_mean"] == [123.675, 116.28, 103.53]
        assert metadata["mask_threshold"] == 0.0
        assert metadata["weights_sha256"] == weights_sha256(exported.sam)
        assert "float32" in onnx.load(exported.folder / name).doc_string
    axes = {node.name: node.shape for node in open_session(exported.folder / "decoder.onnx").get_inputs()}
    assert axes == {"image_embedding": [1, 128, 16, 16], "points": ["N", "P", 2], "labels": ["N", "P"]}


def test_the_guides_example_finds_what_segany_finds(
    exported: Exported, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    assert found
    enlarged = Image.fromarray(photo).resize((390, 270))
    enlarged.save(tmp_path / "photo.png")
    (tmp_path / "exported").symlink_to(exported.folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, np.ndarray] = {}
    exec(found[1].replace("photo.jpg", "photo.png"), names)
    segany = SegAny(exported.sam)
    segany.set_image(np.asarray(enlarged))
    masks, predicted_iou, logits = segany.predict(boxes=names["boxes"], multimask_output=False)
    np.testing.assert_allclose(names["logits"][:, :1], logits, atol=1e-4 * np.abs(logits).max())
    np.testing.assert_allclose(names["predicted_iou"][:, :1], predicted_iou, atol=1e-5)
    assert names["mask"].shape == (270, 390)
    assert 0 < masks[0, 0].mean() < 1
    assert (names["mask"] == masks[0, 0]).mean() > 0.9999


def test_int8_with_and_without_images(exported: Exported, photo: np.ndarray, tmp_path: Path) -> None:
    for i in range(5):
        Image.fromarray(np.roll(photo, 20 * i, axis=1)).save(tmp_path / f"{i}.png")
    for images, measured_on in ((calibration_images(tmp_path), "2 held-out images"), ([], "8 synthetic scenes")):
        int8 = quantize_encoder(exported.folder, images)
        assert int8.measured_on.startswith(measured_on)
        assert 0.97 < int8.cosine < 0.999999
        assert int8.nbytes < 0.5 * int8.nbytes_float
        assert read_export_metadata(open_session(int8.path))["weights_sha256"] == weights_sha256(exported.sam)
        inputs = torch.randn(2, 3, 256, 256)
        assert OnnxEncoder(int8.path, exported.sam)(inputs).shape == (2, 128, 16, 16)


def test_an_exported_encoder_replaces_torchs(exported: Exported) -> None:
    images = torch.randn(2, 3, 256, 256)
    with torch.inference_mode():
        expected = exported.sam.image_encoder(images)
    ours = OnnxEncoder(exported.folder / "encoder.onnx", exported.sam)(images)
    assert relative_difference(ours, expected) < 1e-5
    with pytest.raises(ValueError, match=r"exported from another model .*weights_sha256"):
        OnnxEncoder(exported.folder / "encoder.onnx", build_sam("mini_conv"))
    with pytest.raises(ValueError, match="must be an exported image encoder"):
        OnnxEncoder(exported.folder / "decoder.onnx", exported.sam)


def test_a_graph_that_differs_is_refused(exported: Exported) -> None:
    other = build_sam("mini_conv", WEIGHTS)
    with torch.no_grad():
        other.mask_decoder.iou_prediction_head.layers[-1].bias += 0.1
    with pytest.raises(ValueError, match=r"differ from torch by more than 0\.001 .* predicted_iou by .*--no-check"):
        check_export(other, exported.folder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["mini_con", "--random"], "Did you mean 'mini_conv'"),
        (["mini", "--checkpoint", str(WEIGHTS)], r"does not fit mini: (missing|unexpected) key\(s\) in image_encoder"),
        (["mini", "--checkpoint", "none.pt"], r"no weight file none\.pt"),
        (["mini", "--random", "--calibration", "photos"], "--calibration requires --int8"),
        (["mini", "--random", "--int8", "--calibration", "none"], "no folder none"),
        (["mini", "--random", "--int8", "--calibration", str(ROOT / "conf")], r"There is no image at .*conf\. "),
        (["mini_conv", "--opset", "7"], "can't write 7"),
        (["mini"], "There are no weights for 'mini'"),
        (["mini", "--random", "--checkpoint", str(WEIGHTS)], "exclude each other"),
    ],
)
def test_mistakes_are_errors_without_traceback(given: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        cli(["export", *given, "-o", str(tmp_path)])


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        SystemExit, match=r"not installed: onnxruntime\. Install them with: pip install 'mobilesamv2\[export\]'"
    ):
        cli(["export", "mini_conv", "-o", str(tmp_path)])


def test_files_of_others_are_refused(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"can't read .*broken\.onnx"):
        open_session(tmp_path / "broken.onnx")
    with pytest.raises(FileNotFoundError, match="mobilesamv2 export writes one"):
        open_session(tmp_path / "none.onnx")
    graph = onnx.load(exported.folder / "encoder.onnx")
    del graph.metadata_props[:]
    with pytest.raises(ValueError, match="must have metadata of mobilesamv2"):
        read_export_metadata(onnxruntime.InferenceSession(graph.SerializeToString()))
    with pytest.raises(ValueError, match="must not be a copy for inference"):
        export_onnx(exported.sam.for_inference(), tmp_path)
    with pytest.raises(ValueError, match=r"call sam\.eval\(\) first"):
        export_onnx(build_sam("mini").train(), tmp_path)


def test_evaluations_run_an_exported_encoder(exported: Exported, photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "1.png")
    box = [10, 10, 60, 10, 60, 60, 10, 60]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [box], "area": 2500.0, "iscrowd": 0}
    image = {"id": 1, "height": 90, "width": 130, "file_name": "1.png"}
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    given = ["dataset=coco", f"dataset.annotations={tmp_path / 'coco.json'}", f"dataset.images={tmp_path}"]
    given += ["model=mini_conv", f"model.checkpoint={WEIGHTS}", "prompt_sampler.points_per_side=4", "num_workers=0"]
    given += ["trainer.accelerator=cpu"]
    results = []
    for name, encoder in (("torch", "null"), ("onnx", exported.folder / "encoder.onnx")):
        evaluate_here(*given, f"onnx_encoder={encoder}", f"output_dir={tmp_path / name}")
        results.append(json.loads((tmp_path / name / "results.json").read_text()))
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], abs=1e-6)
    assert "onnx_encoder" not in results[0]["run"]["model"]
    assert len(results[1]["run"]["model"]["onnx_encoder_sha256"]) == 64
    for mistake, message in (("compile=true", "set one of the two"), ("model.checkpoint=null", "another model")):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            evaluate_here(*given, mistake, f"onnx_encoder={exported.folder / 'encoder.onnx'}", f"output_dir={tmp_path}")
