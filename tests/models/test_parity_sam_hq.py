"""SAM-HQ against its own code, on random weights in its format; needs `segment-anything-hq` of PyPI."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support import RecordParity, relative_difference
from support.random_weights import pass_filters, stir
from torch import nn

from mobilesamv2 import build_sam
from mobilesamv2.checkpoints import load_weights
from mobilesamv2.models.sam_hq import SamHq, sam_hq_vit

MINI = {"embed_dim": 96, "depth": 4, "num_heads": 3, "global_attn_indexes": (1, 3)}


def official(encoder: Any, width: int, side: int, heads: int, mlp_dim: int, vit_dim: int) -> Any:
    hq = pytest.importorskip("segment_anything_hq.modeling")
    grid = side // 16
    sam = hq.Sam(
        encoder,
        hq.PromptEncoder(width, (grid, grid), (side, side), 16),
        hq.MaskDecoderHQ(
            transformer_dim=width,
            transformer=hq.TwoWayTransformer(2, width, heads, mlp_dim),
            iou_head_hidden_dim=width,
            vit_dim=vit_dim,
        ),
    ).eval()
    stir(sam, seed=6)
    pass_filters(sam.mask_decoder)
    for parameter in sam.mask_decoder.hf_mlp.layers[-1].parameters():
        parameter.data.mul_(100)
    return sam


@torch.no_grad()
def check(theirs: Any, ours: Any, name: str, record_parity: RecordParity) -> None:
    side = ours.image_size
    images, corners = torch.randn(1, 3, side, side), torch.rand(5, 2, 2) * side
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    embedding, early = theirs.image_encoder(images)
    mine = ours.image_encoder(images)
    width = embedding.shape[1]
    assert mine.shape[1] == ours.embedding_channels == 3 * width
    difference = relative_difference(mine[:, :width], embedding)
    sparse, dense = theirs.prompt_encoder(None, boxes, None)
    for multimask_output in (False, True):
        low_res, iou = theirs.mask_decoder(
            embedding,
            theirs.prompt_encoder.get_dense_pe(),
            sparse,
            dense,
            multimask_output=multimask_output,
            hq_token_only=False,
            interm_embeddings=early,
        )
        found, found_iou = ours.decode(mine, boxes_xyxy=boxes, multimask_output=multimask_output)
        decoder = relative_difference(found, low_res), relative_difference(found_iou, iou)
        record_parity(name, "embedding", difference, "segment-anything-hq")
        record_parity(name, "masks", decoder[0], "segment-anything-hq")
        print(f"embedding {difference:.1e}, masks {decoder[0]:.1e}, IoU {decoder[1]:.1e}")
        assert difference < 1e-4
        assert max(decoder) < 1e-5
        threshold = float(iou.median())
        kept = ours.decode_filtered(
            ours.image_context(mine), boxes_xyxy=boxes, multimask_output=multimask_output, pred_iou_thresh=threshold
        )
        assert kept.keep_index.tolist() == (found_iou[:, 0] > threshold).nonzero()[:, 0].tolist()
        assert relative_difference(kept.logits, found[kept.keep_index, 0]) < 1e-6


def test_a_vit_is_the_official_one(tmp_path: Path, record_parity: RecordParity) -> None:
    torch.manual_seed(0)
    hq = pytest.importorskip("segment_anything_hq.modeling")
    encoder = hq.ImageEncoderViT(
        img_size=256,
        out_chans=64,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        **MINI,
    )
    theirs = official(encoder, 64, 256, 4, 256, 96)
    torch.save(theirs.state_dict(), tmp_path / "sam_hq.pth")
    built = sam_hq_vit("samvit_base_patch16", image_size=256, out_channels=64, **MINI)
    ours = SamHq(built, image_size=256, embed_dim=64, decoder_heads=4, decoder_mlp_dim=256).eval()
    load_weights(ours, tmp_path / "sam_hq.pth")
    check(theirs, ours, "sam_hq_vit_* at 256 pixels", record_parity)


@pytest.mark.slow
def test_the_tiny_one_is_the_official_one(tmp_path: Path, record_parity: RecordParity) -> None:
    torch.manual_seed(0)
    hq = pytest.importorskip("segment_anything_hq")
    theirs = official(hq.sam_model_registry["vit_tiny"]().image_encoder.train(), 256, 1024, 8, 2048, 160)
    torch.save(theirs.state_dict(), tmp_path / "sam_hq_vit_tiny.pth")
    ours = build_sam("sam_hq_vit_tiny", tmp_path / "sam_hq_vit_tiny.pth", allow_partial=False)
    check(theirs.eval(), ours, "sam_hq_vit_tiny", record_parity)
