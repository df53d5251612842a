"""The official segment-anything code at the size of ``sam_vit_mini``."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from mobilesamv2 import build_sam
from mobilesamv2.models.sam import Sam as OurSam
from support.random_weights import pass_filters, stir


def official_mini() -> Sam:
    """Random weights."""
    torch.manual_seed(0)
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=256,
            embed_dim=96,
            depth=4,
            num_heads=3,
            out_chans=64,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=(1, 3),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=64, image_embedding_size=(16, 16), input_image_size=(256, 256), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=64,
            transformer=TwoWayTransformer(depth=2, embedding_dim=64, mlp_dim=256, num_heads=4),
            iou_head_hidden_dim=64,
        ),
    ).eval()
    stir(sam, seed=6)
    pass_filters(sam.mask_decoder)
    return sam


def ours_from(official: Sam, folder: Path) -> OurSam:
    """Our model of the same weights, by way of a file in the official format."""
    path = folder / "sam_mini.pth"
    torch.save(official.state_dict(), path)
    return build_sam("sam_vit_mini", path)


@torch.no_grad()
def calibrate(sam: Sam, image: np.ndarray) -> None:
    """Moves the last layers: 30% of an image's masks pass SAM's predicted IoU filter, half its stability filter."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    side = torch.linspace(8, 248, 8)
    points = torch.cartesian_prod(side, side)[:, None]
    labels = torch.ones(len(points), 1)
    for _ in range(3):  # the stability of a slot does not quite go with the scale of its logits
        logits, predicted_iou, _ = predictor.predict_torch(points, labels, multimask_output=True, return_logits=True)
        last = sam.mask_decoder.iou_prediction_head.layers[-1]
        last.bias[1:] += 0.88 - predicted_iou.quantile(0.7, dim=0)
        stability = (logits > 1).sum((2, 3)) / (logits > -1).sum((2, 3))
        for i, median in enumerate(stability.median(0).values.tolist(), start=1):
            for parameter in sam.mask_decoder.output_hypernetworks_mlps[i].layers[-1].parameters():
                parameter.mul_((1 - median) / (1 - 0.95))
