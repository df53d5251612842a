"""The page to play with, in Gradio, which is imported here alone: ``mobilesamv2 app``."""

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

from mobilesamv2.interactive import LONGEST, NO_PHOTO, Playground, Sitting, add_gesture, drawn_scene, times_table
from mobilesamv2.structures import Filters

KEPT = 3600
"""Seconds that a user's photo and embedding are kept after their last use."""

CLICK = "Click for a point, drag for a box; all of them together ask for one mask."

# One computation at a time: users would lengthen each other's times.
ALONE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}

# A drag is told from a click by its length on the screen; what is sent are fractions of the photo.
POINTING = """
let start = null;
const at = (event) => {
  const box = element.querySelector('.photo').getBoundingClientRect();
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
  if (event.button !== 0 || !event.target.closest('.photo')) return;
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
  trigger('gesture', { start: start.at, end: isDrag(event) ? at(event) : null });
  stop();
});
element.addEventListener('pointercancel', stop);
"""

STYLE = """
.photo { position: relative; margin: 0 auto; cursor: crosshair; touch-action: none; user-select: none; }
.photo img { width: 100%; height: 100%; display: block; margin: 0; pointer-events: none; }
.photo div { position: absolute; pointer-events: none; box-sizing: border-box; }
.photo .box, .photo .band { border: 2px solid #ffd400; box-shadow: 0 0 0 1px #0008, inset 0 0 0 1px #0008; }
.photo .band { display: none; border-style: dashed; }
.photo .point { width: 18px; height: 18px; margin: -9px 0 0 -9px; border-radius: 50%; border: 2px solid white;
  box-shadow: 0 0 3px black; background: #12873b; color: white; font: bold 14px/13px sans-serif; text-align: center; }
.photo .point.background { background: #c62828; }
.controls { align-items: center; }
#times table { width: 100%; } #times th:not(:first-child), #times td:not(:first-child) { text-align: right; }
.nothing { padding: 18vh 1em; text-align: center; border: 1px dashed #8888; border-radius: 8px; }
"""


def build_page(playground: Playground, confidence: float = 0.4) -> gr.Blocks:
    """The page.

    Args:
        playground: model and detector, shared by all users; photos and gestures are each user's own.
        confidence: of the detector's boxes, to begin with.
    """
    with gr.Blocks(title="mobilesamv2", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        sitting = gr.State(None, time_to_live=KEPT)
        gr.Markdown(f"# mobilesamv2\n{playground.about}")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                photo = gr.Image(
                    label="Photo",
                    type="filepath",
                    image_mode=None,
                    format="png",
                    sources=["upload", "clipboard"],
                    height=260,
                    buttons=["fullscreen"],
                )
                # Gradio's own would fail on a photo that can't be decoded before a sentence can be said about it.
                setattr(photo, "preprocess", lambda data: data.path if data else None)  # noqa: B010
                draw = gr.Button("Draw a scene instead", size="md")
                encoded = gr.Markdown(f"A photo of more than {LONGEST} pixels is shrunk to that.")
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Point and box"):
                    asked = _pointing_tab(sitting)
                with gr.Tab("Everything"):
                    found = _everything_tab(playground, sitting, confidence)

        def open_photo(path: str | None) -> list[Any]:
            try:
                now = playground.sit(path) if path else None
            except ValueError as error:  # the photo before it goes too
                gr.Warning(str(error))
                now = None
            return [now, _encoded(now), *_asked(now), None, None, ""]

        photo.change(open_photo, photo, [sitting, encoded, *asked, *found], show_progress_on=encoded, **ALONE)
        draw.click(lambda: drawn_scene(random.randrange(2**31)), None, photo, api_visibility="private")
    return page


def serve(page: gr.Blocks, port: int | None = None, share: bool = False, block: bool = True) -> str:
    """Serves the page on this computer, and returns its address.

    Args:
        page: what ``build_page`` gives.
        port: None takes the first free one from 7860 on.
        share: also through a public address, by a tunnel of Gradio's.
        block: return only when it is stopped.

    Raises:
        ValueError: the port is taken.
    """
    try:
        _, address, _ = page.launch(
            server_port=port,
            share=share,
            prevent_thread_lock=not block,
            css=STYLE,
            theme=gr.themes.Default(),  # its fonts come with Gradio
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            max_file_size="50mb",
        )
    except (OSError, OverflowError) as error:  # the latter of a port beyond 65535
        raise ValueError(f"The page can't be served: {error}") from error
    return address


def _pointing_tab(sitting: gr.State) -> list[Component]:
    """Builds the tab, and returns what an answer is shown in: the canvas and a line above it."""
    with gr.Row(elem_classes="controls"):
        marks = [("a click marks the object", True), ("a click marks what is not the object", False)]
        foreground = gr.Radio(marks, value=True, container=False, show_label=False, scale=4, min_width=200)
        undo = gr.Button("Undo", size="md", min_width=70)
        clear = gr.Button("Clear", size="md", min_width=70)
    line = gr.Markdown(elem_id="answer")
    canvas = gr.HTML(_asked(None)[0], js_on_load=POINTING, elem_id="canvas")
    asked: list[Component] = [canvas, line]

    def point(sitting: Sitting | None, foreground: bool, event: gr.EventData) -> list[str]:
        return _asked(add_gesture(sitting, event.start, event.end, foreground))

    def take_back(sitting: Sitting | None, all_of_them: bool = False) -> list[str]:
        if sitting is not None:
            (sitting.clear if all_of_them else sitting.undo)()
        return _asked(sitting)

    quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple", **ALONE}
    canvas.gesture(_told(point), [sitting, foreground], asked, **quiet)
    undo.click(take_back, sitting, asked, **quiet)
    clear.click(lambda sitting: take_back(sitting, True), sitting, asked, **quiet)
    return asked


def _everything_tab(playground: Playground, sitting: gr.State, confidence: float) -> list[Component]:
    """Builds the tab, and returns what is shown in it: the picture of each way, and their times."""
    shown: dict[str, Any] = {"interactive": False, "format": "jpeg", "buttons": ["fullscreen", "download"]}
    has_boxes = playground.detector is not None
    button = gr.Button("Segment everything", variant="primary")
    with gr.Row():
        with gr.Column(min_width=280):
            grid = gr.Image(label="Grid", elem_id="grid", **shown)
            per_side = gr.Slider(4, 64, 32, step=4, label="Points a side")
            iou = gr.Slider(0, 1, playground.filters.predicted_iou, step=0.01, label="Masks of a predicted IoU above")
            stability = gr.Slider(0, 1, playground.filters.stability, step=0.01, label="and of a stability from")
        with gr.Column(min_width=280):
            boxes = gr.Image(label="Object-aware", elem_id="boxes", visible=has_boxes, **shown)
            sure = gr.Slider(0, 1, confidence, step=0.01, label="Boxes of a confidence from", visible=has_boxes)
            gr.Markdown(playground.no_detector, visible=not has_boxes)
            times = gr.Markdown(elem_id="times")

    def everything(sitting: Sitting | None, per_side: int, iou: float, stability: float, sure: float) -> Iterator[Any]:
        if sitting is None:
            raise gr.Error(NO_PHOTO, print_exception=False)
        by_boxes = None
        if has_boxes:  # the quicker way first
            by_boxes = playground.by_boxes(sitting.image, sure)
            yield None, by_boxes.picture, times_table({"grid": None, "object-aware": by_boxes})
        by_grid = playground.by_grid(sitting.image, int(per_side), Filters(iou, stability))
        found = {"grid": by_grid, "object-aware": by_boxes} if has_boxes else {"grid": by_grid}
        yield by_grid.picture, by_boxes and by_boxes.picture, times_table(found)

    button.click(everything, [sitting, per_side, iou, stability, sure], [grid, boxes, times], **ALONE)
    return [grid, boxes, times]


def _encoded(sitting: Sitting | None) -> str:
    if sitting is None:
        return ""
    height, width = sitting.image.shape[:2]
    return f"{width} x {height} pixels, encoded once in {sitting.encoder_ms:,.0f} ms."


def _asked(sitting: Sitting | None) -> list[str]:
    """The canvas and the line below it: the photo with gestures, their mask, and what the model thinks of it."""
    if sitting is None:
        return [f'<div class="nothing">{NO_PHOTO}</div>', ""]
    answer = sitting.answer()
    told = CLICK
    if answer is not None:
        covered = f"A mask of {int(answer.mask.sum()):,} pixels" if answer.mask.any() else "A mask without a pixel"
        told = f"{covered}, predicted IoU {answer.predicted_iou:.2f}, in {answer.ms:,.0f} ms."
    return [_photo_html(sitting, sitting.picture(answer)), told]


def _photo_html(sitting: Sitting, picture: np.ndarray) -> str:
    """The picture with marks over it that keep their size on the screen."""
    height, width = picture.shape[:2]
    marks = ""
    if box := sitting.box:
        left, top = 100 * box.x0 / width, 100 * box.y0 / height
        wide, high = 100 * (box.x1 - box.x0) / width, 100 * (box.y1 - box.y0) / height
        marks += f'<div class="box" style="left:{left}%;top:{top}%;width:{wide}%;height:{high}%"></div>'
    for point in sitting.points:
        kind, sign = ("", "+") if point.foreground else (" background", "\u2212")
        marks += f'<div class="point{kind}" style="left:{100 * point.x / width}%;top:{100 * point.y / height}%">'
        marks += f"{sign}</div>"
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    shape = f"aspect-ratio:{width}/{height};width:min(100%, {62 * width / height}vh)"
    return f'<div class="photo" style="{shape}"><img src="{source}" alt="photo">{marks}<div class="band"></div></div>'


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with what a user can cause shown on the page as a sentence."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        try:
            return function(*args)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return wrapped
