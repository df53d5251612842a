"""Page of the interactive demo, in Gradio, which no other room imports: ``mobilesamv2 app``."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from mobilesamv2.app.answers import answer, layer, masks_answer, photo_answer, sent
from mobilesamv2.app.demo import ASSETS, EXAMPLES, DemoApp, synthetic_scene
from mobilesamv2.app.download_buttons import add_downloads
from mobilesamv2.app.downloads import NO_MASK, cutout_png, mask_png, prediction_json
from mobilesamv2.app.everything_tab import EverythingTab
from mobilesamv2.app.page_folder import PageFolder, UploadLimit
from mobilesamv2.app.session import (
    MAX_DECODED_PIXELS,
    MAX_DEEP_PIXELS,
    MAX_SIDE,
    NO_PHOTO,
    Photo,
    Prediction,
    Session,
    read_interactions,
)

SESSION_TTL_S = 3600
"""Seconds that a visitor's photo and its embeddings are kept."""

MAX_SESSIONS = 100
"""Visitors whose photos are kept; those that were idle the longest make room. A photo and its embedding take about 10
MB."""

MAX_WAITING = 100
"""Requests that wait; a further one is refused with a message. A visitor's page sends one at a time of each kind."""

MAX_UPLOAD = "50 MB"
"""Size of a photo's file."""

MAX_UPLOAD_BYTES = 51 * 2**20
"""Size of the request that uploads it."""

QUICK_MS = 120.0
"""Mask decoders that take no longer show the mask under the pointer before a click."""

# One at a time, so that visitors do not lengthen each other's times by much; everything waits in a queue of its own.
POINTS: dict[str, Any] = {"concurrency_id": "points", "concurrency_limit": 1, "api_visibility": "private"}

KEYS = {
    "click, tap, <kbd>Enter</kbd>": "point on the object",
    "right click, <kbd>Shift</kbd> click, <kbd>Shift</kbd> <kbd>Enter</kbd>": "point on the background",
    "<kbd>B</kbd>": "object or background",
    "drag, or <kbd>R</kbd> arrows <kbd>R</kbd>": "box",
    "<kbd>Escape</kbd>": "give a box up",
    "<kbd>Ctrl</kbd> <kbd>Z</kbd>": "undo",
    "<kbd>Ctrl</kbd> <kbd>Y</kbd>": "redo",
    "<kbd>Delete</kbd>": "clear",
    "arrows, <kbd>Shift</kbd> arrows": "crosshair, in small steps",
}
"""Keys and what they do; the page without a server has the same."""

DOWNLOADS = ("\u2193 Mask (PNG)", "\u2193 Cut-out (PNG)", "\u2193 COCO (JSON)")
"""Buttons of a mask's files."""

# A request that the full queue refuses has no answer: the canvas's script is told.
REFUSED_JS = "() => { window.dispatchEvent(new Event('demo-refused')); }"
ASK_AGAIN_JS = "() => { window.dispatchEvent(new Event('demo-ask-again')); }"


@contextmanager
def serving(demo: DemoApp, port: int | None = None, share: bool = False) -> Iterator[gr.Blocks]:
    """Serve the page on this computer; the address is ``local_url`` of what this returns.

    Uploads and downloads are written into a folder of its own, which other programs on Gradio do not share, and which
    is deleted at the end.

    Args:
        demo: models and detector.
        port: None is the first free one from 7860.
        share: also serve it at a public address, through Gradio's tunnel.

    Raises:
        ValueError: if the port is in use.
    """
    with _own_folder() as path:
        folder = PageFolder(path)
        page = build_page(demo, folder)
        page.queue(max_size=MAX_WAITING, api_open=False)  # nobody goes past the queue
        try:
            page.launch(
                server_port=port,
                share=share,
                prevent_thread_lock=True,
                head=f"<style>{(ASSETS / 'page.css').read_text()}</style>",  # css= reaches the inside of the page only
                theme=gr.themes.Default(),  # its fonts are part of Gradio
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                max_file_size=MAX_UPLOAD.replace(" ", "").lower(),
                app_kwargs={"middleware": [Middleware(UploadLimit, folder, MAX_UPLOAD_BYTES)]},
                state_session_capacity=MAX_SESSIONS,
                enable_monitoring=False,
            )
        except (OSError, OverflowError) as error:  # OverflowError: a port above 65535
            raise ValueError(f"The page can't be served: {error}") from error
        folder.keep_present()
        try:
            yield page
        finally:
            page.close(verbose=False)


def serve(demo: DemoApp, port: int | None = None, share: bool = False) -> None:
    """Serve the page until it is stopped; see ``serving``."""
    with serving(demo, port, share) as page:
        page.block_thread()


@contextmanager
def _own_folder() -> Iterator[Path]:
    """Make Gradio use a new folder, instead of one that it shares with all programs on Gradio; return it."""
    name = "GRADIO_TEMP_DIR"  # read when a component is built, and when it handles a file
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="mobilesamv2-app-", ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def build_page(demo: DemoApp, folder: PageFolder) -> gr.Blocks:
    """Build the page.

    Args:
        demo: models and detector, shared by all visitors; photos and masks belong to each visitor's session.
        folder: that Gradio uses.
    """
    kept_s = (SESSION_TTL_S, SESSION_TTL_S)
    with gr.Blocks(title="mobilesamv2", analytics_enabled=False, delete_cache=kept_s) as page:
        session = gr.State(None, time_to_live=SESSION_TTL_S)
        gr.HTML(f"<h1>mobilesamv2</h1> {', '.join(demo.models)}", elem_id="title")
        with gr.Row():
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Points and box"):
                    canvas = gr.HTML(
                        None,
                        html_template=(ASSETS / "canvas.html").read_text(),
                        js_on_load=(ASSETS / "canvas.js").read_text(),
                        apply_default_css=False,
                        elem_id="canvas",
                    )
                    models = _add_models(demo)
                    add_downloads(_downloads(), session, folder, "downloads", **POINTS)
                with gr.Tab("Everything"):
                    everything = EverythingTab(demo, session, folder)
            with gr.Column(scale=1, min_width=260):
                upload, examples = _add_photos(folder.path)
                with gr.Accordion("Keys", open=True, elem_id="demo-keys"):
                    rows = "".join(f"<dt>{keys}</dt><dd>{action}</dd>" for keys, action in KEYS.items())
                    gr.HTML(f"<dl>{rows}</dl>")
                gr.Markdown(demo.about.replace("\n", "\n\n"), elem_id="about")
        _connect_photos(demo, [session, canvas], everything, upload, examples)
        _connect_prompts(demo, session, canvas, models)
    return page


def _add_models(demo: DemoApp) -> list[gr.Dropdown]:
    """Add the choice of a model and of one to compare it with; hidden where there is only one."""
    names = list(demo.models)
    with gr.Row(visible=len(names) > 1):
        first = gr.Dropdown(names, value=demo.model, label="Model", min_width=140)
        second = gr.Dropdown([("none", ""), *names], value="", label="Compare with", min_width=140)
    return [first, second]


def _add_photos(folder: Path) -> tuple[gr.UploadButton, gr.Dataset]:
    """Add the button that opens a photo, and the examples, of which one is drawn into a folder."""
    upload = gr.UploadButton("Open a photo", variant="primary", file_types=["image"], elem_id="choose-photo", size="md")
    # Gradio's own would leave an empty file for each upload.
    setattr(upload, "preprocess", lambda data: data.path if data else None)  # noqa: B010
    scene = folder / "scene.png"
    Image.fromarray(synthetic_scene(0)).save(scene)
    examples = gr.Dataset(
        components=[gr.Image(visible=False)],
        samples=[[str(path)] for path in (*EXAMPLES.values(), scene)],
        type="index",
        label="Examples (the last one is drawn anew)",
        layout="gallery",
        elem_id="examples",
    )
    megapixels, deep = MAX_DECODED_PIXELS // 1_000_000, MAX_DEEP_PIXELS // 1_000_000
    limits = f"Photos of at most {megapixels} megapixels ({deep} of more than 8 bits per colour) and {MAX_UPLOAD}"
    gr.Markdown(f"{limits}; those larger than {MAX_SIDE} pixels are shown smaller.", elem_classes="quiet")
    return upload, examples


def _downloads() -> dict[str, Callable[..., tuple[str, bytes]]]:
    """Return the files of a mask: title of the button -> function of the session."""

    def file(ending: str, make: Callable[[Photo, Prediction, str], bytes]) -> Callable[..., tuple[str, bytes]]:
        def of_session(session: Session | None) -> tuple[str, bytes]:
            if session is None:
                raise ValueError(NO_PHOTO)
            if not session.predictions:
                raise ValueError(NO_MASK)
            model, prediction = next(iter(session.predictions.items()))
            return f"{session.photo.name}_{ending}", make(session.photo, prediction, model)

        return of_session

    files = (
        file("mask.png", lambda photo, prediction, _: mask_png(photo, prediction)),
        file("cutout.png", lambda photo, prediction, _: cutout_png(photo, prediction)),
        file("coco.json", prediction_json),
    )
    return dict(zip(DOWNLOADS, files, strict=True))


def _connect_photos(
    demo: DemoApp,
    shown: list[Any],
    everything: EverythingTab,
    upload: gr.UploadButton,
    examples: gr.Dataset,
) -> None:
    """Open the photos that are uploaded or chosen, in ``shown``: the session's state and the canvas."""

    def opened(open_session: Callable[[], Session]) -> list[Any]:
        session, quick = None, False
        try:
            with demo.lock:
                session = open_session()
                quick = session.decoder_ms(demo.model) <= QUICK_MS
        except ValueError as error:  # also closes the photo that was open before
            gr.Warning(str(error))
        return [session, photo_answer(session, demo.model, quick), *everything.cleared(session)]

    def open_upload(path: str | None) -> list[Any]:
        return opened(lambda: demo.open(path or ""))

    def open_example(index: int) -> list[Any]:
        paths = list(EXAMPLES.values())
        if index < len(paths):
            return opened(lambda: demo.open(paths[index]))
        return opened(lambda: demo.open_scene(random.randrange(2**31)))

    outputs = [*shown, *everything.outputs]
    options: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": shown[1], **POINTS}
    upload.upload(open_upload, upload, outputs, **options)
    examples.click(open_example, examples, outputs, **options)


def _connect_prompts(demo: DemoApp, session: gr.State, canvas: gr.HTML, models: Sequence[gr.Dropdown]) -> None:
    """Answer the events of the canvas's script: ``prompt`` after a change, ``pointing`` where the pointer rests."""

    def prompt(session: Session | None, first: str, second: str, event: gr.EventData) -> dict[str, Any]:
        chosen = list(dict.fromkeys(filter(None, (first, second))))
        try:
            if session is None:
                raise ValueError(NO_PHOTO)
            interactions = read_interactions(sent(event, "interactions"), session.photo.image.shape[:2])
            with demo.lock:
                return masks_answer(session.segment(interactions, chosen), chosen)
        except ValueError as error:
            return answer("error", text=str(error))

    def pointing(session: Session | None, first: str, event: gr.EventData) -> dict[str, Any]:
        number, mask = sent(event, "number"), None
        if session is not None and demo.lock.acquire(blocking=False):  # a click goes first
            try:
                interactions = read_interactions(sent(event, "interactions"), session.photo.image.shape[:2])
                prediction = session.predict(interactions, first)
                mask = prediction and layer(prediction)
            except ValueError:  # a click gets the message
                pass
            finally:
                demo.lock.release()
        return answer("preview", number=number, mask=mask)

    options: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple"}
    prompted = canvas.prompt(prompt, [session, *models], canvas, **options, **POINTS)
    prompted.failure(None, None, None, js=REFUSED_JS, api_visibility="private")
    canvas.pointing(pointing, [session, models[0]], canvas, queue=False, api_visibility="private", **options)
    for choice in models:
        choice.change(None, None, None, js=ASK_AGAIN_JS, api_visibility="private")
