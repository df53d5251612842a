"""A subcommand's command line, as Hydra reads it and as Lightning repeats it."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig
from support import ROOT

from mobilesamv2.cli.main import main
from mobilesamv2.recipes import evaluate as evaluate_program
from mobilesamv2.recipes import train as train_program

SCRIPT = "import sys\nfrom mobilesamv2.cli.main import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
"""What pip writes as the command ``mobilesamv2``."""


@pytest.mark.parametrize(("name", "program"), [("train", train_program), ("evaluate", evaluate_program)])
def test_a_run_begins_with_the_command_that_starts_it_again(
    name: str, program: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def run(cfg: DictConfig) -> None:
        seen.append((list(sys.argv), cfg.seed))

    monkeypatch.setattr(program, "run", run)
    monkeypatch.setattr(sys, "argv", ["/bin/mobilesamv2", "rerun", "FOLDER"])
    overrides = ["seed=3", f"output_dir={tmp_path}"]
    main([name, *overrides])
    assert seen == [(["/bin/mobilesamv2", name, *overrides], 3)]
    assert sys.argv == ["/bin/mobilesamv2", "rerun", "FOLDER"]


def test_hydra_says_the_subcommand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/mobilesamv2", "train", "--unknown"])
    with pytest.raises(SystemExit):
        main()
    assert "mobilesamv2 train: error: unrecognized arguments: --unknown" in capsys.readouterr().err


TRAINING = (
    "train experiment=distill_micro_conv_synthetic dataset.limit=8 validation_images=4 batch_size=2 "
    "trainer.max_epochs=1 task.warmup_images=0 teacher.cache=off"
)
EVALUATION = "evaluate task=evaluate_prompts model=mini dataset=synthetic dataset.limit=2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_script", "given", "written"),
    [(True, TRAINING, "micro_conv.safetensors"), (False, EVALUATION, "results.json")],
    ids=["script", "module"],
)
def test_a_command_starts_its_second_process(is_script: bool, given: str, written: str, tmp_path: Path) -> None:
    script = tmp_path / "mobilesamv2"
    script.write_text(SCRIPT)
    command = [sys.executable, *([str(script)] if is_script else ["-m", "mobilesamv2"]), *given.split()]
    command += ["trainer.accelerator=cpu", "trainer.devices=2", "num_workers=0", f"output_dir='{tmp_path / 'a run'}'"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in done.stdout + done.stderr
    assert (tmp_path / "a run" / written).is_file()
