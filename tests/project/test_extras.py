"""What is missing is named with the extra that installs it."""

import re
import subprocess
import sys
import tomllib

import pytest
from support import ROOT

from mobilesamv2.extras import EXTRA_OF, missing_library

# Programs without a library, as after `pip install mobilesamv2` alone.
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({blocked}))
{code}
"""


def run_without(blocked: set[str], code: str) -> subprocess.CompletedProcess[str]:
    program = WITHOUT.format(blocked=blocked, code=code)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)


def test_every_extra_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRA_OF.values()) <= set(extras)
    for extra in ("train", "detector", "app", "export"):
        assert f"mobilesamv2[{extra}]" in extras["all"]


def test_make_runs_the_tests_of_the_parity_extra_in_a_process_of_their_own() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(each.startswith("transformers==") for each in extras["parity"])
    assert not any("parity" in each or "transformers" in each for name in ("all", "test") for each in extras[name])
    makefile = (ROOT / "Makefile").read_text()
    skips = re.compile(r'(importorskip|import_alone)\("(transformers|efficientsam|edge_sam|segment_anything_hq)\b')
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if skips.search(path.read_text())]
    assert len(files) == 5
    assert all(path.name.removeprefix("test_parity_") in makefile for path in files)


def test_other_import_errors_stay_as_they_are() -> None:
    assert (
        missing_library(ImportError("cannot import name 'x' from 'y'", name="y")) == "cannot import name 'x' from 'y'"
    )
    assert missing_library(ModuleNotFoundError("No module named 'abc2'", name="abc2")) == "No module named 'abc2'"


@pytest.mark.parametrize(
    ("code", "library", "extra"),
    [
        ("from mobilesamv2.cli.main import main; main(['train', 'experiment=distill_tinyvit'])", "hydra", "train"),
        ("from mobilesamv2.cli.main import main; main(['app'])", "gradio", "app"),
        ("from mobilesamv2.cli.main import main; main(['report', 'sweep', 'x'])", "matplotlib", "train"),
        ("from mobilesamv2.cli.main import main; main(['yolo-data', 'y', '--tars', 'x'])", "cv2", "detector"),
    ],
)
def test_a_missing_library_is_a_sentence(code: str, library: str, extra: str) -> None:
    done = run_without({library}, code)
    assert done.returncode != 0
    assert f"pip install 'mobilesamv2[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_base_install_segments_and_measures() -> None:
    code = (
        "import numpy as np\n"
        "from mobilesamv2 import SegAny, SegEvery, build_sam\n"
        "from mobilesamv2.prompts import Grid\n"
        "from mobilesamv2.metrics.average_recall import AverageRecall\n"
        "masks = SegEvery(build_sam('mini'), Grid(2, pred_iou_thresh=0, stability_score_thresh=0))("
        "np.zeros((40, 50, 3), np.uint8))\n"
        "print(AverageRecall().ks)\n"
    )
    done = run_without(set(EXTRA_OF) - {"matplotlib"}, code)  # torchmetrics asks for it where it is installed
    assert done.returncode == 0, done.stderr
