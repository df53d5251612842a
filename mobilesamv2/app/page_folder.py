"""Folder of a page's uploads and downloads, whose size is bounded."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BYTES = 2_000_000_000
"""Bytes of the folder, 40 photos of the largest size."""

MAX_FILES = 2000
"""Files of the folder. A request that uploads several, Gradio takes 1000, goes beyond it until the next one."""

UPLOAD_S = 300.0
"""Seconds in which an upload must arrive, 1.3 Mbit/s for the largest; a slower one would hold its room forever."""

EMPTY_S = 60.0
"""Seconds that a folder is empty before it is removed: a new one is about to be written into."""


class FullError(Exception):
    """Uploads that are under way fill the folder."""


class PageFolder:
    """A folder in which the oldest files make room for new ones.

    Args:
        path: the folder.
        max_bytes: of its files.
        max_files: number of its files, about.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.max_files = max_files
        self._own: set[Path] = set()
        self._expected_bytes = 0
        self._counting = threading.Lock()  # never held while the disk is used, as the page's event loop takes it
        self._changing = threading.Lock()

    def keep_present(self) -> None:
        """Keep the files that are there now, which then count no longer."""
        self._own = {path for _, path, _ in self._scan()}

    @contextmanager
    def reserve(self, num_bytes: int) -> Iterator[None]:
        """Keep room free for an upload while it is written; ``make_room`` makes it.

        Raises:
            FullError: if this and the uploads that are being written would take more than half of the folder.
        """
        with self._counting:
            if self._expected_bytes + num_bytes > self.max_bytes / 2:  # so that none of them has to make room
                raise FullError
            self._expected_bytes += num_bytes
        try:
            yield
        finally:
            with self._counting:
                self._expected_bytes -= num_bytes

    def make_room(self) -> None:
        """Delete the oldest files until there is room for what is reserved. Takes a while: not for the event loop."""
        with self._changing:
            self._delete_oldest(0)

    def write(self, name: str, content: bytes) -> str:
        """Write a file where only who is told its address can find it, and return its path.

        Uploads can't keep it waiting: the oldest files make room beside what they have reserved.

        Args:
            name: of the file, as the visitor's browser saves it.
            content: of the file.
        """
        own = self.path / secrets.token_hex(16)
        with self._changing:
            self._delete_oldest(len(content))
            own.mkdir(parents=True)
            (own / name).write_bytes(content)
        return str(own / name)

    def _scan(self) -> list[tuple[int, Path, int]]:
        """Return the time, path and size of the files that count, oldest first; remove folders that are left empty."""
        found: list[tuple[int, Path, int]] = []
        for name, folders, files in os.walk(self.path):
            folder = Path(name)
            if not folders and not files:
                self._remove_empty(folder, EMPTY_S)
            for path in (folder / file for file in files):
                with suppress(FileNotFoundError):  # Gradio has moved or deleted it
                    status = path.stat()
                    found.append((status.st_mtime_ns, path, status.st_size))
        return sorted(each for each in found if each[1] not in self._own)

    def _delete_oldest(self, num_bytes: int) -> None:
        """Delete files until there is room for ``num_bytes`` beside the reserved ones, and for one more file."""
        files = self._scan()
        total = sum(size for _, _, size in files)
        for number, (_, path, size) in enumerate(files):
            if total + num_bytes <= self.max_bytes - self._expected_bytes and len(files) - number < self.max_files:
                break
            path.unlink(missing_ok=True)
            self._remove_empty(path.parent, 0)
            total -= size

    def _remove_empty(self, folder: Path, seconds: float) -> None:
        """Remove a folder that has been empty for so long; Gradio deletes files, never their folders."""
        with suppress(OSError):  # it is gone, or no longer empty
            if folder != self.path and folder.stat().st_mtime <= time.time() - seconds:
                folder.rmdir()


class UploadLimit:
    """Refuse uploads that are too large, too slow or of unknown size, and make room for the others; ASGI middleware.

    Args:
        app: the page.
        folder: that uploads are written into.
        max_bytes: of one upload.
        max_seconds: that one upload takes.
    """

    def __init__(self, app: ASGIApp, folder: PageFolder, max_bytes: int, max_seconds: float = UPLOAD_S) -> None:
        self.app = app
        self.folder = folder
        self.max_bytes = max_bytes
        self.max_seconds = max_seconds

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
            has_answered = False

            async def answer(message: Message) -> None:
                nonlocal has_answered
                has_answered = True
                await send(message)

            try:
                with self.folder.reserve(int(length)):
                    await run_in_threadpool(self.folder.make_room)
                    async with asyncio.timeout(self.max_seconds):
                        return await self.app(scope, receive, answer)
            except FullError:
                refusal = PlainTextResponse("The page is busy: try again in a moment.", 503)
            except TimeoutError:
                if has_answered:
                    raise
                refusal = PlainTextResponse("The upload takes too long.", 408)
        await refusal(scope, receive, send)
