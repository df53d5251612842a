"""What a benchmark's names choose, and when a cell is done."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support.runs import composed
from support.small_lvis import write_small_lvis

from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.evaluation.shards import ImageResult, ResultShards
from mobilesamv2.files import read_arrays
from mobilesamv2.recipes import benchmark_cells, benchmark_inputs, schema
from mobilesamv2.recipes.benchmark import describe_cells
from mobilesamv2.recipes.benchmark_cells import Cell, is_done, model_choices
from mobilesamv2.recipes.benchmark_cells import benchmark_cells as cells_of
from mobilesamv2.recipes.evaluation import hash_of, image_list_record
from mobilesamv2.recipes.records import config_record

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


@pytest.mark.parametrize(
    ("model", "protocol", "shared", "sentence"),
    [
        (
            "a: model=mini dataset.image_list=b.txt",
            "sam_hq",
            [],
            "same images, got dataset.image_list=b.txt for a: set",
        ),
        ("mini dataset=coco", "sam_hq", ["dataset=coco"], "All models must have the same images, got dataset=coco"),
        ("mini seed=1", "sam_hq", ["seed=2"], "one value in a cell, got seed=1 for mini and seed=2 for every cell"),
        ("mini", "sam_hq dataset.limit=1", ["+dataset.limit=2"], "limit=1 for sam_hq and .dataset.limit=2 for every"),
        (
            "mini task.min_area=",
            "sam_hq ~task.min_area",
            [],
            "got task.min_area= for mini and ~task.min_area for sam_hq",
        ),
        ("mini +task.x=1", "sam_hq task.x=2", [], r"got \+task.x=1 for mini and task.x=2 for sam_hq: leave one of"),
    ],
)
def test_settings_that_can_not_be_one_table_are_refused_before_anything_runs(
    model: str, protocol: str, shared: list[str], sentence: str, tmp_path: Path
) -> None:
    chosen = model_choices([model]), benchmark_cells.protocol_choices([protocol])
    with pytest.raises(ValueError, match=sentence):
        cells_of(*chosen, shared, tmp_path)


def test_a_setting_may_be_said_twice(tmp_path: Path) -> None:
    chosen = model_choices(["mini seed=1"]), benchmark_cells.protocol_choices(["sam_hq dataset=coco"])
    assert len(cells_of(*chosen, ["seed=1", "dataset=coco"], tmp_path)) == 1


def test_a_setting_may_be_said_in_two_ways(tmp_path: Path) -> None:
    chosen = (
        model_choices(["mini +trainer.benchmark=true ~teacher"]),
        benchmark_cells.protocol_choices(["sam_hq ++trainer.benchmark=true ~teacher=null"]),
    )
    assert len(cells_of(*chosen, ["trainer.benchmark=true"], tmp_path)) == 1


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    """A cell with a result on one photo."""
    data = write_small_lvis(tmp_path / "data", np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "w").mkdir()
    for name in ("w/tinysam.pth", "boxes.json"):
        (tmp_path / name).write_text("content")
    (tmp_path / "ids.txt").write_text("1")
    given = (
        *overrides("tinysam"), "protocol=edgesam_boxes_ap", f"task.boxes={tmp_path}/boxes.json", "dataset=lvis",
        f"dataset.annotations={data}/lvis.json", f"dataset.images={data}/images", f"paths.weights={tmp_path}/w",
        f"dataset.image_list={tmp_path}/ids.txt",
    )  # fmt: skip
    folder, cfg = tmp_path / "cell", composed(*given)
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*given, "num_workers=4"]))
    (folder / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    dataset = instantiate(cfg.dataset, _convert_="all")
    boxes = {"boxes_sha256": hash_of(tmp_path / "boxes.json")}
    result = {"run": {"model": config_record(cfg.model)}, "protocol": boxes | image_list_record(dataset, [0])}
    (folder / "results.json").write_text(json.dumps(result))
    shards = ResultShards(folder, {})
    shards.add(ImageResult(1, {"n": np.zeros(1)}, None, 0, content_hash=dataset.content_hash(0)))
    shards.flush()
    return Cell("tinysam", "x", folder, (*given, "num_workers=0", "trainer.accelerator=cpu"))


def look_again(cell: Cell) -> bool:
    """What a benchmark finds that is started anew."""
    benchmark_inputs.forget()
    return is_done(cell)


def test_a_result_of_the_same_settings_is_done(cell: Cell) -> None:
    assert is_done(cell)
    (cell.folder / "results.json").unlink()
    assert not is_done(cell)


def test_a_result_of_other_settings_is_refused(cell: Cell) -> None:
    other = Cell(cell.model, cell.protocol, cell.folder, (*cell.overrides, "dataset.limit=4"))
    with pytest.raises(ValueError, match=r"holds another run \(dataset.limit was null and is 4\). Name another folder"):
        is_done(other)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("w/tinysam.pth", "trained further", r"another .*w/tinysam\.pth \(SHA-256 ed7002b439e9, and now"),
        ("boxes.json", "other boxes", r"another .*boxes\.json"),
        ("data/lvis.json", None, r"other annotations than .*lvis\.json has now"),
        ("ids.txt", "2", "other images than the settings choose now"),
        ("data/images/1.png", "another photo", "another photo of image 1"),
    ],
)
def test_a_result_of_files_that_have_changed_is_refused(
    name: str, content: str | None, sentence: str, cell: Cell
) -> None:
    path = cell.folder.parent / name
    before = path.read_text(errors="replace")
    path.write_text(before + " " if content is None else content)
    with pytest.raises(ValueError, match=f"holds a result of {sentence}.*Name another folder"):
        look_again(cell)
    path.unlink()
    assert look_again(cell)  # a result stands without them


def test_a_dry_run_reads_no_photo(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = CocoDataset.content_hash
    monkeypatch.setattr(CocoDataset, "content_hash", lambda self, index: read.append(index) or real(self, index))
    benchmark_inputs.forget()
    assert describe_cells([cell]).endswith("done")
    assert read == []
    assert is_done(cell)
    assert read == [0]


def test_counts_of_a_result_are_not_read(cell: Cell) -> None:
    """Of the files of its images, ids and hashes alone: the values may take gigabytes."""
    [shard] = cell.folder.glob("progress/*.npz")
    arrays = read_arrays(shard)
    with zipfile.ZipFile(shard, "a") as archive:
        archive.writestr("value/damaged.npy", b"")
    assert look_again(cell)
    assert benchmark_cells.images_done(cell) == arrays["image_id"].size == 1


def test_a_result_of_weights_from_another_folder_is_refused(cell: Cell) -> None:
    """Which one it is does not count; what lies there does."""
    folder = cell.folder.parent / "v"
    folder.mkdir()
    elsewhere = Cell(cell.model, cell.protocol, cell.folder, (*cell.overrides, f"paths.weights={folder}"))
    (folder / "tinysam.pth").write_text("content")
    assert look_again(elsewhere)
    (folder / "tinysam.pth").write_text("another model")
    with pytest.raises(ValueError, match=r"holds a result of another .*v/tinysam\.pth"):
        look_again(elsewhere)


def test_boxes_of_another_name_are_the_same_by_their_content(cell: Cell) -> None:
    copy = cell.folder.parent / "copy.json"
    copy.write_text("content")
    renamed = Cell(cell.model, cell.protocol, cell.folder, (*cell.overrides, f"task.boxes={copy}"))
    assert look_again(renamed)
    copy.write_text("other boxes")
    with pytest.raises(ValueError, match=r"holds a result of another .*copy\.json"):
        look_again(renamed)


def test_another_number_of_weight_files_is_refused(cell: Cell) -> None:
    result = json.loads((cell.folder / "results.json").read_text())
    result["run"]["model"]["sha256"] *= 2
    (cell.folder / "results.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"another number of weight files of model \(2, and now 1\)"):
        look_again(cell)


def test_a_result_of_other_files_of_conf_is_refused(cell: Cell) -> None:
    path = cell.folder / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("mask_choice: single", "mask_choice: oracle"))
    with pytest.raises(ValueError, match=r"holds another run \(task\.mask_choice was oracle and is single\)"):
        is_done(cell)


def test_of_what_is_done_nothing_stays_in_memory(cell: Cell) -> None:
    other = Cell(cell.model, cell.protocol, cell.folder / "none", cell.overrides)
    assert benchmark_cells.waiting_cells([cell, other]) == [other]
    kept = (benchmark_inputs._hash, benchmark_inputs._content_hash, benchmark_inputs._dataset)
    assert [cached.cache_info().currsize for cached in kept] == [0, 0, 0]


@pytest.mark.parametrize("content", [b"", b"[1", b"3", b"\x00"])
def test_a_damaged_record_is_a_sentence(cell: Cell, content: bytes) -> None:
    (cell.folder / ".hydra" / "overrides.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"overrides\.yaml, the record of .* can't be read"):
        is_done(cell)
