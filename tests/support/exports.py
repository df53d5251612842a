"""A model and its ONNX graphs."""

from pathlib import Path
from typing import NamedTuple

from mobilesamv2.models.sam import Sam
from support import ROOT

WEIGHTS = ROOT / "mobilesamv2" / "weights" / "mini_conv.safetensors"


class Export(NamedTuple):
    """The model, the folder of its graphs, and what the command printed."""

    sam: Sam
    folder: Path
    printed: str
