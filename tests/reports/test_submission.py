"""Submitted results: one as an evaluation left it is accepted, and one that was edited in any place is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs import evaluate_here
from support.small_lvis import write_small_lvis

from mobilesamv2.checkpoints import save_weights
from mobilesamv2.cli.main import main
from mobilesamv2.evaluation.shards import ImageResult
from mobilesamv2.recipes import schema
from mobilesamv2.recipes.evaluation import encoder_cost_of
from mobilesamv2.recipes.protocols import require_recorded_protocol
from mobilesamv2.recipes.records import code_sha256
from mobilesamv2.registry import build_sam
from mobilesamv2.reports.leaderboard import COLUMNS, add_results, leaderboard_page, read_results_file
from mobilesamv2.reports.recompute import recompute
from mobilesamv2.reports.submission import _check_cost, check_submission

schema.register()

PROTOCOLS = {
    "prompts": ["protocol=efficientsam3_box"],
    "clicks": ["protocol=efficientvit_sam_clicks"],
    "proposals": ["protocol=sam_proposals"],
    "boxes": ["protocol=edgesam_boxes_ap"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An evaluation of each kind, of a model of 320 pixels, which is no miniature to the leaderboard."""
    folder = tmp_path_factory.mktemp("submission")
    image = (np.random.default_rng(3).random((90, 130, 3)) * 255).astype(np.uint8)
    data = write_small_lvis(folder / "data", image)
    weights = folder / "mine.safetensors"
    save_weights(build_sam("mini", image_size=320), weights)
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 50], "score": 0.9}]
    (folder / "boxes.json").write_text(json.dumps(boxes))
    shared = [
        "model=mini", f"model.checkpoint={weights}", "model.image_size=320", "trainer.accelerator=cpu", "num_workers=0",
        "dataset=lvis", f"dataset.annotations={data / 'lvis.json'}", f"dataset.images={data / 'images'}",
        "+trainer.enable_progress_bar=false",
    ]  # fmt: skip
    for kind, protocol in PROTOCOLS.items():
        more = [f"task.boxes={folder / 'boxes.json'}"] if kind == "boxes" else []
        limit = ["dataset.limit=1"] if kind == "proposals" else []  # 4,096 points
        evaluate_here(*shared, *protocol, *more, *limit, f"output_dir={folder / kind}")
    return {kind: folder / kind for kind in PROTOCOLS}


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of an evaluation, to be edited."""
    return shutil.copytree(runs["prompts"], tmp_path / "run")


def check(folder: Path, annotations: Path | None = None) -> dict[str, Any]:
    return check_submission(folder, code_sha256(), require_recorded_protocol, annotations)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change results.json."""
    path = folder / "results.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROTOCOLS)
def test_a_result_as_it_was_left_is_accepted(kind: str, runs: dict[str, Path]) -> None:
    result = check(runs[kind])
    assert result["protocol"]["name"] == PROTOCOLS[kind][0].removeprefix("protocol=")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r["metrics"].update({"mIoU box": 0.9}), "metrics.mIoU box in results.json is 0.9, and its images"),
        (lambda r: r["metrics"].pop("mIoU box"), "metrics in results.json must have mIoU box"),
        (lambda r: r["interval"].update({"mIoU box": [0.8, 0.9]}), r"interval.mIoU box in results.json is \[0.8"),
        (lambda r: r["n_gt"].update({"all": 4}), "n_gt in results.json is .* and its images have"),
        (lambda r: r["ms"].update({"total": 1.0}), "ms.total in results.json is 1.0"),
        (lambda r: r["run"]["peak_memory"].update({"mib": 1.0}), "run.peak_memory.mib in results.json is 1.0"),
        (lambda r: r["protocol"].update({"num_images": 2}), "results.json is of 2 images, and progress/ has 3"),
        (lambda r: r["protocol"].update({"image_list_sha256": "0"}), "image_list_sha256 is 0 in results.json and"),
        (lambda r: r["run"].update({"photos_sha256": "0"}), "run.photos_sha256 is not the hash of the content of its"),
        (lambda r: r["protocol"].update({"mask_choice": "oracle"}), "mask_choice is oracle in results.json and single"),
        (lambda r: r["run"]["model"].update({"name": "mobile_sam"}), "model.name is mobile_sam in results.json"),
        (lambda r: r["run"]["model"].update({"checkpoint": None}), "mini had random weights: model.checkpoint was"),
        (lambda r: r["run"]["model"].update({"sha256": []}), "mini had random weights"),
        (lambda r: r["run"]["model"].update({"allow_partial": True}), "mini may have been random in part"),
        (lambda r: r["run"].update({"teacher": {"sha256": []}}), "its teacher had random weights"),
        (lambda r: r["run"]["model"].update({"name": "mini_conv"}), "mini_conv is a miniature"),
        (lambda r: r["run"]["encoder_cost"].update({"input_side": 256}), "mini is a miniature"),
        (lambda r: r["run"]["model"].update({"onnx_encoder": "e.onnx"}), "e.onnx took the place of the image encoder"),
        (lambda r: r["run"].update({"model": None}), "no model was evaluated"),
        (lambda r: r["protocol"].pop("name"), "it names no protocol"),
        (lambda r: r["protocol"].update({"name": "mine"}), "protocol.name must be one of conf/protocol, got mine"),
        (lambda r: r["protocol"].update({"name": "sam_hq"}), "boundary_dilation_ratio is null in .* and 0.02 in prot"),
        (lambda r: r["protocol"].update({"annotations_sha256": None}), "its annotations have no SHA-256"),
        (lambda r: r["run"].update({"code_sha256": "0"}), "it was made by other code"),
        (lambda r: r["run"].update({"device": "H100"}), "device is H100 in .*, and no part of progress/ has"),
        (lambda r: r["run"]["versions"].update({"torch": "9"}), "versions is .*'9'.* in results.json, and no part of"),
        (lambda r: r["run"]["encoder_cost"].update({"parameters": 9}), "encoder_cost.parameters is 9 in results.json"),
        (lambda r: r["run"]["encoder_cost"].update({"macs": 9}), "encoder_cost.macs is 9 in results.json, and tiny"),
        (lambda r: r["run"]["encoder_cost"].update({"input_side": 9000}), "encoder_cost.input_side is 9000 in results"),
        (lambda r: r["run"]["versions"].pop("torch"), "it does not say which versions made it"),
        (lambda r: r["run"].pop("encoder_cost"), "results.json lacks what an evaluation writes"),
    ],
)  # fmt: skip
def test_an_edited_result_is_refused(run: Path, change: Callable[[dict[str, Any]], object], reason: str) -> None:
    edit(run, change)
    with pytest.raises(ValueError, match=f"is refused: .*{reason}"):
        check(run)


def test_metrics_of_another_kind_are_refused() -> None:
    """Of a metric of one's own, this code does not know what its counts are."""
    image = ImageResult(1, {"n_gt": np.array([1])}, None, 0)
    with pytest.raises(ValueError, match="its metrics are of a kind that can't be computed again from its images"):
        recompute({"protocol": {"metric": {}}, "run": {"seed": 0}}, [image], Path(), None)


@pytest.mark.slow
def test_edited_counts_are_refused(run: Path) -> None:
    path = run / "per_image.npz"
    arrays = dict(np.load(path))
    np.savez_compressed(path, **arrays | {"iou_sums": arrays["iou_sums"] + 0.1})
    with pytest.raises(ValueError, match=r"iou_sums in per_image\.npz is not what progress/ has"):
        check(run)
    np.savez_compressed(path, **arrays)
    check(run)
    shutil.rmtree(run / "progress")
    with pytest.raises(ValueError, match=r"it has no progress/\*\.npz"):
        check(run)


@pytest.mark.slow
def test_a_part_that_other_code_made_is_refused(run: Path) -> None:
    [path] = (run / "progress").glob("*.npz")
    arrays = dict(np.load(path))
    environment = json.loads(str(arrays["environment"])) | {"code_sha256": "0"}
    np.savez_compressed(path, **arrays | {"environment": np.array(json.dumps(environment))})
    with pytest.raises(ValueError, match=r"made by other code \(code_sha256 0, and here .*\): check out its commit"):
        check(run)


@pytest.mark.slow
def test_average_precision_needs_its_annotations(runs: dict[str, Path], tmp_path: Path) -> None:
    moved = shutil.copytree(runs["boxes"], tmp_path / "run")
    named = Path(json.loads((moved / "results.json").read_text())["protocol"]["annotations"])
    other = tmp_path / "other.json"
    other.write_text(named.read_text() + " ")
    with pytest.raises(ValueError, match=r"its annotations are not those of .*other\.json"):
        check(moved, other)
    assert check(moved, named)["metrics"]["AP"] is not None
    with pytest.raises(FileNotFoundError, match="which is not there: --annotations FILE"):
        check(moved, tmp_path / "none.json")


@pytest.mark.slow
def test_submit_adds_a_result_once(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.csv"
    command = ["benchmark", "submit", str(run), "--by", "A. Nybody", "--results", str(results)]
    main([*command, "--dry-run"])
    assert not results.exists()
    main(command)
    main(command)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{run}: accepted", f"{run}: added to {results}", f"{run}: was in {results} before"]
    rows = read_results_file(results)
    assert [row["metric"] for row in rows] == ["mIoU box"]
    result = json.loads((run / "results.json").read_text())
    assert float(rows[0]["value"]) == result["metrics"]["mIoU box"]
    assert (rows[0]["weights"], rows[0]["input_side"], rows[0]["by"]) == ("mine.safetensors", "320", "A. Nybody")
    page = leaderboard_page(rows)
    assert "## efficientsam3_box, lvis.json, 3 images" in page
    assert "| mini " in page
    assert f"{100 * result['metrics']['mIoU box']:.1f} [" in page


LINE = dict.fromkeys(COLUMNS) | {"model": "mini", "protocol": "sam_hq", "by": "me"}


@pytest.mark.parametrize(
    ("column", "there", "sentence"),
    [
        ("value", 0.99, "value of mIoU box is 0.99 there and 0.05 here"),
        ("high", None, "high of mIoU box is empty there and 0.06 here"),
        ("total_ms", 1.0, "total_ms of mIoU box is 1.0 there and 20.0 here"),
        ("metric", "AP", "value of AP is 0.05 there and absent here"),
    ],
)
def test_another_outcome_in_the_results_is_no_result_of_before(
    column: str, there: object, sentence: str, tmp_path: Path
) -> None:
    """Whoever reviews a submission runs the command for this; nothing is added where one of the results disagrees."""
    results = tmp_path / "results.csv"
    row = LINE | {"metric": "mIoU box", "value": 0.05, "low": 0.04, "high": 0.06, "total_ms": 20.0}
    assert add_results([[row]], results) == [True]
    assert add_results([[row | {"by": "a reviewer"}]], results) == [False]
    results.unlink()
    assert add_results([[row | {column: there}]], results) == [True]
    before = results.read_bytes()
    with pytest.raises(ValueError, match=f"has another outcome of this result of mini under sam_hq: {sentence}"):
        add_results([[row | {"model": "another"}], [row]], results)
    assert results.read_bytes() == before


def test_results_on_other_photos_of_the_same_ids_stand_apart(tmp_path: Path) -> None:
    row = LINE | {"metric": "mIoU box", "value": 0.05, "parameters": 9, "macs": 9, "images": 1, "annotations": "a.json"}
    results = tmp_path / "results.csv"
    assert add_results([[row | {"photos_sha256": "1" * 64}], [row | {"photos_sha256": "2" * 64}]], results) == [
        True,
        True,
    ]
    page = leaderboard_page(read_results_file(results))
    assert page.count("## sam_hq, a.json, 1 images") == 2
    assert "of the photos `222222222222`." in page


def test_a_results_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    results = tmp_path / "results.csv"
    results.write_text(f"{','.join(COLUMNS[:-1])}\n{','.join('sam_hq' for _ in COLUMNS[:-1])}\n")
    [row] = read_results_file(results)
    assert (row["protocol"], row["photos_sha256"]) == ("sam_hq", "")
    assert add_results([[LINE | {"metric": "mIoU box", "photos_sha256": "1"}]], results) == [True]
    assert [row["photos_sha256"] for row in read_results_file(results)] == ["", "1"]


@pytest.mark.slow
def test_submit_adds_nothing_where_one_cell_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "all" / "a")
    edit(shutil.copytree(run, tmp_path / "all" / "b"), lambda result: result["metrics"].update({"mIoU box": 0.99}))
    results = tmp_path / "results.csv"
    with pytest.raises(SystemExit, match=r"error: .*/all/b is refused: metrics\.mIoU box.* Nothing was added\."):
        main(["benchmark", "submit", str(tmp_path / "all"), "--by", "me", "--results", str(results)])
    assert not results.exists()


@pytest.mark.slow
def test_what_can_not_be_submitted_is_a_sentence(run: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.csv"
    for folder, path, sentence in (
        (tmp_path / "none", results, "There is no results.json in .*none or below"),
        (run, tmp_path / "no" / "results.csv", "run this in a clone, or name --results CSV"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            main(["benchmark", "submit", str(folder), "--by", "me", "--results", str(path)])
    results.write_text("model,value\n")
    with pytest.raises(SystemExit, match="must have the columns protocol, annotations"):
        main(["benchmark", "submit", str(run), "--by", "me", "--results", str(results)])
    results.write_text(",".join(COLUMNS) + "\na,b\n")
    with pytest.raises(ValueError, match="has a line of more or fewer values than columns"):
        read_results_file(results)


def test_the_page_without_results_says_so() -> None:
    assert "Nobody has submitted a result so far." in leaderboard_page([])


def test_the_cost_of_a_model_is_that_of_the_input_which_its_weights_state() -> None:
    model = {"name": "mini_conv", "encoder": "mini_conv", "image_size": None}
    for size in (256, 384):
        _check_cost({"model": model, "encoder_cost": encoder_cost_of(build_sam("mini_conv", image_size=size))})
    cost = encoder_cost_of(build_sam("mini_conv", image_size=384)) | {"image_size": 256}
    with pytest.raises(ValueError, match=r"encoder_cost\.macs is \d+ in results\.json, and mini_conv has \d+"):
        _check_cost({"model": model, "encoder_cost": cost})
