"""EfficientSAM against its own code, at full size, on random weights in the released format.

Needs the folder `efficient_sam` of github.com/yformer/EfficientSAM on PYTHONPATH.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT, RecordParity, relative_difference
from support.random_weights import stir

from mobilesamv2 import SegAny, build_sam
from mobilesamv2.models.sam import Sam

pytestmark = pytest.mark.slow
WIDTHS = {"efficient_sam_vitt": (192, 3), "efficient_sam_vits": (384, 6)}
BOX = torch.tensor([2.0, 3.0])


class Pair(NamedTuple):
    ours: Sam
    theirs: Any


@pytest.fixture(scope="module", params=WIDTHS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    reference = pytest.importorskip("efficient_sam.efficient_sam")
    torch.manual_seed(0)
    width, heads = WIDTHS[request.param]
    theirs = reference.build_efficient_sam(width, heads).eval()
    stir(theirs, seed=1)
    with torch.no_grad():
        for mlp in theirs.mask_decoder.output_hypernetworks_mlps:  # masks with an inside and an outside
            mlp.fc.weight.mul_(40)
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.pt"
    torch.save({"model": theirs.state_dict()}, path)
    return Pair(build_sam(request.param, path, allow_partial=False), theirs)


def image() -> np.ndarray:
    return np.array(Image.open(ROOT / "mobilesamv2" / "app" / "assets" / "chelsea.jpg").convert("RGB"))


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """As torchvision's ToTensor, which the official example uses."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def boxes_of(number: int, height: int, width: int) -> torch.Tensor:
    corners = torch.rand(number, 2, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor([width, height])
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


@torch.no_grad()
def test_the_encoder_and_the_number_of_parameters(pair: Pair, record_parity: RecordParity) -> None:
    assert sum(p.numel() for p in pair.ours.parameters()) == sum(p.numel() for p in pair.theirs.parameters())
    pixels = to_tensor(image())
    expected = pair.theirs.get_image_embeddings(pixels)
    segany = SegAny(pair.ours)
    segany.set_image(image())
    difference = relative_difference(segany.image_embedding, expected)
    print(f"{pair.ours.name}: embedding {difference:.1e}")
    record_parity(str(pair.ours.name), "embedding", difference, "")
    assert difference < 1e-4
    assert expected.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("kind", ["points", "one point", "boxes", "points and boxes"])
def test_the_decoder(pair: Pair, kind: str, record_parity: RecordParity) -> None:
    embedding = torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(3))
    points = torch.rand(5, 1 if kind == "one point" else 3, 2, generator=torch.Generator().manual_seed(4)) * 1024
    boxes, given = boxes_of(5, 1024, 1024), {}
    coords, labels = points[:, :0], points[:, :0, 0]
    if "point" in kind:
        given |= {"points": points, "labels": torch.ones(points.shape[:2])}
        coords, labels = points, given["labels"]
    if "boxes" in kind:
        given["boxes_xyxy"] = boxes
        coords = torch.cat([coords, boxes.reshape(5, 2, 2)], dim=1)
        labels = torch.cat([labels, BOX.expand(5, 2)], dim=1)
    expected, expected_iou = pair.theirs.predict_masks(embedding, coords[None], labels[None], True, 1024, 1024)
    logits, iou = pair.ours.decode(embedding, **given)
    differences = relative_difference(logits, expected[0]), relative_difference(iou, expected_iou[0])
    record_parity(str(pair.ours.name), "masks", differences[0], "")
    print(f"{pair.ours.name}, {kind}: logits {differences[0]:.1e}, IoU {differences[1]:.1e}")
    assert max(differences) < 1e-5
    assert 0 < (expected > 0).float().mean() < 1
    context = pair.ours.image_context(embedding)
    shared = pair.ours.decode_filtered(context, **given).logits
    assert relative_difference(shared, expected[0].flatten(0, 1)) < 1e-5
    # as in the official example: three masks by descending predicted IoU, of which the first is taken
    order = expected_iou[0].argsort(-1, descending=True)
    one, best = pair.ours.decode(embedding, **given, multimask_output=False)
    assert relative_difference(one, expected[0].take_along_dim(order[..., None, None], 1)[:, :1]) < 1e-5
    assert relative_difference(best, expected_iou[0].take_along_dim(order, 1)[:, :1]) < 1e-5


@torch.no_grad()
def test_the_masks_of_a_photo(pair: Pair) -> None:
    """From pixels to masks: the only ones that differ lie where the logit is 0 up to rounding."""
    pixels = image()
    height, width = pixels.shape[:2]
    points = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(5)) * torch.tensor([width, height])
    boxes = boxes_of(3, height, width)
    segany = SegAny(pair.ours)
    segany.set_image(pixels)
    for given, coords, labels in (
        ({"points": points}, points, torch.ones(3, 2)),
        ({"boxes": boxes}, boxes.reshape(3, 2, 2), BOX.expand(3, 2)),
    ):
        logits, iou = pair.theirs(to_tensor(pixels), coords[None], labels[None])
        found = segany.predict(**given)
        np.testing.assert_allclose(found.predicted_iou, iou[0], atol=1e-5)
        differs = found.masks != (logits[0] >= 0).numpy()
        print(f"{pair.ours.name}: {differs.sum()} of {differs.size} pixels differ")
        assert np.abs(logits[0].numpy()[differs]).max(initial=0) < 1e-4
        assert differs.mean() < 1e-5
        assert 0 < found.masks.mean() < 1
