"""A data set that kills the program which builds it, as a system that is out of memory does."""

import os
import signal

from mobilesamv2.data.synthetic.dataset import SyntheticDataset


class KilledRun(SyntheticDataset):
    """Scenes; with seed 1 the program is killed."""

    def __init__(
        self, limit: int, size: tuple[int, int], seed: int = 0, split: str = "train", layout: str = "lvis"
    ) -> None:
        if seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(limit, size, seed, split, layout)
