"""LVIS: COCO's layout, with images of COCO's train2017 and val2017 folders."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

from typing_extensions import override

from mobilesamv2.data.coco import CocoDataset


class LvisDataset(CocoDataset):
    """LVIS v1 and v0.5, and any file in its layout.

    LVIS v1 val lies half in train2017; ``coco_url`` contains the folder of an image. ``images`` may be the folder that
    contains ``train2017`` and ``val2017``, or one that contains the images themselves.
    """

    published = (
        "LVIS v1 val is published at https://dl.fbaipublicfiles.com/LVIS/lvis_v1_val.json.zip, to be unzipped, and "
        "its images at http://images.cocodataset.org/zips/val2017.zip and "
        "http://images.cocodataset.org/zips/train2017.zip, to be unzipped side by side."
    )

    @override
    def paths(self, index: int) -> list[Path]:
        url = self._listed.coco_url(self._rows[index])
        if self.images is None or not url:
            return super().paths(index)
        inside = Path(urlparse(url).path)
        return [self.images / inside.parent.name / inside.name, self.images / inside.name, *super().paths(index)]

    @override
    def file_name(self, index: int) -> str | None:
        return super().file_name(index) or Path(urlparse(self._listed.coco_url(self._rows[index])).path).name or None
