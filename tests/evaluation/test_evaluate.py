"""evaluate.py as a user runs it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.runs import evaluate, evaluate_here

from mobilesamv2 import SegEvery, build_sam
from mobilesamv2.cli.main import main as cli
from mobilesamv2.prompts import GridProposals


def test_scores_a_results_file_without_images_or_model(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = json.loads((dataset / "lvis.json").read_text())["annotations"]
    results = [a | {"score": 0.5} for a in annotations[:2]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    given = [f"dataset.annotations={dataset / 'lvis.json'}", "dataset.images=/nowhere"]
    given += [f"predictions={tmp_path / 'results.json'}", f"output_dir={tmp_path / 'out'}"]
    evaluate_here("dataset=lvis", *given)
    printed = capsys.readouterr().out
    assert "AR@1000" in printed
    assert "2 of 3 images have no mask" in printed

    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["metrics"]["AR@10"] == pytest.approx(2 / 3)
    for name in ("ARm@1000", "ARr@100", "mAR"):
        assert result["metrics"][name] == pytest.approx(2 / 3)
    assert result["metrics"]["ARs@10"] is None
    assert result["n_gt"] == {"all": 3, "s": 0, "m": 3, "l": 0, "r": 3, "c": 0, "f": 0}
    assert result["interval"].keys() == result["metrics"].keys()
    assert result["ms"] is None
    assert result["run"]["model"] is None
    assert result["protocol"]["images_without_proposals"] == 2
    counts = np.load(tmp_path / "out" / "per_image.npz")
    assert counts["image_ids"].tolist() == [1, 2, 3]
    assert counts["matches"].shape == (3, 7, 3, 10)
    assert counts["matches"][:, 0, 0, 0].tolist() == [2, 0, 0]
    assert counts["n_gt"][:, 0].tolist() == [2, 0, 1]

    evaluate_here("dataset=lvis", *given, "task.skip_images_without_results=true")
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["metrics"]["AR@10"] == 1.0
    assert result["protocol"]["num_images"] == 1


@pytest.mark.parametrize(
    "sampler",
    [
        ["prompt_sampler=grid_proposals", "prompt_sampler.points_per_side=6"],
        [
            "prompt_sampler=object_aware",
            "prompt_sampler.confidence=0.001",
            "detector=yolov8n",
            "detector.image_size=160",
        ],
    ],
    ids=["grid", "object_aware"],
)
def test_runs_a_model_from_end_to_end(
    dataset: Path, tmp_path: Path, sampler: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}"]
    evaluate_here("model=mini", *given, *sampler, f"output_dir={tmp_path / 'out'}", "trainer.accelerator=cpu")
    printed = capsys.readouterr()
    for word in ("AR@10 ", "AR@1000", "objects", "mask_decoder", "image_encoder"):
        assert word in printed.out
    assert "model.checkpoint is null: its weights are random" in printed.err
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["n_gt"]["all"] == 3
    assert all(ms > 0 for ms in result["ms"].values())
    prompts = result["protocol"]["mean_prompts_decoded"]
    assert prompts == 36 if "grid" in sampler[0] else 0 < prompts <= 320
    assert 0 < result["protocol"]["mean_proposals"] <= 1000
    assert result["run"]["model"]["name"] == "mini"
    assert result["run"]["dtype"] == "32-true"


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_model_and_its_results_file_score_the_same(dataset: Path, batch_size: int) -> None:
    """What Trainer.test counts is what predictions= counts of the same masks."""
    import pytorch_lightning as pl

    from mobilesamv2.data.datamodule import EvaluationData
    from mobilesamv2.data.lvis import LvisDataset
    from mobilesamv2.evaluation.segment_everything import EvaluateSegEvery
    from mobilesamv2.metrics.average_recall import AverageRecall, count_matches

    data = LvisDataset(dataset / "lvis.json", dataset / "images")
    segevery = SegEvery(build_sam("mini"), GridProposals(points_per_side=5))
    task = EvaluateSegEvery(segevery, AverageRecall())
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    images = EvaluationData(data, num_workers=0, batch_size=batch_size)
    logged = trainer.test(task, datamodule=images, verbose=False)[0]
    recall = AverageRecall()
    for i in range(len(data)):
        image, truth = data[i]
        results = segevery(image).to_coco(truth.image_id)
        recall.update(count_matches(truth, [r["segmentation"] for r in results], [r["score"] for r in results]))
    matched = sum(result.values["matched"] for result in task.results)
    assert (matched == recall.matched.numpy()).all()
    assert logged["test/ar_1000"] == pytest.approx(recall.compute()["AR@1000"])
    assert [result.image_id for result in task.results] == [1, 2, 3]
    assert [result.ms is None for result in task.results] == [True, batch_size == 2, False]


def drop_an_image(shard: Path) -> None:
    """As if the run had been killed before it."""
    with np.load(shard) as file:
        arrays = {name: array[:-1] if (array := file[name]).ndim else array for name in file.files}
    np.savez_compressed(shard, **arrays)


@pytest.mark.slow
def test_two_processes_print_the_same_digits(dataset: Path, tmp_path: Path) -> None:
    content = json.loads((dataset / "lvis.json").read_text())
    for image_id in (1, 2, 2, 3):  # whole images, which random weights find too
        whole = {"segmentation": [[0, 0, 130, 0, 130, 90, 0, 90]], "area": 11700.0, "category_id": 1}
        content["annotations"].append(whole | {"id": 100 + len(content["annotations"]), "image_id": image_id})
    (dataset / "lvis.json").write_text(json.dumps(content))
    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}", "model=mini"]
    given += ["prompt_sampler.points_per_side=4", "trainer.accelerator=cpu"]
    results = []
    # the last run goes on where one process stopped after two images, and leaves its second process without a share
    for run, devices in (("one", 1), ("two", 2), ("resumed", 2)):
        if run == "resumed":
            shutil.copytree(tmp_path / "one" / "progress", tmp_path / run / "progress")
            drop_an_image(next((tmp_path / run / "progress").glob("*.npz")))
        done = evaluate(*given, f"trainer.devices={devices}", f"output_dir={run}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("mask AR@K") == 1
        results.append(json.loads((tmp_path / run / "results.json").read_text()))
    one, two, resumed = results
    for key in ("metrics", "interval", "n_gt", "protocol"):
        assert one[key] == two[key] == resumed[key]
    assert one["protocol"]["num_images"] == 3
    assert one["n_gt"]["all"] == 7
    assert one["metrics"]["AR@1000"] > 0


@pytest.mark.slow
def test_a_compiled_encoder_finds_the_same(dataset: Path, tmp_path: Path) -> None:
    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}", "model=mini"]
    given += ["prompt_sampler.points_per_side=6", "trainer.accelerator=cpu", "num_workers=0"]
    metrics = []
    for name in ("false", "true"):
        evaluate_here(*given, f"compile={name}", f"output_dir={tmp_path / name}")
        metrics.append(json.loads((tmp_path / name / "results.json").read_text())["metrics"])
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)


@pytest.mark.slow
def test_an_ablation_in_miniature(dataset: Path, tmp_path: Path) -> None:
    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}", "model=mini"]
    given += ["detector=yolov8n", "hydra.sweeper.params.prompt_sampler='hierarchical,object_aware'"]
    done = evaluate("experiment=ablation_sampler", *given, "dataset.limit=2", "output_dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    samplers = [json.loads((tmp_path / "sweep" / job / "results.json").read_text())["protocol"] for job in ("0", "1")]
    assert [protocol["sampler"] for protocol in samplers] == ["Hierarchical", "ObjectAware"]
    cli(["report", str(tmp_path / "sweep"), "--baseline", "0"])
    table = (tmp_path / "sweep" / "report" / "table.md").read_text()
    assert re.search(r"\| +1 +\| +ObjectAware +\|", table)


@pytest.mark.slow
def test_the_jobs_of_a_sweep_write_apart(dataset: Path, tmp_path: Path) -> None:
    results = [a | {"score": 0.5} for a in json.loads((dataset / "lvis.json").read_text())["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"predictions={tmp_path / 'results.json'}"]
    done = evaluate("-m", *given, "output_dir=sweep", "task.metric.ks=[1],[2]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / "sweep" / job / "results.json").read_text()) for job in ("0", "1")]
    assert [result["protocol"]["ks"] for result in found] == [[1], [2]]
    assert found[0]["metrics"]["AR@1"] == pytest.approx(2 / 3)
    assert found[1]["metrics"]["AR@2"] == 1.0


def test_the_coco_api_example(shared_data: Path, tmp_path: Path) -> None:
    """Of the 100 images 99 have results: .482388 over these, and COCOeval's .481807 over all."""
    folder = shared_data / "cocoapi"
    given = [f"dataset.annotations={folder / 'instances_val2014_100.json'}", f"output_dir={tmp_path}"]
    given += [f"predictions={folder / 'instances_val2014_fakesegm100_results.json'}"]
    for skip, expected in ((False, 0.481807), (True, 0.482388)):
        evaluate_here(*given, f"task.skip_images_without_results={skip}")
        metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
        assert metrics["AR@100"] == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("sampler", ["prompt_sampler.points_per_side=4", "prompt_sampler=object_aware"])
def test_real_photos(shared_data: Path, tmp_path: Path, sampler: str) -> None:
    folder = shared_data / "bsds"
    given = [f"dataset.annotations={folder / 'val_lvis.json'}", f"dataset.images={folder / 'val'}", "dataset.limit=2"]
    given += ["model=mini", "detector=yolov8n", "trainer.accelerator=cpu", f"output_dir={tmp_path}"]
    evaluate_here(*given, sampler)
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["protocol"]["num_images"] == 2
    assert result["n_gt"]["f"] == result["n_gt"]["all"] > 0


def test_drawn_scenes_and_tars_are_evaluated_too(tmp_path: Path) -> None:
    from mobilesamv2.data.synthetic.dataset import SyntheticDataset
    from mobilesamv2.data.writers import write_sa1b_tar

    scenes = SyntheticDataset(3, (64, 96))
    write_sa1b_tar((scenes[i] for i in range(3)), tmp_path / "sa_000000.tar")
    sources = {
        "synthetic": ["dataset.limit=3", "dataset.size=[64,96]"],
        "sa1b": [f"dataset.tars={tmp_path / 'sa_000000.tar'}", "dataset.index_folder=null"],
    }
    counts = []
    for name, given in sources.items():
        given += ["model=mini", "prompt_sampler.points_per_side=2", f"output_dir={tmp_path / name}"]
        evaluate_here(f"dataset={name}", *given, "trainer.accelerator=cpu")
        counts.append(json.loads((tmp_path / name / "results.json").read_text())["n_gt"])
    assert counts[0] == counts[1]
    assert counts[0]["all"] > 3


def test_a_killed_evaluation_goes_on_where_it_stopped(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mobilesamv2.evaluation import shards as result_shards

    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}", "model=mini"]
    given += ["prompt_sampler.points_per_side=4", "trainer.accelerator=cpu", "task.save_masks=true", "num_workers=0"]
    evaluate_here(*given, f"output_dir={tmp_path / 'whole'}")

    monkeypatch.setattr(result_shards, "SECONDS_AT_RISK", 0.0)
    calls, real = [], SegEvery.generate_batch

    def dies_at_the_third(self: SegEvery, images: list[np.ndarray]):
        calls.extend(images)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, images)

    monkeypatch.setattr(SegEvery, "generate_batch", dies_at_the_third)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        evaluate_here(*given, f"output_dir={tmp_path / 'killed'}")
    assert not (tmp_path / "killed" / "results.json").exists()
    orphan = tmp_path / "killed" / "masks" / "orphan.json"
    orphan.write_text("[")  # masks of images whose counts were not written
    evaluate_here(*given, f"output_dir={tmp_path / 'killed'}")
    assert len(calls) == 4
    assert not orphan.exists()
    assert "2 of 3 images were done before; resuming with 1." in capsys.readouterr().out
    evaluate_here(*given, f"output_dir={tmp_path / 'killed'}")
    assert len(calls) == 4

    whole, killed = (json.loads((tmp_path / run / "results.json").read_text()) for run in ("whole", "killed"))
    for key in ("metrics", "interval", "n_gt", "protocol"):
        assert whole[key] == killed[key]
    with pytest.raises(SystemExit, match=r"holds another run .points_per_side was 4 and is 3"):
        evaluate_here(*given, "prompt_sampler.points_per_side=3", f"output_dir={tmp_path / 'killed'}")
    with pytest.raises(SystemExit, match=r"holds another run .model\.encoder was tiny_vit_mini and is sam_vit_mini"):
        evaluate_here(*given, "encoder=sam_vit_mini", f"output_dir={tmp_path / 'killed'}")
    (tmp_path / "else" / "masks").mkdir(parents=True)
    (tmp_path / "else" / "masks" / "mine.json").write_text("[]")
    with pytest.raises(SystemExit, match=r"else holds masks or results, but not progress/identity\.json"):
        evaluate_here(*given, f"output_dir={tmp_path / 'else'}")


def test_kept_masks_are_coco_results_and_score_the_same(dataset: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}", "model=mini"]
    out = tmp_path / "out"
    evaluate_here(*given, "prompt_sampler.points_per_side=4", "task.save_masks=true", f"output_dir={out}")
    shards = sorted((out / "masks").glob("*.json"))
    assert len(COCO(str(dataset / "lvis.json")).loadRes(str(shards[0])).anns) > 0
    evaluate_here(*given, f"predictions={out / 'masks'}", f"output_dir={tmp_path / 'again'}")
    first, again = (json.loads((folder / "results.json").read_text()) for folder in (out, tmp_path / "again"))
    for key in ("metrics", "interval", "n_gt"):
        assert first[key] == again[key]


@pytest.mark.slow
def test_k_caps_prompts_where_the_sampler_ranks_them(dataset: Path, tmp_path: Path) -> None:
    given = [f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}", "model=mini"]
    with pytest.raises(
        SystemExit, match=r"error: GridProposals does not rank its prompts; .* task\.metric\.k_caps=masks"
    ):
        evaluate_here(*given, "task.metric.k_caps=prompts", f"output_dir={tmp_path}/grid")
    given += ["prompt_sampler=object_aware", "prompt_sampler.confidence=0.001", "detector=yolov8n"]
    given += ["detector.image_size=160", "task.metric.k_caps=prompts"]
    with pytest.raises(SystemExit, match=r"error: k_caps=prompts .* prompt_sampler\.box_nms_thresh=1"):
        evaluate_here(*given, "prompt_sampler.box_nms_thresh=.9", f"output_dir={tmp_path}/nms")
    with pytest.raises(SystemExit, match="k_caps must be one of masks, prompts, got 'boxes'"):
        evaluate_here(*given, "task.metric.k_caps=boxes", f"output_dir={tmp_path}/typo")
    counted = {}
    for k_caps in ("masks", "prompts"):
        more = ["prompt_sampler.multimask_output=true", "task.metric.ks=[2]", f"task.metric.k_caps={k_caps}"]
        evaluate_here(*given, *more, f"output_dir={tmp_path}/{k_caps}")
        protocol = json.loads((tmp_path / k_caps / "results.json").read_text())["protocol"]
        assert protocol["k_caps"] == k_caps
        counted[k_caps] = protocol["mean_proposals"]
    assert counted["masks"] <= 2 < counted["prompts"] <= 6
