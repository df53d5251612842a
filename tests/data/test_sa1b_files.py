"""SA-1B as people have it: extracted, in folders of folders, from a Mac, without annotations."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.corrupt_inputs import SQUARE, small_tar

from mobilesamv2.data import sa1b
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.writers import write_sa1b_tar
from mobilesamv2.recipes.checks import require_objects

FORK = b"\0\5\x16\7" + bytes(200)
"""What a Mac writes beside each file, as ._NAME."""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """Images and annotations by their names."""
    scenes = SyntheticDataset(12, (40, 60))
    write_sa1b_tar((scenes[i] for i in (9, 10, 2)), tmp_path / "made.tar")
    with tarfile.open(tmp_path / "made.tar") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def read(path: Path) -> dict[int, tuple]:
    dataset = SA1BDataset(path)
    return {dataset.image_ids[i]: (dataset[i][0].tobytes(), dataset[i][1]) for i in range(len(dataset))}


def test_every_way_that_the_files_lie_reads_the_same(tmp_path: Path, files: dict[str, bytes]) -> None:
    expected = read(tmp_path / "made.tar")
    assert set(expected) == {2, 9, 10}
    for suffix in (".JPG", ".jpeg"):
        spelled = {name.replace(".jpg", suffix): content for name, content in files.items()}
        assert read(write_tar(tmp_path / suffix / "a.tar", spelled)) == expected
        assert read(write_files(tmp_path / suffix / "extracted", spelled)) == expected
    forked = {f"./{prefix}{name}": c for name, content in files.items() for prefix, c in (("._", FORK), ("", content))}
    write_tar(tmp_path / "mac" / "deep" / "er" / "sa_000000.tar", forked)
    (tmp_path / "mac" / "deep" / "er" / "._sa_000000.tar").write_bytes(FORK)
    assert read(tmp_path / "mac") == expected
    parts = {part: {name: c for name, c in files.items() if (name[3:5] == "10") == part} for part in (True, False)}
    for part, names in parts.items():
        write_files(tmp_path / "parts" / str(part), names | {"._sa_2.jpg": FORK, "licence.txt": b""})
    assert read(tmp_path / "parts") == expected
    assert SA1BDataset(tmp_path / "parts").image_ids == [2, 9, 10]


def test_tars_and_extracted_images_are_read_together(
    tmp_path: Path, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    expected = read(tmp_path / "made.tar")
    write_tar(tmp_path / "both" / "sa_000000.tar", {name: c for name, c in files.items() if name[3:5] != "10"})
    tens = {name: c for name, c in files.items() if name[3:5] == "10"}
    write_files(tmp_path / "both" / "sa_000001", tens)
    assert read(tmp_path / "both") == expected
    assert not caplog.records
    write_files(tmp_path / "both" / "sa_000000", {name: c for name, c in files.items() if name not in tens})
    assert read(tmp_path / "both") == expected
    assert "2 of 3 extracted images are read from tars." in caplog.text
    assert len(SA1BDataset(tmp_path / "both", limit=3)) == 3
    write_files(tmp_path / "both" / "twice", tens)
    with pytest.raises(ValueError, match=r"must be unique, got sa_10 twice in .*; remove one of the two"):
        SA1BDataset(tmp_path / "both")


def test_tars_decide_whether_the_images_have_annotations(
    tmp_path: Path, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    photo, annotations = files["sa_9.jpg"], files["sa_9.json"]
    write_tar(tmp_path / "annotated" / "a.tar", files)
    strays = {"sa_101.jpg": photo, "sa_102.jpg": photo, "sa_103.json": annotations}
    write_files(tmp_path / "annotated" / "look", strays)
    dataset = SA1BDataset(tmp_path / "annotated", max_broken=0)
    assert dataset.image_ids == [9, 10, 2]
    assert dataset.has_objects
    lacks = f"sa_103 of {tmp_path / 'annotated' / 'look'} has no image, or no number as its id"
    assert [r.message for r in caplog.records] == [f"Left out of the extracted images beside tars: 3, e.g. {lacks}."]
    caplog.clear()
    write_files(tmp_path / "annotated" / "more", {"sa_104.jpg": photo, "sa_104.json": annotations})
    assert SA1BDataset(tmp_path / "annotated", max_broken=0).image_ids == [9, 10, 2, 104]
    caplog.clear()
    write_tar(tmp_path / "photos" / "a.tar", {name: c for name, c in files.items() if name.endswith(".jpg")})
    write_files(tmp_path / "photos" / "look", {"sa_999.jpg": photo, "sa_999.json": annotations, "sa_998.jpg": photo})
    dataset = SA1BDataset(tmp_path / "photos", max_broken=0)
    assert dataset.image_ids == [9, 10, 2, 998, 999]
    assert not dataset.has_objects
    assert [r.message for r in caplog.records] == ["No image in a tar has annotations: those of 1 extracted go unused."]


def test_folders_of_extracted_images_count_as_no_tars(tmp_path: Path, files: dict[str, bytes]) -> None:
    content = write_tar(tmp_path / "both" / "a.tar", files).read_bytes()
    tens = {name: c for name, c in files.items() if name[3:5] == "10"}
    for number in (20, 30, 40):
        write_files(tmp_path / "both" / str(number), {n.replace("10", str(number)): c for n, c in tens.items()})
    assert SA1BDataset(tmp_path / "both", max_broken=0).image_ids == [9, 10, 2, 20, 30, 40]
    (tmp_path / "both" / "a.tar").write_bytes(content[:-10240])  # without the blocks at its end
    with pytest.raises(ValueError, match="1 of 1 tars are broken"):
        SA1BDataset(tmp_path / "both", max_broken=0.5)


def test_a_limit_opens_no_more_than_it_takes(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def note(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda path, *rest: (opened.append(path.name), function(path, *rest))[1]

    for name in ("cached_index", "index_extracted"):
        monkeypatch.setattr(sa1b, name, note(getattr(sa1b, name)))
    part = {number: {n: c for n, c in files.items() if Path(n).stem == f"sa_{number}"} for number in (2, 9, 10)}
    folder = tmp_path / "both"
    write_tar(folder / "a.tar", part[9] | part[10])
    write_tar(folder / "b.tar", part[2])
    copies = write_files(folder / "copies", part[2] | part[10])
    new = write_files(folder / "new", {n.replace("9", "11"): c for n, c in part[9].items()})
    for tars, limit, ids, expected in (
        (folder, 2, [9, 10], ["a.tar"]),
        (folder, 3, [9, 10, 2], ["a.tar", "b.tar"]),
        (folder, 4, [9, 10, 2, 11], ["a.tar", "b.tar", "copies", "new"]),
        ([folder / "a.tar", copies, folder / "b.tar"], 2, [9, 10], ["a.tar"]),
        ([copies, folder / "a.tar", folder / "b.tar"], 2, [9, 10], ["copies", "a.tar", "b.tar"]),
        ([new, copies], 1, [11], ["new"]),
    ):
        opened.clear()
        assert SA1BDataset(tars, limit=limit).image_ids == ids
        assert opened == expected


def test_ids_that_begin_with_zeros(tmp_path: Path, files: dict[str, bytes]) -> None:
    expected = read(tmp_path / "made.tar")
    padded = {f"sa_{int(Path(name).stem[3:]):06d}{Path(name).suffix}": c for name, c in files.items()}
    for path in (write_tar(tmp_path / "zeros.tar", padded), write_files(tmp_path / "zeros", padded)):
        assert read(path) == expected
    dataset = SA1BDataset(tmp_path / "zeros")
    assert dataset.fingerprint() == SA1BDataset(write_files(tmp_path / "plain", files)).fingerprint()
    assert dataset.signature(0).startswith(f"{len(padded['sa_000002.jpg'])} bytes")


def test_images_without_annotations_distil(tmp_path: Path, files: dict[str, bytes]) -> None:
    images = {name: content for name, content in files.items() if name.endswith(".jpg")}
    for path in (write_tar(tmp_path / "photos.tar", images), write_files(tmp_path / "photos", images)):
        dataset = SA1BDataset(path)
        assert {dataset.load_image(i).shape for i in range(3)} == {(40, 60, 3)}
        with pytest.raises(ValueError, match=r"The 3 images .* no annotations.*dataset=sa1b has them as sa_ID\.json"):
            require_objects(dataset)
        with pytest.raises(ValueError, match=r"sa_\d+ of .* has no annotations"):
            dataset.ground_truth(0)
    one = files | {"sa_5.jpg": images["sa_9.jpg"], "sa_x.jpg": b""}
    with pytest.raises(ValueError, match=r"2 of 3 images are broken.*: sa_x of .* has no image, or no number"):
        SA1BDataset(write_tar(tmp_path / "one.tar", one))
    assert SA1BDataset(tmp_path / "one.tar", max_broken=0.7).image_ids == [9, 10, 2]


def test_nothing_to_read_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "photo.jpg").touch()
    with pytest.raises(FileNotFoundError, match=r"no tar in .*a or the folders in it, and no extr.*dataset=photos"):
        SA1BDataset(tmp_path / "a")


def test_an_absent_area_is_the_masks_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sa1b._warn_of_areas.reset()
    annotations = [{"id": 1, "segmentation": SQUARE}, {"id": 2, "segmentation": SQUARE, "area": None}]
    for given in ([{"area": 3.0}], [{"area": 3.0}, {"area": -1}]):  # the last one is left out
        objects = annotations + [{"id": 3, "segmentation": SQUARE, **each} for each in given]
        record = {"image": {"height": 8, "width": 10}, "annotations": objects}
        dataset = SA1BDataset(small_tar(tmp_path / "a.tar", annotations=record))
        assert dataset.ground_truth(0).areas == [16.0, 16.0, 3.0]
    assert [r.message for r in caplog.records if "area;" in r.message] == [
        f"Annotations of sa_5 of {tmp_path / 'a.tar'} and perhaps others have no area; it is counted in their masks."
    ]


def test_a_broken_annotation_costs_itself_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sound = {"id": 1, "segmentation": SQUARE, "area": 16}
    broken = [{"id": 2, "segmentation": [], "area": 1}, {"id": 3, "area": 1}, {**sound, "id": 4, "area": -1}, None]
    record = {"image": {"height": 8, "width": 10}, "annotations": [sound, *broken, sound]}
    dataset = SA1BDataset(small_tar(tmp_path / "a.tar", annotations=record))
    for _ in range(2):
        image, truth = dataset[0]
        assert image.shape == (8, 10, 3)
        assert truth.areas == [16, 16]
        assert truth.rles[0] == truth.rles[1]
        assert len(truth.frequencies) == 2
    assert len(caplog.records) == 1
    assert "Left out of sa_5 of" in caplog.text
    assert "4 of 6 annotations (4 so far in all images): annotation 2, number 1, " in caplog.text
    assert "annotation 3, number 2, KeyError('segmentation')" in caplog.text
    record = {"image": {"height": 8, "width": 10}, "annotations": {"a": 1}}
    with pytest.raises(ValueError, match=r"annotations of sa_5 of .* are broken: .*must be a list, got dict"):
        SA1BDataset(small_tar(tmp_path / "b.tar", annotations=json.loads(json.dumps(record))))[0]
