"""A model and its ONNX graphs."""

import re
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from mobilesamv2.models.sam import Sam
from support import ROOT

WEIGHTS = ROOT / "mobilesamv2" / "weights" / "mini_conv.safetensors"


class Export(NamedTuple):
    """The model, the folder of its graphs, and what the command printed."""

    sam: Sam
    folder: Path
    printed: str


def run_guide(number: int, exported: Path, image: Image.Image, folder: Path) -> dict[str, Any]:
    """Runs the guide's example of this number on an image in ``folder``, and returns its variables."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    image.save(folder / "photo.png")
    (folder / "exported").symlink_to(exported)
    names: dict[str, Any] = {}
    with chdir(folder):
        exec(examples[number].replace("photo.jpg", "photo.png"), names)
    return names
