"""Layouts of weight files that training programs write, and files with several models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.random_weights import stir

from mobilesamv2 import build_sam
from mobilesamv2.checkpoints import load_weights
from mobilesamv2.models.sam import Sam
from mobilesamv2.models.sam_hq import SamHq, sam_hq_vit
from mobilesamv2.sam2_checkpoints import to_sam2
from mobilesamv2.transformers_checkpoints import to_transformers

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained() -> Sam:
    return build_sam("micro_conv")


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def in_parts(state: State, inserted: str) -> State:
    return {key.replace(".", f".{inserted}", 1): value for key, value in state.items()}


FRAME = {
    "pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
    "pixel_std": torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
LAYOUTS: dict[str, Callable[[State], dict[str, Any]]] = {
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": OPTIMIZER, "epoch": 3},
    "MedSAM": lambda s: {"model": prefixed(s, "module."), "optimizer": OPTIMIZER, "epoch": 3},
    "parts": lambda s: {
        part: {k.removeprefix(f"{part}."): v for k, v in s.items() if k.startswith(part)}
        for part in ("image_encoder", "prompt_encoder", "mask_decoder")
    },
    "frame": lambda s: s | FRAME,
    "Lightning": lambda s: {
        "state_dict": prefixed(s | FRAME, "model.") | {"focal_loss.alpha": torch.ones(1), "criterion.w": torch.ones(2)},
        "optimizer_states": [OPTIMIZER],
        "pytorch-lightning_version": "2.6.6",
    },
    "DDP of parts": lambda s: in_parts(s, "module."),
    "compiled parts": lambda s: in_parts(s, "_orig_mod."),
    "compiled and DDP": lambda s: prefixed(in_parts(s, "_orig_mod.module."), "_orig_mod."),
    "average": lambda s: prefixed(s, "module.") | {"n_averaged": torch.tensor(3)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_training_programs_load(trained: Sam, tmp_path: Path, layout: str) -> None:
    path = tmp_path / "tuned.pt"
    torch.save(LAYOUTS[layout](trained.state_dict()), path)
    sam = build_sam("micro_conv", path, allow_partial=False)
    assert all(torch.equal(value, sam.state_dict()[key]) for key, value in trained.state_dict().items())


@pytest.mark.parametrize("part", ["prompt_encoder", "mask_decoder"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_bare_part_loads_as_what_it_is(trained: Sam, tmp_path: Path, part: str, prefix: str) -> None:
    path = tmp_path / "part.pt"
    torch.save({"model": prefixed(getattr(trained, part).state_dict(), prefix)}, path)
    sam = build_sam("micro_conv")
    assert load_weights(sam, path) == (part,)
    theirs = getattr(trained, part).state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in getattr(sam, part).state_dict().items())


def without(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def hq() -> SamHq:
    """A SAM-HQ in miniature, of random weights."""
    sizes = {"embed_dim": 96, "depth": 2, "num_heads": 3, "global_attn_indexes": (1,)}
    encoder = sam_hq_vit("samvit_base_patch16", image_size=256, out_channels=64, **sizes)
    return SamHq(encoder, image_size=256, embed_dim=64, decoder_heads=4, decoder_mlp_dim=256)


def sam_hq_decoder(sam: Sam) -> State:
    """The mask decoder under SAM-HQ's names, which has two modules of our image encoder."""
    encoder = sam.image_encoder.state_dict().items()
    moved = {key: value for key, value in encoder if key.startswith(("compress_vit_feat.", "embedding_encoder."))}
    return sam.mask_decoder.state_dict() | moved


BARE: dict[str, tuple[Callable[[], Sam], Callable[[Sam], dict[str, Any]], str, tuple[str, ...]]] = {
    "our image encoder": (lambda: build_sam("micro_conv"), lambda s: s.image_encoder.state_dict(), "image_encoder", ()),
    "with pixels and a loss": (
        lambda: build_sam("micro_conv"),
        lambda s: s.mask_decoder.state_dict() | FRAME | {"loss.alpha": torch.ones(1)},
        "mask_decoder",
        (),
    ),
    "SAM-HQ": (hq, sam_hq_decoder, "mask_decoder", ("compress_vit_feat.", "embedding_encoder.")),
    "SAM-HQ, by its name": (
        hq,
        lambda s: prefixed(sam_hq_decoder(s), "mask_decoder."),
        "mask_decoder",
        ("compress_vit_feat.", "embedding_encoder."),
    ),
    "SAM 2": (
        lambda: build_sam("sam2_mini"),
        lambda s: {"model": without(to_sam2(s), "sam_mask_decoder.")},
        "mask_decoder",
        ("neck.conv_s0.", "neck.conv_s1."),
    ),
    "SAM 2, by its name": (
        lambda: build_sam("sam2_mini"),
        lambda s: {k: v for k, v in to_sam2(s).items() if k.startswith("sam_mask_decoder.")},
        "mask_decoder",
        ("neck.conv_s0.", "neck.conv_s1."),
    ),
    **{
        f"transformers' {theirs}": (
            lambda: build_sam("sam_vit_mini"),
            lambda s, theirs=theirs: without(to_transformers(s), f"{theirs}."),
            ours,
            (),
        )
        for theirs, ours in (("vision_encoder", "image_encoder"), ("mask_decoder", "mask_decoder"))
    },
}


@pytest.mark.parametrize("case", BARE)
def test_bare_parts_of_every_format_load(tmp_path: Path, case: str) -> None:
    build, layout, part, modules = BARE[case]
    theirs, ours, path = build(), build(), tmp_path / "part.pt"
    stir(theirs, seed=1)
    torch.save(layout(theirs), path)
    assert load_weights(ours, path) == (part,)
    loaded = [f"{part}.", *(f"image_encoder.{module}" for module in modules)]
    state = ours.state_dict()
    for key, value in theirs.state_dict().items():
        is_random = value.is_floating_point() and value.numel() > 1 and value.unique().numel() > 1
        if any(key.startswith(start) for start in loaded):
            assert torch.equal(value, state[key])
        elif is_random:
            assert not torch.equal(value, state[key])


def test_two_bare_parts_of_one_model_are_one_model(trained: Sam, tmp_path: Path) -> None:
    path = tmp_path / "parts.pt"
    torch.save({"encoder": trained.image_encoder.state_dict(), "decoder": trained.mask_decoder.state_dict()}, path)
    assert load_weights(build_sam("micro_conv"), path) == ("image_encoder", "mask_decoder")


def test_a_decoder_of_another_family_names_what_does_not_fit(tmp_path: Path) -> None:
    torch.save(sam_hq_decoder(hq()), tmp_path / "hq.pt")
    with pytest.raises(ValueError, match=r"unexpected key\(s\) in image_encoder\.compress_vit_feat: 0\.bias"):
        load_weights(build_sam("mini"), tmp_path / "hq.pt")
    official = {k: v for k, v in to_sam2(build_sam("sam2_mini")).items() if k.startswith("image_encoder.")}
    torch.save(official, tmp_path / "hiera.pt")
    with pytest.raises(ValueError, match=r"missing key\(s\) in image_encoder: neck\.conv_s0\.bias"):
        load_weights(build_sam("sam2_mini"), tmp_path / "hiera.pt")


TWO_MODELS: dict[str, tuple[Callable[[State, State], dict[str, Any]], str, str]] = {
    "student and teacher": (lambda a, b: prefixed(a, "student.") | prefixed(b, "teacher."), "student", "teacher"),
    "model and EMA": (lambda a, b: {"model": a, "ema": b}, "model", "ema"),
    "Lightning's average": (
        lambda a, b: {"state_dict": prefixed(a, "sam."), "current_model_state": prefixed(b, "sam.")},
        "state_dict",
        "current_model_state.sam",
    ),
    "one without a prefix": (lambda a, b: a | prefixed(b, "teacher."), "", "teacher"),
}


@pytest.mark.parametrize("case", TWO_MODELS)
def test_two_models_in_a_file_are_never_mixed_or_guessed(trained: Sam, tmp_path: Path, case: str) -> None:
    layout, first, second = TWO_MODELS[case]
    other = {key: value + 1 for key, value in trained.state_dict().items()}
    path = tmp_path / "two.pt"
    torch.save(layout(trained.state_dict(), other), path)
    with pytest.raises(
        ValueError, match=r"two\.pt holds 2 models, whose keys have the prefixes '.*', '.*'\. Ch.*\+model.*save_weights"
    ):
        build_sam("micro_conv", path)
    for prefix, expected in ((first, trained.state_dict()), (second, other)):
        sam = build_sam("micro_conv", path, prefix=prefix, allow_partial=False)
        assert all(torch.equal(value, expected[key]) for key, value in sam.state_dict().items())
    with pytest.raises(ValueError, match=r"prefix must be that of one model in .*two\.pt, one of '.*', got 'nobody'"):
        build_sam("micro_conv", path, prefix="nobody")


def test_parts_of_two_models_do_not_become_one(trained: Sam, tmp_path: Path) -> None:
    state = trained.state_dict()
    encoder = {k: v for k, v in state.items() if k.startswith("image_encoder.")}
    torch.save(prefixed(encoder, "student.") | prefixed(state, "teacher."), tmp_path / "two.pt")
    with pytest.raises(ValueError, match="holds 2 models, whose keys have the prefixes 'student', 'teacher'"):
        load_weights(build_sam("micro_conv"), tmp_path / "two.pt")
    assert load_weights(build_sam("micro_conv"), tmp_path / "two.pt", "student") == ("image_encoder",)


@pytest.mark.parametrize(
    ("layout", "of_whole", "of_bare"),
    [
        (lambda whole, bare: {"student": bare, "teacher": whole}, "teacher", "student"),
        (lambda whole, bare: {"model": whole, "ema": prefixed(bare, "module.")}, "model", "ema"),
        (lambda whole, bare: whole | {"image_encoder_ema": bare}, "", "image_encoder_ema"),
    ],
)
def test_a_bare_part_beside_a_model_is_another_model(
    tmp_path: Path, layout: Callable[[State, State], dict[str, Any]], of_whole: str, of_bare: str
) -> None:
    sam, path = build_sam("sam_vit_mini"), tmp_path / "two.pt"
    own = sam.image_encoder.state_dict()
    torch.save(layout(sam.state_dict(), {k.removeprefix("backbone."): v + 1 for k, v in own.items()}), path)
    with pytest.raises(ValueError, match=r"two\.pt holds 2 models, whose keys have the prefixes '.*', '.*'\. Choose"):
        load_weights(build_sam("sam_vit_mini"), path)
    whole, bare = build_sam("sam_vit_mini", path, prefix=of_whole, allow_partial=False), build_sam("sam_vit_mini")
    assert load_weights(bare, path, of_bare) == ("image_encoder",)
    assert all(torch.equal(value, own[key]) for key, value in whole.image_encoder.state_dict().items())
    assert all(torch.equal(value, own[key] + 1) for key, value in bare.image_encoder.state_dict().items())


UNETR = {"base.block.0.weight": torch.zeros(8, 4, 3, 3), "decoder.samplers.0.bias": torch.zeros(4)}
BESIDE: dict[str, tuple[Callable[[State], dict[str, Any]], str, str]] = {
    "micro-sam": (
        lambda s: {"model_state": prefixed(s, "module.sam."), "decoder_state": prefixed(UNETR, "module.sam.")},
        "decoder_state",
        "model_state.module.sam",
    ),
    "micro-sam, exported": (lambda s: s | {"decoder_state": UNETR}, "decoder_state", ""),
    "discriminator": (lambda s: {"model": s, "discriminator": {"0.weight": torch.zeros(2)}}, "discriminator", "model"),
    "other names": (lambda s: {"model": s, "ema": {"shadow": {"p0": torch.zeros(2, 3)}}}, "ema.shadow", "model"),
    "a tensor": (lambda s: {"model": s, "prototypes": torch.zeros(2, 3)}, "prototypes", "model"),
}


@pytest.mark.parametrize("case", BESIDE)
def test_other_weights_beside_the_model_are_left_out_with_one_warning(
    trained: Sam, tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    layout, name, prefix = BESIDE[case]
    path, expected = tmp_path / "tuned.pt", {key: value + 1 for key, value in trained.state_dict().items()}
    torch.save(layout(expected), path)
    sam = build_sam("micro_conv", path, allow_partial=False)
    assert all(torch.equal(value, expected[key]) for key, value in sam.state_dict().items())
    (record,) = caplog.records
    assert f"tuned.pt holds weights of no part of a SAM beside the model, which are left out: {name}." in record.message
    assert record.message.endswith(f"prefix={prefix!r}), or of train.py and evaluate.py +model.prefix={prefix}.")
    caplog.clear()
    assert len(load_weights(build_sam("micro_conv"), path, prefix)) == 3
    assert not caplog.records


ENCODER = {"backbone.conv.weight": torch.zeros(2, 3), "neck.0.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize(
    "record",
    [
        {"hyper_parameters": {"point_grid": torch.zeros(32, 2), "pixel_mean": torch.zeros(3)}},
        {"datamodule_hyper_parameters": {"boxes": torch.zeros(2, 4)}},
        {"callbacks": {"KNN{'k': 5}": {"bank": torch.zeros(8, 4), "encoder": ENCODER}}},
        {"loops": {"fit_loop": {"state_dict": ENCODER}}},
        {"args": {"class_weights": torch.zeros(2, 2)}},
        {"config": {"data": {"class_weights": torch.zeros(2, 2)}}},
        {"history": {"confusion": torch.zeros(2, 2)}},
        {"lr_schedulers": [], "scheduler_state_dict": {"last": {"weight": torch.zeros(1)}}},
        {"criterion": {"weight": torch.zeros(2)}, "metrics": {"confusion": torch.zeros(2, 2)}},
    ],
    ids=lambda record: next(iter(record)),
)
def test_records_of_a_training_are_neither_models_nor_weights(
    trained: Sam, tmp_path: Path, caplog: pytest.LogCaptureFixture, record: dict[str, Any]
) -> None:
    torch.save({"state_dict": prefixed(trained.state_dict(), "sam."), **record}, tmp_path / "last.ckpt")
    assert len(load_weights(build_sam("micro_conv"), tmp_path / "last.ckpt")) == 3
    assert not caplog.records


def test_other_pixels_beside_the_model_are_refused_unless_the_model_is_named(trained: Sam, tmp_path: Path) -> None:
    path = tmp_path / "pixels.pt"
    torch.save({"model": trained.state_dict(), "pixel_mean": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"has pixel_mean .* build_sam\(name, file, prefix='model'\), or .*x=model\."):
        load_weights(build_sam("micro_conv"), path)
    assert len(load_weights(build_sam("micro_conv"), path, "model")) == 3


@pytest.mark.parametrize("key", [0, "image_encoder.neck.0.weight"])
def test_the_states_of_optimizers_are_no_models(trained: Sam, tmp_path: Path, key: object) -> None:
    state = {"state": {key: {"exp_avg": torch.zeros(4, 4)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"model": trained.state_dict(), "optimizer": state}, tmp_path / "last.pt")
    assert len(load_weights(build_sam("micro_conv"), tmp_path / "last.pt")) == 3


def test_tensors_beside_the_model_that_may_matter_are_refused(trained: Sam, tmp_path: Path) -> None:
    path, state = tmp_path / "beside.pt", trained.state_dict()
    torch.save(prefixed(state, "sam.") | {"lora.0.weight": torch.zeros(4)}, path)
    with pytest.raises(ValueError, match=r"beside\.pt has unexpected key\(s\), of no part of a SAM: lora\.0\.weight"):
        load_weights(trained, path)
    torch.save(state | {"pixel_mean": torch.full((3, 1, 1), 127.5)}, path)
    with pytest.raises(ValueError, match=r"beside\.pt has pixel_mean \[127\.5.*normalise pixels with \(123\.675"):
        load_weights(trained, path)
    torch.save(state | {"pixel_std": torch.ones(4)}, path)
    with pytest.raises(ValueError, match=r"beside\.pt has pixel_std of shape \(4,\), .*normalise pix"):
        load_weights(trained, path)
    torch.save(state | {"mask_decoder.module.iou_token.weight": state["mask_decoder.iou_token.weight"]}, path)
    with pytest.raises(ValueError, match=r"beside\.pt has mask_decoder\.iou_token\.weight twice"):
        load_weights(trained, path)
