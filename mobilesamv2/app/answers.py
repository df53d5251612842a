"""What the page and its script in the browser exchange: what that sends, answers to it, and errors."""

from __future__ import annotations

import base64
import functools
import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from mobilesamv2.app.downloads import mask_layer
from mobilesamv2.app.session import Prediction, Session

HELP = "Click on an object, or drag a box around it. All points and the box together prompt one mask."


def photo_answer(session: Session | None, model: str, quick: bool = False) -> dict[str, Any]:
    """Return the photo to show; without a session none.

    Args:
        session: of the visitor.
        model: that has encoded the photo.
        quick: whether the mask under the pointer is to be shown before a click.
    """
    if session is None:
        return answer("photo", photo=None, models=[], text="")
    image = session.photo.image
    photo = {"src": _data_url(jpeg(image), "jpeg"), "width": image.shape[1], "height": image.shape[0]}
    height, width = session.photo.size
    text = f"{width} x {height} pixels, encoded in {session.encoder_ms[model]:,.0f} ms. {HELP}"
    return answer("photo", photo=photo | {"quick": quick}, models=[model], text=text)


def masks_answer(predictions: Mapping[str, Prediction], models: Sequence[str]) -> dict[str, Any]:
    """Return the masks to show, one for each model; without predictions the photo alone."""
    panes = []
    for model in models:
        prediction = predictions.get(model)
        caption = model if prediction is None else f"{model}: {describe(prediction)}"
        panes.append({"model": model, "mask": prediction and layer(prediction), "caption": caption})
    first = predictions.get(models[0])
    text = HELP if first is None else "" if len(models) > 1 else describe(first)
    return answer("masks", panes=panes, text=text)


def describe(prediction: Prediction) -> str:
    """Return a sentence about a mask."""
    pixels = f"Mask of {int(prediction.mask.sum()):,} pixels" if prediction.mask.any() else "Empty mask"
    return f"{pixels}, predicted IoU {prediction.predicted_iou:.2f}, in {prediction.ms:,.0f} ms."


def layer(prediction: Prediction) -> str:
    """Return a mask as the address of an image to lay over the photo."""
    return _data_url(mask_layer(prediction.mask), "png")


def jpeg(image: np.ndarray) -> bytes:
    """Return an image, RGB uint8 (H, W, 3), as a JPEG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=92)
    return file.getvalue()


def answer(kind: str, **content: Any) -> dict[str, Any]:
    """Return an answer; the time makes it differ from the last one, since the script is told of changes only."""
    return {"kind": kind, "time": time.monotonic_ns(), **content}


def sent(event: gr.EventData, name: str) -> Any:
    """Return what the canvas's script sent under a name; None if there is nothing, since others may send anything."""
    content = event._data
    return content.get(name) if isinstance(content, Mapping) else None


def errors_to_toast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that the page shows its ValueErrors as a notification."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        try:
            return function(*args)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return wrapped


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
