"""Run in a process of its own: the official mobile_sam package overwrites timm's TinyViT.

python mobile_sam_outputs.py OUT: writes OUT/mobile_sam.pt (random weights) and OUT/outputs.pt (embedding, masks).
python mobile_sam_outputs.py OUT WEIGHTS: loads WEIGHTS with the official loader, strictly, and writes OUT/outputs.pt.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from mobile_sam import SamPredictor, sam_model_registry

sys.path.insert(0, str(Path(__file__).parents[1]))
from random_weights import pass_filters, stir


def main(out: Path, weights: str | None) -> None:
    torch.manual_seed(0)
    sam = sam_model_registry["vit_t"]().train()
    if weights is None:
        stir(sam, seed=1)
        pass_filters(sam.mask_decoder)
        torch.save(sam.state_dict(), out / "mobile_sam.pt")
    else:
        sam.load_state_dict(torch.load(weights, weights_only=True))
    sam.eval()
    image = np.random.default_rng(0).integers(0, 255, (120, 180, 3), dtype=np.uint8)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    masks, predicted_iou, low_res = predictor.predict(np.array([[50.0, 60.0]]), np.array([1]))
    torch.save(
        {
            "image": torch.from_numpy(image),
            "embedding": predictor.features,
            "masks": torch.from_numpy(masks),
            "predicted_iou": torch.from_numpy(predicted_iou),
            "low_res": torch.from_numpy(low_res),
        },
        out / "outputs.pt",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
