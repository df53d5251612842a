"""EfficientViT-SAM against MIT's own code, on random weights in its format; needs `efficientsam` of PyPI."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import RecordParity, relative_difference
from support.random_weights import pass_filters, stir

from mobilesamv2 import SegAny, build_sam
from mobilesamv2.checkpoint_layouts import split_parts
from mobilesamv2.checkpoints import _mismatches


def official(size: str) -> Any:
    zoo = pytest.importorskip("efficientsam.sam_model_zoo")
    torch.manual_seed(0)
    sam = zoo.create_efficientvit_sam_model(f"efficientvit-sam-{size}", pretrained=False).eval()
    return sam


@pytest.mark.slow
@pytest.mark.parametrize("size", ["l0", "l2", "xl0"])
def test_segany_is_the_official_predictor(
    tmp_path: Path, photo: np.ndarray, size: str, record_parity: RecordParity
) -> None:
    theirs = official(size)
    stir(theirs, seed=4)
    pass_filters(theirs.mask_decoder)
    path = tmp_path / f"efficientvit_sam_{size}.pt"
    torch.save({"state_dict": theirs.state_dict()}, path)
    from efficientsam.models.efficientvit.sam import EfficientViTSamPredictor

    predictor: Any = EfficientViTSamPredictor(theirs)
    predictor.set_image(photo)
    segany = SegAny(build_sam(f"efficientvit_sam_{size}", path, allow_partial=False))
    segany.set_image(photo)
    difference = relative_difference(segany.image_embedding, predictor.features)
    segany.set_image(photo, predictor.features)
    box = np.array([10.0, 12.5, 90.0, 80.0])
    full, iou, low_res = predictor.predict(box=box, multimask_output=True, return_logits=True)
    mine = segany.predict(boxes=box)
    decoder = [
        relative_difference(torch.from_numpy(a[0]), torch.from_numpy(b))
        for a, b in ((mine.low_res_logits, low_res), (mine.predicted_iou, iou))
    ]
    print(f"{size}: embedding {difference:.1e}, masks and IoU {decoder[0]:.1e} {decoder[1]:.1e}")
    record_parity(f"efficientvit_sam_{size}", "embedding", difference, "efficientsam")
    record_parity(f"efficientvit_sam_{size}", "masks", decoder[0], "efficientsam")
    assert difference < 1e-4
    assert max(decoder) < 1e-5
    assert (mine.masks[0] == (full > 0)).mean() > 0.9999
    assert 0 < (full > 0).mean() < 1


@pytest.mark.parametrize("size", ["l0", "l1", "l2", "xl0", "xl1"])
def test_every_size_has_the_official_keys_and_shapes(size: str) -> None:
    with torch.device("meta"):
        theirs, ours = official(size), build_sam(f"efficientvit_sam_{size}")
    parts = split_parts(dict(theirs.state_dict()), Path("official"))
    for part, state in parts.items():
        assert _mismatches(part, getattr(ours, part).state_dict(), state) == []
    assert ours.encoder_side == theirs.image_size[1]


def test_the_encoder_of_small_images_refuses_others() -> None:
    encoder = build_sam("efficientvit_sam_l0").image_encoder
    with pytest.raises(ValueError, match="takes images of 512 x 512 pixels, got 1024 a side"):
        encoder(torch.zeros(1, 3, 1024, 1024))
