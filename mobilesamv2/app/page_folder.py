"""Folder of a page's uploads and downloads, whose size is bounded."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

MAX_BYTES = 2_000_000_000
"""Bytes of the folder, 40 photos of the largest size."""

MAX_FILES = 2000
"""Files of the folder."""


class FullError(Exception):
    """Uploads that are under way fill the folder."""


class PageFolder:
    """A folder in which the oldest files make room for new ones.

    Args:
        path: the folder.
        max_bytes: of its files.
        max_files: number of its files.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.max_files = max_files
        self._own: set[Path] = set()
        self._expected_bytes = 0
        self._lock = threading.Lock()

    def keep_present(self) -> None:
        """Keep the files that are there now, which then count no longer."""
        self._own = set(self._files())

    @contextmanager
    def room_for(self, num_bytes: int) -> Iterator[None]:
        """Make room, and keep it free while a file is written.

        Raises:
            FullError: if this and the files that are being written would take more than half of the folder.
        """
        with self._lock:
            if self._expected_bytes + num_bytes > self.max_bytes / 2:  # so that none of them has to make room
                raise FullError
            self._expected_bytes += num_bytes
            self._delete_oldest(self.max_bytes - self._expected_bytes)
        try:
            yield
        finally:
            with self._lock:
                self._expected_bytes -= num_bytes

    def write(self, name: str, content: bytes) -> str:
        """Write a file where only who is told its address can find it, and return its path.

        Args:
            name: of the file, as the visitor's browser saves it.
            content: of the file.

        Raises:
            ValueError: if the folder is full.
        """
        own = self.path / secrets.token_hex(16)
        try:
            with self.room_for(len(content)):
                own.mkdir(parents=True)
                (own / name).write_bytes(content)
        except FullError as error:
            raise ValueError("The page is busy: try again in a moment.") from error
        return str(own / name)

    def _files(self) -> list[Path]:
        return [path for path in self.path.rglob("*") if path.is_file()]

    def _delete_oldest(self, max_bytes: int) -> None:
        """Delete files until they have at most ``max_bytes``, and there is room for one more."""
        known = []
        for path in self._files():
            try:
                known.append((path.stat().st_mtime_ns, path, path.stat().st_size))
            except FileNotFoundError:  # Gradio has moved or deleted it
                continue
        files = sorted(each for each in known if each[1] not in self._own)
        total = sum(size for _, _, size in files)
        for number, (_, path, size) in enumerate(files):
            if total <= max_bytes and len(files) - number < self.max_files:
                break
            path.unlink(missing_ok=True)
            total -= size


class UploadLimit:
    """Refuse uploads that are too large or of unknown size, and make room for the others; ASGI middleware.

    Args:
        app: the page.
        folder: that uploads are written into.
        max_bytes: of one upload.
    """

    def __init__(self, app: ASGIApp, folder: PageFolder, max_bytes: int) -> None:
        self.app = app
        self.folder = folder
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        is_upload = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith("/upload")
        if not is_upload:
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in headers:
            refusal = PlainTextResponse("An upload must state its size.", 411)
        elif int(length) > self.max_bytes:
            refusal = PlainTextResponse("The file is larger than this page takes.", 413)
        else:
            try:
                with self.folder.room_for(int(length)):
                    return await self.app(scope, receive, send)
            except FullError:
                refusal = PlainTextResponse("The page is busy: try again in a moment.", 503)
        await refusal(scope, receive, send)
