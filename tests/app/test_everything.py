"""Everything in a photo: samplers, progress, stop, times."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mobilesamv2 import load_pretrained
from mobilesamv2.app.demo import DemoApp, synthetic_scene
from mobilesamv2.app.everything import AutoMasks, Settings, Stopped, segment_everything, times_table
from mobilesamv2.models.sam import Sam
from mobilesamv2.segevery import SegEvery
from mobilesamv2.structures import Masks, Prompts


class TwoBoxes:
    """A detector that sees two objects everywhere."""

    def detect(self, image: np.ndarray, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
        assert options["confidence"] == 0.2
        return torch.tensor([[10.0, 10, 90, 90], [200, 100, 300, 250]]), torch.tensor([0.9, 0.8])


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_pretrained("mini_conv").for_inference()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["grid", "hierarchical"])
def test_a_watched_run_finds_what_segevery_finds(sam: Sam, sampler: str) -> None:
    scene, built = synthetic_scene(3), Settings("mini_conv", sampler, 16).build_sampler(None)
    reports: list[tuple[int, int]] = []
    found = segment_everything(sam, built, scene, lambda *report: reports.append(report))
    expected = SegEvery(sam, built)(scene)
    assert len(found.masks) == len(expected) > 0
    np.testing.assert_array_equal(np.asarray(found.masks), np.asarray(expected))
    assert (found.overlay != scene).any()
    assert all(ms > 0 for ms in found.ms.values())
    assert reports[-1] == (found.prompts, found.prompts)
    assert [decoded for decoded, _ in reports] == sorted(decoded for decoded, _ in reports)
    assert found.made_by["model"] == "mini_conv"
    if sampler == "grid":
        assert found.prompts == 256
        assert {64, 128, 192, 256} <= {decoded for decoded, _ in reports}


def test_boxes_of_a_detector(sam: Sam) -> None:
    settings = Settings("mini_conv", "object_aware", confidence=0.2)
    found = segment_everything(sam, settings.build_sampler(TwoBoxes()), synthetic_scene(3))
    assert found.prompts == 2
    assert len(found.masks) <= 2
    with pytest.raises(ValueError, match="Boxes require a detector"):
        settings.build_sampler(None)


def test_an_object_has_one_colour_in_both_places(demo: DemoApp, tmp_path: Path) -> None:
    gr = pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'mobilesamv2[app]'")
    from mobilesamv2.app.everything_tab import EverythingTab
    from mobilesamv2.app.page_folder import PageFolder

    class FewerBoxes:
        """A detector that is sure of the smaller one of two objects only."""

        def detect(self, image: np.ndarray, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
            found = torch.tensor([[10.0, 10, 250, 250], [300, 100, 400, 250]]), torch.tensor([0.5, 0.8])
            return (found[0][1:], found[1][1:]) if options["confidence"] > 0.5 else found

    with gr.Blocks():
        tab = EverythingTab(replace(demo, detector=FewerBoxes()), gr.State(), PageFolder(tmp_path))
    session = demo.open_scene(3)
    settings = ["mini_conv", "object_aware", 32, None, None]
    shown = list(tab._run(session, *settings, 0.2, *settings, 0.7, progress=lambda *args, **options: None))
    assert len(shown) == 3
    a, b = session.everything["A"], session.everything["B"]
    assert (len(a.masks), len(b.masks)) == (2, 1)
    [inside] = b.masks
    assert (np.median(np.abs(a.overlay[inside].astype(int) - b.overlay[inside]), axis=0) == 0).all()


def test_thresholds(sam: Sam) -> None:
    settings = Settings("mini_conv", "grid", 4, pred_iou_thresh=0.999, stability_score_thresh=0.999)
    with pytest.warns(UserWarning, match="No mask passes"):
        assert len(segment_everything(sam, settings.build_sampler(None), synthetic_scene(3)).masks) == 0


def test_a_run_stops_within_a_batch(sam: Sam) -> None:
    decoded = []

    def report(done: int, known: int) -> None:
        decoded.append(done)
        if done >= 64:
            raise Stopped

    with pytest.raises(Stopped):
        segment_everything(sam, Settings("mini_conv", "grid", 64).build_sampler(None), synthetic_scene(3), report)
    assert max(decoded) == 64  # of 4096


def test_table_of_times() -> None:
    ms = {"image_encoder": 1234.5, "prompt_sampling": 0.24, "mask_decoder": 99.6, "postprocessing": 5.0}
    none = torch.zeros(0)
    masks = Masks((1, 1), [], torch.zeros(0, 4), none, none, none, Prompts(boxes_xyxy=torch.zeros(0, 4)), none.long())
    table = times_table({"A: grid": AutoMasks(masks, np.zeros((1, 1, 3)), ms, 1024, {}), "B: boxes": None})
    assert table.splitlines() == [
        "| | A: grid | B: boxes |",
        "|---|--:|--:|",
        "| image encoder, ms | 1,234 | - |",
        "| prompt sampling, ms | 0.2 | - |",
        "| mask decoder, ms | 100 | - |",
        "| post-processing, ms | 5.0 | - |",
        "| **total, ms** | **1,339** | **-** |",
        "| prompts | 1,024 | - |",
        "| masks | 0 | - |",
        "",
        "No mask of A: grid passed the thresholds; try lower ones.",
    ]
