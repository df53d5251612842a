"""The prompt head: where its boxes lie, what it is taught, what its file holds, and which model it fits."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mobilesamv2 import build_sam
from mobilesamv2.models.prompt_head import BoxPredictions, PromptHead
from mobilesamv2.models.pyramid import pack_levels
from mobilesamv2.prompt_heads import (
    EncodedDetector,
    build_prompt_head,
    load_detector,
    load_prompt_head,
    save_prompt_head,
)
from mobilesamv2.prompts import EmbeddingDetector, ObjectAware, PromptHeadBoxes
from mobilesamv2.segevery import SegEvery
from mobilesamv2.tasks.box_losses import assign_points, box_losses
from mobilesamv2.transforms import ModelFrame, Resizing

BOTH = {"nms_iou": 0.7, "max_boxes": 50, "snap": 0}


def still(head: PromptHead) -> PromptHead:
    """A head that predicts its biases everywhere: .01 as the quality, boxes of four strides a side."""
    for output in head.outputs:
        torch.nn.init.zeros_(output[1].weight)
    return head.eval()


def test_points_and_boxes_by_hand() -> None:
    head = still(PromptHead((8,), 64, width=8, finest_stride=8))
    quality, boxes, points = head(torch.randn(2, 8, 4, 4))
    assert quality.shape == (2, 64 + 16 + 4 + 1)
    assert boxes.shape == (2, 85, 4)
    assert torch.allclose(quality.sigmoid(), torch.tensor(0.01))
    assert points[[0, 1, 8, 64, 80, 84]].tolist() == [[4, 4], [12, 4], [4, 12], [8, 8], [16, 16], [32, 32]]
    assert torch.allclose(boxes[0, 9], torch.tensor([12.0 - 16, 12 - 16, 12 + 16, 12 + 16]))
    assert torch.allclose(boxes[1, 84], torch.tensor([32.0 - 128, 32 - 128, 32 + 128, 32 + 128]))


def test_boxes_are_clipped_sorted_and_in_pixels_of_the_image() -> None:
    """An image of 40 x 80 lies in the upper half of the input of 64, at .8 of its size."""
    head = still(PromptHead((8,), 64, width=8, finest_stride=8))
    with torch.no_grad():
        for level, output in enumerate(head.outputs):
            output[1].bias[0] = float(-level)  # finer maps are more confident
    boxes, scores = head.detect_in_embedding(torch.randn(1, 8, 4, 4), (40, 80), confidence=0.3, **BOTH)
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert scores[0].item() == pytest.approx(0.5)
    assert ((boxes >= 0) & (boxes <= torch.tensor([80.0, 40, 80, 40]))).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    # of the points (4, 4), (12, 4), ... on the finest map, each box of +-16 pixels, cut at the image's 64 x 32
    expected = {
        (max(0, x - 16), max(0, y - 16), min(64, x + 16), min(32, y + 16))
        for x in range(4, 64, 8)
        for y in range(4, 64, 8)
    }
    assert {tuple(box) for box in (boxes[scores > 0.4] * 0.8).round().int().tolist()} <= expected
    everything, _ = head.detect_in_embedding(torch.randn(1, 8, 4, 4), (40, 80), confidence=0.6, **BOTH)
    assert len(everything) == 0
    snapped, _ = head.detect_in_embedding(
        torch.randn(1, 8, 4, 4), (40, 80), confidence=0.3, nms_iou=0.7, max_boxes=50, snap=64
    )
    assert torch.equal(snapped, torch.tensor([[0.0, 0, 80, 40]]).expand(len(snapped), 4))
    few, _ = head.detect_in_embedding(
        torch.randn(1, 8, 4, 4), (40, 80), confidence=0.0, nms_iou=1.0, max_boxes=3, snap=0
    )
    assert len(few) == 3


@pytest.mark.parametrize(("size", "keep"), [((40, 80), True), ((77, 31), True), ((40, 80), False)])
def test_boxes_go_to_the_model_and_back(size: tuple[int, int], keep: bool) -> None:
    frame = ModelFrame(size, 64, Resizing.LONGEST_SIDE if keep else Resizing.SQUARE)
    boxes = torch.tensor([[1.0, 2, 30, 25], [0, 0, size[1], size[0]]])
    assert torch.allclose(frame.boxes_to_original(frame.boxes_to_model(boxes)), boxes, atol=1e-4)


def test_finer_levels_are_read_at_their_place() -> None:
    """What changes in one pixel of SAM 2's level of stride 4 changes boxes near it, and none far away."""
    torch.manual_seed(0)
    head = PromptHead((16, 16, 32), 256, False, width=16, finest_stride=4).eval()
    for output in head.outputs:
        torch.nn.init.normal_(output[1].weight, std=1.0)
    levels = [torch.randn(1, 16, 16, 16), torch.randn(1, 4, 32, 32), torch.randn(1, 2, 64, 64)]
    before = head(pack_levels(levels)).quality[0, : 64 * 64].reshape(64, 64)
    levels[2][0, :, 40, 12] += 5
    after = head(pack_levels(levels)).quality[0, : 64 * 64].reshape(64, 64)
    changed = ((after - before).abs() > 1e-5).nonzero()
    assert len(changed)
    assert (changed - torch.tensor([40, 12])).abs().max() <= 2
    coarse = PromptHead((16,), 256, False, width=16, finest_stride=4)
    assert sum(p.numel() for p in head.parameters()) > sum(p.numel() for p in coarse.parameters())


def test_the_best_points_in_an_object_learn_it_by_hand() -> None:
    points = torch.tensor([[5.0, 5], [15, 5], [25, 5], [95, 95]])
    truths = torch.tensor([[0.0, 0, 20, 10], [90, 0, 92, 2]])  # no point lies in the second one
    boxes = torch.tensor([[0.0, 0, 20, 10], [0, 0, 10, 10], [0, 0, 20, 10], [90, 90, 100, 100]])
    quality = torch.zeros(4)
    index, target = assign_points(quality, boxes, points, truths, 10)
    # the third point is outside of the first object, and the nearest to the centre of the second
    assert index.tolist() == [0, 0, 1, -1]
    # alignments .5^.5 * 1 and .5^.5 * .5^6; the best is to predict its own IoU, 1
    assert target.tolist() == pytest.approx([1.0, 0.5**6, 0.0, 0.0])
    assert assign_points(quality, boxes, points, truths, 1).object_index.tolist() == [0, -1, 1, -1]
    nothing = assign_points(quality, boxes, points, torch.zeros(0, 4), 10)
    assert (nothing.object_index.tolist(), nothing.quality.tolist()) == ([-1] * 4, [0.0] * 4)


def test_a_point_of_two_objects_is_of_the_one_it_overlaps_more() -> None:
    points, boxes = torch.tensor([[5.0, 5]]), torch.tensor([[0.0, 0, 10, 10]])
    truths = torch.tensor([[0.0, 0, 100, 100], [0, 0, 10, 8], [1, 1, 9, 9]])
    assert assign_points(torch.zeros(1), boxes, points, truths, 10).object_index.tolist() == [1]


def test_losses_by_hand() -> None:
    """One point that predicts its object exactly, and one of background, both with a quality of .5."""
    predictions = BoxPredictions(
        torch.zeros(1, 2), torch.tensor([[[0.0, 0, 10, 10], [50, 50, 60, 60]]]), torch.tensor([[5.0, 5], [55, 55]])
    )
    quality, boxes = box_losses(predictions, [torch.tensor([[0.0, 0, 10, 10]])], 10)
    assert quality.item() == pytest.approx(2 * math.log(2))
    assert boxes.item() == pytest.approx(0.0, abs=1e-6)
    quality, boxes = box_losses(predictions, [torch.zeros(0, 4)], 10)
    assert (quality.item(), boxes.item()) == (pytest.approx(2 * math.log(2)), 0.0)
    _, boxes = box_losses(predictions, [torch.tensor([[0.0, 0, 10, 5]])], 10)
    # an IoU of .5, which is generalized IoU for nested boxes, weighted by the quality of .5 that it is to predict
    assert boxes.item() == pytest.approx((1 - 0.5) * 0.5, abs=1e-5)


def test_a_file_has_all_that_rebuilds_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sam = build_sam("mini")
    head = build_prompt_head(sam, width=8, finest_stride=4)
    save_prompt_head(head, tmp_path / "head.safetensors")
    with safe_open(tmp_path / "head.safetensors", "pt") as file:
        record = json.loads(file.metadata()["mobilesamv2"])
    assert record["name"] == "prompt_head"
    assert (record["encoder_name"], record["level_channels"], record["image_size"]) == ("tiny_vit_mini", [64], 256)
    embedding = torch.randn(1, 64, 16, 16)
    for again in (load_prompt_head(tmp_path / "head.safetensors"), load_detector(tmp_path / "head.safetensors", sam)):
        assert torch.equal(again(embedding).boxes_xyxy, head(embedding).boxes_xyxy)
        assert not again.training
    save_prompt_head(head, tmp_path / "half.safetensors", torch.float16)
    half = load_prompt_head(tmp_path / "half.safetensors")
    assert torch.allclose(half(embedding).boxes_xyxy, head(embedding).boxes_xyxy, rtol=1e-2, atol=0.5)
    with pytest.raises(
        ValueError, match=r"must know its image encoder to be saved; build it by build_prompt_head\(sam\)"
    ):
        save_prompt_head(PromptHead((8,), 64, width=8), tmp_path / "x.safetensors")


def test_a_head_of_another_encoder_is_refused_or_warned_of(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.manual_seed(0)
    sam = build_sam("mini")
    path = tmp_path / "head.safetensors"
    save_prompt_head(build_prompt_head(sam, width=8), path)
    build_prompt_head(sam, path)
    build_prompt_head(sam.for_inference(), path)  # its folded weights can't be compared
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"another image encoder \(tiny_vit_mini, weights \w{8}\) than this one"):
        build_prompt_head(build_sam("mini"), path)
    with pytest.warns(UserWarning, match=r"than this one \(sam_vit_mini\); its boxes may be wrong"):
        build_prompt_head(build_sam("sam_vit_mini"), path)
    with pytest.raises(
        ValueError,
        match=r"differ from those of mini_conv: level_channels \(64,\) instead of \(128,\)\. Choose the head",
    ):
        build_prompt_head(build_sam("mini_conv"), path)
    with pytest.raises(ValueError, match=r"level_channels \(64,\) instead of \(64, 64, 128\); keep_aspect_ratio True"):
        build_prompt_head(build_sam("sam2_mini"), path)


def test_folded_batch_norms_change_nothing() -> None:
    torch.manual_seed(0)
    head = PromptHead((8,), 64, width=8, finest_stride=4)
    head(torch.randn(4, 8, 4, 4))  # running statistics
    embedding = torch.randn(1, 8, 4, 4)
    before = head.eval()(embedding)
    after = head.fuse_()(embedding)
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in head.modules()) == 2  # behind pixel shuffles
    assert torch.allclose(before.boxes_xyxy, after.boxes_xyxy, rtol=1e-4, atol=1e-3)
    assert torch.allclose(before.quality, after.quality, atol=1e-4)


def test_channels_behind_the_levels_are_not_read() -> None:
    """SAM-HQ's embedding has a map of its own behind SAM's."""
    head = PromptHead((8,), 64, width=8).eval()
    embedding = torch.randn(1, 24, 4, 4)
    assert torch.equal(head(embedding).quality, head(embedding[:, :8]).quality)


def test_files_that_hold_no_head(tmp_path: Path) -> None:
    sam = build_sam("mini")
    path, broken = tmp_path / "head.safetensors", tmp_path / "broken.safetensors"
    save_prompt_head(build_prompt_head(sam, width=8), path)
    with safe_open(path, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        record = json.loads(file.metadata()["mobilesamv2"])
    key = "stem.0.0.weight"
    cases = [
        (state, record | {"name": "mini"}, "must be a prompt head, .* it is of mini"),
        (state, record | {"width": 8.0}, "another type"),
        (state, record | {"width": 7}, "must be a prompt head, .* width must be a multiple of 2"),
        (state, record | {"level_channels": []}, "level_channels are"),
        (state, record | {"finest_stride": 3}, "finest_stride must be 4, 8 or 16, got 3"),
        (state, record | {"width": 100_000}, "does not fit its own settings: size mismatch in PromptHead"),
        (state, record | {"width": 2**70}, "must be a prompt head"),
        (state, record | {"image_size": -256}, "must be a prompt head, .* image_size is -256"),
        (state, record | {"width": 16}, "does not fit its own settings: size mismatch in PromptHead"),
        ({k: v for k, v in state.items() if k != key}, record, r"missing key\(s\) in PromptHead: stem\.0\.0\.weight"),
        (state | {"more": torch.ones(1)}, record, r"unexpected key\(s\) in PromptHead: more"),
        (state | {key: torch.full_like(state[key], math.nan)}, record, "contains NaN or infinity in stem"),
        (state | {key: state[key].to(torch.int8)}, record, "must hold plain tensors"),
        (state, {}, "must be a prompt head, a safetensors file that task=train_prompt_head wrote"),
    ]
    for tensors, metadata, message in cases:
        save_file(tensors, broken, {"mobilesamv2": json.dumps(metadata)})
        with pytest.raises(ValueError, match=message):
            build_prompt_head(sam, broken)
    broken.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="must be a prompt head"):
        build_prompt_head(sam, broken)
    with pytest.raises(FileNotFoundError, match="There is no weight file"):
        build_prompt_head(sam, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="finest_stride must be 4, 8 or 16, got 2"):
        build_prompt_head(sam, finest_stride=2)  # pyright: ignore[reportArgumentType]


def test_segevery_hands_its_embedding_to_the_head() -> None:
    """The masks are those of the same boxes from a detector that encodes the image itself."""
    torch.manual_seed(0)
    sam = build_sam("mini")
    head = build_prompt_head(sam, width=8)
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    settings = {"confidence": 0.0, "max_prompts": 7}
    direct = SegEvery(sam, PromptHeadBoxes(head, **settings))
    masks = direct(image)
    assert direct.timer.num_prompts == 7
    itself = EncodedDetector(sam, head)
    expected = SegEvery(sam, ObjectAware(itself, detector_nms_iou=0.7, snap=0, **settings))(image)
    assert masks.rles == expected.rles
    assert torch.equal(masks.scores, expected.scores)
    assert isinstance(head, EmbeddingDetector)
    assert not isinstance(itself, EmbeddingDetector)
    centres = SegEvery(sam, PromptHeadBoxes(head, prompt="points", **settings))(image).prompts.points
    assert centres is not None
    assert centres.shape[1:] == (1, 2)


def test_a_yolo_is_no_prompt_head() -> None:
    class Blind:
        def detect(self, image: np.ndarray, **settings: object) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(0, 4), torch.zeros(0)

    with pytest.raises(ValueError, match=r"must be a prompt head, .* got Blind: detector=mini_prompt_head, or"):
        PromptHeadBoxes(Blind())


def test_a_head_reads_no_finer_features_of_sam_hq() -> None:
    """They lie in the cells in another order than SAM 2's levels."""
    sam = build_sam("sam_hq_vit_tiny", image_size=64)
    head = build_prompt_head(sam, width=8)
    assert (head.level_channels, sam.level_channels) == ((256,), (256, 512))
