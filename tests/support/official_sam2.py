"""The official SAM 2 code at the size of ``sam2_mini``."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_image_predictor import SAM2ImagePredictor

from mobilesamv2 import build_sam
from mobilesamv2.models.sam import Sam
from support.random_weights import pass_filters, stir

GlobalHydra.instance().clear()  # importing sam2 initialises Hydra for itself


def official_sam2_mini() -> Any:
    """Random weights; the memory, which images do not use, is left empty."""
    torch.manual_seed(0)
    trunk: Any = Hiera(
        embed_dim=24, num_heads=1, stages=(1, 1, 2, 1), global_att_blocks=(3,), window_pos_embed_bkg_spatial_size=(7, 7)
    )
    neck = FpnNeck(
        PositionEmbeddingSine(64), 64, trunk.channel_list, fpn_interp_model="nearest", fpn_top_down_levels=[2, 3]
    )
    sam: Any = SAM2Base(
        ImageEncoder(trunk, neck, scalp=1),
        torch.nn.Identity(),
        torch.nn.Identity(),
        image_size=256,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
    )
    decoder: Any = MaskDecoder(
        transformer_dim=64,
        transformer=TwoWayTransformer(depth=2, embedding_dim=64, mlp_dim=256, num_heads=4),
        iou_head_hidden_dim=64,
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        dynamic_multimask_via_stability=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
    )
    sam.sam_mask_decoder = decoder
    stir(sam, seed=6)
    pass_filters(decoder, iou_scale=20.0)
    last: Any = decoder.iou_prediction_head.layers[-1]
    last.bias.data.fill_(1.4)  # sigmoid(1.4) is the default threshold of .8
    return sam.eval()


def predictor_of(sam: Any) -> Any:
    """The official predictor, told the sizes of the small maps."""
    predictor: Any = SAM2ImagePredictor(sam, disable_torch_jit=True)
    predictor._bb_feat_sizes = [(64, 64), (32, 32), (16, 16)]
    return predictor


def ours_from_sam2(official: Any, folder: Path) -> Sam:
    """Our model of the same weights, by way of a file in the official format, memory parts included."""
    path = folder / "sam2_mini.pt"
    torch.save({"model": official.state_dict()}, path)
    return build_sam("sam2_mini", path)


@torch.no_grad()
def calibrate_sam2(sam: Any, image: np.ndarray) -> None:
    """Moves the last layers: 30% of an image's masks pass the filter of predicted IoU, half those of stability."""
    predictor = predictor_of(sam)
    predictor.set_image(image)
    height, width = image.shape[:2]
    points = torch.cartesian_prod(torch.linspace(8, width - 8, 8), torch.linspace(8, height - 8, 8))[:, None]
    decoder = sam.sam_mask_decoder
    coords = predictor._transforms.transform_coords(points, normalize=True, orig_hw=(height, width))
    labels = torch.ones(len(points), 1)
    for _ in range(3):
        logits, iou, _ = predictor._predict(coords, labels, return_logits=True)
        decoder.iou_prediction_head.layers[-1].bias[1:] += 1.386 - iou.logit().quantile(0.7, dim=0)
        stability = (logits > 1).sum((2, 3)) / (logits > -1).sum((2, 3))
        for i, median in enumerate(stability.median(0).values.tolist(), start=1):
            for parameter in decoder.output_hypernetworks_mlps[i].layers[-1].parameters():
                parameter.mul_((1 - median) / (1 - 0.95))
        decoder.dynamic_multimask_via_stability = False
        single = predictor._predict(coords, labels, multimask_output=False)[2]
        decoder.dynamic_multimask_via_stability = True
        stability = (single > 0.05).sum((1, 2, 3)) / (single > -0.05).sum((1, 2, 3))
        for parameter in decoder.output_hypernetworks_mlps[0].layers[-1].parameters():
            parameter.mul_((1 - stability.median()) / (1 - 0.98))
