"""A data set whose loader's workers are killed, as by a system that is out of memory."""

import os
import signal

import numpy as np
from torch.utils.data import get_worker_info

from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.structures import GroundTruth


class KilledScenes(SyntheticDataset):
    """Scenes of which a worker draws ten, and is killed at the eleventh."""

    drawn = 0

    def __getitem__(self, index: int) -> tuple[np.ndarray, GroundTruth]:
        self.drawn += 1
        if self.drawn == 11 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)
