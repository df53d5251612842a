"""Pictures of predictions, read back from TensorBoard's event file."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from support.training import ADAMW, trainer

from mobilesamv2 import build_sam, load_pretrained
from mobilesamv2.callbacks.pictures import NAME, PredictionPictures
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.photos import PhotosDataset
from mobilesamv2.data.samples import EncoderSamples, PromptSamples
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.masks import encode
from mobilesamv2.models.object_detector import build_detector
from mobilesamv2.segany import Prediction
from mobilesamv2.structures import GroundTruth
from mobilesamv2.tasks.train_prompted_masks import TrainPromptedMasks


def fit(folder: Path, every: int | None, logger: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    sam = build_sam("mini")
    data = TrainingData(PromptSamples(SyntheticDataset(6), 256, 2), batch_size=2, validation_images=2)
    callbacks: list[pl.Callback] = [] if every is None else [PredictionPictures(sam, every)]
    task = TrainPromptedMasks(sam, ADAMW, image_encoder="full")
    trainer(folder, max_steps=4, logger=logger, callbacks=callbacks).fit(task, datamodule=data)
    return sam.state_dict()


@pytest.mark.slow
def test_tensorboard_has_the_pictures_and_training_is_the_same(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    drawn = fit(tmp_path, 2, TensorBoardLogger(tmp_path, name="", version=""))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    pictures = events.Images(NAME)
    assert [picture.step for picture in pictures] == [2, 4]
    assert min(pictures[0].width, pictures[0].height) > 100
    plain = fit(tmp_path / "plain", None, CSVLogger(tmp_path / "plain"))
    assert all(torch.equal(value, plain[key]) for key, value in drawn.items())


def test_nothing_is_drawn_without_a_logger_that_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PredictionPictures, "_rows", lambda *args: pytest.fail("drawn"))
    fit(tmp_path, 2, CSVLogger(tmp_path))


def test_weights_and_biases_get_a_picture_by_its_own_method() -> None:
    from mobilesamv2.callbacks.pictures import _log, _shows_images
    from mobilesamv2.visualize import panels

    class Remote:
        def log_image(self, key: str, images: list, step: int) -> None:
            self.given = key, images[0].size, step

    remote = Remote()
    assert _shows_images(remote)
    _log(remote, panels([(np.zeros((4, 60, 3), np.uint8),)], ["x"]), 7)
    assert (remote.given[0], remote.given[2]) == (NAME, 7)


def test_an_object_has_one_colour_in_both_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model finds little of the object that is drawn first, as the largest."""
    pixels = np.zeros((2, 60, 90), dtype=bool)
    pixels[0, 5:55, 5:50], pixels[1, 5:55, 60:80] = True, True
    found = pixels.copy()
    found[0, 15:] = False

    class Images(list[tuple[np.ndarray, GroundTruth]]):
        has_objects = True

    class FindsLittle:
        def __init__(self, sam: object) -> None: ...

        def set_image(self, image: np.ndarray) -> None: ...

        def predict(self, **prompts: object) -> Prediction:
            return Prediction(found[:, None], np.ones((2, 1)), np.zeros((2, 1, 4, 4)))

    monkeypatch.setattr("mobilesamv2.callbacks.pictures.SegAny", FindsLittle)
    rles = encode(torch.from_numpy(pixels).transpose(1, 2))
    image, truth = np.full((60, 90, 3), 99, np.uint8), GroundTruth(1, (60, 90), rles, [2250, 1000], [None, None])
    data = SimpleNamespace(
        validation=[0], samples=SimpleNamespace(samples=SimpleNamespace(images=Images([(image, truth)])))
    )
    [(annotated, predicted)] = PredictionPictures(build_sam("mini"), 1)._rows(data)
    for middle in (np.s_[8:12, 8:45], np.s_[10:50, 63:77]):
        assert (annotated[middle] == predicted[middle]).all()


def test_photos_without_annotations_are_prompted_by_points(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(2):
        Image.fromarray(SyntheticDataset(2).load_image(i)).save(tmp_path / f"{i}.png")
    data = TrainingData(EncoderSamples(PhotosDataset(tmp_path), 256), batch_size=1, validation_images=1)
    [(annotated, predicted)] = PredictionPictures(load_pretrained("mini_conv"), 1)._rows(data)
    assert caplog.text == ""
    assert annotated.shape == predicted.shape
    assert (annotated != predicted).any()


def test_a_detectors_boxes_are_drawn() -> None:
    pytest.importorskip("ultralytics")
    picture = PredictionPictures(build_detector("yolov8n", image_size=64), 1)
    image, truth = SyntheticDataset(1)[0]
    drawn = picture._draw(image, truth)
    assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)
