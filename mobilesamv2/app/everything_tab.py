"""Tab of the page that segments everything twice, side by side: by two prompt samplers, models, or settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from mobilesamv2.app.answers import jpeg
from mobilesamv2.app.demo import DemoApp
from mobilesamv2.app.download_buttons import add_downloads
from mobilesamv2.app.downloads import masks_json
from mobilesamv2.app.everything import AutoMasks, Settings, Stopped, segment_everything, times_table
from mobilesamv2.app.page_folder import PageFolder
from mobilesamv2.app.session import NO_PHOTO, Session

NONE = "nothing"
"""Choice for the second place that leaves it out."""

# One at a time; points are answered meanwhile, as requests of another kind.
EVERYTHING: dict[str, Any] = {"concurrency_id": "everything", "concurrency_limit": 1, "api_visibility": "private"}


class Place(NamedTuple):
    """The components of one result, and of the settings that lead to it."""

    image: gr.Image
    model: gr.Dropdown
    sampler: gr.Dropdown
    points_per_side: gr.Slider
    pred_iou_thresh: gr.Slider
    stability_score_thresh: gr.Slider
    confidence: gr.Slider


class EverythingTab:
    """The tab's components and events.

    Args:
        demo: models and detector.
        session: of the visitor.
        folder: that pictures and files are written into.
    """

    def __init__(self, demo: DemoApp, session: gr.State, folder: PageFolder) -> None:
        self._demo = demo
        self._folder = folder
        samplers = list(demo.samplers)
        with gr.Row():
            run = gr.Button(
                "Segment everything", variant="primary", scale=3, min_width=160, elem_id="segment-everything"
            )
            stop = gr.Button("Stop", variant="stop", scale=1, min_width=80, elem_id="stop")
        with gr.Row():
            self._places = [
                self._add_place("A", samplers[0]),
                self._add_place("B", samplers[-1]),
            ]
        self._times = gr.Markdown(elem_id="times")
        add_downloads(
            {"\u2193 A: COCO (JSON)": self._download("A"), "\u2193 B: COCO (JSON)": self._download("B")},
            session,
            folder,
            "everything-downloads",
            **EVERYTHING,
        )
        self.outputs = [*(place.image for place in self._places), self._times]
        inputs = [session, *(component for place in self._places for component in place[1:])]
        running = run.click(
            self._run, inputs, self.outputs, show_progress_on=[place.image for place in self._places], **EVERYTHING
        )
        stop.click(_stop, session, None, cancels=[running], queue=False, api_visibility="private")

    def cleared(self, session: Session | None) -> list[Any]:
        """Return values for ``outputs`` that show the photo, without masks."""
        return [session and self._picture(session.photo.image), None, ""]

    def _add_place(self, name: str, sampler: str) -> Place:
        demo, names = self._demo, list(self._demo.models)
        choices = [(title, key) for key, title in demo.samplers.items()]
        choices += [("Nothing", NONE)] if name == "B" else []
        thresholds = demo.models[demo.model].thresholds
        with gr.Column(min_width=300):
            image = gr.Image(
                label=name, interactive=False, format="jpeg", buttons=["fullscreen", "download"],
                elem_id=f"everything-{name}",
            )  # fmt: skip
            model = gr.Dropdown(names, value=demo.model, label=f"{name}: model", visible=len(names) > 1)
            chosen = gr.Dropdown(choices, value=sampler, label=f"{name}: prompts")
            with gr.Accordion(f"{name}: settings", open=False):
                points = gr.Slider(4, 64, 32, step=4, label="Points per side")
                iou = gr.Slider(0, 1, thresholds.pred_iou_thresh, step=0.01, label="Predicted IoU threshold")
                stability = gr.Slider(
                    0, 1, thresholds.stability_score_thresh, step=0.01, label="Stability score threshold"
                )
                confidence = gr.Slider(
                    0,
                    1,
                    demo.confidence,
                    step=0.01,
                    label="Box confidence threshold",
                    visible=demo.detector is not None,
                )

        def own_thresholds(model: str) -> list[float]:
            own = demo.models[model].thresholds
            return [own.pred_iou_thresh, own.stability_score_thresh]

        model.change(own_thresholds, model, [iou, stability], api_visibility="private", show_progress="hidden")
        return Place(image, model, chosen, points, iou, stability, confidence)

    def _run(self, session: Session | None, *values: Any, progress: gr.Progress = gr.Progress()) -> Iterator[Any]:  # noqa: B008
        """Yield the results, as soon as there is one more."""
        if session is None:
            raise gr.Error(NO_PHOTO, print_exception=False)
        session.stop.clear()
        session.everything.clear()
        yield [None, None, ""]
        count = len(values) // len(self._places)
        titles = {}
        for name, (model, sampler, points_per_side, *rest) in (("A", values[:count]), ("B", values[count:])):
            if sampler == NONE:
                continue
            settings = Settings(model, sampler, int(points_per_side), *rest)
            titles[name] = self._title(name, settings)
            try:
                found = self._segment(session, settings, titles[name], progress)
            except Stopped:
                gr.Info("Stopped.")
                return
            session.everything[name] = found
            overlays = [self._picture(found.overlay) if place == name else gr.skip() for place in ("A", "B")]
            results = {title: session.everything.get(place) for place, title in titles.items()}
            yield [*overlays, times_table(results)]

    def _segment(self, session: Session, settings: Settings, title: str, progress: gr.Progress) -> AutoMasks:
        def report(decoded: int, known: int) -> None:
            if session.stop.is_set():
                raise Stopped
            progress((decoded, known) if known else 0, desc=title, unit="prompts")

        try:
            sampler = self._demo.build_sampler(settings)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        first = session.everything.get("A")
        beside = first.masks.rles if first else ()
        return segment_everything(self._demo.models[settings.model], sampler, session.photo.image, report, beside)

    def _title(self, name: str, settings: Settings) -> str:
        sampler = "boxes" if settings.sampler == "object_aware" else settings.sampler
        return f"{name}: {settings.model}, {sampler}" if len(self._demo.models) > 1 else f"{name}: {sampler}"

    def _picture(self, image: np.ndarray) -> str:
        """Write a new file: Gradio names its own by their content, and rewrites them while another browser reads."""
        return self._folder.write("masks.jpg", jpeg(image))

    def _download(self, name: str) -> Callable[[Session | None], tuple[str, bytes]]:
        def make(session: Session | None) -> tuple[str, bytes]:
            result = session and session.everything.get(name)
            if session is None or result is None:
                raise ValueError("There are no masks here yet: press Segment everything.")
            return f"{session.photo.name}_everything_{name}.json", masks_json(
                session.photo, result.masks, result.made_by
            )

        return make


def _stop(session: Session | None) -> None:
    if session is not None:
        session.stop.set()
