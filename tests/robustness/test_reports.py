"""Reports of results that are not as evaluate.py wrote them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corrupt_inputs import FUZZ, JUNK, outcome, places, spoilt
from support.runs import write_run

from mobilesamv2.cli.main import main
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.files import read_arrays
from mobilesamv2.reports.compare import compare_results
from mobilesamv2.reports.figures import write_figures
from mobilesamv2.reports.result_files import read_counts, read_result
from mobilesamv2.reports.sweep import load_runs, sweep_rows, table_cells, write_csv
from mobilesamv2.reports.table import as_latex, as_markdown, result_table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluations, 0 and 1, with all that reports read."""
    folder = tmp_path_factory.mktemp("runs")
    main(["synthesize", str(folder / "scenes"), "--scenes", "3", "--size", "64", "--workers", "0"])
    scenes = LvisDataset(folder / "scenes" / "annotations.json", folder / "scenes" / "images")
    for name in ("0", "1"):
        run = write_run(scenes, folder / "runs" / name, 0.5 + int(name) / 2, points_per_side=16 * (1 + int(name)))
        result = json.loads((run / "results.json").read_text())
        result["ms"] = {"image_encoder": 4.0, "mask_decoder": 2.0, "total": 7.0}
        result["run"] = {"model": {"name": "mini"}, "encoder_cost": {"parameters": 411904, "macs": 100173824}}
        (run / "results.json").write_text(json.dumps(result))
    return folder / "runs"


def report(folder: Path) -> tuple[list[list[str]], str]:
    """All tables of a folder of two runs, with the second in comparison with the first."""
    loaded = load_runs(folder)
    rows = sweep_rows(loaded)
    write_csv(rows, folder.parent / "runs.csv")
    cells = table_cells(rows)
    texts = [as_markdown(cells), as_latex(cells), result_table({run.name: run.result for run in loaded})]
    return cells, "\n".join(texts)


@FUZZ
@given(st.data())
def test_any_value_anywhere_in_a_result(runs: Path, data: st.DataObject) -> None:
    file = runs / "1" / "results.json"
    sound = file.read_text()
    content = json.loads(sound)
    # a metric of every kind, and all of the rest
    rest = [p for p in places(content) if p[:1] not in (("metrics",), ("interval",)) or "AR@10" in p or "mAR" in p]
    path, drop = data.draw(st.sampled_from(rest)), data.draw(st.booleans())
    try:
        file.write_text(json.dumps(spoilt(content, path, data.draw(JUNK), drop)))
        tables, said = outcome(lambda: report(runs))
        assert tables or str(file) in said or "1 can't be compared with 0" in said or "1 has no mask AR@K" in said, said
        if tables:
            assert len(tables[0]) == 3
            assert not {"nan", "inf", "Infinity"} & set(tables[1].replace("|", " ").split())
    finally:
        file.write_text(sound)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("metrics", [], "metrics must be an object, got []."),
        ("interval", None, "interval must be an object, got None."),
        ("ms", "fast", "ms must be an object or null, got 'fast'."),
        ("ms", {"total": "7"}, "ms.total must be a number of 0 or more, got '7'."),
        ("n_gt", {}, "n_gt.all must be a number of 0 or more, got None."),
        ("run", {"encoder_cost": {"macs": 3}}, "run.encoder_cost.parameters must be a number of 0 or more, got None."),
    ],
)
def test_a_result_of_another_shape_is_named(runs: Path, tmp_path: Path, key: str, value: Any, said: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(json.loads((runs / "0" / "results.json").read_text()) | {key: value}))
    with pytest.raises(SystemExit) as raised:
        main(["report", "table", str(file)])
    assert str(raised.value) == f"error: {file} is damaged: {said} Repeat that evaluation."


def test_counts_of_another_shape_are_named(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text((runs / "1" / "results.json").read_text())
    file = tmp_path / "per_image.npz"
    with pytest.raises(SystemExit, match=r"error: There is no .*per_image\.npz, which evaluate\.py writes"):
        main(["report", "compare", str(runs / "0"), str(tmp_path)])
    whole = (runs / "1" / "per_image.npz").read_bytes()
    for content in (whole[:-60], whole[: len(whole) // 2], b"", b"[]"):
        file.write_bytes(content)
        with pytest.raises(SystemExit, match=rf"error: {file} can't be read"):
            main(["report", "compare", str(runs / "0"), str(tmp_path)])
    arrays = read_arrays(runs / "1" / "per_image.npz")
    for name, array in (
        ("n_gt", arrays["n_gt"][:, :3]),
        ("matches", arrays["matches"].astype(np.float32)),
        ("matches", arrays["matches"][0]),
        ("ks", np.array(["a"])),
        ("image_ids", arrays["image_ids"][:-1]),
        ("matches", arrays["matches"] + 99),
        ("n_gt", -arrays["n_gt"]),
    ):
        np.savez(file, **(arrays | {name: array}))  # pyright: ignore[reportArgumentType]
        assert outcome(lambda: compare_results(runs / "0", tmp_path))[1].startswith(f"{file} is damaged: "), name
    np.savez(file, image_ids=arrays["image_ids"])
    with pytest.raises(ValueError, match=rf"{file} must have the counts of AR@K, missing: ks, n_gt, matches"):
        read_counts(tmp_path)
    file.write_bytes(whole)
    compare_results(runs / "0", tmp_path)


def test_a_job_whose_record_is_damaged_is_named(runs: Path, tmp_path: Path) -> None:
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text((runs / name / "results.json").read_text())
    (tmp_path / "2" / ".hydra").mkdir(parents=True)
    (tmp_path / "2" / ".hydra" / "overrides.yaml").write_text("[")
    for record in ("", "hydra: []", "[", "hydra: {job: null}", "\x00"):
        (tmp_path / "2" / ".hydra" / "hydra.yaml").write_text(record)
        with pytest.raises(
            SystemExit, match=rf"error: {tmp_path}/2/\.hydra/\w+\.yaml, the record of a job, can't be read"
        ):
            main(["report", str(tmp_path)])


def test_an_interval_that_does_not_reach_its_value_is_drawn(runs: Path, tmp_path: Path) -> None:
    """As a percentile of few images may be; matplotlib refuses error bars of negative length."""
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        result = read_result(runs / name)
        result["interval"]["mAR"] = [0.0, 0.01]
        (tmp_path / name / "results.json").write_text(json.dumps(result))
    assert len(write_figures(load_runs(tmp_path), tmp_path)) == 3
