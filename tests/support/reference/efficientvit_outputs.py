"""Run in its own process: mobilesam-lite wants its folder on sys.path, and replaces ultralytics and timm's TinyViT.

python efficientvit_outputs.py OUT: writes OUT/l2.pt and OUT/Prompt_guided_Mask_Decoder.pt in the formats of
MobileSAMv2's releases (random weights), and OUT/outputs.pt (the embedding of an image, and logits of boxes).
"""

import importlib.util
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from random_weights import pass_filters, stir

spec = importlib.util.find_spec("mobilesam_lite")
assert spec is not None
assert spec.submodule_search_locations
sys.path.insert(0, next(iter(spec.submodule_search_locations)))
from mobilesamv2.build_sam import build_efficientvit_l2_encoder, build_PromptGuidedDecoder  # noqa: E402


@torch.no_grad()
def main(out: Path) -> None:
    torch.manual_seed(0)
    encoder = build_efficientvit_l2_encoder()
    stir(encoder, seed=2)
    torch.save({"state_dict": {f"image_encoder.{k}": v for k, v in encoder.state_dict().items()}}, out / "l2.pt")
    decoder = build_PromptGuidedDecoder()
    for part in decoder.values():
        stir(part, seed=3)
    pass_filters(decoder["MaskDecoder"])
    torch.save({name: part.state_dict() for name, part in decoder.items()}, out / "Prompt_guided_Mask_Decoder.pt")

    images = torch.randn(1, 3, 1024, 1024)
    embedding = encoder.eval()(images)
    corners = torch.rand(5, 2, 2) * 1024
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    sparse, dense = decoder["PromtEncoder"](points=None, boxes=boxes, masks=None)
    low_res, predicted_iou = decoder["MaskDecoder"](
        image_embeddings=embedding,
        image_pe=decoder["PromtEncoder"].get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    outputs = {"images": images, "embedding": embedding, "boxes": boxes, "low_res": low_res, "iou": predicted_iou}
    torch.save(outputs, out / "outputs.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
