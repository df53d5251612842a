"""Buttons of the page that write a file when they are pressed, and download it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from mobilesamv2.app.answers import errors_to_toast

# The hidden button gets the file's address a moment after Python has returned it.
DOWNLOAD_JS = "() => { setTimeout(() => document.querySelector('#ID').click(), 200); }"


def add_downloads(
    kinds: dict[str, Callable[..., tuple[str, bytes]]], inputs: gr.State, elem_id: str, **options: Any
) -> None:
    """Add a row of buttons.

    Args:
        kinds: title of a button -> function of the visitor's session that returns a file's name and content; its
            ValueErrors are shown.
        inputs: the visitor's session.
        elem_id: of the row.
        options: of the buttons' events.
    """
    hidden = gr.DownloadButton("the file", visible="hidden", elem_id=f"{elem_id}-file")

    def pressed(make: Callable[..., tuple[str, bytes]]) -> Callable[..., str]:
        return errors_to_toast(lambda session: write_file(Path(hidden.GRADIO_CACHE), *make(session)))

    with gr.Row(elem_id=elem_id):
        for title, make in kinds.items():
            button = gr.Button(title, size="sm", min_width=90)
            written = button.click(pressed(make), inputs, hidden, show_progress="hidden", **options)
            js = DOWNLOAD_JS.replace("ID", f"{elem_id}-file")
            written.success(None, None, None, js=js, api_visibility="private")


def write_file(folder: Path, name: str, content: bytes) -> str:
    """Write a file where only who is told its address can find it, and return its path.

    Args:
        folder: that Gradio serves and empties.
        name: of the file, as the visitor's browser saves it.
        content: of the file.
    """
    own = folder / secrets.token_hex(16)
    own.mkdir(parents=True)
    (own / name).write_bytes(content)
    return str(own / name)
