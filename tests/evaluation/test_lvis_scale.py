"""The benchmark of an evaluation of LVIS's size, in miniature."""

import argparse
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "lvis_scale.py"


def test_a_part_is_an_evaluation_and_keeps_account(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = runpy.run_path(str(SCRIPT))
    for images in (3, 5):  # the second run resumes where the first one ended
        given = {"images": images, "masks": 20, "save_masks": True, "kill_after": None, "processes": 1}
        script["run_part"](argparse.Namespace(part=str(tmp_path), **given))
    account = json.loads((tmp_path / "account.json").read_text())
    assert (account["resumed"], len(account["images"])) == (3, 2)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["n_gt"]["all"] == 5 * script["OBJECTS"]
    assert 0.1 < results["metrics"]["AR@10"] < results["metrics"]["AR@100"] < 1  # half of the masks are objects
    with np.load(tmp_path / "per_image.npz") as arrays:
        assert arrays["image_ids"].tolist() == list(range(5))
    assert sum(len(json.loads(path.read_text())) for path in tmp_path.glob("masks/*.json")) == 5 * 20
    figures = script["print_account"](tmp_path, 5)
    assert 0 < figures["fastest tenth ms"] <= figures["slowest tenth ms"]
    assert 0 < figures["loop ms"] < figures["ms"]
    script["print_hours"](10.0, 64)
    printed = capsys.readouterr().out
    assert "19809 images" in printed
    assert f"{(8 + 6464 + 10) * 19809 / 3.6e6:.2f} h on one GPU" in printed


@pytest.mark.slow
def test_killed_resumed_and_divided_runs_are_the_same() -> None:
    given = ["--images", "6", "--masks", "20", "--check-images", "90"]
    printed = subprocess.run([sys.executable, SCRIPT, *given], check=True, capture_output=True, text=True).stdout
    assert re.search(r"killed after 60, resumed with [1-9]", printed)
    assert "of 2 processes: the same metrics" in printed
