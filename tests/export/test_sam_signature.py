"""Graphs of SAM's signature return what the official ``SamOnnxModel`` returns, on the same weights."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.utils.onnx import SamOnnxModel
from segment_anything.utils.transforms import ResizeLongestSide
from support import relative_difference
from support.exports import run_guide
from support.official import official_mini, ours_from

from mobilesamv2 import SegAny
from mobilesamv2.cli.main import main as cli
from mobilesamv2.export.graphs import decoder_graph
from mobilesamv2.export.onnx import export_metadata, write_graph
from mobilesamv2.export.quantize import calibration_images, quantize_encoder
from mobilesamv2.export.runtime import open_session, read_export_metadata
from mobilesamv2.models.sam import Sam

pytestmark = pytest.mark.slow

NAMES = ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"]


class Exported(NamedTuple):
    official: Any
    sam: Sam
    folder: Path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Graphs of official weights, by the command line; the decoder for one mask beside them."""
    folder = tmp_path_factory.mktemp("sam")
    official = official_mini()
    ours = ours_from(official, folder)
    weights = str(folder / "sam_mini.pth")
    cli(["export", "sam_vit_mini", "--checkpoint", weights, "--signature", "sam", "-o", str(folder)])
    single = decoder_graph(ours, "sam", return_single_mask=True)
    write_graph(single, folder / "single.onnx", export_metadata(ours))
    return Exported(official, ours, folder)


def prompt(kind: str) -> tuple[list[list[float]], list[int]]:
    """Points xy, in pixels of the resized image, and their labels."""
    return {
        "point": ([[60.5, 90.0], [0, 0]], [1, -1]),
        "padding only": ([[0, 0], [0, 0], [0, 0]], [-1, -1, -1]),
        "points": ([[60.5, 90], [30, 200], [200, 33], [5, 6], [0, 0]], [1, 0, 1, 0, -1]),
        "box": ([[20, 30], [150, 160.25]], [2, 3]),
        "box and padding": ([[20, 30], [150, 160.25], [0, 0]], [2, 3, -1]),
        "box and points": ([[80, 90], [44, 120], [20, 30], [150, 160]], [1, 0, 2, 3]),
        "no padding": ([[60.5, 90]], [1]),
    }[kind]


@pytest.mark.parametrize("decoder", ["decoder.onnx", "single.onnx"])
@pytest.mark.parametrize(
    "kind", ["point", "padding only", "points", "box", "box and padding", "box and points", "no padding"]
)
@pytest.mark.parametrize("size", [(90, 130), (300, 200), (256, 256), (31, 500)])
@pytest.mark.parametrize("has_mask", [0, 1])
def test_the_decoder_is_the_official_one(
    exported: Exported, decoder: str, kind: str, size: tuple[int, int], has_mask: int
) -> None:
    rng = np.random.default_rng(3)
    points, labels = prompt(kind)
    inputs = {
        "image_embeddings": rng.normal(size=(1, 64, 16, 16)),
        "point_coords": np.array([points]),
        "point_labels": np.array([labels]),
        "mask_input": 10 * rng.normal(size=(1, 1, 64, 64)),
        "has_mask_input": np.array([has_mask]),
        "orig_im_size": np.array(size),
    }
    inputs = {name: value.astype(np.float32) for name, value in inputs.items()}
    session = open_session(exported.folder / decoder)
    assert [node.name for node in session.get_inputs()] == NAMES
    assert [node.name for node in session.get_outputs()] == ["masks", "iou_predictions", "low_res_masks"]
    official = SamOnnxModel(exported.official, return_single_mask=decoder == "single.onnx")
    theirs = official(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    ours = [torch.from_numpy(value) for value in session.run(None, inputs)]
    assert ours[0].shape == (1, 1 if decoder == "single.onnx" else 4, *size)
    for ours_of_one, theirs_of_one in zip(ours, theirs, strict=True):
        assert relative_difference(ours_of_one, theirs_of_one) < 2e-5


@pytest.mark.parametrize("size", [(90, 130), (300, 200), (256, 256)])
def test_the_encoder_takes_the_pixels_of_a_resized_image(
    exported: Exported, photo: np.ndarray, size: tuple[int, int]
) -> None:
    image = np.asarray(Image.fromarray(photo).resize((size[1], size[0])))
    predictor = SamPredictor(exported.official)
    predictor.set_image(image)
    pixels = ResizeLongestSide(256).apply_image(image)
    (embedding,) = open_session(exported.folder / "encoder.onnx").run(None, {"input_image": pixels.astype(np.float32)})
    assert relative_difference(torch.from_numpy(embedding), predictor.get_image_embedding()) < 2e-5


@pytest.mark.parametrize("size", [(257, 100), (100, 300), (1024, 1024)])
def test_the_encoder_refuses_an_image_that_was_not_resized(exported: Exported, size: tuple[int, int]) -> None:
    session = open_session(exported.folder / "encoder.onnx")
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {"input_image": np.zeros((*size, 3), np.float32)})


def test_the_metadata_name_the_signature(exported: Exported) -> None:
    for part in ("encoder", "decoder"):
        metadata = read_export_metadata(open_session(exported.folder / f"{part}.onnx"))
        assert (metadata["part"], metadata["signature"], metadata["precision"]) == (part, "sam", "fp32")


def test_the_guides_example_finds_what_segany_finds(exported: Exported, photo: np.ndarray, tmp_path: Path) -> None:
    enlarged = Image.fromarray(photo).resize((390, 270))
    names = run_guide(1, exported.folder, enlarged, tmp_path)
    segany = SegAny(exported.sam)
    segany.set_image(np.asarray(enlarged))
    boxes = np.array([[10, 20, 200, 250]])
    masks, predicted_iou, logits = segany.predict(boxes=boxes, multimask_output=False)
    np.testing.assert_allclose(names["predicted_iou"][:, :1], predicted_iou, atol=1e-4)
    assert 0 < masks[0, 0].mean() < 1
    assert (names["mask"] == masks[0, 0]).mean() > 0.9999
    refined, _, _ = segany.predict(boxes=boxes, mask_input=logits[:, 0], multimask_output=False)
    assert (refined[0, 0] != masks[0, 0]).any()
    assert ((names["refined"][0, 0] > 0) == refined[0, 0]).mean() > 0.999


def test_int8_of_this_encoder(exported: Exported, photo: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").symlink_to(exported.folder / "encoder.onnx")
    for i in range(5):
        Image.fromarray(np.roll(photo, 20 * i, axis=1)).save(tmp_path / f"{i}.png")
    for images in (calibration_images(tmp_path), []):
        assert 0.9 < quantize_encoder(tmp_path, images).cosine < 0.999999
