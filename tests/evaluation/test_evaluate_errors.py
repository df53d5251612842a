"""What evaluate.py says to a user's mistakes."""

from pathlib import Path

import pytest
from support.runs import evaluate, evaluate_here


@pytest.mark.slow
def test_missing_files_are_all_named_at_once(tmp_path: Path) -> None:
    done = evaluate("dataset=lvis", "prompt_sampler=object_aware", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for phrase in (
        "no annotation file data/lvis/lvis_v1_val.json",
        "no folder of images data/coco",
        "published at https://dl.fbaipublicfiles.com/LVIS/lvis_v1_val.json.zip",
        "no weight file weights/mobile_sam.pt",
        "no weight file weights/ObjectAwareModel.pt",
        "put it at weights/mobile_sam.pt",
    ):
        assert phrase in done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=mobil_sam"], "Did you mean 'mobile_sam'"),
        (["predictions=none.json"], "There is no file none.json"),
        (["task.metric.ks=[]"], "ks, numbers of masks, must be"),
        (["batch_size=0"], "batch_size must be at least 1"),
        (["trainer.precision=bf16-true"], "use 32-true or bf16-mixed"),
        (
            ["task=evaluate_prompts", "batch_size=2"],
            "batch_size must not be set: task=evaluate_prompts takes one image",
        ),
        (["predictions={file}", "compile=true"], "compile must not be set: predictions=FILE runs no model"),
        (
            ["prompt_sampler=object_aware", "detector=yolov8n", "prompt_sampler.prompt=box"],
            "prompt must be one of boxes, points",
        ),
    ],
)
def test_errors_are_sentences(dataset: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}", "model=mini"]
    file = tmp_path / "results.json"
    file.write_text("[]")
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        evaluate_here(*given, f"output_dir={tmp_path}", *(o.format(file=file) for o in overrides))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [{"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "2"}])
def test_processes_that_are_started_apart_want_a_named_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: dict[str, str]
) -> None:
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    done = evaluate("dataset=synthetic", "model=mini", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: Several processes were started" in done.stderr
    assert "output_dir=FOLDER" in done.stderr


def test_a_mistyped_key_is_a_sentence(tmp_path: Path) -> None:
    done = evaluate("sede=1", cwd=tmp_path)
    assert done.returncode == 1
    assert "sede" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_or_broken_image_is_a_sentence(dataset: Path, tmp_path: Path) -> None:
    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}", "model=mini"]
    given += ["prompt_sampler.points_per_side=2", f"output_dir={tmp_path / 'out'}"]
    (dataset / "images" / "2.png").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match=r"^error: .*2\.png can't be decoded"):
        evaluate_here(*given, "num_workers=1")
    (dataset / "images" / "2.png").unlink()
    with pytest.raises(SystemExit, match=r"^error: Image 2 of .* 1 of 3 images are missing"):
        evaluate_here(*given)


def test_options_that_nothing_would_read_are_refused(dataset: Path, tmp_path: Path) -> None:
    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"output_dir={tmp_path / 'out'}"]
    given_images = [f"dataset.images={dataset / 'images'}", "model=mini"]
    with pytest.raises(SystemExit, match="skip_images_without_results is of predictions=FILE"):
        evaluate_here(*given, *given_images, "task.skip_images_without_results=true")
    with pytest.raises(SystemExit, match="subset_seed"):
        evaluate_here(*given, "dataset.subset_seed=1", "predictions=tests")


def test_a_number_of_images_that_lightning_limits_is_no_result(dataset: Path, tmp_path: Path) -> None:
    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}", "model=mini"]
    given += ["prompt_sampler.points_per_side=2", "+trainer.limit_test_batches=1", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(SystemExit, match="1 results for 3 images"):
        evaluate_here(*given)
