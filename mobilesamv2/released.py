"""Weight files that others released: where they are published, and their checksums."""

import pickle
import struct
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Released:
    """A published weight file.

    Attributes:
        where: what a person opens to get it.
        url: what a program downloads it from; None where only a person can.
        sha256: of the file, where several parties report the same; None where they don't.
    """

    where: str
    url: str | None = None
    sha256: str | None = None


def _direct(url: str, sha256: str | None = None) -> Released:
    return Released(url, url, sha256)


_SAM = "https://dl.fbaipublicfiles.com/segment_anything"
_MOBILE_SAM = "https://github.com/ChaoningZhang/MobileSAM"
_MOBILE_SAM_V2 = Released(f"{_MOBILE_SAM}/tree/master/MobileSAMv2, whose README links it")
_YOLO = "https://github.com/ultralytics/assets/releases/download/v8.3.0"

RELEASED = {
    "sam_vit_b_01ec64.pth": _direct(
        f"{_SAM}/sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    "sam_vit_l_0b3195.pth": _direct(
        f"{_SAM}/sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    "sam_vit_h_4b8939.pth": _direct(
        f"{_SAM}/sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
    "mobile_sam.pt": Released(
        f"{_MOBILE_SAM}/blob/master/weights/mobile_sam.pt",
        f"{_MOBILE_SAM}/raw/master/weights/mobile_sam.pt",
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    ),
    "l2.pt": _MOBILE_SAM_V2,
    "Prompt_guided_Mask_Decoder.pt": _MOBILE_SAM_V2,
    "ObjectAwareModel.pt": _MOBILE_SAM_V2,
    **{
        f"yolov8{size}{head}.pt": _direct(f"{_YOLO}/yolov8{size}{head}.pt") for size in "nsmlx" for head in ("", "-seg")
    },
    **{f"FastSAM-{size}.pt": _direct(f"{_YOLO}/FastSAM-{size}.pt") for size in "sx"},
}
"""Released weight files by name."""

FILES = {
    "mobile_sam": ("mobile_sam.pt",),
    "sam_vit_b": ("sam_vit_b_01ec64.pth",),
    "sam_vit_l": ("sam_vit_l_0b3195.pth",),
    "sam_vit_h": ("sam_vit_h_4b8939.pth",),
    "efficientvit_l2": ("l2.pt", "Prompt_guided_Mask_Decoder.pt"),
}
"""The files that hold a model of the registry, by its name."""


BROKEN_PICKLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError),
    *(AttributeError, AssertionError, ImportError, LookupError, struct.error),
)
"""What torch raises on a weight file that is truncated, has changed bytes, or holds more than weights.

Its reader looks bytes up in tables without checking them, so that a changed one ends in any of these.
"""


def require_released(path: str | Path) -> None:
    """Nothing, if a weight file is there.

    Raises:
        FileNotFoundError: naming the file and, where its name is that of a released one, where it is published.
    """
    path = Path(path)
    if path.is_file():
        return
    released = RELEASED.get(path.name)
    hint = f" It is published at {released.where}; put it at {path}" if released else ""
    if released and released.url:
        hint += f", or: mobilesamv2 download {path.name} -o {path.parent}"
    raise FileNotFoundError(f"There is no weight file {path}.{hint}{'.' if hint else ''}")
