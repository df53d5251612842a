"""A folder of images and a folder of masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from typing_extensions import override

from mobilesamv2.data.base import ImageDataset, choose_images
from mobilesamv2.data.images import read_rgb
from mobilesamv2.files import sha256_of
from mobilesamv2.masks import encode
from mobilesamv2.structures import GroundTruth


class MaskFolder(ImageDataset):
    """Images, each with a grey PNG of the same name, in which a pixel's value is the number of its object, or 0.

    Args:
        images: folder of PNGs.
        masks: folder of PNGs.
        limit: at most N images, or below 1 that share of them; None keeps all.
        subset_seed: draws them at random; None keeps the first.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if the folder of masks contains no PNG.
    """

    def __init__(
        self, images: str | Path | None, masks: str | Path, limit: float | None = None, subset_seed: int | None = None
    ) -> None:
        self.require_files({"images": images, "masks": masks})
        self.images, self.masks = None if images is None else Path(images), Path(masks)
        names = sorted(path.name for path in self.masks.glob("*.png"))
        self._ids = choose_images(range(len(names)), limit, subset_seed)
        self._names = [names[i] for i in self._ids]

    @classmethod
    @override
    def require_files(cls, settings: Mapping[str, Any]) -> None:
        for name in ("images", "masks"):
            if settings[name] is not None and not Path(settings[name]).is_dir():
                raise FileNotFoundError(
                    f"There is no folder {settings[name]}; name another with dataset.{name}=FOLDER."
                )

    @property
    @override
    def image_ids(self) -> list[int]:
        return self._ids

    @property
    @override
    def provenance(self) -> dict[str, Any]:
        sha256 = sha256_of([self.masks / name for name in self._names])
        return {"annotations": str(self.masks), "annotations_sha256": sha256, "images": str(self.images)}

    @override
    def load_image(self, index: int) -> np.ndarray:
        return read_rgb(self._image_path(index), self._names[index])

    @override
    def content_hash(self, index: int) -> str:
        return sha256_of([self._image_path(index)])

    @override
    def ground_truth(self, index: int) -> GroundTruth:
        numbers = np.asarray(Image.open(self.masks / self._names[index]))  # (H, W)
        masks = numbers == np.setdiff1d(numbers, [0])[:, None, None]  # (G, H, W)
        return GroundTruth(
            image_id=self._ids[index],
            size=(numbers.shape[0], numbers.shape[1]),
            rles=encode(torch.from_numpy(masks).transpose(1, 2)) if len(masks) else [],
            areas=masks.sum((1, 2)).astype(float).tolist(),
            frequencies=[None] * len(masks),
        )

    def _image_path(self, index: int) -> Path:
        if self.images is None:
            raise ValueError("dataset.images must name a folder, got null.")
        return self.images / self._names[index]
