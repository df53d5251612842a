"""Published weight files: where they are published, where to find them on this machine, and how to download them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from mobilesamv2.downloads import download, unpack
from mobilesamv2.names import did_you_mean

PACKAGE_WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the weights that ship with the package."""

PROMPT_HEAD_ENDING = "_prompt_head.safetensors"
"""End of the name of a prompt head's file, behind the name of the model that it is for."""

WEIGHTS_VARIABLE = "MOBILESAMV2_WEIGHTS"
"""Environment variable that names the user's folder of weights; without it, it is in the user's cache folder."""

DOWNLOAD_VARIABLE = "MOBILESAMV2_DOWNLOAD"
"""Environment variable: 1 downloads missing weights without a question, 0 never does."""

NO_DOWNLOAD_VARIABLES = ("CI", "HF_HUB_OFFLINE")
"""Environment variables that mean 0 where ``MOBILESAMV2_DOWNLOAD`` is not set."""


@dataclass(frozen=True)
class PublishedFile:
    """A published weight file.

    Attributes:
        homepage: the page to open in a browser to get it.
        url: address that a program can download it from; None if there is none.
        sha256: checksum of the file, if its publisher or several others report it; None otherwise.
        licence: SPDX identifier, if the publisher states one for these weights; None otherwise.
        nbytes: size of the file; None if it is not recorded.
        is_zipped: the address is that of a zip archive which holds the file.
    """

    homepage: str
    url: str | None = None
    sha256: str | None = None
    licence: str | None = None
    nbytes: int | None = None
    is_zipped: bool = False

    def __str__(self) -> str:
        """Return size, licence and address, for people."""
        size = "size unknown" if self.nbytes is None else f"{self.nbytes / 1e6:,.0f} MB"
        return f"{size}, {self.licence or 'licence unknown'}, from {self.url or self.homepage}"


def _direct(
    url: str, sha256: str | None = None, licence: str | None = None, nbytes: int | None = None
) -> PublishedFile:
    return PublishedFile(url, url, sha256, licence, nbytes)


_SAM = "https://dl.fbaipublicfiles.com/segment_anything"
_MOBILE_SAM = "https://github.com/ChaoningZhang/MobileSAM"
_MOBILE_SAM_V2 = PublishedFile(f"{_MOBILE_SAM}/tree/master/MobileSAMv2, whose README links it")
_SAM_2 = "https://dl.fbaipublicfiles.com/segment_anything_2"
_YOLO = "https://github.com/ultralytics/assets/releases/download/v8.3.0"

_HUB = "https://huggingface.co"
_EFFICIENTVIT_SAM = "mit-han-lab/efficientvit-sam"

TRANSFORMERS_REPOSITORIES = {"slimsam_50": "Zigeng/SlimSAM-uniform-50", "slimsam_77": "Zigeng/SlimSAM-uniform-77"}
"""Models that are published for transformers alone, and the repository on the Hugging Face Hub of each."""

SAM_FOR_TRANSFORMERS = {
    "sam-vit-base": "892c410e496344e527255ccdcb2cb7244a609acb5389c7c4fdba1288f861c579",
    "sam-vit-large": "a57e1b13cd1545938dfcbc9fb26df7f60de6650237a9383382a874a623564b81",
    "sam-vit-huge": "edfb0462392541fca9af44ff039bfb32dbd0c939997f3abb77a26e23af7afd7c",
}
"""Repositories of ``facebook`` on the Hub that have SAM for transformers too, and the SHA-256 of each one's file.

Source: the pages of the files there, https://huggingface.co/facebook/sam-vit-base/blob/main/model.safetensors.
"""

EFFICIENTVIT_SAM_MODELS = tuple(f"efficientvit_sam_{size}" for size in ("l0", "l1", "l2", "xl0", "xl1"))

SAM_HQ_MODELS = tuple(f"sam_hq_vit_{size}" for size in ("b", "l", "h", "tiny"))

_EFFICIENT_SAM = "https://github.com/yformer/EfficientSAM"
_EDGE_SAM = "https://huggingface.co/spaces/chongzhou/EdgeSAM/blob/main/weights"
_BIOIMAGE = "https://uk1s3.embassy.ebi.ac.uk/public-datasets/bioimage.io"

MICRO_SAM_FILES = {
    "micro_sam_vit_t_lm": f"{_BIOIMAGE}/faithful-chicken/1.1/files/vit_t.pt",
    "micro_sam_vit_b_lm": f"{_BIOIMAGE}/diplomatic-bug/1.2/files/vit_b.pt",
    "micro_sam_vit_l_lm": f"{_BIOIMAGE}/idealistic-rat/1.2/files/vit_l.pt",
    "micro_sam_vit_b_em_organelles": f"{_BIOIMAGE}/noisy-ox/1.2/files/vit_b.pt",
}
"""Models of micro-sam, for light and electron microscopy, and the address of each, where it has another name."""

SAM_2_FILES = {
    f"{release}_hiera_{size}": path
    for release, path in (("sam2", "072824"), ("sam2.1", "092824"))
    for size in ("tiny", "small", "base_plus", "large")
}
"""Models of SAM 2 and 2.1, and the folder that each is published in."""

WEIGHT_FILES = {
    "sam_vit_b_01ec64.pth": _direct(
        f"{_SAM}/sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        "Apache-2.0",
        375_042_383,
    ),
    "sam_vit_l_0b3195.pth": _direct(
        f"{_SAM}/sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        "Apache-2.0",
        1_249_524_607,
    ),
    "sam_vit_h_4b8939.pth": _direct(
        f"{_SAM}/sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        "Apache-2.0",
        2_564_550_879,
    ),
    "mobile_sam.pt": PublishedFile(
        f"{_MOBILE_SAM}/blob/master/weights/mobile_sam.pt",
        f"{_MOBILE_SAM}/raw/master/weights/mobile_sam.pt",
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        "Apache-2.0",
        40_728_226,
    ),
    **{f"{name}.pt": _direct(f"{_SAM_2}/{path}/{name}.pt", licence="Apache-2.0") for name, path in SAM_2_FILES.items()},
    **{
        f"{name}.safetensors": _direct(f"{_HUB}/{repository}/resolve/main/model.safetensors", licence="Apache-2.0")
        for name, repository in TRANSFORMERS_REPOSITORIES.items()
    },
    **{
        f"{name}.safetensors": _direct(f"{_HUB}/facebook/{name}/resolve/main/model.safetensors", sha256, "Apache-2.0")
        for name, sha256 in SAM_FOR_TRANSFORMERS.items()
    },
    **{
        f"{name}.pt": _direct(f"{_HUB}/{_EFFICIENTVIT_SAM}/resolve/main/{name}.pt", licence="Apache-2.0")
        for name in EFFICIENTVIT_SAM_MODELS
    },
    # non-commercial: whoever wants them reads the licence and fetches them
    **{
        f"{name}.pth": PublishedFile(f"{_EDGE_SAM}/{name}.pth", licence="LicenseRef-S-Lab-1.0")
        for name in ("edge_sam", "edge_sam_3x")
    },
    **{
        f"{name}.pth": _direct(f"{_HUB}/lkeab/hq-sam/resolve/main/{name}.pth", licence="Apache-2.0")
        for name in SAM_HQ_MODELS
    },
    "repvit_sam.pt": _direct(
        "https://github.com/THU-MIG/RepViT/releases/download/v1.0/repvit_sam.pt", licence="Apache-2.0"
    ),
    "efficient_sam_vitt.pt": PublishedFile(
        f"{_EFFICIENT_SAM}/blob/main/weights/efficient_sam_vitt.pt",
        f"{_EFFICIENT_SAM}/raw/main/weights/efficient_sam_vitt.pt",
        licence="Apache-2.0",
    ),
    "efficient_sam_vits.pt": PublishedFile(
        f"{_EFFICIENT_SAM}/blob/main/weights/efficient_sam_vits.pt.zip (unpack it)",
        f"{_EFFICIENT_SAM}/raw/main/weights/efficient_sam_vits.pt.zip",
        licence="Apache-2.0",
        is_zipped=True,
    ),
    "tinysam.pth": _direct(
        "https://github.com/xinghaochen/TinySAM/releases/download/1.0/tinysam.pth", licence="Apache-2.0"
    ),
    # the licence of its authors' model card, https://huggingface.co/wanglab/medsam-vit-base
    "medsam_vit_b.pth": _direct("https://zenodo.org/records/10689643/files/medsam_vit_b.pth", licence="Apache-2.0"),
    **{f"{name}.pt": _direct(url) for name, url in MICRO_SAM_FILES.items()},
    "l2.pt": _MOBILE_SAM_V2,
    "Prompt_guided_Mask_Decoder.pt": _MOBILE_SAM_V2,
    "ObjectAwareModel.pt": _MOBILE_SAM_V2,
    **{
        f"yolov8{size}{head}.pt": _direct(f"{_YOLO}/yolov8{size}{head}.pt", licence="AGPL-3.0")
        for size in "nsmlx"
        for head in ("", "-seg")
    },
    **{f"FastSAM-{size}.pt": _direct(f"{_YOLO}/FastSAM-{size}.pt") for size in "sx"},
}
"""Published weight files by name."""

MODEL_FILES = {
    "mobile_sam": ("mobile_sam.pt",),
    "sam_vit_b": ("sam_vit_b_01ec64.pth",),
    "sam_vit_l": ("sam_vit_l_0b3195.pth",),
    "sam_vit_h": ("sam_vit_h_4b8939.pth",),
    **{name: (f"{name}.pt",) for name in SAM_2_FILES},
    **{name: (f"{name}.safetensors",) for name in TRANSFORMERS_REPOSITORIES},
    **{name: (f"{name}.pt",) for name in EFFICIENTVIT_SAM_MODELS},
    "edge_sam": ("edge_sam.pth",),
    "edge_sam_3x": ("edge_sam_3x.pth",),
    "repvit_sam": ("repvit_sam.pt",),
    **{name: (f"{name}.pth",) for name in SAM_HQ_MODELS},
    "efficient_sam_vitt": ("efficient_sam_vitt.pt",),
    "efficient_sam_vits": ("efficient_sam_vits.pt",),
    "tinysam": ("tinysam.pth",),
    "medsam_vit_b": ("medsam_vit_b.pth",),
    **{name: (f"{name}.pt",) for name in MICRO_SAM_FILES},
    "efficientvit_l2": ("l2.pt", "Prompt_guided_Mask_Decoder.pt"),
}
"""Registry name of a model -> the published files that hold its weights."""


def shipped_models() -> list[str]:
    """Return the names of the models whose weights ship with the package."""
    files = PACKAGE_WEIGHTS.glob("*.safetensors")
    return sorted(path.stem for path in files if not path.name.endswith(PROMPT_HEAD_ENDING))


def weight_folders(folder: str | Path = "weights") -> tuple[Path, ...]:
    """Return the folders that are searched for weights, in order: ``folder``, the user's, the package's."""
    user = os.environ.get(WEIGHTS_VARIABLE) or Path(platformdirs.user_cache_dir("mobilesamv2")) / "weights"
    return Path(folder), Path(user), PACKAGE_WEIGHTS


def find_weights(name: str, folder: str | Path = "weights") -> Path:
    """Return the path of a weight file, in the first of ``weight_folders`` that has it.

    Args:
        name: file name, ``mobile_sam.pt`` for example.
        folder: the folder to search first; relative to the working directory.

    Raises:
        FileNotFoundError: if no folder has it; the message lists the folders and where the file is published.
    """
    folders = weight_folders(folder)
    for candidate in folders:
        if (candidate / name).is_file():
            return candidate / name
    places = ", ".join(map(str, folders))
    hint = f"{_published_hint(folders[0] / name)}{_offline_hint(name)}"
    raise FileNotFoundError(f"There is no weight file {name} in {places}.{hint}")


def find_named(path: str | Path, folder: str | Path = "weights") -> Path:
    """Return the path of a weight file that a user named; a bare name that is no file here is left to ``find_weights``.

    Args:
        path: of a file, or a file name, ``mini_detector.pt`` for example.
        folder: as in ``find_weights``.

    Raises:
        FileNotFoundError: if no folder has a file of a bare name; a path with a folder is returned as it is.
    """
    path = Path(path)
    return path if path.is_file() or path.name != str(path) else find_weights(path.name, folder)


def find_or_download(name: str, folder: str | Path = "weights", download: bool | None = None) -> Path:
    """Return the path of a weight file as ``find_weights`` does, or download it where no folder has it.

    It is downloaded into ``folder`` if that exists, else into the user's folder, and printed before, with its size and
    licence.

    Args:
        name: file name, ``mobile_sam.pt`` for example.
        folder: the folder to search first; relative to the working directory.
        download: None does what ``download_setting`` returns, or downloads where that is None.

    Raises:
        FileNotFoundError: if no folder has it, and it may not be downloaded or has no address for programs.
        ConnectionError: if the network fails; the message says what works without one.
        ValueError: if the downloaded file is a different one, or ``MOBILESAMV2_DOWNLOAD`` is set to something odd.
    """
    try:
        return find_weights(name, folder)
    except FileNotFoundError:
        allowed = download_setting() if download is None else download
        published = WEIGHT_FILES.get(name)
        if allowed is False or published is None or published.url is None:
            raise
    target = download_folder(folder)
    print(f"downloading {name} ({published}) into {target}", file=sys.stderr)
    try:
        return download_published(name, target)
    except ConnectionError as error:
        raise ConnectionError(f"{error}{_offline_hint(name)}") from error


def missing_downloads(model: str, folder: str | Path = "weights") -> dict[str, PublishedFile]:
    """Return the files of a model that ``find_or_download`` would download, by name; empty for a model without any.

    A model of several files, one of which has no address for programs, has none.
    """
    files = MODEL_FILES.get(model, ())
    missing = {file: WEIGHT_FILES[file] for file in files if not _is_found(file, folder)}
    return {} if any(published.url is None for published in missing.values()) else missing


def _is_found(name: str, folder: str | Path) -> bool:
    return any((candidate / name).is_file() for candidate in weight_folders(folder))


def download_setting() -> bool | None:
    """Return what the environment says about downloads: None where it says nothing.

    ``MOBILESAMV2_DOWNLOAD`` decides; without it, CI and ``HF_HUB_OFFLINE`` forbid them.

    Raises:
        ValueError: if ``MOBILESAMV2_DOWNLOAD`` is neither 0 nor 1.
    """
    value = os.environ.get(DOWNLOAD_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"The environment variable {DOWNLOAD_VARIABLE} must be 0 or 1, got {value!r}.")
    if value:
        return value == "1"
    forbidden = any(os.environ.get(name, "").lower() not in ("", "0", "false", "no") for name in NO_DOWNLOAD_VARIABLES)
    return False if forbidden else None


def download_folder(folder: str | Path = "weights") -> Path:
    """Return where ``find_or_download`` puts a file: ``folder`` if it exists, else the user's folder of weights."""
    first, users, _ = weight_folders(folder)
    return first if first.is_dir() else users


def require_weights(path: str | Path) -> None:
    """Check that a weight file exists.

    Raises:
        FileNotFoundError: if it does not; the message says where a file of this name is published, if one is, and what
            works without a network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no weight file {path}.{_published_hint(path)}{_offline_hint(path.name)}")


def _published_hint(path: Path) -> str:
    """Say where a file of this name is published; empty if none is."""
    published = WEIGHT_FILES.get(path.name)
    if published is None:
        return ""
    command = f", or run: mobilesamv2 download {path.name} -o {path.parent}" if published.url else ""
    return f" It is published at {published.homepage}; put it at {path}{command}."


def _offline_hint(name: str) -> str:
    """Say what works without this file, and without a network; empty for a file that is not published."""
    of_models = {file for files in MODEL_FILES.values() for file in files}
    if name in of_models or name.removesuffix(".safetensors") in SAM_FOR_TRANSFORMERS:
        return f" Without a network: {', '.join(shipped_models())}, whose weights ship with this package."
    detectors = [str(path) for path in sorted(PACKAGE_WEIGHTS.glob("*.pt"))]
    return f" Without a network: the detector {', '.join(detectors)}, which ships." if name in WEIGHT_FILES else ""


def files_of(names: Sequence[str]) -> list[str]:
    """Return the names of the published files for names of models or of files.

    Raises:
        ValueError: if nothing is published under a name.
    """
    files: list[str] = []
    for name in names:
        if name not in WEIGHT_FILES and name not in MODEL_FILES:
            available = [*MODEL_FILES, *WEIGHT_FILES]
            near = did_you_mean(name, available)
            raise ValueError(f"Nothing is published as '{name}'.{near} Available: {', '.join(available)}.")
        files += MODEL_FILES.get(name, (name,))
    return files


def download_published(name: str, folder: str | Path) -> Path:
    """Download a published weight file into a folder, unless it is there and intact, and return its path.

    Raises:
        ValueError: if the file has no address that a program can use, or the downloaded file is a different one or a
            zip archive without it.
        ConnectionError: if the network fails.
    """
    published, path = WEIGHT_FILES[name], Path(folder) / name
    if published.url is None:
        raise ValueError(f"{name} can't be downloaded by a program: see {published.homepage}; put it at {path}.")
    if published.is_zipped and not path.is_file():
        archive = path.with_name(f"{name}.zip")
        download(published.url, archive)
        unpack(archive, path)
    download(published.url, path, published.sha256)  # of an unpacked file, the checksum alone
    return path


def checkpoint_files(model: Mapping[str, Any]) -> list[str]:
    """Return the weight files of a model by its record in a result; none where its weights are random."""
    checkpoint = model.get("checkpoint")
    return [str(file) for file in checkpoint] if isinstance(checkpoint, list) else [checkpoint] if checkpoint else []
