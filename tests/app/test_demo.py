"""The models and the detector that visitors share, and the command that serves them."""

import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch

from mobilesamv2 import build_sam
from mobilesamv2.app.demo import ASSETS, EXAMPLES, DemoApp, open_demo
from mobilesamv2.app.everything import Settings, segment_everything
from mobilesamv2.app.session import Interactions, Point
from mobilesamv2.cli.main import main
from mobilesamv2.model_zoo import PACKAGE_WEIGHTS


def test_the_shipped_model_and_detector(demo: DemoApp) -> None:
    assert list(demo.models) == [demo.model] == ["mini_conv"]
    assert "mobilesamv2 download mobile_sam" in demo.about
    assert "Detector: mini_detector.pt, which ships" in demo.about
    assert demo.confidence == 0.1
    assert list(demo.samplers) == ["grid", "hierarchical", "object_aware"]
    session = demo.open_scene(1)
    sampler = Settings("mini_conv", "object_aware", confidence=demo.confidence).build_sampler(demo.detector)
    assert len(segment_everything(demo.models["mini_conv"], sampler, session.photo.image).masks) > 3


def test_examples_and_assets_are_there(demo: DemoApp) -> None:
    for path in EXAMPLES.values():
        session = demo.open(path)
        assert min(session.photo.size) >= 300
        assert session.segment(Interactions((Point(200, 200),)), ["mini_conv"])["mini_conv"].mask.any()
    assert {path.name for path in ASSETS.iterdir()} >= {"canvas.html", "canvas.js", "page.css"}


def test_without_ultralytics_there_are_no_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*given: object) -> None:
        raise ModuleNotFoundError("No module named 'ultralytics'", name="ultralytics")

    monkeypatch.setattr("mobilesamv2.app.demo.load_detector", missing)
    demo = open_demo(None, tmp_path)
    assert demo.detector is None
    assert "This requires ultralytics, which is not installed: pip install 'mobilesamv2[detector]'" in demo.about
    assert list(demo.samplers) == ["grid", "hierarchical"]
    with pytest.raises(ModuleNotFoundError):  # one that was named
        open_demo(None, tmp_path, PACKAGE_WEIGHTS / "mini_detector.pt")


def test_a_detector_from_a_file(tmp_path: Path) -> None:
    shutil.copy(PACKAGE_WEIGHTS / "mini_detector.pt", tmp_path / "ObjectAwareModel.pt")
    demo = open_demo("mini_conv", tmp_path, detector_size=64, confidence=0.99)
    assert demo.about.endswith("Detector: ObjectAwareModel.pt.")
    assert (demo.confidence, demo.detector.image_size) == (0.99, 64)
    with pytest.raises(FileNotFoundError, match=r"There is no weight file .*other.pt"):
        open_demo("mini_conv", tmp_path, tmp_path / "other.pt")


def test_the_shipped_detector_by_its_name_is_used_as_the_default_one(demo: DemoApp, tmp_path: Path) -> None:
    named = open_demo("mini_conv", tmp_path, Path("mini_detector.pt"))
    assert (named.confidence, named.detector.image_size) == (demo.confidence, demo.detector.image_size) == (0.1, 384)


def test_a_prompt_head_is_of_the_first_model(tmp_path: Path) -> None:
    second = tmp_path / "tuned.safetensors"
    shutil.copy(PACKAGE_WEIGHTS / "mini_conv.safetensors", second)
    head = PACKAGE_WEIGHTS / "mini_conv_prompt_head.safetensors"
    demo = open_demo("mini_conv", tmp_path, head, compare=[str(second)], confidence=0.05)
    sampler = demo.build_sampler(Settings("mini_conv", "object_aware", confidence=0.05))
    assert len(segment_everything(demo.models["mini_conv"], sampler, demo.open_scene(1).photo.image).masks) > 3
    with pytest.raises(ValueError, match="reads the embeddings of mini_conv: choose that model"):
        demo.build_sampler(Settings("tuned", "object_aware"))


@pytest.mark.slow
def test_which_model(tmp_path: Path) -> None:
    torch.save(build_sam("mobile_sam").state_dict(), tmp_path / "mobile_sam.pt")
    published = open_demo(None, tmp_path)
    assert "mobile_sam: image encoder tiny_vit_5m" in published.about
    assert "download" not in published.about
    with pytest.raises(FileNotFoundError, match=r"mobilesamv2 download mobile_sam\.pt"):
        open_demo("mobile_sam", tmp_path / "empty")


@pytest.mark.slow
def test_two_models_to_compare(tmp_path: Path) -> None:
    second = tmp_path / "tuned.safetensors"
    shutil.copy(PACKAGE_WEIGHTS / "mini_conv.safetensors", second)
    demo = open_demo("mini_conv", tmp_path, compare=[str(second)])
    assert list(demo.models) == ["mini_conv", "tuned"]
    session = demo.open_scene(1)
    assert list(session.encoder_ms) == ["mini_conv"]  # the other one encodes when it is chosen
    found = session.segment(Interactions((Point(250, 200),)), list(demo.models))
    assert (found["mini_conv"].mask == found["tuned"].mask).all()
    with pytest.raises(
        ValueError, match=r"--compare must name other models than --model, each once, got mini_conv twice"
    ):
        open_demo("mini_conv", tmp_path, compare=["mini_conv"])
    with pytest.raises(FileNotFoundError, match="mobilesamv2 download mobile_sam"):
        open_demo("mini_conv", tmp_path, compare=["mobile_sam"])


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "mobilesamv2.app.page", raising=False)
    for module in ("answers", "download_buttons", "everything_tab"):
        monkeypatch.delitem(sys.modules, f"mobilesamv2.app.{module}", raising=False)
    with pytest.raises(SystemExit, match=r"error: .*isn't installed: pip install 'mobilesamv2\[app\]'"):
        main(["app", "--model", "mini_conv"])


def test_a_port_in_use(demo: DemoApp) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'mobilesamv2[app]'")
    from mobilesamv2.app.page import serving

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ValueError, match=f"can't be served: .*{port}"),
            serving(demo, port),
        ):
            pass
