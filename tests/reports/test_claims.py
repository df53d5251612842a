"""MobileSAMv2's claims on fabricated evaluations: held, failed, unresolved, and what is missing."""

import json
import re
from pathlib import Path

import pytest
from support.runs import write_run

from mobilesamv2.cli.main import main
from mobilesamv2.data.lvis import LvisDataset

# name: share of the objects found, model, sampler, points per side, multimask, prompts, ms of mask decoding
RUNS = {
    "grid_64": (0.5, "mini_conv", "GridProposals", 64, True, 4096, 3200.0),
    "grid_16": (0.2, "mini_conv", "GridProposals", 16, True, 256, 200.0),
    "boxes": (1.0, "mini_conv", "ObjectAware", None, False, 40, 20.0),
    "student": (0.5, "micro_conv", "ObjectAware", None, False, 40, 20.0),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    main(["synthesize", str(tmp_path / "scenes"), "--scenes", "6", "--size", "64", "--workers", "0"])
    scenes = LvisDataset(tmp_path / "scenes" / "annotations.json", tmp_path / "scenes" / "images")
    for name, (share, model, sampler, points, multimask, prompts, ms) in RUNS.items():
        protocol = {"sampler": sampler, "points_per_side": points, "multimask": multimask}
        write_run(scenes, tmp_path / "runs" / name, share, **protocol, images=str(tmp_path / "scenes" / "images"))
        change(
            tmp_path / "runs" / name,
            ms={"image_encoder": 5.0, "mask_decoder": ms, "postprocessing": 1.0, "total": ms + 6},
            run={"model": {"name": model}, "device": "cpu", "encoder_cost": {"parameters": 411904, "macs": 100173824}},
            prompts=prompts,
        )
    return tmp_path / "runs"


def change(folder: Path, ms: dict | None = None, prompts: int | None = None, **parts: dict) -> None:
    result = json.loads((folder / "results.json").read_text())
    result |= parts
    result["ms"] = ms or result["ms"]
    if prompts is not None:
        result["protocol"]["mean_prompts_decoded"] = prompts
    (folder / "results.json").write_text(json.dumps(result))


def claims(folder: Path, *options: str) -> None:
    main(["report", "claims", str(folder), "--teacher", "mini_conv", "--student", "micro_conv", *options])


def single_spaced(text: str) -> str:
    return re.sub(" +", " ", text)


def test_each_claim_is_evaluated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    claims(folder)
    printed = single_spaced(capsys.readouterr().out)
    assert "HELD Object-aware boxes take at least 16 times less" in printed
    assert (
        "160.0 times less, by the same code: 20 ms for 40 boxes with one mask each, 3200 ms for 4096 points" in printed
    )
    assert "with three; 10.0 times less than grid 16 x 16, teacher" in printed
    assert "HELD Object-aware boxes have a higher mean AR" in printed
    assert "points against the best one, grid 64 x 64, teacher" in printed
    assert "FAILED The distilled student keeps 86%" in printed
    assert "| grid 16 x 16, teacher | 256 | 3 | 200 | 1 | 206 |" in printed
    assert "| boxes, student | micro_conv | 0.41 | 0.100 | 5.0 |" in printed
    markdown, page = ((folder / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert markdown.count("**held**") == page.count('<b class="held">') == 2
    assert markdown.count("**failed**") == page.count('<b class="failed">') == 1
    assert page.count("data:image/svg+xml;base64,") == 3
    assert page.count("data:image/png;base64,") == 4 * (2 + 3)  # four images, their objects, three runs
    assert "MobileSAMv2&#39;s table 2" in page
    for name in ("masks", "differences", "ar_against_k", "ar_against_time"):
        assert f"]({name}.png)" in markdown
        assert (folder / f"{name}.png").is_file()
    assert not (folder / "ablation.png").exists()  # more than one setting varies


@pytest.mark.slow
def test_times_are_those_of_the_processor_where_all_runs_have_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (*_, ms) in RUNS.items():
        cpu_ms = {"image_encoder": 3.0, "mask_decoder": ms / 2, "postprocessing": 1.0, "total": ms}
        change(folder / name, cpu_ms=cpu_ms)
    claims(folder)
    printed = single_spaced(capsys.readouterr().out)
    assert "| mask decoder, ms of CPU time |" in printed
    assert "| grid 16 x 16, teacher | 256 | 3 | 100 | 1 | 200 |" in printed
    assert "10 ms of CPU time for 40 boxes" in printed


def test_a_claim_may_fail(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder / "boxes", ms={"image_encoder": 5.0, "mask_decoder": 201.0, "postprocessing": 1.0, "total": 207.0})
    counts = {name: (folder / name / "per_image.npz").read_bytes() for name in ("grid_64", "boxes")}
    (folder / "grid_64" / "per_image.npz").write_bytes(counts["boxes"])
    (folder / "boxes" / "per_image.npz").write_bytes(counts["grid_64"])
    claims(folder)
    printed = single_spaced(capsys.readouterr().out)
    assert "FAILED Object-aware boxes take at least 16 times less" in printed
    assert "FAILED Object-aware boxes have a higher mean AR" in printed


def test_a_difference_whose_interval_contains_0_is_unresolved(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "grid_64" / "per_image.npz").write_bytes((folder / "boxes" / "per_image.npz").read_bytes())
    claims(folder)
    printed = single_spaced(capsys.readouterr().out)
    assert "UNRESOLVED Object-aware boxes have a higher mean AR" in printed
    assert "+0.0 [+0.0, +0.0] points" in printed
    markdown, page = ((folder / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert markdown.count("**unresolved**") == page.count('<b class="unresolved">') == 1


@pytest.mark.slow
def test_the_dense_grid_may_be_of_fewer_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = LvisDataset(folder.parent / "scenes" / "annotations.json", folder.parent / "scenes" / "images", limit=2)
    dense = folder.parent / "dense"
    for name in ("grid_64", "boxes"):
        share, _, sampler, points, multimask, prompts, ms = RUNS[name]
        write_run(scenes, dense / name, share, sampler=sampler, points_per_side=points, multimask=multimask)
        times = {"image_encoder": 5.0, "mask_decoder": 2 * ms, "postprocessing": 1.0, "total": 2 * ms + 6}
        run = json.loads((folder / name / "results.json").read_text())["run"]
        change(dense / name, ms=times, run=run, prompts=prompts)
    (folder / "grid_64" / "results.json").unlink()
    capsys.readouterr()
    claims(folder, "--dense", str(dense))
    printed = single_spaced(capsys.readouterr().out)
    assert "320.0 times less, by the same code: 20 ms for 40 boxes with one mask each, 6400 ms for 4096" in printed
    assert "with three; 10.0 times less than grid 16 x 16, teacher" in printed  # of the boxes on all images
    assert "HELD Object-aware boxes have a higher mean AR" in printed
    assert re.search(
        r"against the best one, grid 16 x 16, teacher; \+\d\S+ \[.*\] points against grid 64 x 64", printed
    )
    assert "AR against K of the densest grid, on the first 2 images" in printed
    assert "| grid 64 x 64, teacher, 2 images | 4096 | 3 | 6400 |" in printed
    # boxes that are worse than the dense grid on its images do not have a higher AR than any grid
    counts = {name: (dense / name / "per_image.npz").read_bytes() for name in ("grid_64", "boxes")}
    (dense / "grid_64" / "per_image.npz").write_bytes(counts["boxes"])
    (dense / "boxes" / "per_image.npz").write_bytes(counts["grid_64"])
    claims(folder, "--dense", str(dense))
    assert "FAILED Object-aware boxes have a higher mean AR" in single_spaced(capsys.readouterr().out)


def test_a_missing_evaluation_is_named(folder: Path) -> None:
    (folder / "student" / "results.json").unlink()
    with pytest.raises(SystemExit, match="one evaluation of micro_conv with prompt_sampler=object_aware, got 0"):
        claims(folder)
    (folder / "grid_64" / "results.json").unlink()
    with pytest.raises(SystemExit, match="grid_proposals of 64 points per side, got 0"):
        claims(folder)
