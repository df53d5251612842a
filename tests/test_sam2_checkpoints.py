"""What we write of a SAM 2 is the official format: the official code loads it, and so do we."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.official_sam2 import calibrate_sam2, official_sam2_mini, ours_from_sam2, predictor_of
from support.random_weights import pass_filters, stir

from mobilesamv2 import SegAny, build_sam
from mobilesamv2.checkpoints import save_sam2
from mobilesamv2.models.sam import Sam
from mobilesamv2.recipes.run_outputs import sam_writers, write_files

MEMORY_OF_SAM2_1 = {
    *("memory_attention", "memory_encoder", "mask_downsample", "obj_ptr_proj", "obj_ptr_tpos_proj"),
    *("maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial"),
}


def check_masks(predictor: Any, segany: SegAny, photo: np.ndarray) -> None:
    """A prompt of points and a box, one mask and three, are the same in both."""
    predictor.set_image(photo)
    segany.set_image(photo)
    points, box = np.array([[20.0, 30.0], [100.5, 60.0]]), np.array([10.0, 12.5, 90.0, 80.0])
    for theirs, mine in (
        ({"point_coords": points, "point_labels": np.array([1, 0])}, {"points": points, "labels": [1, 0]}),
        ({"box": box}, {"boxes": box}),
    ):
        for multimask_output in (False, True):
            full, predicted_iou, low_res = predictor.predict(
                **theirs, multimask_output=multimask_output, return_logits=True
            )
            found = segany.predict(**mine, multimask_output=multimask_output)
            np.testing.assert_allclose(found.predicted_iou[0], predicted_iou, atol=1e-5)
            differs = found.masks[0] != (full > 0)
            logits = np.abs(found.low_res_logits[0] - low_res).max() / np.abs(full).max()
            iou = np.abs(found.predicted_iou[0] - predicted_iou).max()
            print(f"logits {logits:.1e}, IoU {iou:.1e}; {differs.sum()} of {differs.size} pixels differ")
            assert logits < 1e-5
            assert np.abs(full[differs]).max(initial=0) < 1e-4
            assert 0 < (full > 0).mean() < 1


@pytest.fixture
def official(photo: np.ndarray) -> Any:
    sam = official_sam2_mini()
    calibrate_sam2(sam, photo)
    return sam


@pytest.fixture
def released(official: Any, tmp_path: Path) -> Path:
    """A file as the official one, memory included."""
    torch.save({"model": official.state_dict()}, tmp_path / "released.pt")
    return tmp_path / "released.pt"


@pytest.fixture
def ours(official: Any, tmp_path: Path) -> Sam:
    return ours_from_sam2(official, tmp_path)


def written(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, weights_only=True)
    assert list(content) == ["model"]
    return content["model"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def test_the_official_image_predictor_makes_our_masks(ours: Sam, photo: np.ndarray, tmp_path: Path) -> None:
    save_sam2(ours, tmp_path / "mine.pt")
    other = official_sam2_mini()
    stir(other, seed=9)
    weights = written(tmp_path / "mine.pt")
    assert other.state_dict().keys() - weights == {"maskmem_tpos_enc", "no_mem_pos_enc"}  # its memory in miniature
    other.load_state_dict(other.state_dict() | weights)
    check_masks(predictor_of(other), SegAny(ours), photo)


def test_what_we_write_comes_back_bit_for_bit(ours: Sam, tmp_path: Path) -> None:
    save_sam2(ours, tmp_path / "mine.pt")
    again = build_sam("sam2_mini", tmp_path / "mine.pt", allow_partial=False)
    assert same(again.state_dict(), ours.state_dict())


def test_with_a_memory_the_file_is_the_official_one(official: Any, ours: Sam, released: Path, tmp_path: Path) -> None:
    save_sam2(ours, tmp_path / "mine.pt", memory_from=released)
    assert same(written(tmp_path / "mine.pt"), official.state_dict())
    official_sam2_mini().load_state_dict(written(tmp_path / "mine.pt"))


def test_a_run_writes_the_official_format_where_it_can(tmp_path: Path) -> None:
    names = [path.name for path in write_files(sam_writers(build_sam("sam2_mini")), tmp_path)]
    assert names == ["sam2_mini.safetensors", "sam2_mini_image.pt"]
    assert written(tmp_path / "sam2_mini_image.pt")["no_mem_embed"].shape == (1, 1, 64)
    names = [path.name for path in write_files(sam_writers(build_sam("sam2_mini", encoder="tiny_vit_mini")), tmp_path)]
    assert names == ["sam2_mini.safetensors"]


@pytest.mark.parametrize(
    ("name", "encoder", "reason"),
    [
        ("mini", None, "mini with tiny_vit_mini: its mask decoder is another one"),
        ("sam2_mini", "tiny_vit_mini", "tiny_vit_mini: the official code has no image encoder but Hiera"),
        ("sam2_mini", "tiny_vit_mini_stride16", "tiny_vit_mini_stride16: it leaves out finer levels of the image"),
    ],
)
def test_other_shapes_are_refused(name: str, encoder: str | None, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"must be a SAM 2 with a Hiera .*, got .*{reason}"):
        save_sam2(build_sam(name, encoder=encoder), tmp_path / "no.pt")
    assert not any(tmp_path.iterdir())


def test_copies_for_inference_and_files_without_a_memory_are_refused(ours: Sam, released: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not be a copy for inference"):
        save_sam2(ours.for_inference(), tmp_path / "no.pt")
    save_sam2(ours, tmp_path / "image.pt")
    with pytest.raises(ValueError, match=r"image\.pt must be a released file of SAM 2 with its memory"):
        save_sam2(ours, tmp_path / "no.pt", memory_from=tmp_path / "image.pt")
    with pytest.raises(ValueError, match=r"released\.pt must have the model's 128 channels, got 64"):
        save_sam2(build_sam("sam2_mini_conv", encoder="sam2_hiera_mini"), tmp_path / "no.pt", memory_from=released)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        save_sam2(ours, tmp_path / "no.pt", memory_from=tmp_path / "nowhere.pt")
    assert not (tmp_path / "no.pt").exists()


@pytest.mark.slow
def test_the_official_builders_load_a_full_size_file_strictly(photo: np.ndarray, tmp_path: Path) -> None:
    from hydra import initialize_config_module
    from sam2.build_sam import build_sam2, build_sam2_video_predictor
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    torch.manual_seed(0)
    config = "configs/sam2.1/sam2.1_hiera_t.yaml"
    with initialize_config_module("sam2", version_base="1.2"):
        theirs = build_sam2(config, ckpt_path=None, device="cpu")
        torch.save({"model": theirs.state_dict()}, tmp_path / "released.pt")
        sam = build_sam("sam2.1_hiera_tiny")  # other random weights
        stir(sam, seed=6)
        pass_filters(sam.mask_decoder, iou_scale=20.0)
        save_sam2(sam, tmp_path / "mine.pt", memory_from=tmp_path / "released.pt")
        loaded = build_sam2(config, ckpt_path=str(tmp_path / "mine.pt"), device="cpu")
        build_sam2_video_predictor(config, ckpt_path=str(tmp_path / "mine.pt"), device="cpu")
    check_masks(SAM2ImagePredictor(loaded, disable_torch_jit=True), SegAny(sam), photo)
    save_sam2(sam, tmp_path / "image.pt")
    weights = written(tmp_path / "image.pt")
    assert {key.split(".")[0] for key in theirs.state_dict().keys() - weights} == MEMORY_OF_SAM2_1
    theirs.load_state_dict(theirs.state_dict() | weights)
