"""Page of the interactive demo, in Gradio, which no other module imports: ``mobilesamv2 app``."""

from __future__ import annotations

import base64
import functools
import io
import random
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np
from gradio.components import Component
from PIL import Image

from mobilesamv2.app.session import (
    MAX_SIDE,
    MAX_UPLOADED_PIXELS,
    NO_IMAGE,
    DemoApp,
    Session,
    add_interaction,
    synthetic_scene,
    times_table,
)
from mobilesamv2.structures import Filters

SESSION_TTL_S = 3600
"""Seconds that a user's image and embedding are kept after their last use."""

HELP = "Click to add a point, drag to draw a box. All points and the box together prompt one mask."

# One computation at a time: concurrent users would lengthen each other's times.
SINGLE_WORKER: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}

# A drag differs from a click by its length on the screen; coordinates are sent as fractions of the image.
POINTING_JS = """
let start = null;
const at = (event) => {
  const box = element.querySelector('.demo-image').getBoundingClientRect();
  const within = (value) => Math.min(1, Math.max(0, value));
  return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
};
const isDrag = (event) => Math.hypot(event.clientX - start.x, event.clientY - start.y) > 5;
const stop = () => {
  start = null;
  const band = element.querySelector('.band');
  if (band) band.style.display = 'none';
};
element.addEventListener('pointerdown', (event) => {
  if (event.button !== 0 || !event.target.closest('.demo-image')) return;
  event.preventDefault();
  start = { x: event.clientX, y: event.clientY, at: at(event) };
  element.setPointerCapture(event.pointerId);
});
element.addEventListener('pointermove', (event) => {
  const band = element.querySelector('.band');
  if (!start || !band || !isDrag(event)) return;
  const [x, y] = at(event), [x0, y0] = start.at;
  const percent = (value) => `${100 * value}%`;
  Object.assign(band.style, { display: 'block', left: percent(Math.min(x, x0)), top: percent(Math.min(y, y0)),
    width: percent(Math.abs(x - x0)), height: percent(Math.abs(y - y0)) });
});
element.addEventListener('pointerup', (event) => {
  if (!start) return;
  trigger('interaction', { start: start.at, end: isDrag(event) ? at(event) : null });
  stop();
});
element.addEventListener('pointercancel', stop);
"""

STYLE = """
.demo-image { position: relative; margin: 0 auto; cursor: crosshair; touch-action: none; user-select: none; }
.demo-image img { width: 100%; height: 100%; display: block; margin: 0; pointer-events: none; }
.demo-image div { position: absolute; pointer-events: none; box-sizing: border-box; }
.demo-image .box, .demo-image .band { border: 2px solid #ffd400; box-shadow: 0 0 0 1px #0008, inset 0 0 0 1px #0008; }
.demo-image .band { display: none; border-style: dashed; }
.demo-image .point { width: 18px; height: 18px; margin: -9px 0 0 -9px; border-radius: 50%; border: 2px solid white;
  box-shadow: 0 0 3px black; background: #12873b; color: white; font: bold 14px/13px sans-serif; text-align: center; }
.demo-image .point.background { background: #c62828; }
.controls { align-items: center; }
#times table { width: 100%; } #times th:not(:first-child), #times td:not(:first-child) { text-align: right; }
.demo-placeholder { padding: 18vh 1em; text-align: center; border: 1px dashed #8888; border-radius: 8px; }
"""


def build_page(demo: DemoApp, confidence: float = 0.4) -> gr.Blocks:
    """Build the page.

    Args:
        demo: model and detector, shared by all users; images and interactions belong to each user's session.
        confidence: initial threshold for the confidence of the detector's boxes.
    """
    title = "mobilesamv2: interactive demo"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(SESSION_TTL_S, SESSION_TTL_S)) as page:
        session = gr.State(None, time_to_live=SESSION_TTL_S)
        gr.Markdown(f"# Interactive demo\n{demo.about}")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                upload = gr.Image(
                    label="Image",
                    type="filepath",
                    image_mode=None,
                    format="png",
                    sources=["upload", "clipboard"],
                    height=260,
                    buttons=["fullscreen"],
                )
                # Gradio's own would fail on an image that can't be decoded before we could show an error.
                setattr(upload, "preprocess", lambda data: data.path if data else None)  # noqa: B010
                synthesize = gr.Button("Use a synthetic scene", size="md")
                limit = f"images of more than {MAX_UPLOADED_PIXELS // 1_000_000} megapixels are refused"
                size = gr.Markdown(f"Images larger than {MAX_SIDE} pixels are resized; {limit}.")
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Points and box"):
                    canvas = _prompting_tab(session)
                with gr.Tab("Everything"):
                    results = _everything_tab(demo, session, confidence)

        def open_image(path: str | None) -> list[Any]:
            try:
                opened = demo.open(path) if path else None
            except ValueError as error:  # also closes the image that was open before
                gr.Warning(str(error))
                opened = None
            return [opened, _describe(opened), *_render(opened), None, None, ""]

        outputs = [session, size, *canvas, *results]
        upload.change(open_image, upload, outputs, show_progress_on=size, **SINGLE_WORKER)
        synthesize.click(lambda: synthetic_scene(random.randrange(2**31)), None, upload, api_visibility="private")
    return page


def serve(page: gr.Blocks, port: int | None = None, share: bool = False, block: bool = True) -> str:
    """Serve the page on this computer, and return its address.

    Args:
        page: result of ``build_page``.
        port: None is the first free one from 7860.
        share: also serve it at a public address, through Gradio's tunnel.
        block: return only when the server is stopped.

    Raises:
        ValueError: if the port is in use.
    """
    try:
        _, address, _ = page.launch(
            server_port=port,
            share=share,
            prevent_thread_lock=not block,
            css=STYLE,
            theme=gr.themes.Default(),  # its fonts are part of Gradio
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            max_file_size="50mb",
        )
    except (OSError, OverflowError) as error:  # OverflowError: a port above 65535
        raise ValueError(f"The page can't be served: {error}") from error
    return address


def _prompting_tab(session: gr.State) -> list[Component]:
    """Build the tab, and return the components of the prediction: the canvas, and a line above it."""
    with gr.Row(elem_classes="controls"):
        choices = [("Foreground point: on the object", True), ("Background point: not the object", False)]
        foreground = gr.Radio(choices, value=True, container=False, show_label=False, scale=4, min_width=200)
        undo = gr.Button("Undo", size="md", min_width=70)
        clear = gr.Button("Clear", size="md", min_width=70)
    line = gr.Markdown(elem_id="prediction")
    canvas = gr.HTML(_render(None)[0], js_on_load=POINTING_JS, elem_id="canvas")
    outputs: list[Component] = [canvas, line]

    def interact(session: Session | None, foreground: bool, event: gr.EventData) -> list[str]:
        return _render(add_interaction(session, event.start, event.end, foreground))

    def undo_last(session: Session | None) -> list[str]:
        if session is not None:
            session.undo()
        return _render(session)

    def clear_all(session: Session | None) -> list[str]:
        if session is not None:
            session.clear()
        return _render(session)

    options: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple", **SINGLE_WORKER}
    canvas.interaction(_errors_to_toast(interact), [session, foreground], outputs, **options)
    undo.click(undo_last, session, outputs, **options)
    clear.click(clear_all, session, outputs, **options)
    return outputs


def _everything_tab(demo: DemoApp, session: gr.State, confidence: float) -> list[Component]:
    """Build the tab, and return the components of the results: an overlay per prompt sampler, and their times."""
    overlays: dict[str, Any] = {"interactive": False, "format": "jpeg", "buttons": ["fullscreen", "download"]}
    has_detector, filters = demo.detector is not None, demo.filters
    button = gr.Button("Segment everything", variant="primary")
    with gr.Row():
        with gr.Column(min_width=280):
            grid = gr.Image(label="Grid", elem_id="grid", **overlays)
            points_per_side = gr.Slider(4, 64, 32, step=4, label="Points per side")
            iou = gr.Slider(0, 1, filters.pred_iou_thresh, step=0.01, label="Predicted IoU threshold")
            stability = gr.Slider(0, 1, filters.stability_score_thresh, step=0.01, label="Stability score threshold")
        with gr.Column(min_width=280):
            boxes = gr.Image(label="Object-aware", elem_id="boxes", visible=has_detector, **overlays)
            box_label = "Box confidence threshold"
            box_confidence = gr.Slider(0, 1, confidence, step=0.01, label=box_label, visible=has_detector)
            gr.Markdown(demo.no_detector, visible=not has_detector)
            times = gr.Markdown(elem_id="times")

    def segment_everything(
        session: Session | None, points_per_side: int, iou: float, stability: float, box_confidence: float
    ) -> Iterator[Any]:
        if session is None:
            raise gr.Error(NO_IMAGE, print_exception=False)
        by_boxes = None
        if has_detector:  # the faster one first
            by_boxes = demo.by_boxes(session.image, box_confidence)
            yield None, by_boxes.overlay, times_table({"grid": None, "object-aware": by_boxes})
        by_grid = demo.by_grid(session.image, int(points_per_side), Filters(iou, stability))
        results = {"grid": by_grid, "object-aware": by_boxes} if has_detector else {"grid": by_grid}
        yield by_grid.overlay, by_boxes and by_boxes.overlay, times_table(results)

    inputs = [session, points_per_side, iou, stability, box_confidence]
    button.click(segment_everything, inputs, [grid, boxes, times], **SINGLE_WORKER)
    return [grid, boxes, times]


def _describe(session: Session | None) -> str:
    if session is None:
        return ""
    height, width = session.image.shape[:2]
    return f"{width} x {height} pixels, encoded once in {session.encoder_ms:,.0f} ms."


def _render(session: Session | None) -> list[str]:
    """Render the canvas (image, interactions and mask) and the line about the prediction."""
    if session is None:
        return [f'<div class="demo-placeholder">{NO_IMAGE}</div>', ""]
    prediction = session.predict()
    line = HELP
    if prediction is not None:
        pixels = f"Mask of {int(prediction.mask.sum()):,} pixels" if prediction.mask.any() else "Empty mask"
        line = f"{pixels}, predicted IoU {prediction.predicted_iou:.2f}, in {prediction.ms:,.0f} ms."
    return [_image_html(session, session.overlay(prediction)), line]


def _image_html(session: Session, overlay: np.ndarray) -> str:
    """Return the overlay as HTML, with marks that keep their size on the screen."""
    height, width = overlay.shape[:2]
    marks = ""
    if box := session.box:
        left, top = 100 * box.x0 / width, 100 * box.y0 / height
        box_width, box_height = 100 * (box.x1 - box.x0) / width, 100 * (box.y1 - box.y0) / height
        marks += f'<div class="box" style="left:{left}%;top:{top}%;width:{box_width}%;height:{box_height}%"></div>'
    for point in session.points:
        kind, sign = ("", "+") if point.foreground else (" background", "\u2212")
        marks += f'<div class="point{kind}" style="left:{100 * point.x / width}%;top:{100 * point.y / height}%">'
        marks += f"{sign}</div>"
    file = io.BytesIO()
    Image.fromarray(overlay).save(file, "JPEG", quality=90)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    style = f"aspect-ratio:{width}/{height};width:min(100%, {62 * width / height}vh)"
    image = f'<img src="{source}" alt="image">'
    return f'<div class="demo-image" style="{style}">{image}{marks}<div class="band"></div></div>'


def _errors_to_toast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that the page shows its ValueErrors as a notification."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        try:
            return function(*args)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return wrapped
