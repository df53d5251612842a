"""Published weights: looked up in folders, and downloaded from a local server: complete, resumed, broken, refused."""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.file_server import CONTENT, SHA256, Server, serving

from mobilesamv2.cli.main import main
from mobilesamv2.downloads import download, unpack
from mobilesamv2.model_zoo import (
    MICRO_SAM_FILES,
    MODEL_FILES,
    PACKAGE_WEIGHTS,
    WEIGHT_FILES,
    PublishedFile,
    download_published,
    files_of,
    find_named,
    find_weights,
    require_weights,
    weight_folders,
)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def test_a_file_comes_whole_and_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.pt"
    assert download(server.url, path, SHA256) == SHA256
    assert path.read_bytes() == CONTENT
    download(server.url, path, SHA256)
    assert server.requested == [None]
    assert [p.name for p in path.parent.iterdir()] == ["weights.pt"]


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_a_lost_connection_goes_on_where_it_was(server: Server, tmp_path: Path, takes_ranges: bool) -> None:
    server.to_lose, server.takes_ranges = 2, takes_ranges
    path = tmp_path / "weights.pt"
    download(server.url, path, SHA256, pause_s=0)
    assert path.read_bytes() == CONTENT
    assert server.requested == [None, "bytes=150000-", f"bytes={225_000 if takes_ranges else 150_000}-"]


def test_a_stopped_download_goes_on_at_the_next_call(server: Server, tmp_path: Path) -> None:
    server.to_lose = 1
    path = tmp_path / "weights.pt"
    with pytest.raises(ConnectionError, match=r"lost after 150,000 of 300,000 bytes. The same command resumes"):
        download(server.url, path, SHA256, attempts=1)
    assert not path.exists()
    download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT
    # whole already, but stopped before it was named
    path.rename(tmp_path / "weights.pt.part")
    download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT


def test_other_bytes_are_refused(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with pytest.raises(ValueError, match=f"SHA-256 of http.* must be {'0' * 64}, got {SHA256}; the file was deleted"):
        download(server.url, path, "0" * 64)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"SHA-256 of .*weights\.pt must be .* Move the file away"):
        download(server.url, path, SHA256)
    assert path.read_bytes() == b"something else"


def test_a_server_that_refuses_or_is_not_there(server: Server, tmp_path: Path) -> None:
    server.missing = True
    with pytest.raises(
        ConnectionError, match=r"returned HTTP status 404, Not Found. If you download the file by other means, put"
    ):
        download(server.url, tmp_path / "weights.pt")
    with pytest.raises(ConnectionError, match=r"can't be downloaded: \[Errno 111\] Connection refused"):
        download("http://127.0.0.1:9/weights.pt", tmp_path / "weights.pt", attempts=2, pause_s=0)


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.busy = 2
    assert download(server.url, tmp_path / "weights.pt", pause_s=0) == SHA256
    server.busy = 2
    with pytest.raises(ConnectionError, match="returned HTTP status 503, Service Unavailable"):
        download(server.url, tmp_path / "other.pt", attempts=2, pause_s=0)


def test_a_page_is_no_weight_file(server: Server, tmp_path: Path) -> None:
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(ValueError, match="returned an HTML page instead of the file"):
        download(server.url, tmp_path / "weights.pt")
    assert list(tmp_path.iterdir()) == []
    assert len(server.requested) == 1


def test_the_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(WEIGHT_FILES, "mobile_sam.pt", PublishedFile(server.url, server.url, SHA256))
    main(["download", "mobile_sam", "-o", str(tmp_path)])
    assert (tmp_path / "mobile_sam.pt").read_bytes() == CONTENT
    main(["download"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in WEIGHT_FILES)
    with pytest.raises(
        SystemExit, match=r"ObjectAwareModel.pt can't be downloaded by a program: see https://github.com"
    ):
        main(["download", "ObjectAwareModel.pt", "-o", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"Nothing is published as 'sam3'. Available: mobile_sam, sam_vit_b"):
        main(["download", "sam3"])


def zipped(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def test_a_zipped_file_is_unpacked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "efficient_sam_vits.pt"
    monkeypatch.setitem(WEIGHT_FILES, name, PublishedFile(server.url, server.url, SHA256, is_zipped=True))
    server.content = zipped(**{f"__MACOSX/._{name}": b"", name: CONTENT})
    path = download_published(name, tmp_path)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir()] == [name]
    download_published(name, tmp_path)  # it is there
    assert server.requested == [None]
    for content, message in (
        (b"no archive", r"efficient_sam_vits\.pt\.zip is a damaged zip archive: File is not a zip file\. Delete it"),
        (zipped(readme=b""), r"efficient_sam_vits\.pt\.zip must hold one efficient_sam_vits\.pt, got readme\."),
    ):
        server.content = content
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / f"{name}.zip").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=message):
            download_published(name, tmp_path)
    server.content = zipped(**{name: b"other weights"})
    (tmp_path / f"{name}.zip").unlink()
    with pytest.raises(ValueError, match=f"The SHA-256 of .*{name} must be {SHA256}"):
        download_published(name, tmp_path)


def test_a_zip_archive_of_which_any_byte_is_damaged(tmp_path: Path) -> None:
    archive, path = tmp_path / "w.pt.zip", tmp_path / "w.pt"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("w.pt", b"".join(b"%d" % (number * number) for number in range(40)))
    whole = archive.read_bytes()
    unpack(archive, path)
    content = path.read_bytes()
    path.unlink()
    refused = []
    for damaged in (*(flipped(whole, i, bits) for i in range(len(whole)) for bits in (1, 0xFF)), whole[:100]):
        archive.write_bytes(damaged)
        try:
            unpack(archive, path)
        except ValueError as error:  # anything else would be a traceback
            refused.append(str(error))
            archive.unlink()
        else:  # a byte that says nothing about the content, as the date does
            assert path.read_bytes() == content
            path.unlink()
        assert not list(tmp_path.iterdir())
    assert len(refused) > len(whole)
    assert all(re.search(r"is a damaged zip archive: .+\. Delete it|must hold one w\.pt", each) for each in refused)


def flipped(content: bytes, index: int, bits: int) -> bytes:
    return content[:index] + bytes([content[index] ^ bits]) + content[index + 1 :]


def test_published_files_have_addresses_and_checksums() -> None:
    assert {file for files in MODEL_FILES.values() for file in files} <= set(WEIGHT_FILES)
    for published in WEIGHT_FILES.values():
        assert published.homepage.startswith("https://")
        assert published.url is None or published.url.startswith("https://")
        assert published.sha256 is None or re.fullmatch("[0-9a-f]{64}", published.sha256)
    with_checksum = ("mobile_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h")
    assert all(WEIGHT_FILES[MODEL_FILES[name][0]].sha256 for name in with_checksum)


def test_sam_for_transformers_is_published_too(tmp_path: Path) -> None:
    files = [f"sam-vit-{size}.safetensors" for size in ("base", "large", "huge")]
    assert files_of(files) == files
    assert all(WEIGHT_FILES[file].sha256 and WEIGHT_FILES[file].licence == "Apache-2.0" for file in files)
    url = r"https://huggingface\.co/facebook/sam-vit-huge/resolve/main/model\.safetensors; "
    with pytest.raises(FileNotFoundError, match=rf"published at {url}.* Without a network: mini_conv, whose weights"):
        find_weights("sam-vit-huge.safetensors", tmp_path)


def test_a_licence_is_recorded_where_its_publisher_states_one() -> None:
    assert WEIGHT_FILES["medsam_vit_b.pth"].licence == "Apache-2.0"
    assert {WEIGHT_FILES[f"{name}.pt"].licence for name in MICRO_SAM_FILES} == {None}


def test_weights_are_looked_up_in_the_folder_then_the_users_then_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOBILESAMV2_WEIGHTS", str(tmp_path / "user"))
    assert find_weights("mini_conv.safetensors") == PACKAGE_WEIGHTS / "mini_conv.safetensors"
    for folder in ("user", "weights"):  # each comes before the ones created so far
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mini_conv.safetensors").touch()
        assert find_weights("mini_conv.safetensors").parent.resolve() == tmp_path / folder
    assert find_weights("mini_conv.safetensors", "elsewhere").parent == tmp_path / "user"


def test_a_bare_name_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of this name here comes first; a path with a folder is meant as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOBILESAMV2_WEIGHTS", str(tmp_path / "user"))
    assert find_named("mini_detector.pt") == PACKAGE_WEIGHTS / "mini_detector.pt"
    assert find_named(Path("folder/mini_detector.pt")) == Path("folder/mini_detector.pt")
    (tmp_path / "mini_detector.pt").touch()
    assert find_named("mini_detector.pt").resolve() == tmp_path / "mini_detector.pt"
    with pytest.raises(FileNotFoundError, match=r"There is no weight file mine\.pt in weights, "):
        find_named("mine.pt")


def test_missing_weights_name_all_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILESAMV2_WEIGHTS", str(tmp_path / "user"))
    with pytest.raises(FileNotFoundError) as error:
        find_weights("mobile_sam.pt", tmp_path / "w")
    for phrase in (
        f"There is no weight file mobile_sam.pt in {tmp_path / 'w'}, {tmp_path / 'user'}, {PACKAGE_WEIGHTS}. ",
        "It is published at https://github.com/ChaoningZhang/MobileSAM/",
        f"put it at {tmp_path / 'w' / 'mobile_sam.pt'}, ",
        f"or run: mobilesamv2 download mobile_sam.pt -o {tmp_path / 'w'}. ",
        "Without a network: mini_conv, whose weights ship with this package.",
    ):
        assert phrase in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"Without a network: the detector .*mini_detector\.pt, which ships\.$"):
        find_weights("ObjectAwareModel.pt", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no weight file .*mine\.pt\.$"):
        require_weights(tmp_path / "mine.pt")


def test_the_users_folder_is_in_the_cache_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOBILESAMV2_WEIGHTS")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    assert weight_folders("w") == (Path("w"), tmp_path / "mobilesamv2" / "weights", PACKAGE_WEIGHTS)
