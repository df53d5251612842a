"""What a benchmark's names choose, and when a cell is done."""

import json
from pathlib import Path

import pytest
import yaml
from support.runs import composed

from mobilesamv2.files import sha256_of
from mobilesamv2.recipes import benchmark_cells, schema
from mobilesamv2.recipes.benchmark_cells import Cell, is_done, model_choices
from mobilesamv2.recipes.benchmark_cells import benchmark_cells as cells_of

schema.register()


def overrides(text: str) -> tuple[str, ...]:
    [choice] = model_choices([text])
    return choice.overrides


def test_a_name_chooses_a_model_with_its_weights() -> None:
    assert overrides("mini_conv") == ("model=mini_conv",)
    assert overrides("micro_conv") == ("model=micro_conv",)
    assert overrides("mini_conv_slim") == ("model=by_name", "model.name=mini_conv_slim")  # no file is published
    cfg = composed(*overrides("edge_sam_3x"), "paths.weights=somewhere")
    assert (cfg.model.name, list(cfg.model.checkpoint)) == ("edge_sam_3x", ["somewhere/edge_sam_3x.pth"])
    assert not cfg.model.allow_partial


def test_texts_are_names_or_settings() -> None:
    chosen = model_choices(
        ["mini,mini_conv", "micro_conv model.image_size=320", "mine: model=by_name 'model.name=a b'"]
    )
    assert [(choice.label, choice.overrides) for choice in chosen] == [
        ("mini", ("model=mini",)),
        ("mini_conv", ("model=mini_conv",)),
        ("micro_conv", ("model=micro_conv", "model.image_size=320")),
        ("mine", ("model=by_name", "model.name=a b")),
    ]
    protocols = benchmark_cells.protocol_choices(["sam_boxes_ap task.boxes=b.json", "evaluate_prompts"])
    assert [choice.overrides for choice in protocols] == [
        ("protocol=sam_boxes_ap", "task.boxes=b.json"),
        ("task=evaluate_prompts",),
    ]


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["mini_con"], "There is no model 'mini_con'. Did you mean 'mini_conv'"),
        (["mini", "mini"], "Every model must have a name of its own, got mini twice"),
        ([""], "There must be a model at least, got none: --models NAME,NAME."),
        (["report: model=mini"], "other than logs and report, got 'report'"),
        (["../x: model=mini"], "got '../x'"),
    ],
)
def test_a_choice_that_makes_no_sense_is_a_sentence(texts: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace(".", r"\.")):
        model_choices(texts)


def test_a_protocol_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"There is no protocol 'sam_proposal'\. Did you mean 'sam_proposals'"):
        benchmark_cells.protocol_choices(["sam_proposal"])


def test_every_model_is_under_every_protocol(tmp_path: Path) -> None:
    models, protocols = (
        model_choices(["mini,timm/convnext_atto"]),
        benchmark_cells.protocol_choices(["ritm_noc,sam_hq"]),
    )
    cells = cells_of(models, protocols, ["dataset=coco"], tmp_path)
    assert [str(cell.folder.relative_to(tmp_path)) for cell in cells] == [
        "mini/ritm_noc", "mini/sam_hq", "timm-convnext_atto/ritm_noc", "timm-convnext_atto/sam_hq",
    ]  # fmt: skip
    assert cells[0].overrides == ("model=mini", "protocol=ritm_noc", "dataset=coco")
    assert cells[0].command == (
        f"mobilesamv2 evaluate model=mini protocol=ritm_noc dataset=coco output_dir={tmp_path}/mini/ritm_noc"
    )


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    """A cell with a result."""
    folder, weights = tmp_path / "cell", tmp_path / "mine.safetensors"
    weights.write_text("weights")
    made_with = ["model=mini", "dataset.limit=8", "num_workers=4", f"output_dir={folder}"]
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(made_with))
    model = {"name": "mini", "checkpoint": str(weights), "backbone_checkpoint": None, "sha256": [sha256_of([weights])]}
    result = {
        "run": {"model": model, "device": "cpu"},
        "protocol": {"annotations": "gone.json", "annotations_sha256": "0"},
    }
    (folder / "results.json").write_text(json.dumps(result))
    return Cell("mini", "x", folder, ("model=mini", "dataset.limit=8", "num_workers=0", "trainer.accelerator=cpu"))


def test_a_result_of_the_same_settings_is_done(cell: Cell) -> None:
    assert is_done(cell)
    (cell.folder / "results.json").unlink()
    assert not is_done(cell)


def test_a_result_of_other_settings_is_refused(cell: Cell) -> None:
    other = Cell(cell.model, cell.protocol, cell.folder, ("model=mini", "dataset.limit=4"))
    with pytest.raises(ValueError, match=r"holds another run \(dataset.limit was 8 and is 4\). Name another folder"):
        is_done(other)


def test_a_result_of_files_that_have_changed_is_refused(cell: Cell) -> None:
    weights = cell.folder.parent / "mine.safetensors"
    weights.write_text("trained further")
    benchmark_cells._hash.cache_clear()
    with pytest.raises(ValueError, match=r"holds a result of another .*mine\.safetensors, which has changed since"):
        is_done(cell)
    weights.unlink()
    assert is_done(cell)  # a result stands without them


@pytest.mark.parametrize("content", [b"", b"[1", b"3", b"\x00"])
def test_a_damaged_record_is_a_sentence(cell: Cell, content: bytes) -> None:
    (cell.folder / ".hydra" / "overrides.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"overrides\.yaml, the record of .* can't be read"):
        is_done(cell)
