"""Weight files: complete, in parts, of others, broken, and written by this project."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.official import official_mini, ours_from
from support.random_weights import stir

from mobilesamv2 import build_sam, load_sam
from mobilesamv2.checkpoints import load_weights, save_mobile_sam, save_weights
from mobilesamv2.models.sam import Sam


@pytest.fixture
def official_file(tmp_path: Path) -> Path:
    ours_from(official_mini(), tmp_path)
    return tmp_path / "sam_mini.pth"


def same_weights(a: Sam, b: Sam) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in a.state_dict().items())


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_and_prefixed_files_load(official_file: Path, tmp_path: Path, wrapper: str) -> None:
    state = torch.load(official_file)
    torch.save({wrapper: {f"module.sam.{k}": v for k, v in state.items()}}, tmp_path / "wrapped.pth")
    assert same_weights(build_sam("sam_vit_mini", tmp_path / "wrapped.pth"), build_sam("sam_vit_mini", official_file))


def test_an_image_encoder_alone_loads_with_or_without_prefix(official_file: Path, tmp_path: Path) -> None:
    state = {k: v for k, v in torch.load(official_file).items() if k.startswith("image_encoder.")}
    torch.save(state, tmp_path / "part.pth")
    torch.save({k.removeprefix("image_encoder."): v for k, v in state.items()}, tmp_path / "bare.pth")
    complete = build_sam("sam_vit_mini", official_file)
    for name in ("part.pth", "bare.pth"):
        sam = build_sam("sam_vit_mini")
        assert load_weights(sam, tmp_path / name) == ("image_encoder",)
        pixels = torch.randn(1, 3, 256, 256)
        assert torch.equal(sam.image_encoder(pixels), complete.image_encoder(pixels))


def test_a_missing_part_is_a_warning_or_an_error(official_file: Path, tmp_path: Path) -> None:
    state = {k: v for k, v in torch.load(official_file).items() if k.startswith("image_encoder.")}
    torch.save(state, tmp_path / "part.pth")
    with pytest.warns(UserWarning, match="prompt_encoder and mask_decoder of sam_vit_mini with random weights"):
        build_sam("sam_vit_mini", tmp_path / "part.pth")
    with pytest.raises(ValueError, match="prompt_encoder and mask_decoder of sam_vit_mini with random weights"):
        build_sam("sam_vit_mini", tmp_path / "part.pth", allow_partial=False)


def test_the_wrong_file_names_keys_and_shapes(official_file: Path, tmp_path: Path) -> None:
    state = torch.load(official_file)
    del state["mask_decoder.iou_token.weight"]
    state["prompt_encoder.extra"] = torch.zeros(1)
    state["image_encoder.neck.0.weight"] = torch.zeros(64, 48, 1, 1)
    torch.save(state, tmp_path / "wrong.pth")
    before = build_sam("sam_vit_mini")
    with pytest.raises(ValueError, match="does not fit sam_vit_mini") as error:
        load_weights(before, tmp_path / "wrong.pth")
    for phrase in (
        "missing key(s) in mask_decoder: iou_token.weight",
        "unexpected key(s) in prompt_encoder: extra",
        "size mismatch in image_encoder: neck.0.weight is (64, 48, 1, 1) in the file and (64, 96, 1, 1) in the model",
    ):
        assert phrase in str(error.value)


def test_a_file_of_another_model_is_a_short_error(official_file: Path) -> None:
    with pytest.raises(ValueError, match=r"does not fit mini: missing key\(s\) in image_encoder: .* more") as error:
        build_sam("mini", official_file)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


def test_pickled_code_is_not_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    with (tmp_path / "evil.pt").open("wb") as file:
        pickle.dump({"state_dict": Payload(marker)}, file, protocol=2)
    torch.save({"state_dict": Payload(marker)}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(ValueError, match=f"{name} can't be read as weights alone"):
            build_sam("mini", tmp_path / name)
    assert not marker.exists()


def test_truncated_empty_and_strange_files(official_file: Path, tmp_path: Path) -> None:
    (tmp_path / "half.pth").write_bytes(official_file.read_bytes()[:5000])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "half.safetensors").write_bytes(b"\x10\x00")
    for name in ("half.pth", "empty.pth", "half.safetensors"):
        with pytest.raises(ValueError, match=f"{name} can't be read"):
            build_sam("mini", tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="must contain a dictionary of weights, got a list"):
        build_sam("mini", tmp_path / "list.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"no part of a SAM; its keys are conv1\.weight"):
        build_sam("mini", tmp_path / "resnet.pth")
    with pytest.raises(FileNotFoundError, match=r"mobile_sam\.pt.*published at https://github\.com"):
        build_sam("mobile_sam", tmp_path / "mobile_sam.pt")


@pytest.mark.parametrize("encoder", [None, "timm/resnet18"])
def test_safetensors_contain_the_model_name(tmp_path: Path, encoder: str | None) -> None:
    sam = build_sam("mini", encoder=encoder)
    stir(sam, seed=1)
    save_weights(sam, tmp_path / "mine.safetensors")
    again = load_sam(tmp_path / "mine.safetensors")
    assert (again.name, again.encoder_name) == ("mini", encoder or "tiny_vit_mini")
    assert same_weights(sam, again)


def test_foreign_safetensors_require_a_name(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="must be a safetensors file written by mobilesamv2"):
        load_sam(tmp_path / "foreign.safetensors")


def test_a_model_has_the_input_that_its_weights_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    save_weights(build_sam("micro_conv", image_size=128), small)
    save_weights(build_sam("micro_conv"), large)
    assert build_sam("micro_conv", small).image_size == load_sam(small).image_size == 128
    assert build_sam("micro_conv", small, image_size=128).image_size == 128
    assert build_sam("micro_conv", large).image_size == 256
    assert not caplog.records
    assert build_sam("micro_conv", small, image_size=64).image_size == 64
    assert f"{small} for images of 128 pixels, and are used with image_size=64." in caplog.text
    with pytest.raises(ValueError, match=r"must be for one input, got .* of 128 pixels, .* of 256 pixels"):
        build_sam("micro_conv", [small, large])


def test_only_mobile_sam_is_written_as_mobile_sam(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="and 1024 pixels, got mini with tiny_vit_mini and 256"):
        save_mobile_sam(build_sam("mini"), tmp_path / "no.pt")
    with pytest.raises(ValueError, match="and 1024 pixels, got mobile_sam with tiny_vit_5m and 256"):
        save_mobile_sam(build_sam("mobile_sam", image_size=256), tmp_path / "no.pt")
