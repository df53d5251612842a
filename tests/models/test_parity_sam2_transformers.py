"""SAM 2 on images against transformers' Sam2Model, on random weights: levels, masks and predicted IoU."""

from typing import Any

import pytest
import torch
from support import RecordParity, relative_difference
from support.random_weights import pass_filters, stir

from mobilesamv2 import build_sam
from mobilesamv2.key_tables import KeyTable
from mobilesamv2.models.pyramid import unpack_levels
from mobilesamv2.models.sam import Sam

TRUNK = "image_encoder.backbone.body.model"
NAMES = KeyTable(
    (
        ("vision_encoder.backbone.patch_embed.projection.", f"{TRUNK}.patch_embed.proj."),
        ("vision_encoder.backbone.blocks.{}.layer_norm{}.", f"{TRUNK}.blocks.{{}}.norm{{}}."),
        ("vision_encoder.backbone.blocks.{}.mlp.proj_in.", f"{TRUNK}.blocks.{{}}.mlp.fc1."),
        ("vision_encoder.backbone.blocks.{}.mlp.proj_out.", f"{TRUNK}.blocks.{{}}.mlp.fc2."),
        ("vision_encoder.backbone.", f"{TRUNK}."),
        ("mask_decoder.conv_s{}.", "image_encoder.neck.conv_s{}."),
        ("no_memory_embedding", "image_encoder.neck.no_mem_embed"),
        ("vision_encoder.neck.", "image_encoder.neck."),
        (
            "shared_image_embedding.positional_embedding",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
        ("prompt_encoder.mask_embed.conv1.", "prompt_encoder.mask_downscaling.0."),
        ("prompt_encoder.mask_embed.layer_norm1.", "prompt_encoder.mask_downscaling.1."),
        ("prompt_encoder.mask_embed.conv2.", "prompt_encoder.mask_downscaling.3."),
        ("prompt_encoder.mask_embed.layer_norm2.", "prompt_encoder.mask_downscaling.4."),
        ("prompt_encoder.mask_embed.conv3.", "prompt_encoder.mask_downscaling.6."),
        *(
            (
                f"mask_decoder.transformer.layers.{{}}.{attn}.o_proj.",
                f"mask_decoder.transformer.layers.{{}}.{attn}.out_proj.",
            )
            for attn in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        ),
        (
            "mask_decoder.transformer.final_attn_token_to_image.o_proj.",
            "mask_decoder.transformer.final_attn_token_to_image.out_proj.",
        ),
        ("mask_decoder.transformer.layers.{}.mlp.proj_in.", "mask_decoder.transformer.layers.{}.mlp.lin1."),
        ("mask_decoder.transformer.layers.{}.mlp.proj_out.", "mask_decoder.transformer.layers.{}.mlp.lin2."),
        ("mask_decoder.transformer.layers.{}.layer_norm{}.", "mask_decoder.transformer.layers.{}.norm{}."),
        ("mask_decoder.transformer.layer_norm_final_attn.", "mask_decoder.transformer.norm_final_attn."),
        ("mask_decoder.upscale_conv1.", "mask_decoder.output_upscaling.0."),
        ("mask_decoder.upscale_layer_norm.", "mask_decoder.output_upscaling.1."),
        ("mask_decoder.upscale_conv2.", "mask_decoder.output_upscaling.3."),
        *(
            (f"mask_decoder.{mlp}.{theirs}.", f"mask_decoder.{mlp}.layers.{ours}.")
            for mlp in ("output_hypernetworks_mlps.{}", "iou_prediction_head", "pred_obj_score_head")
            for theirs, ours in (("proj_in", 0), ("layers.0", 1), ("proj_out", 2))
        ),
    )
)
MINI: dict[str, Any] = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 24,
            "image_size": [256, 256],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [24, 48, 96, 192],
            "global_attention_blocks": [3],
        },
        "backbone_channel_list": [192, 96, 48, 24],
        "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
        "fpn_hidden_size": 64,
    },
    "prompt_encoder_config": {"hidden_size": 64, "image_size": 256},
    "mask_decoder_config": {"hidden_size": 64, "mlp_dim": 256, "num_attention_heads": 4, "iou_head_hidden_dim": 64},
}


def transformers_sam2(sam: Sam, settings: dict[str, Any]) -> Any:
    """transformers' model of our weights, each of which it has and no other."""
    transformers = pytest.importorskip("transformers")
    model = transformers.Sam2Model(transformers.Sam2Config(**settings)).eval()
    state = {NAMES.to_theirs(key): value for key, value in sam.state_dict().items()}
    labels = [state.pop(f"prompt_encoder.point_embeddings.{i}.weight") for i in range(4)]
    state["prompt_encoder.point_embed.weight"] = torch.cat(labels)
    state["prompt_encoder.shared_embedding.positional_embedding"] = state["shared_image_embedding.positional_embedding"]
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize(
    ("name", "settings"), [("sam2_mini", MINI), pytest.param("sam2.1_hiera_tiny", {}, marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_transformers_agrees(name: str, settings: dict[str, Any], record_parity: RecordParity) -> None:
    torch.manual_seed(0)
    sam = build_sam(name)
    stir(sam, seed=6)
    pass_filters(sam.mask_decoder, iou_scale=20.0)
    model = transformers_sam2(sam, settings)

    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, sam.image_size, sam.image_size, generator=generator)
    embedding, (*finer, coarse) = sam.image_encoder(pixels), model.get_image_embeddings(pixels)
    theirs = [coarse, *reversed(finer)]
    levels = [relative_difference(a, b) for a, b in zip(unpack_levels(embedding), theirs, strict=True)]
    assert all(level[0].flatten(1).std(1).mean() > 0.1 * level.std() for level in theirs)  # they depend on the place

    corners = torch.rand(5, 2, 2, generator=generator) * sam.image_size
    boxes, labels = torch.cat([corners.amin(1), corners.amax(1)], 1), torch.tensor([[1.0, 0.0]]).expand(5, 2)
    prompts = (
        ({"boxes_xyxy": boxes}, {"input_boxes": boxes[None]}),
        ({"points": corners, "labels": labels}, {"input_points": corners[None], "input_labels": labels[None].int()}),
    )
    masks, ious = [], []
    for mine, given in prompts:
        for multimask_output in (False, True):
            logits, iou = sam.decode(embedding, **mine, multimask_output=multimask_output)
            output = model(image_embeddings=[*finer, coarse], **given, multimask_output=multimask_output)
            masks.append(relative_difference(logits, output.pred_masks[0]))
            ious.append(relative_difference(iou, output.iou_scores[0]))
            assert 0 < (logits > 0).float().mean() < 1
            assert iou.std() > 1e-3
    for what, differences in (("levels", levels), ("masks", masks), ("IoU", ious)):
        print(f"{name}, {what}:", *(f"{difference:.1e}" for difference in differences))
    record_parity(name, "embedding", max(levels), "transformers")
    record_parity(name, "masks", max(masks), "transformers")
    assert max(levels) < 1e-4
    assert max(*masks, *ious) < 1e-5
