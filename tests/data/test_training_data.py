"""SA-1B's tars."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader

from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.samples import EncoderSamples, PromptSamples
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.writers import write_lvis, write_sa1b_tar
from mobilesamv2.masks import encode
from mobilesamv2.structures import GroundTruth


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "sa_000000.tar"
    scenes = SyntheticDataset(4, (60, 80))
    write_sa1b_tar((scenes[i] for i in range(4)), path)
    return path


def test_what_is_written_as_sa1b_reads_back(tar: Path) -> None:
    scenes, dataset = SyntheticDataset(4, (60, 80)), SA1BDataset(tar)
    assert dataset.image_ids == [0, 1, 2, 3]
    for i in (3, 0, 2):
        image, truth = dataset[i]
        drawn, expected = scenes[i]
        assert truth == expected
        assert np.abs(image.astype(int) - drawn).mean() < 20  # JPEG
    assert len(SA1BDataset(tar, limit=2)) == 2
    assert len(SA1BDataset(tar.parent)) == 4
    with pytest.raises(ValueError, match="Image ids must be unique, got sa_0 twice"):
        SA1BDataset([tar, tar])


def test_workers_read_the_same(tar: Path) -> None:
    dataset = SA1BDataset(tar)
    expected = [dataset[i] for i in range(4)]
    loader = DataLoader(dataset, batch_size=None, collate_fn=lambda sample: sample, num_workers=2)
    for (image, truth), (one, other) in zip(loader, expected, strict=True):
        assert (image == one).all()
        assert truth == other


def test_boxes_are_written_as_sa1b_has_them(tar: Path) -> None:
    with tarfile.open(tar) as file:
        member = file.extractfile("sa_1.json")
        assert member is not None
        annotations = json.load(member)["annotations"]
    for annotation in annotations:
        y, x = np.nonzero(coco_mask.decode(annotation["segmentation"]))
        assert annotation["bbox"] == [x.min(), y.min(), np.ptp(x), np.ptp(y)]


def test_real_photos_in_a_tar(shared_data: Path) -> None:
    dataset = SA1BDataset(shared_data / "bsds" / "sa_000000.tar")
    assert len(dataset) == 200
    image, truth = dataset[0]
    assert image.shape[:2] == truth.size
    assert sum(len(dataset[i][1].rles) for i in range(200)) == 6223


def broken_tar(path: Path, photo: bytes, annotations: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in (("sa_5.jpg", photo), ("sa_5.json", annotations)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_broken_tars_are_named(tar: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.tar.*SA-1B is published at"):
        SA1BDataset(tmp_path / "none.tar")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no tar in .*folder"):
        SA1BDataset(tmp_path / "folder")
    (tmp_path / "text.tar").write_text("not a tar")
    with pytest.raises(ValueError, match=r"text\.tar is not a tar"):
        SA1BDataset(tmp_path / "text.tar")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(ValueError, match="holds no image of SA-1B"):
        SA1BDataset(tmp_path / "empty.tar")
    with pytest.raises(ValueError, match=r"Image sa_5 .*can't be decoded"):
        SA1BDataset(broken_tar(tmp_path / "a.tar", b"no photo", b"{}"))[0]
    photo = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (8, 8)).save(photo, "JPEG")
    for annotations in (b"{", b"{}", b'{"annotations": [{"area": 1}]}', b'{"annotations": 3}'):
        with pytest.raises(ValueError, match=r"annotations of sa_5 .*broken"):
            SA1BDataset(broken_tar(tmp_path / "b.tar", photo.getvalue(), annotations))[0]
    dataset = SA1BDataset(tar)
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(ValueError, match="truncated"):
        dataset[3]


def test_what_is_broken_is_left_out_named_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One of two tars ends early, one image has no annotations, and one can't be decoded."""
    import tarfile

    scenes = SyntheticDataset(12, (60, 80))
    first, second = tmp_path / "sa_000000.tar", tmp_path / "sa_000001.tar"
    write_sa1b_tar((scenes[i] for i in range(8)), first)
    write_sa1b_tar((scenes[i] for i in range(8, 12)), second)
    with tarfile.open(second, "a") as tar:
        tar.addfile(tarfile.TarInfo("sa_77.jpg"))
    content = first.read_bytes()
    start = content.index(b"\xff\xd8\xff", 1)  # the first photo
    end = content.rindex(b"\xff\xd8\xff") + 100  # within the last one
    first.write_bytes(content[:start] + bytes(200) + content[start + 200 : end])
    with pytest.raises(ValueError, match=r"1 of 2 tars are broken, more than .*=0\.01 allows: .*000000\.tar"):
        SA1BDataset(tmp_path)

    dataset = SA1BDataset(tmp_path, max_broken=0.5)
    assert len(dataset) < 12
    assert {11, 0, 1} <= set(dataset.image_ids)
    assert "sa_000000.tar is truncated: it ends within sa_" in caplog.text
    assert "sa_77 of" in caplog.text
    samples = EncoderSamples(dataset, 64)
    data = TrainingData(samples, batch_size=2, max_broken=0.2)
    for batch in delivered(data):
        assert batch["rgb"].shape == (2, 64, 64, 3)
        assert "broken" not in batch
    assert len(data.broken) == 1
    assert "Skipped (1 so far): Image sa_0 of" in caplog.text
    with pytest.raises(ValueError, match=r"1 of \d+ images are broken, .* allows 0; the last one: Image sa_0"):
        delivered(TrainingData(samples, batch_size=2, max_broken=0.0))


def test_a_missing_file_is_left_out_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scenes = SyntheticDataset(6, (60, 80))
    write_lvis((scenes[i] for i in range(6)), tmp_path)
    (tmp_path / "images" / "3.png").unlink()
    images = CocoDataset(tmp_path / "annotations.json", tmp_path / "images")
    data = TrainingData(EncoderSamples(images, 64), batch_size=2, max_broken=0.2)
    assert [len(batch["image_id"]) for batch in delivered(data)] == [2, 2, 2]
    assert "Skipped (1 so far): " in caplog.text
    assert "3.png" in caplog.text


def delivered(data: TrainingData) -> list[dict]:
    """The batches of an epoch, as a Trainer hands them on."""
    return [data.on_before_batch_transfer(batch, 0) for batch in data.train_dataloader()]


def test_objects_of_every_size_are_drawn_as_often() -> None:
    """Eight small objects and one large one: a ninth of the draws, or half of them."""
    mask = np.zeros((9, 64, 64), dtype=bool)
    for i in range(8):
        mask[i, :5, 6 * i : 6 * i + 5] = True
    mask[8, 20:60, 20:60] = True
    rles = encode(torch.from_numpy(mask).transpose(1, 2))
    truth = GroundTruth(7, (64, 64), rles, [float(m.sum()) for m in mask], [None] * 9)

    class Images(list):
        image_ids: tuple[int, ...] = (7,)

    images = Images([(np.zeros((64, 64, 3), dtype=np.uint8), truth)])
    for size_balanced, share in ((False, 1 / 9), (True, 1 / 2)):
        samples = PromptSamples(images, 64, prompts_per_image=1, box_jitter=0, size_balanced=size_balanced)
        rng = np.random.default_rng(0)
        large = sum(samples.draw(0, rng)["masks"].sum().item() > 50 for _ in range(600)) / 600
        assert abs(large - share) < 0.05
    assert PromptSamples(images, 64, prompts_per_image=20, size_balanced=True)[0]["weights"].sum() == 20
