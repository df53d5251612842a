"""The two programs from Python."""

import json
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from support.runs import QUIET, SMALL

from mobilesamv2 import load_sam
from mobilesamv2.recipes.run import evaluate, train


@pytest.mark.slow
def test_a_model_is_trained_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*SMALL, *QUIET, "dataset.limit=4", "validation_images=2", "teacher.cache=off", "trainer.max_epochs=1"]
    run = train(*given, f"output_dir={tmp_path / 'run'}")
    assert run == tmp_path / "run"
    assert load_sam(run / "mini.safetensors").name == "mini"
    capsys.readouterr()
    weights = (run / "mini.safetensors").stat().st_mtime_ns
    assert train(*given, f"output_dir={run}") == run
    assert f"{run} is done\n" in capsys.readouterr().out
    assert (run / "mini.safetensors").stat().st_mtime_ns == weights
    assert not GlobalHydra.instance().is_initialized()
    measured = evaluate(
        "task=evaluate_prompts",
        "task.kinds=[box]",
        "dataset=synthetic",
        "dataset.limit=1",
        "model=mini",
        f"model.checkpoint={run / 'mini.safetensors'}",
        *(setting for setting in QUIET if not setting.startswith("batch_size")),
        f"output_dir={tmp_path / 'measured'}",
    )
    assert "mIoU box" in json.loads((measured / "results.json").read_text())["metrics"]


def test_the_folder_of_the_default_name_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [setting for setting in QUIET if not setting.startswith("batch_size")]
    given = ["dataset=synthetic", "dataset.limit=1", "model=mini", "task=evaluate_prompts", "task.kinds=[box]"]
    folder = evaluate(*given, *settings)
    assert folder.parent == Path("outputs/evaluate")
    assert [path.name for path in (tmp_path / "outputs" / "evaluate").iterdir()] == [folder.name]
    assert (tmp_path / folder / "results.json").is_file()


def test_what_can_not_run_is_an_error_and_no_exit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no experiment=distil_tinyvit.*Did you mean .*distill_tinyvit"):
        train("experiment=distil_tinyvit")
    with pytest.raises(ValueError, match=r"There is no key optimizer\.rl\. optimizer has lr, weight_decay"):
        train("optimizer.rl=1")
    with pytest.raises(ValueError, match=r"A sweep is many runs, and this is one: mobilesamv2 train exper"):
        train("experiment=ablation_coupling")
    with pytest.raises(ValueError, match="requires a task"):
        evaluate("~task", "dataset=synthetic", f"output_dir={tmp_path}")
    with pytest.raises(FileNotFoundError, match=r"There is no annotation file nowhere\.json"):
        evaluate("dataset=coco", "dataset.annotations=nowhere.json", "model=mini", f"output_dir={tmp_path}")


def test_a_broken_file_is_the_error_of_its_reader(tmp_path: Path) -> None:
    """And none of Hydra's, which builds the data set."""
    (tmp_path / "broken.json").write_text('{"images": [{"id": "1"}], "annotations": [], "categories": []}')
    data = ["dataset=coco", f"dataset.annotations={tmp_path / 'broken.json'}", f"dataset.images={tmp_path}"]
    with pytest.raises(ValueError, match=r'^Image number 0 of .*broken\.json must have .* got the text "1"'):
        evaluate(*data, "model=mini", *QUIET, f"output_dir={tmp_path / 'out'}")
    with pytest.raises(ValueError, match=r"^Image number 0 of .*broken\.json must have"):
        train(*SMALL, *data, *QUIET, f"output_dir={tmp_path / 'out'}")
