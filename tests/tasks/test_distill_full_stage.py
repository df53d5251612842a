"""TinySAM's distillation: what is compared, where hard points lie, and what it can't train."""

from pathlib import Path

import pytest
import torch
from support.training import ADAMW, trainer

from mobilesamv2 import build_sam
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.samples import PromptSamples, to_model_inputs
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.tasks.distill_full_stage import DistillFullStage
from mobilesamv2.tasks.mask_prompts import initial_prompts
from mobilesamv2.tasks.teacher import Teacher

SAMPLES = PromptSamples(SyntheticDataset(6, (60, 90)), 256, prompts_per_image=3)


def test_a_student_that_is_its_teacher_differs_in_nothing() -> None:
    torch.manual_seed(0)
    teacher, student = build_sam("mini"), build_sam("mini")
    student.load_state_dict(teacher.state_dict())
    task = DistillFullStage(student, Teacher(teacher), ADAMW).eval()
    with torch.no_grad():
        loss, parts = task._loss(to_model_inputs(SAMPLES.collate([SAMPLES[0], SAMPLES[1]])))
    for name in ("embedding", "token_box", "token_point", "output_box", "output_point"):
        assert parts[name].item() == pytest.approx(0, abs=1e-5)
    assert loss.item() == pytest.approx((parts["object_box"] + parts["object_point"]).item(), abs=1e-4)
    assert 0 <= parts["miou_box"] <= 1


def test_points_move_to_where_the_object_is_and_the_mask_is_not() -> None:
    task = DistillFullStage(build_sam("mini"), Teacher(build_sam("mini")), ADAMW, hard_rounds=9).train()
    masks = torch.zeros(3, 64, 64)
    masks[0, 10:30, 10:20] = 1  # the left half of an object
    masks[1, 10:30, 10:30] = 1  # all of it
    objects = torch.zeros(3, 64, 64)
    objects[:, 10:30, 10:30] = 1
    masks[2, 30:50, 10:30] = 1  # elsewhere
    logits = (masks * 2 - 1)[:, None].expand(-1, 3, -1, -1)
    task.student.decode = lambda embedding, **prompt: (logits, torch.rand(3, 3))  # pyright: ignore
    batch = {"boxes_xyxy": torch.rand(1, 3, 4), "points": torch.full((1, 3, 1, 2), 44.0)}
    hardened = task._harden(torch.zeros(3), initial_prompts(batch)["point"], objects)
    x, y = (hardened["points"][:, 0] // 4).T.tolist()
    assert 20 <= x[0] < 30
    assert 10 <= y[0] < 30
    assert hardened["points"][1, 0].tolist() == [44.0, 44.0]
    assert 10 <= x[2] < 30
    assert 10 <= y[2] < 30
    assert hardened["labels"].tolist() == [[1], [1], [1]]


def test_it_trains_encoder_and_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = build_sam("mini")
    task = DistillFullStage(student, Teacher(build_sam("sam_vit_mini")), ADAMW, hard_rounds=1)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    run = trainer(tmp_path, max_steps=2)
    run.fit(task, datamodule=TrainingData(SAMPLES, batch_size=2, validation_images=2))
    changed = {key.split(".")[0] for key, value in student.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"image_encoder", "mask_decoder"}
    assert {"val/loss", "val/embedding", "val/token_point", "val/miou_box"} <= run.callback_metrics.keys()


def test_a_student_of_another_size_is_refused() -> None:
    teacher = Teacher(build_sam("mini"))
    with pytest.raises(ValueError, match=r"image size and embedding width \(256, \d+\), got \(128, \d+\)"):
        DistillFullStage(build_sam("mini", image_size=128), teacher, ADAMW)
    coarse = build_sam("sam2_mini", encoder="tiny_vit_mini_stride16")
    with pytest.raises(ValueError, match=r"embedding width \(256, 256\), got \(256, 64\)"):
        DistillFullStage(coarse, Teacher(build_sam("sam2_mini")), ADAMW)
