"""Graphs of our signature agree with torch, for other numbers of images and prompts than they were traced with."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from support import ROOT, relative_difference
from support.exports import WEIGHTS, Export, run_guide
from support.random_weights import stir
from support.runs import evaluate_here

from mobilesamv2 import SegAny, build_sam
from mobilesamv2.checkpoints import weights_sha256
from mobilesamv2.cli.main import main as cli
from mobilesamv2.export.check import TOLERANCES, check_graphs
from mobilesamv2.export.graphs import SIGNATURES, encoder_graph
from mobilesamv2.export.onnx import export_metadata, export_onnx, write_graph
from mobilesamv2.export.quantize import calibration_images, quantize_encoder
from mobilesamv2.export.runtime import (
    OnnxDecoder,
    OnnxEncoder,
    labelled_points,
    open_session,
    read_export_metadata,
)

pytestmark = pytest.mark.slow

OUTPUTS = {"image_embedding", "low_res_logits", "predicted_iou"}


def test_the_command_line(exported: Export, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(path.name for path in exported.folder.iterdir())
    assert files == ["decoder.fp16.onnx", "decoder.onnx", "encoder.fp16.onnx", "encoder.int8.onnx", "encoder.onnx"]
    for phrase in (*(f"{name} (" for name in files), *(f"{name}: differs from torch by" for name in OUTPUTS)):
        assert phrase in exported.printed
    assert "cosine similarity with float32 0.99" in exported.printed
    with pytest.raises(SystemExit):
        cli(["export", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "labels: (N, P) int64" in printed
    assert "has_mask_input: (1,), 1 or 0" in printed


@pytest.mark.parametrize(("precision", "smallest", "largest"), [("fp32", 0.0, 2e-5), ("fp16", 1e-4, 5e-3)])
def test_each_precision_is_as_near_to_torch_as_is_stated(
    exported: Export, precision: str, smallest: float, largest: float
) -> None:
    suffix = {"fp32": "onnx", "fp16": "fp16.onnx"}[precision]
    files = [exported.folder / f"{part}.{suffix}" for part in ("encoder", "decoder")]
    found = check_graphs(exported.sam, *files)
    assert found.keys() == OUTPUTS
    assert all(smallest < value < largest < TOLERANCES[precision] for value in found.values())


@pytest.mark.parametrize("name", ["mini", "sam_vit_mini"])
def test_every_kind_of_encoder_agrees_with_torch(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sam = build_sam(name)
    stir(sam, seed=1)
    write_graph(encoder_graph(sam), tmp_path / "encoder.onnx", export_metadata(sam))
    images = torch.randn(3, 3, 256, 256)
    with torch.inference_mode():
        expected = sam.image_encoder(images)
    assert relative_difference(OnnxEncoder(tmp_path / "encoder.onnx", sam)(images), expected) < 2e-5


@pytest.mark.parametrize("signature", SIGNATURES)
def test_large_weights_are_in_a_separate_file(signature: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of SAM ViT-H do, which are beyond the 2 GiB of a protobuf."""
    monkeypatch.setattr("mobilesamv2.export.onnx.MAX_GRAPH_BYTES", 1_000_000)
    sam = build_sam("mini_conv", WEIGHTS)
    export_onnx(sam, tmp_path / "first", signature=signature)
    files = {path.name: path.stat().st_size for path in (tmp_path / "first").iterdir()}
    assert files.keys() == {"encoder.onnx", "encoder.onnx.data", "decoder.onnx", "decoder.onnx.data"}
    for part in ("encoder.onnx", "decoder.onnx"):
        assert files[part] < 1_000_000 < files[f"{part}.data"]
    moved = (tmp_path / "first").rename(tmp_path / "moved")
    assert max(check_graphs(sam, moved / "encoder.onnx", moved / "decoder.onnx").values()) < 2e-5
    with pytest.raises(ValueError, match="GB for onnxruntime to quantize"):
        quantize_encoder(moved)


def test_smaller_weights_leave_no_separate_file(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "encoder.onnx.data").write_text("of an earlier, larger model")
    monkeypatch.setattr(
        "mobilesamv2.export.onnx.write_graph", lambda graph, path, *args: shutil.copy(exported.folder / path.name, path)
    )
    export_onnx(exported.sam, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.onnx", "encoder.onnx"]


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("mobile_sam", "fp32"),
        ("mobile_sam", "fp16"),
        ("sam_vit_b", "fp32"),
        ("efficientvit_l0", "fp32"),
        ("repvit", "fp32"),
        ("timm/convnext_atto", "fp32"),
    ],
)
def test_full_size(name: str, precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sam = build_sam(name)
    stir(sam, seed=1)
    differences = export_onnx(sam, tmp_path, precision=precision).differences
    assert differences.keys() == OUTPUTS
    assert max(differences.values()) < {"fp32": 1e-4, "fp16": TOLERANCES["fp16"]}[precision]


@pytest.mark.parametrize(
    ("num_prompts", "num_points", "with_boxes"),
    [(1, 1, False), (2, 3, False), (64, 1, False), (1, 0, True), (9, 0, True), (4, 5, True), (0, 1, False)],
)
def test_any_number_of_prompts_and_points(
    exported: Export, num_prompts: int, num_points: int, with_boxes: bool
) -> None:
    rng = torch.Generator().manual_seed(num_prompts)
    embedding = torch.randn(1, 128, 16, 16, generator=rng)
    points = torch.rand(num_prompts, num_points, 2, generator=rng) * 256 if num_points else None
    labels = torch.randint(-1, 2, (num_prompts, num_points), generator=rng) if num_points else None
    boxes = torch.rand(num_prompts, 4, generator=rng).sort().values * 256 if with_boxes else None
    as_arrays = [None if value is None else value.numpy() for value in (points, labels, boxes)]
    logits, predicted_iou = OnnxDecoder(exported.folder / "decoder.onnx")(embedding.numpy(), *as_arrays)
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


def test_metadata_describe_the_inputs(exported: Export) -> None:
    for name in ("encoder.onnx", "decoder.onnx"):
        metadata = read_export_metadata(open_session(exported.folder / name))
        assert metadata["model"] == "mini_conv"
        assert metadata["image_size"] == 256
        assert metadata["pixel_mean"] == [123.675, 116.28, 103.53]
        assert metadata["mask_threshold"] == 0.0
        assert metadata["weights_sha256"] == weights_sha256(exported.sam)
        assert "float32" in onnx.load(exported.folder / name).doc_string
    assert open_session(exported.folder / "encoder.onnx").get_inputs()[0].shape == ["B", 3, 256, 256]
    axes = {node.name: node.shape for node in open_session(exported.folder / "decoder.onnx").get_inputs()}
    assert axes == {
        "image_embedding": ["B", 128, 16, 16],
        "points": ["N", "P", 2],
        "labels": ["N", "P"],
        "mask_input": ["M", 1, 64, 64],
        "has_mask_input": ["M"],
    }
    outputs = {node.name: node.shape for node in open_session(exported.folder / "decoder.onnx").get_outputs()}
    assert outputs == {"low_res_logits": ["N", 4, 64, 64], "predicted_iou": ["N", 4]}


def test_files_hold_no_paths_of_the_machine(exported: Export) -> None:
    """Which the exporter leaves in them, in the stack traces of where each node comes from."""
    for path in exported.folder.glob("*.onnx"):
        assert b"graphs.py" not in path.read_bytes()


def test_the_guides_example_finds_what_segany_finds(exported: Export, photo: np.ndarray, tmp_path: Path) -> None:
    enlarged = Image.fromarray(photo).resize((390, 270))
    names = run_guide(0, exported.folder, enlarged, tmp_path)
    segany = SegAny(exported.sam)
    segany.set_image(np.asarray(enlarged))
    masks, predicted_iou, logits = segany.predict(boxes=names["boxes"], multimask_output=False)
    again = segany.predict(boxes=names["boxes"], mask_input=logits[:, 0], multimask_output=False).low_res_logits
    np.testing.assert_allclose(names["refined"][:, :1], again, atol=1e-2 * np.abs(again).max())
    np.testing.assert_allclose(names["logits"][:, :1], logits, atol=1e-4 * np.abs(logits).max())
    np.testing.assert_allclose(names["predicted_iou"][:, :1], predicted_iou, atol=1e-5)
    assert names["mask"].shape == (270, 390)
    assert 0 < masks[0, 0].mean() < 1
    assert (names["mask"] == masks[0, 0]).mean() > 0.9999


def test_int8_with_and_without_images(exported: Export, photo: np.ndarray, tmp_path: Path) -> None:
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


def test_an_exported_encoder_replaces_torchs(exported: Export) -> None:
    images = torch.randn(2, 3, 256, 256)
    with torch.inference_mode():
        expected = exported.sam.image_encoder(images)
    ours = OnnxEncoder(exported.folder / "encoder.onnx", exported.sam)(images)
    assert relative_difference(ours, expected) < 1e-5
    with pytest.raises(ValueError, match=r"exported from another model .*weights_sha256"):
        OnnxEncoder(exported.folder / "encoder.onnx", build_sam("mini_conv"))
    with pytest.raises(ValueError, match=r"must be an exported image encoder.* without --signature sam"):
        OnnxEncoder(exported.folder / "decoder.onnx", exported.sam)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["mini_con", "--random"], "Did you mean 'mini_conv'"),
        (["mini", "--checkpoint", str(WEIGHTS)], r"does not fit mini: (missing|unexpected) key\(s\) in image_encoder"),
        (["mini", "--checkpoint", "none.pt"], r"no weight file none\.pt"),
        (["mini", "--random", "--calibration", "photos"], "--calibration requires --int8"),
        (["mini", "--random", "--int8", "--calibration", "none"], "no folder none"),
        (["mini", "--random", "--int8", "--calibration", str(ROOT / "conf")], r"There is no image at .*conf\. "),
        (["mini_conv", "--opset", "17"], "opset must be 18 or later, got 17"),
        (["mini", "--random", "--return-single-mask"], "requires --signature sam"),
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


def test_files_of_others_are_refused(exported: Export, tmp_path: Path) -> None:
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


def test_evaluations_run_an_exported_encoder(exported: Export, photo: np.ndarray, tmp_path: Path) -> None:
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
