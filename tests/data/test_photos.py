"""Images without annotations, in folders."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.runs import evaluate_here, train

from mobilesamv2 import load_sam
from mobilesamv2.data.photos import PhotosDataset
from mobilesamv2.recipes.checks import require_objects

NAMES = ("1.JPG", "2024 trip/a b.png", "2024 trip/deep/c.webp", "d.gif")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "my photos"
    rng = np.random.default_rng(0)
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(root / name)
    (root / "2024 trip" / "._a b.png").write_bytes(b"\0\5\x16\7")
    (root / "notes.txt").write_text("no image")
    (root / "e.heic").write_bytes(b"")
    return root


def test_all_formats_in_all_folders(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = PhotosDataset(folder)
    assert len(dataset) == 4
    assert "Passed over, in formats that are not read here: 1 .heic" in caplog.text
    assert all(dataset.load_image(i).shape == (40, 60, 3) for i in range(4))
    with pytest.raises(ValueError, match=r"1\.JPG has no annotations"):
        dataset.ground_truth(0)
    with pytest.raises(ValueError, match=r"The 4 images .* have no annotations, and this task requires annotated"):
        require_objects(dataset)
    (folder / NAMES[0]).unlink()
    with pytest.raises(FileNotFoundError, match=r"no image .*1\.JPG any more"):
        dataset.load_image(0)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; name another with dataset\.folder=FOLDER"):
        PhotosDataset(folder / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image in .*empty or the folders in it; \.jpg"):
        PhotosDataset.require_files({"folder": folder / "empty"})


def test_ids_stay_when_images_are_added(folder: Path, tmp_path: Path) -> None:
    """The cache of embeddings goes by them; a moved folder has the same."""
    before = PhotosDataset(folder).image_ids
    Image.new("RGB", (9, 9)).save(folder / "0.png")
    folder.rename(tmp_path / "moved")
    after = PhotosDataset(tmp_path / "moved").image_ids
    assert [i for i in after if i in before] == before
    assert len(set(after)) == 5
    assert all(0 <= i < 2**63 for i in after)
    for lines in (f"{NAMES[1]}\n{NAMES[3]}\n", f"{before[2]}\n{before[1]}\n"):
        (tmp_path / "list.txt").write_text(lines)
        chosen = PhotosDataset(tmp_path / "moved", image_list=tmp_path / "list.txt")
        assert chosen.image_ids == [before[1], before[2]]


def test_they_distil_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    given = ["experiment=distill_tinyvit", "model=mini", "model@teacher=by_name", "teacher.name=sam_vit_mini"]
    given += ["dataset=photos", f"dataset.folder='{folder}'", "validation_images=1", "trainer.max_epochs=1"]
    train(*given, f"output_dir={tmp_path / 'out'}")
    assert load_sam(tmp_path / "out" / "mini.safetensors").name == "mini"
    with pytest.raises(SystemExit, match=r"error: The 4 images of the data set have no annotations, and this task"):
        train(*given, "task=distill_semi_coupled", f"output_dir={tmp_path / 'other'}")
    with pytest.raises(SystemExit, match=r"error: The 4 images of the data set have no annotations, and this task"):
        evaluate_here("model=mini", *given[4:6], f"output_dir={tmp_path / 'evaluation'}")
