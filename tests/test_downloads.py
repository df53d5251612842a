"""Downloads from a server of our own: whole, gone on with, broken, and refused."""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mobilesamv2 import downloads
from mobilesamv2.cli import main
from mobilesamv2.released import FILES, RELEASED, Released

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Gives CONTENT, from where it is asked to; loses so many connections halfway first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.to_lose = 0
        self.busy = 0
        self.kind = "application/octet-stream"
        self.takes_ranges = True
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.pt"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if "missing" in self.path:
            self.send_error(404)
            return
        if server.busy:
            server.busy -= 1
            self.send_error(503)
            return
        start = int(re.findall(r"\d+", asked)[0]) if asked and server.takes_ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        rest = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("Content-Type", server.kind)
        self.end_headers()
        if server.to_lose:
            server.to_lose -= 1
            self.wfile.write(rest[: len(rest) // 2])
            self.close_connection = True
        else:
            self.wfile.write(rest)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_file_comes_whole_and_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.pt"
    assert downloads.download(server.url, path, SHA256) == SHA256
    assert path.read_bytes() == CONTENT
    downloads.download(server.url, path, SHA256)
    assert server.asked == [None]
    assert [p.name for p in path.parent.iterdir()] == ["weights.pt"]


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_a_lost_connection_goes_on_where_it_was(server: Server, tmp_path: Path, takes_ranges: bool) -> None:
    server.to_lose, server.takes_ranges = 2, takes_ranges
    path = tmp_path / "weights.pt"
    downloads.download(server.url, path, SHA256, pause_s=0)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=150000-", f"bytes={225_000 if takes_ranges else 150_000}-"]


def test_a_stopped_download_goes_on_at_the_next_call(server: Server, tmp_path: Path) -> None:
    server.to_lose = 1
    path = tmp_path / "weights.pt"
    with pytest.raises(ConnectionError, match=r"lost after 150,000 of 300,000 bytes. The same command goes on from"):
        downloads.download(server.url, path, SHA256, attempts=1)
    assert not path.exists()
    downloads.download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT
    # whole already, but stopped before it was named
    path.rename(tmp_path / "weights.pt.part")
    downloads.download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT


def test_other_bytes_are_refused(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with pytest.raises(ValueError, match=f"gave a file of SHA-256 {SHA256}, not {'0' * 64}: nothing was kept"):
        downloads.download(server.url, path, "0" * 64)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"weights.pt has the SHA-256 .*: move it away"):
        downloads.download(server.url, path, SHA256)
    assert path.read_bytes() == b"something else"


def test_a_server_that_refuses_or_is_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        ConnectionError, match=r"answers 404, Not Found; a file that another machine downloaded goes to"
    ):
        downloads.download(server.url.replace("weights", "missing"), tmp_path / "weights.pt")
    with pytest.raises(ConnectionError, match=r"can't be had: \[Errno 111\] Connection refused"):
        downloads.download("http://127.0.0.1:9/weights.pt", tmp_path / "weights.pt", attempts=2, pause_s=0)


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.busy = 2
    assert downloads.download(server.url, tmp_path / "weights.pt", pause_s=0) == SHA256
    server.busy = 2
    with pytest.raises(ConnectionError, match="answers 503, Service Unavailable"):
        downloads.download(server.url, tmp_path / "other.pt", attempts=2, pause_s=0)


def test_a_page_is_no_weight_file(server: Server, tmp_path: Path) -> None:
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(ValueError, match="gave a page of HTML instead of the file"):
        downloads.download(server.url, tmp_path / "weights.pt")
    assert list(tmp_path.iterdir()) == []
    assert len(server.asked) == 1


def test_the_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RELEASED, "mobile_sam.pt", Released(server.url, server.url, SHA256))
    main(["download", "mobile_sam", "-o", str(tmp_path)])
    assert (tmp_path / "mobile_sam.pt").read_bytes() == CONTENT
    main(["download"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in RELEASED)
    with pytest.raises(
        SystemExit, match=r"ObjectAwareModel.pt can't be downloaded by a program: see https://github.com"
    ):
        main(["download", "ObjectAwareModel.pt", "-o", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"Nothing is published as 'sam3'. There are mobile_sam, sam_vit_b"):
        main(["download", "sam3"])


def test_released_files_have_addresses_and_checksums() -> None:
    assert {file for files in FILES.values() for file in files} <= set(RELEASED)
    for released in RELEASED.values():
        assert released.where.startswith("https://")
        assert released.url is None or released.url.startswith("https://")
        assert released.sha256 is None or re.fullmatch("[0-9a-f]{64}", released.sha256)
    assert all(RELEASED[FILES[name][0]].sha256 for name in ("mobile_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h"))
