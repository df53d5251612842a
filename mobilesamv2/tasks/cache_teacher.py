"""The teacher's pass over the images alone, so that many jobs can share it out before any student is trained."""

from __future__ import annotations

import pytorch_lightning as pl

from mobilesamv2.data.samples import Sample
from mobilesamv2.tasks.teacher import Teacher


class CacheTeacher(pl.LightningModule):
    """Writes the teacher's embeddings of the images that its cache has none of.

    Args:
        teacher: the model to imitate later, with a cache.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.network = teacher.sam.image_encoder  # Lightning moves it to the device

    def predict_step(self, batch: Sample, batch_idx: int) -> None:
        """A batch."""
        self.teacher.keep(batch)

    def on_predict_end(self) -> None:
        """The last shard may be short."""
        cache = self.teacher.cache
        assert cache is not None
        cache.flush()
