"""Named protocols: each says where it comes from, runs, and is what the result says it is."""

import json
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support import ROOT
from support.runs import QUIET, composed, evaluate_here
from support.runs import evaluate as evaluate_apart

from mobilesamv2.cli.main import main as cli
from mobilesamv2.recipes.protocols import require_protocol, require_recorded_protocol

NAMES = sorted(path.stem for path in (ROOT / "conf" / "protocol").glob("*.yaml"))
ONE_OF_A_KIND = ["efficientvit_sam_box", "sam_points", "edgesam_box", "sam_boxes_ap"]
OF_PROPOSALS = ["sam_proposals", "mobilesamv2_proposals", "mobilesamv2_capped_prompts"]
"""Minutes of a grid, or a detector's weights; the tests of their task run it."""
ONE_AT_A_TIME = [setting for setting in QUIET if not setting.startswith("batch_size")]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two drawn scenes, the second object a crowd, and a detector's boxes."""
    folder = tmp_path_factory.mktemp("protocols")
    cli(["synthesize", str(folder / "scenes"), "--scenes", "2", "--size", "64", "--workers", "0"])
    file = folder / "scenes" / "annotations.json"
    content = json.loads(file.read_text())
    content["annotations"] = content["annotations"][:6]
    content["annotations"][1]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    boxes = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5} for a in content["annotations"]]
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return [
        "dataset=coco",
        f"dataset.annotations={file}",
        f"dataset.images={folder / 'scenes' / 'images'}",
        "model=micro_conv",
        *ONE_AT_A_TIME,
    ]


def run(name: str, given: list[str], folder: Path, *more: str) -> dict:
    """The result of a protocol on two scenes."""
    boxes = str(Path(given[1].partition("=")[2]).parents[1] / "boxes.json")
    extra = [f"task.boxes={boxes}"] if name.endswith("_ap") else []
    if name == "mobilesam":
        extra = ["model@teacher=mini"]
    evaluate_here(f"protocol={name}", *given, *extra, *more, f"output_dir={folder}")
    return json.loads((folder / "results.json").read_text())


def test_a_protocol_has_its_files_name_a_source_and_settings_of_its_own() -> None:
    """Two names for the same settings would be one protocol."""
    settings = {}
    for name in NAMES:
        cfg = composed(f"protocol={name}")
        assert cfg.protocol.name == name
        assert any(word in cfg.protocol.source for word in ("arXiv", "released", "pull request"))
        sampler = OmegaConf.to_yaml(cfg.prompt_sampler) if cfg.recipe == "segment_everything" else ""
        settings[name] = f"{OmegaConf.to_yaml(cfg.task)}{sampler}{'' if cfg.teacher is None else cfg.teacher.name}"
    assert len(set(settings.values())) == len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_a_result_carries_its_protocol(
    name: str, scenes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(name, scenes, tmp_path / "out")
    protocol, cfg = result["protocol"], composed(f"protocol={name}")
    assert (protocol["name"], protocol["source"]) == (name, cfg.protocol.source)
    assert f"protocol {name}" in capsys.readouterr().out
    for key in set(map(str, cfg.task)) - {"_target_", "boxes"}:
        assert protocol["noc_ious" if key == "ious" else key] == cfg.task[key]
    require_recorded_protocol(protocol)
    assert result["n_gt"]["all"] == (6 if name == "efficientvit_sam_box" else 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NAMES} - {*ONE_OF_A_KIND, *OF_PROPOSALS}))
def test_every_other_protocol_runs(name: str, scenes: list[str], tmp_path: Path) -> None:
    result = run(name, scenes, tmp_path)
    assert result["protocol"]["name"] == name
    assert all(value is None or np.isfinite(value) for value in result["metrics"].values())
    require_recorded_protocol(result["protocol"])


@pytest.mark.slow
def test_the_first_click_is_the_centre_and_a_box_comes_before_any(scenes: list[str], tmp_path: Path) -> None:
    """The tasks of clicks and of prompts measure the same mask where their prompts are the same."""
    prompts = run("efficientsam3_box", scenes, tmp_path / "box")["metrics"]
    clicks = run("edgesam_box", scenes, tmp_path / "clicks")["metrics"]
    assert clicks["mIoU@0"] == pytest.approx(prompts["mIoU box"])
    oracle = run("sam_point_oracle", scenes, tmp_path / "oracle")["metrics"]
    given = [*scenes, "task=evaluate_clicks", "task.mask_choice=oracle", "task.max_clicks=1"]
    evaluate_here(*given, f"output_dir={tmp_path / 'click'}")
    click = json.loads((tmp_path / "click" / "results.json").read_text())
    assert click["metrics"]["mIoU@1"] == pytest.approx(oracle["mIoU centre"])
    assert "name" not in click["protocol"]


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        (
            "sam_points",
            "task.max_clicks=3",
            r"task\.max_clicks is 9 in protocol=sam_points, got 3\. .*: protocol\.name=null",
        ),
        ("efficientsam", "task.kinds=[box]", r"task\.kinds is .*points_3.* in protocol=efficientsam, got \['box'\]"),
        (
            "mobilesamv2_proposals",
            "prompt_sampler.max_prompts=64",
            r"prompt_sampler\.max_prompts is 320 in protocol=mobilesamv2_proposals, got 64",
        ),
        ("sam_proposals", "task.metric.ks=[10]", r"task\.metric\.ks is .* in protocol=sam_proposals, got \[10\]"),
        ("sam_proposals", "predictions=masks.json", r"predictions must not be set with protocol=sam_proposals"),
        ("sam_points", "~prompt_sampler", r"prompt_sampler\._target_ is .* in protocol=sam_points, got null"),
        ("efficientsam", "model@teacher=mini", r"model@teacher, .* is annotated objects in .*, got a teacher"),
        ("sam_boxes_ap", "task.max_boxes=1", r"task\.max_boxes is null in protocol=sam_boxes_ap, got 1\."),
        ("sam_points", "protocol.name=mine", r"protocol\.name must be that of its file in conf/protocol, got mine\."),
    ],
)
def test_a_changed_protocol_loses_its_name(
    name: str, changed: str, message: str, scenes: list[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        run(name, scenes, tmp_path / "out", changed)
    assert not (tmp_path / "out").exists()


def test_a_change_is_measured_without_the_name(scenes: list[str], tmp_path: Path) -> None:
    result = run("sam_points", scenes, tmp_path / "out", "task.max_clicks=1", "protocol.name=null")
    assert "name" not in result["protocol"]
    assert result["protocol"]["max_clicks"] == 1


@pytest.mark.parametrize("name", OF_PROPOSALS)
def test_a_record_is_held_to_its_protocol(name: str) -> None:
    cfg = composed(f"protocol={name}")
    sampler = instantiate(cfg.prompt_sampler, **({"detector": None} if name.startswith("mobilesamv2") else {}))
    record = {"name": name, **sampler.settings, **instantiate(cfg.task.metric, _convert_="all").settings}
    require_recorded_protocol(json.loads(json.dumps(record)))
    with pytest.raises(ValueError, match=rf"ks is \[1\] in results\.json and .* in protocol={name}"):
        require_recorded_protocol(record | {"ks": [1]})


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"name": "mine"}, "protocol.name must be one of conf/protocol, got mine"),
        ({"name": "sam_points", "kinds": ["centre"]}, "first_prompt is null in results.json and centre in protocol="),
        (
            {"name": "mobilesam", "against": "annotated objects"},
            "against is annotated objects in .*masks of the teacher",
        ),
    ],
)
def test_a_name_that_says_something_else_is_refused(record: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        require_recorded_protocol(record)


def test_what_a_protocol_leaves_open_is_named() -> None:
    """Any other setting that it has as null is fixed by that."""
    given = ["protocol=efficientsam", "task.boundary_dilation_ratio=.02"]
    require_protocol(composed(*given))
    require_protocol(composed("protocol=sam_boxes_ap", "task.boxes=boxes.json"))
    with pytest.raises(ValueError, match=r"boundary_dilation_ratio is 0\.02 in protocol=sam_hq, got null"):
        require_protocol(composed("protocol=sam_hq", "task.boundary_dilation_ratio=null"))


@pytest.mark.slow
def test_one_file_is_a_new_protocol(scenes: list[str], tmp_path: Path) -> None:
    """Of a folder of one's own, and held to as the others."""
    (tmp_path / "conf" / "protocol").mkdir(parents=True)
    (tmp_path / "conf" / "protocol" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /task: evaluate_clicks\nprotocol:\n  name: mine\n  source: us\n"
        "task:\n  max_clicks: 2\n  ious: [.5]\n"
    )
    given = ["--config-dir", str(tmp_path / "conf"), "protocol=mine", *scenes, f"output_dir={tmp_path / 'out'}"]
    done = evaluate_apart(*given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in ("mIoU@2", "NoC@50", "NoF@50", "protocol mine"):
        assert line in done.stdout
    assert json.loads((tmp_path / "out" / "results.json").read_text())["protocol"]["source"] == "us"
    refused = evaluate_apart(*given, "task.max_clicks=3", cwd=tmp_path)
    assert "task.max_clicks is 2 in protocol=mine, got 3" in refused.stderr


@pytest.mark.parametrize("setting", ["task.crowds=keep", "task.min_area=-1", "task.mask_refinements=-1"])
def test_broken_choices_are_refused(setting: str, scenes: list[str], tmp_path: Path) -> None:
    key = setting.partition("=")[0].replace(".", r"\.")
    with pytest.raises(SystemExit, match=rf"error: {key} must be"):
        evaluate_here(*scenes, "task=evaluate_prompts", setting, f"output_dir={tmp_path / 'out'}")


@pytest.mark.parametrize("task", ["protocol=efficientsam3_box", "task=evaluate_proposals"])
def test_a_data_set_can_not_count_crowds_that_the_task_leaves_out(task: str, scenes: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: dataset\.crowds must be leave_out here, got count"):
        evaluate_here(*scenes, task, "+dataset.crowds=count", f"output_dir={tmp_path / 'out'}")
