"""Encoders of one's own: found wherever they register, saved by their name, and missed by a sentence."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support import ROOT

from mobilesamv2 import build_sam, list_models, load_pretrained, load_sam, register_encoder
from mobilesamv2.checkpoints import save_weights
from mobilesamv2.cli.models import models_table
from mobilesamv2.models import registration
from mobilesamv2.models.image_encoder import ImageEncoder
from mobilesamv2.models.sam2 import Sam2
from mobilesamv2.registry import build_encoder, list_encoders

EXAMPLE = (ROOT / "examples" / "encoder" / "plain_conv.py").read_text()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder that Python imports from, and no encoders but those of the package."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registration, "_registered", {"sam": {}, "sam2": {}})
    yield
    for name in ("own_conv", "packaged", "broken_conv"):
        sys.modules.pop(name, None)


def register_by_variable(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "own_conv") -> None:
    """A module with the example's encoder, which the environment names."""
    (folder / f"{name}.py").write_text(EXAMPLE.replace('"plain_conv"', f'"{name}"'))
    monkeypatch.setenv("MOBILESAMV2_ENCODERS", f" {name} ,")


def test_saved_weights_carry_the_name_and_load_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_by_variable(tmp_path, monkeypatch)
    sam = build_sam("mini", encoder="own_conv")
    save_weights(sam, tmp_path / "own.safetensors")
    save_weights(build_sam("own_conv", image_size=64), tmp_path / "model.safetensors")
    assert load_sam(tmp_path / "model.safetensors").name == "own_conv"
    with safe_open(tmp_path / "own.safetensors", framework="pt") as file:
        stored = str(file.metadata())
    assert "own_conv" in stored
    assert "plain_conv" not in stored  # the function, as a path for importing it would name
    for loaded in (load_sam(tmp_path / "own.safetensors"), load_pretrained(tmp_path / "own.safetensors")):
        assert (loaded.name, loaded.encoder_name) == ("mini", "own_conv")
        for key, value in sam.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[key])

    monkeypatch.delenv("MOBILESAMV2_ENCODERS")
    registration._registered["sam"].clear()
    message = (
        r"safetensors must name a model of this version .* no (image encoder|model) 'own_conv'.* @register_encoder.*"
        r"mobilesamv2/models, .*mobilesamv2\.encoders, or that MOBILESAMV2_ENCODERS=MODULE names"
    )
    for name in ("own", "model"):
        with pytest.raises(ValueError, match=message):
            load_sam(tmp_path / f"{name}.safetensors")


def test_an_encoder_is_a_model_of_full_size_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "own_conv" not in list_models()
    register_by_variable(tmp_path, monkeypatch)
    assert list_models()[-1] == list_encoders()[-1] == "own_conv"
    _, row = models_table(["own_conv"]).splitlines()
    assert row.split()[:3] == ["own_conv", "own_conv", "1024"]
    with pytest.raises(ValueError, match=r"no weights for 'own_conv'.* build_sam\('own_conv', file\)"):
        load_pretrained("own_conv")


def test_installed_packages_register_by_an_entry_point(tmp_path: Path) -> None:
    (tmp_path / "packaged.py").write_text(EXAMPLE.replace('"plain_conv"', '"packaged_conv", "sam2"'))
    info = tmp_path / "packaged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mobilesamv2.encoders]\nany = packaged\n")
    assert list_encoders(Sam2)[-1] == "packaged_conv"
    assert build_encoder("packaged_conv", 64, 8, Sam2)(torch.zeros(1, 3, 64, 64)).shape == (1, 8, 4, 4)
    with pytest.raises(ValueError, match="'packaged_conv' is of another family than the model, Sam, which takes"):
        build_sam("mini", encoder="packaged_conv")


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*, image_size: int, out_channels: int) -> ImageEncoder:
        pytest.fail("a name that is refused, or only listed, builds nothing")

    for name in ("", "a/b", "timm/a", "a b"):
        with pytest.raises(ValueError, match="must be of letters, digits"):
            register_encoder(name)
    with pytest.raises(ValueError, match="family must be one of sam, sam2, got 'sam3'"):
        register_encoder("own", "sam3")  # pyright: ignore[reportArgumentType]
    register_encoder("own")(build)
    register_encoder("own")(build)  # as a module that is imported again does
    with pytest.raises(ValueError, match=r"Two encoders register as 'own': .*build and .*lambda"):
        register_encoder("own")(lambda: None)
    register_encoder("repvit")(build)
    with pytest.raises(ValueError, match="registers as 'repvit', which is the name of another"):
        list_encoders()
    (tmp_path / "broken_conv.py").write_text("import torch\n1 / 0\n")
    monkeypatch.setenv("MOBILESAMV2_ENCODERS", "broken_conv")
    for known in ("mini", "timm/resnet18"):
        build_sam(known)  # looks no further
    with pytest.raises(ValueError, match=r"module broken_conv, which may register .* ZeroDivisionError: division by"):
        build_sam("mini", encoder="any")


@pytest.mark.slow
def test_a_yaml_in_a_folder_of_ones_own_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the weights that training writes are evaluated by the name in them."""
    register_by_variable(tmp_path, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    (tmp_path / "my_conf" / "model").mkdir(parents=True)
    lines = ("_target_: mobilesamv2.build_sam", "name: micro_conv", "encoder: own_conv", "checkpoint: null")
    (tmp_path / "my_conf" / "model" / "own.yaml").write_text("\n".join(lines))
    given = ["dataset=synthetic", "dataset.size=[64,64]", "dataset.limit=6", "validation_images=2", "batch_size=2"]
    given += ["task.warmup_images=0", "trainer.max_epochs=1", "trainer.accelerator=cpu", "num_workers=0"]
    given += ["model@teacher=mini_conv", "teacher.cache=off", f"output_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "mobilesamv2", "train", "--config-dir", str(tmp_path / "my_conf"), "model=own"]
    subprocess.run([*command, *given], check=True, cwd=tmp_path)
    [written] = (tmp_path / "run").glob("*.safetensors")
    assert load_sam(written).encoder_name == "own_conv"
