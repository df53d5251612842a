"""What make demo would run."""

import re
import shlex
import shutil
import subprocess

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir

import schema

schema.register()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_demo_measures_what_the_claims_want() -> None:
    made = subprocess.run(
        ["make", "--always-make", "--dry-run", "demo"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    lines = made.stdout.replace("\\\n", " ").splitlines()
    runs = set()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for line in lines:
            if found := re.search(r"python (train|evaluate)\.py (.*?) >", line):
                program, given = found.groups()
                cfg = compose(program, shlex.split(given))
                if program == "evaluate":
                    sampler = cfg.prompt_sampler
                    runs.add((cfg.model.name, sampler._target_.rsplit(".", 1)[1], sampler.get("points_per_side")))
    grids = {("mini_conv", sampler, side) for sampler in ("GridProposals", "Grid") for side in (16, 32, 64)}
    assert runs == grids | {("mini_conv", "ObjectAware", None), ("micro_conv", "ObjectAware", None)}
    assert any("report claims outputs/demo/runs --teacher mini_conv --student micro_conv" in line for line in lines)
    assert sum("train.py" in line for line in lines) == 2
