"""Buttons of the page that write a file when they are pressed, and download it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from mobilesamv2.app.answers import errors_to_toast
from mobilesamv2.app.page_folder import PageFolder

# The hidden button gets the file's address a moment after Python has returned it.
DOWNLOAD_JS = "() => { setTimeout(() => document.querySelector('#ID').click(), 200); }"


def add_downloads(
    kinds: dict[str, Callable[..., tuple[str, bytes]]],
    inputs: gr.State,
    folder: PageFolder,
    elem_id: str,
    **options: Any,
) -> None:
    """Add a row of buttons.

    Args:
        kinds: title of a button -> function of the visitor's session that returns a file's name and content; its
            ValueErrors are shown.
        inputs: the visitor's session.
        folder: that the files are written into.
        elem_id: of the row.
        options: of the buttons' events.
    """
    hidden = gr.DownloadButton("the file", visible="hidden", elem_id=f"{elem_id}-file")

    def pressed(make: Callable[..., tuple[str, bytes]]) -> Callable[..., str]:
        return errors_to_toast(lambda session: folder.write(*make(session)))

    with gr.Row(elem_id=elem_id):
        for title, make in kinds.items():
            button = gr.Button(title, size="sm", min_width=90)
            written = button.click(pressed(make), inputs, hidden, show_progress="hidden", **options)
            js = DOWNLOAD_JS.replace("ID", f"{elem_id}-file")
            written.success(None, None, None, js=js, api_visibility="private")
