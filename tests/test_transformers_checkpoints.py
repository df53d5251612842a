"""transformers' SamModel: its files load, its outputs are ours, and it loads what we write."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import RecordParity, relative_difference
from support.official import official_mini, ours_from
from support.random_weights import stir

from mobilesamv2 import build_sam, load_pretrained, load_sam
from mobilesamv2.checkpoints import load_weights, save_transformers
from mobilesamv2.models.sam import Sam


@pytest.fixture
def ours(tmp_path: Path) -> Sam:
    return ours_from(official_mini(), tmp_path)


@pytest.fixture
def folder(ours: Sam, tmp_path: Path) -> Path:
    return save_transformers(ours, tmp_path / "saved")


@torch.no_grad()
def check_parity(sam: Sam, model: Any, record_parity: RecordParity) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, sam.image_size, sam.image_size, generator=generator)
    corners = torch.rand(5, 2, 2, generator=generator) * sam.image_size
    boxes, points, labels = torch.cat([corners.amin(1), corners.amax(1)], 1), corners[:, :1], torch.ones(5, 1)
    embedding = model.get_image_embeddings(pixels)
    single = model(image_embeddings=embedding, input_boxes=boxes[None], multimask_output=False)
    several = model(image_embeddings=embedding, input_points=points[None], input_labels=labels[None])
    mine = [
        *sam.decode(embedding, boxes_xyxy=boxes, multimask_output=False),
        *sam.decode(embedding, points, labels, multimask_output=True),
    ]
    theirs = [value[0] for output in (single, several) for value in (output.pred_masks, output.iou_scores)]
    encoder = relative_difference(sam.image_encoder(pixels), embedding)
    decoder = [relative_difference(a, b) for a, b in zip(mine, theirs, strict=True)]
    print(f"embedding {encoder:.1e}; mask, IoU, three masks, their IoU:", *(f"{d:.1e}" for d in decoder))
    name = "sam_vit_* at 256 pixels" if sam.name == "sam_vit_mini" else str(sam.name)
    record_parity(name, "embedding", encoder, "transformers")
    record_parity(name, "masks", max(decoder[::2]), "transformers")
    assert encoder < 1e-4
    assert embedding[0].flatten(1).std(1).mean() > 0.1 * embedding.std()  # it depends on the place
    assert max(decoder) < 1e-5


def transformers_model(vision: dict[str, Any], size: int, width: int, heads: int, mlp_dim: int) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    common = {"image_size": size, "patch_size": 16}
    config = transformers.SamConfig(
        vision_config=common | vision | {"output_channels": width, "num_pos_feats": width // 2},
        prompt_encoder_config=common | {"hidden_size": width},
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": mlp_dim,
            "num_attention_heads": heads,
            "iou_head_hidden_dim": width,
            "layer_norm_eps": 1e-5,
        },
    )
    model = transformers.SamModel(config).eval()
    stir(model, seed=6)
    # released models have SAM's frequencies, of scale 1; here they start so large that float32 loses digits of angles
    model.shared_image_embedding.positional_embedding.data.div_(model.config.vision_config.scale)
    return model


def test_a_folder_of_transformers_loads_and_agrees(tmp_path: Path, record_parity: RecordParity) -> None:
    vision = {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "mlp_dim": 384,
        "global_attn_indexes": [1, 3],
    }
    model = transformers_model(vision, 256, 64, 4, 256)
    model.save_pretrained(tmp_path / "theirs")
    sam = load_pretrained(tmp_path / "theirs")
    assert sam.name == "sam_vit_mini"
    check_parity(sam, model, record_parity)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")  # with the positions under both names
    again = build_sam("sam_vit_mini", tmp_path / "pytorch_model.bin", allow_partial=False)
    assert all(torch.equal(value, sam.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width", "mlp_dim"), [("slimsam_50", 384, 1536), ("slimsam_77", 168, 696)])
def test_slimsam_agrees(tmp_path: Path, name: str, width: int, mlp_dim: int, record_parity: RecordParity) -> None:
    model = transformers_model({"hidden_size": width, "mlp_dim": mlp_dim}, 1024, 256, 8, 2048)
    model.save_pretrained(tmp_path)
    sam = load_pretrained(tmp_path)
    assert sam.name == name
    check_parity(sam, model, record_parity)


def test_transformers_loads_what_we_write(ours: Sam, folder: Path, record_parity: RecordParity) -> None:
    transformers = pytest.importorskip("transformers")
    model, report = transformers.SamModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    check_parity(ours, model.eval(), record_parity)
    config = transformers.SamImageProcessor.from_pretrained(folder)
    assert dict(config.size) == {"longest_edge": 256}


def test_what_we_write_comes_back_bit_for_bit(ours: Sam, folder: Path) -> None:
    again = load_sam(folder / "model.safetensors")
    assert again.name == "sam_vit_mini"
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())


def test_another_image_size_comes_back(tmp_path: Path) -> None:
    sam = build_sam("sam_vit_mini", image_size=128)
    folder = save_transformers(sam, tmp_path)
    again = load_pretrained(folder)
    assert (again.name, again.image_size) == ("sam_vit_mini", 128)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in sam.state_dict().items())
    state = load_file(folder / "model.safetensors")
    save_file(state | {"vision_encoder.pos_embed": torch.zeros(1, 0, 0, 96)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors must hold a SamModel for images .* \(1, 0, 0, 96\)"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "pytorch_model.bin",
            r"got pytorch_model\.bin: load it by .* build_sam\('sam_vit_b', '.*pytorch_model\.bin'\)",
        ),
        ("model.safetensors.index.json", r"got weights in several files\. transformers joins them: SamModel"),
    ],
)
def test_folders_of_other_weight_files_name_the_way_out(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(ValueError, match=rf"must hold a model\.safetensors, {message}"):
        load_pretrained(tmp_path)


def test_an_encoder_without_the_rest_loads_as_a_part(folder: Path, tmp_path: Path) -> None:
    state = {k: v for k, v in load_file(folder / "model.safetensors").items() if k.startswith("vision_encoder.")}
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "encoder.pt")
    assert load_weights(build_sam("sam_vit_mini"), tmp_path / "encoder.pt") == ("image_encoder",)


def test_only_a_sam_vit_is_written_for_transformers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a SAM with a SAM ViT to be written for transformers, got mini with"):
        save_transformers(build_sam("mini"), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[" * 100_000, r"config\.json is not valid JSON: "),
        ("config.json", "[]", r"config\.json must hold a JSON object, as transformers writes it, got \[\]"),
        ("config.json", "null", r"config\.json must hold a JSON object, .* got null"),
        ("config.json", {"model_type": "sam2"}, r'config\.json must have the model_type sam, got the text "sam2"'),
        ("config.json", {"vision_config": []}, r"config\.json must have an object as vision_config, got \[\]"),
        ("preprocessor_config.json", "3", r"preprocessor_config\.json must hold a JSON object, .* got 3"),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}, r"image_mean 0\.485, 0\.456, .* got \[0\.5"),
        ("preprocessor_config.json", {"image_std": [1, 1]}, r"must have the image_std 0\.229, .* got \[1, 1\]"),
        ("preprocessor_config.json", {"image_mean": "0.5"}, "must have the image_mean .* got the text"),
        ("preprocessor_config.json", {"do_normalize": False}, "must not have do_normalize false"),
        ("processor_config.json", {"image_processor": {"image_std": [0.5] * 3}}, "must have the image_std"),
    ],
)
def test_settings_that_are_none_or_of_another_model_are_refused(
    folder: Path, name: str, content: Any, message: str
) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"image_mean": [123.675, 116.28, 103.53], "rescale_factor": 1},
        {"image_mean": None, "do_normalize": True, "rescale_factor": 0.00392156862745098},
    ],
)
def test_the_normalisation_of_sam_loads(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "sam", "vision_config": {"model_type": ""}}))
    assert load_pretrained(folder).name == "sam_vit_mini"


def test_other_settings_sizes_and_positions_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_attention_heads"] = 6
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"config\.json has vision_config\.num_attention_heads 6, but sam_vit_mini has 3"
    ):
        load_pretrained(folder)
    weights = folder / "model.safetensors"
    state = load_file(weights)
    twice = state | {"prompt_encoder.shared_embedding.positional_embedding": torch.zeros(2, 32)}
    save_file(twice, weights)
    with pytest.raises(ValueError, match=r"model\.safetensors can't be loaded: prompt_encoder\.shared_embedding"):
        load_sam(weights)
    state["vision_encoder.pos_embed"] = torch.zeros(1, 16, 16, 100)
    save_file(state, weights)
    with pytest.raises(ValueError, match="a ViT of width 100 and 4 blocks, which must be one of sam_vit_b"):
        load_sam(weights)
