"""What a command line that can't be composed is answered with."""

import os
import re
import sys

import pytest
from hydra.errors import ConfigCompositionException, OverrideParseException
from support.runs import composed

from mobilesamv2.recipes import schema
from mobilesamv2.recipes import train as train_recipe
from mobilesamv2.recipes.overrides import COMPOSING, FULL_ERROR, explanation, job_errors

schema.register()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("experiment=distil_tinyvit", "Did you mean experiment=distill_tinyvit? Available: ablation_batch_epochs,"),
        ("model=mini_con", "There is no model=mini_con in conf/model. Did you mean model=mini_conv?"),
        ("model@teacher=sam_vit_g", "Did you mean model@teacher=sam_vit_"),
        ("model@techer=mini", "Did you mean model@teacher=NAME?"),
        ("dataset=coc", "Did you mean dataset=coco? Available: coco, lvis, photos, sa1b, synthetic."),
        ("detector=yolo8n", "Did you mean detector=yolov8n?"),
        ("prompt_sampler=gird", "Did you mean prompt_sampler=grid?"),
        ("logger=[csv,wand]", "Did you mean logger=wandb?"),
        ("hydra/launcher=slrum", "Did you mean hydra/launcher=slurm?"),
        ("model=repvit", "model=by_name takes any other: see conf/model/by_name.yaml."),
        ("optimzer.lr=1", "There is no key optimzer.lr. Did you mean optimizer.lr?"),
        ("optimzer=adamw", "Did you mean optimizer?"),
        ("optimizer.lrr=1", "Did you mean optimizer.lr?"),
        ("lr=1", "There is no key lr. Did you mean optimizer.lr?"),
        ("trainer.limit_train_batches=2", "and Trainer takes one: +trainer.limit_train_batches=VALUE."),
        ("trainer.max_epochs.x=1", "There is no key trainer.max_epochs.x: trainer.max_epochs is one value."),
        ("~modle", "There is no modle to leave out. Did you mean ~model?"),
        ("batch_size=abc", "Value 'abc' of type 'str' could not be converted to Integer"),
        ("batch_size", "'batch_size' can't be read as KEY=VALUE"),
        ("model=null", "model=null chooses nothing: model=NAME takes one of by_name, "),
        ("logger=null", "and ~logger leaves the group out."),
        ("model@teacher=3", "model@teacher=3 chooses nothing: "),
    ],
)
def test_a_mistyped_override_is_answered_with_the_nearest_names(override: str, said: str) -> None:
    with pytest.raises((ConfigCompositionException, OverrideParseException, ValueError)) as raised:
        composed(override, primary="train")
    answer = explanation(raised.value, [override])
    assert said in answer
    assert "To append" not in answer


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+experimnt=distill_tinyvit", "There is no key experimnt. Did you mean experiment?"),
        ("+prompt_sampler.point_per_side=2", "There is no prompt_sampler.point_per_side. Did you mean prompt_sampler."),
        ("~dataset", "dataset must be chosen for this run: dataset=NAME, one of conf/dataset."),
        ("teacher=null", "This task requires a teacher: name one, model@teacher=sam_vit_h for example."),
        ("samples=null", "samples must keep its keys for this run: set one of them, samples.KEY=VALUE."),
        ("~samples", "samples must keep its keys for this run"),
        ("cache=x", "cache must keep its keys for this run"),
    ],
)
def test_what_composes_and_makes_no_sense_is_answered_too(override: str, said: str) -> None:
    cfg = composed("prompt_sampler=grid", override, primary="train")
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        schema.require_settings(cfg, ["dataset", "samples", "teacher"], {})


def test_the_program_ends_with_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(FULL_ERROR, raising=False)
    for given in (["model=mini_con"], ["-m", "model=mini,mini_con"], ["model=null"]):
        monkeypatch.setattr(sys, "argv", ["train.py", *given])
        with pytest.raises(SystemExit, match=r"^error: (There is no model=mini_con|model=null chooses nothing)"):
            train_recipe.main()
    assert capsys.readouterr().err == ""
    assert not {FULL_ERROR, COMPOSING} & os.environ.keys()


def test_errors_of_a_job_are_left_to_what_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FULL_ERROR, "1")
    monkeypatch.setenv(COMPOSING, "1")
    with job_errors():
        assert FULL_ERROR not in os.environ
    assert os.environ[FULL_ERROR] == "1"  # for the next job of a sweep
    monkeypatch.delenv(COMPOSING)
    with job_errors():
        assert os.environ[FULL_ERROR] == "1"  # the user's own
