"""Run in its own process: the ultralytics 8.0 inside mobilesam-lite takes the place of the installed one.

python object_aware_model.py OUT: writes OUT/ObjectAwareModel.pt, a stand-in for MobileSAMv2's release (yolov8n-seg
without prototypes, random weights), OUT/FastSAM-x.pt, one for FastSAM's (the same with prototypes), and OUT/outputs.pt
(images, raw predictions and prototypes).
"""

import importlib.util
import sys
from pathlib import Path

import torch

spec = importlib.util.find_spec("mobilesam_lite")
assert spec is not None
assert spec.submodule_search_locations
folder = Path(next(iter(spec.submodule_search_locations)))
sys.path[:0] = [str(folder), *(str(p.parents[1]) for p in folder.glob("**/ultralytics/__init__.py"))]
import ultralytics  # noqa: E402
from ultralytics.nn.modules import Proto  # noqa: E402
from ultralytics.nn.tasks import SegmentationModel  # noqa: E402

assert ultralytics.__version__.startswith("8.0."), ultralytics.__file__


@torch.no_grad()
def main(out: Path) -> None:
    torch.manual_seed(0)
    model = SegmentationModel("yolov8n-seg.yaml", nc=1, verbose=False).eval()
    head = model.model[-1]
    features = []  # of the highest resolution, which prototypes are made from
    hook = head.register_forward_pre_hook(lambda head, inputs: features.append(inputs[0][0]))
    images = torch.rand(1, 3, 320, 320)
    predictions = model(images)[0]
    hook.remove()
    torch.save({"model": model, "train_args": {}}, out / "ObjectAwareModel.pt")  # this ultralytics makes no prototypes
    head.proto = Proto(features[0].shape[1], head.npr, head.nm).eval()
    prototypes = head.proto(features[0])
    torch.save({"model": model, "train_args": {}}, out / "FastSAM-x.pt")
    torch.save({"images": images, "predictions": predictions, "prototypes": prototypes}, out / "outputs.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
