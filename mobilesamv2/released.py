"""Weight files that others released: where they are published."""

from pathlib import Path

_SAM = "https://dl.fbaipublicfiles.com/segment_anything"
_MOBILE_SAM = "https://github.com/ChaoningZhang/MobileSAM"
_MOBILE_SAM_V2 = f"{_MOBILE_SAM}/tree/master/MobileSAMv2, whose README links it"
_YOLO = "https://github.com/ultralytics/assets/releases/download/v8.3.0"

RELEASED = {
    "sam_vit_b_01ec64.pth": f"{_SAM}/sam_vit_b_01ec64.pth",
    "sam_vit_l_0b3195.pth": f"{_SAM}/sam_vit_l_0b3195.pth",
    "sam_vit_h_4b8939.pth": f"{_SAM}/sam_vit_h_4b8939.pth",
    "mobile_sam.pt": f"{_MOBILE_SAM}/blob/master/weights/mobile_sam.pt",
    "l2.pt": _MOBILE_SAM_V2,
    "Prompt_guided_Mask_Decoder.pt": _MOBILE_SAM_V2,
    "ObjectAwareModel.pt": _MOBILE_SAM_V2,
    **{f"yolov8{size}{head}.pt": f"{_YOLO}/yolov8{size}{head}.pt" for size in "nsmlx" for head in ("", "-seg")},
    **{f"FastSAM-{size}.pt": f"{_YOLO}/FastSAM-{size}.pt" for size in "sx"},
}
"""Released weight files by name."""


def require_released(path: str | Path) -> None:
    """Nothing, if a weight file is there.

    Raises:
        FileNotFoundError: naming the file and, where its name is that of a released one, where it is published.
    """
    path = Path(path)
    if path.is_file():
        return
    where = RELEASED.get(path.name)
    hint = f" It is published at {where}; put it at {path}." if where else ""
    raise FileNotFoundError(f"There is no weight file {path}.{hint}")
