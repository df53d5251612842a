"""Run in its own process: the ultralytics 8.0 inside mobilesam-lite takes the place of the installed one.

python object_aware_model.py OUT: writes OUT/ObjectAwareModel.pt, a stand-in for MobileSAMv2's release (yolov8n-seg
without prototypes, random weights), and OUT/outputs.pt (images and raw predictions).
"""

import importlib.util
import sys
from pathlib import Path

import torch

spec = importlib.util.find_spec("mobilesam_lite")
assert spec is not None
assert spec.submodule_search_locations
folder = Path(next(iter(spec.submodule_search_locations)))
sys.path[:0] = [str(folder), *(str(p.parent) for p in folder.glob("**/ultralytics/__init__.py"))]
from ultralytics.nn.tasks import SegmentationModel  # noqa: E402


@torch.no_grad()
def main(out: Path) -> None:
    torch.manual_seed(0)
    model = SegmentationModel("yolov8n-seg.yaml", nc=1, verbose=False)
    images = torch.rand(1, 3, 320, 320)
    predictions = model.eval()(images)[0]
    predictions = predictions if isinstance(predictions, torch.Tensor) else predictions[0]
    torch.save({"images": images, "predictions": predictions}, out / "outputs.pt")
    del model.model[-1].proto
    torch.save({"model": model, "train_args": {}}, out / "ObjectAwareModel.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
