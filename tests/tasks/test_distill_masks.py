"""Distillation by masks, the options of the decoupled one, and every training experiment for a step."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from support import ROOT
from support.runs import train
from support.training import ADAMW, trainer

from mobilesamv2 import build_sam
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.samples import EncoderSamples, PromptSamples, to_model_inputs
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.writers import write_sa1b_tar
from mobilesamv2.tasks.distill import DistillDecoupled, _copy_shared_tensors, valid_cells
from mobilesamv2.tasks.distill_masks import DistillMasks
from mobilesamv2.tasks.losses import embedding_losses
from mobilesamv2.tasks.mask_prompts import append_point, initial_prompts, sample_error_points
from mobilesamv2.tasks.teacher import Teacher, teacher_identity

SETTINGS = {
    "semi_coupled": {"train_decoder": False, "rounds": 0},
    "coupled": {"train_decoder": True, "rounds": 0},
    "prompt_in_loop": {"train_decoder": True, "rounds": 1},
}


def speaking_teacher() -> torch.nn.Module:
    """Of random weights, but with masks that are neither empty nor full."""
    torch.manual_seed(3)
    teacher = build_sam("sam_vit_mini")
    with torch.no_grad():
        for mlp in teacher.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(30)
    return teacher


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_tasks_of_conf_have_their_settings(kind: str) -> None:
    node = OmegaConf.load(ROOT / "conf" / "task" / f"distill_{kind}.yaml").task
    assert node._target_ == "mobilesamv2.tasks.distill_masks.DistillMasks"
    assert {key: node[key] for key in SETTINGS[kind]} == SETTINGS[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["coupled", "semi_coupled", "prompt_in_loop"])
def test_masks_are_distilled_into_what_is_to_be_trained(kind: str, tmp_path: Path) -> None:
    teacher, student = speaking_teacher(), build_sam("mini")
    cache = EmbeddingCache(tmp_path / "cache", teacher_identity(teacher))
    task = DistillMasks(student, Teacher(teacher, cache), ADAMW, warmup_images=8, **SETTINGS[kind])
    before = {k: v.clone() for k, v in student.state_dict().items()}
    teacher_before = {k: v.clone() for k, v in teacher.state_dict().items()}
    losses: list[float] = []
    watch = pl.callbacks.LambdaCallback(
        on_train_epoch_end=lambda t, m: losses.append(float(t.callback_metrics["train/loss"]))
    )
    data = TrainingData(
        PromptSamples(SyntheticDataset(14), 256, prompts_per_image=3), batch_size=4, validation_images=2
    )
    fit = trainer(tmp_path, max_epochs=5, callbacks=[watch])
    fit.fit(task, datamodule=data)
    changed = {k.split(".")[0] for k, v in student.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"image_encoder"} | ({"mask_decoder"} if SETTINGS[kind]["train_decoder"] else set())
    assert all(torch.equal(v, teacher_before[k]) for k, v in teacher.state_dict().items())
    assert losses[-1] < losses[0]
    assert {"val/loss", "val/miou_box", "val/miou_point"} <= fit.callback_metrics.keys()
    assert task.teacher.images_encoded == 14


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_student_that_is_its_teacher_agrees(kind: str) -> None:
    teacher, student = speaking_teacher(), build_sam("sam_vit_mini")
    student.load_state_dict(teacher.state_dict())
    samples = PromptSamples(SyntheticDataset(2), 256, prompts_per_image=4)
    task = DistillMasks(student, Teacher(teacher), ADAMW, **SETTINGS[kind]).eval()
    with torch.no_grad():
        _, ious = task._loss(to_model_inputs(samples.collate([samples[0], samples[1]])))
    assert {kind: iou.item() for kind, iou in ious.items()} == pytest.approx({"box": 1.0, "point": 1.0})


def test_points_lie_where_masks_differ() -> None:
    student, teacher = torch.zeros(2, 4, 8, 8, dtype=torch.bool)
    student[0, 2, 3] = True  # too much
    teacher[1, 5, 6] = True  # lacking
    student[2], teacher[2] = True, True  # equal
    points, labels = sample_error_points(student, teacher, torch.Generator(), image_size=32)
    assert points.shape == (4, 1, 2)
    assert points[:2, 0].tolist() == [[3 * 4 + 1.5, 2 * 4 + 1.5], [6 * 4 + 1.5, 5 * 4 + 1.5]]
    assert labels[:, 0].tolist() == [0, 1, -1, -1]
    batch = {"boxes_xyxy": torch.rand(1, 4, 4), "points": torch.rand(1, 4, 1, 2)}
    first = initial_prompts(batch)
    assert [first[kind]["multimask_output"] for kind in ("box", "point")] == [False, True]
    box, point = (append_point(first[kind], points, labels) for kind in ("box", "point"))
    assert (box["points"].shape, point["points"].shape) == ((4, 1, 2), (4, 2, 2))
    assert point["labels"].tolist() == [[1, 0], [1, 1], [1, -1], [1, -1]]
    assert not box["multimask_output"]
    assert not point["multimask_output"]
    with pytest.raises(ValueError, match="rounds must be at least 0, got -1"):
        DistillMasks(build_sam("mini"), Teacher(build_sam("mini")), ADAMW, rounds=-1)


def test_a_step_may_train_one_kind_of_prompt_and_all_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"train_decoder": True, "rounds": 1, "bce_weight": 5.0, "focal_weight": 0.0, "iou_weight": 0.0}
    teacher = speaking_teacher()
    task = DistillMasks(
        build_sam("mini"), Teacher(teacher), ADAMW, draw_prompts=True, all_masks=True, mask_padding=True, **settings
    )
    samples = PromptSamples(SyntheticDataset(2, (60, 120)), 256, prompts_per_image=3)
    batch = to_model_inputs(samples.collate([samples[0], samples[1]]))
    shapes: list[torch.Size] = []
    compare = task._compare
    monkeypatch.setattr(task, "_compare", lambda *given: (shapes.append(given[0].shape), compare(*given))[1])
    kinds = []
    for step in range(12):
        monkeypatch.setattr(DistillMasks, "global_step", step)
        kinds += task.train()._prompts(batch)
    assert set(kinds) == {"box", "point"}
    assert len(kinds) == 12
    step = kinds.index("box")
    monkeypatch.setattr(DistillMasks, "global_step", step)
    loss, ious = task._loss(batch)
    loss.backward()
    assert list(ious) == ["box"]
    assert all(parameter.grad is not None for parameter in task.parameters() if parameter.requires_grad)
    assert shapes == [(6, 1, 64, 64)] * 2
    shapes.clear()
    with torch.no_grad():
        assert list(task.eval()._loss(batch)[1]) == ["box", "point"]
    assert shapes == [(6, 1, 64, 64)] * 2 + [(6, 4, 64, 64)] * 2
    valid = task._valid_cells(batch)
    assert valid is not None
    assert valid[:, 0].sum((1, 2)).tolist() == [32 * 64] * 6


def test_embedding_losses_by_hand() -> None:
    student, teacher = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    student[0, :, 0, 0], teacher[0, :, 0, 0] = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    student[0, :, 0, 1] = teacher[0, :, 0, 1] = torch.tensor([1.0, 1.0])
    valid = torch.tensor([[[True, True], [False, False]]])
    mse, cosine = embedding_losses(student, teacher, valid)
    assert mse.item() == pytest.approx((9 + 16) / 2 / 2)
    assert cosine.item() == pytest.approx(0.5)
    assert embedding_losses(student, teacher)[0].item() == pytest.approx((9 + 16) / 2 / 4)
    assert valid_cells(torch.tensor([[17, 64], [64, 16]]), 4).sum((1, 2)).tolist() == [2 * 4, 4 * 1]


def test_what_lies_in_the_padding_has_no_gradient_if_masked() -> None:
    """Of a wide image the lower half is padding: an error there counts without the mask and not with it."""
    teacher, samples = build_sam("mini"), EncoderSamples(SyntheticDataset(1, (60, 120)), 256)
    batch = to_model_inputs(samples.collate([samples[0]]))
    assert batch["resized"].tolist() == [[128, 256]]
    for mask_padding in (False, True):
        task = DistillDecoupled(
            build_sam("mini"), Teacher(teacher), ADAMW, mask_padding=mask_padding, cosine_weight=1.0
        )
        embedding = task.student.image_encoder(batch["pixels"]).detach().clone()
        embedding[:, :, 8:] += 1  # rows of the padding
        task.teacher.embedding = lambda batch, embedding=embedding: embedding
        mse, cosine = task._errors(batch)
        assert (mse.item() < 1e-6) == mask_padding
        assert (cosine.item() < 1e-6) == mask_padding


EXPERIMENTS = sorted(
    p.stem for p in (ROOT / "conf" / "experiment").glob("*.yaml") if f"train.py experiment={p.stem}" in p.read_text()
)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_takes_a_step_in_miniature(experiment: str, tmp_path: Path) -> None:
    scenes = SyntheticDataset(3, (60, 90))
    write_sa1b_tar((scenes[i] for i in range(3)), tmp_path / "sa_000000.tar")
    given = [f"experiment={experiment}", "model=mini", "dataset=sa1b", f"dataset.tars={tmp_path}", "dataset.limit=3"]
    # those of SAM 2 have its levels, and a student with the encoder of another family
    sam2 = "sam2" in experiment or "levels" in experiment
    small, teacher = ("sam2_mini", "sam2_mini") if sam2 else ("mini", "sam_vit_mini")
    teacher = "mini" if experiment == "distill_sam2_mini_from_sam" else teacher
    heads = experiment.startswith("prompt_head")
    if experiment.startswith(("distill", "ablation", "search")) or experiment == "cache_teacher" or heads:
        given += ["model@teacher=by_name", f"teacher.name={teacher}", f"cache.folder={tmp_path / 'out' / 'cache'}"]
    if sam2:
        given += ["encoder=tiny_vit_mini" + ("_stride16" if "levels" in experiment else "")]
    detects = "detect" in experiment
    if heads:  # masks of the teacher are measured at the end
        small = "sam_vit_mini_prompt_head"
        given += ["detector.width=8", "trainer.precision=32-true", "prompt_sampler=prompt_head"]
    elif not detects:
        given += [f"model.name={small}"]  # over the name that an experiment gives to model=by_name
    if experiment == "distill_edgesam":
        given += ["model.backbone_checkpoint=null"]  # nothing is downloaded
    if experiment == "ablation_recipes":
        given += ["~dataset.size"]
    if experiment in ("pretrain_sam2_mini", "ablation_levels_synthetic"):
        given += ["~dataset.seed"]
    if experiment in ("distill_slim_synthetic", "distill_sam2_mini_from_sam"):
        given += ["task.init_from_teacher=false"]
    if detects:  # masks of the model are measured at the end
        head = "-seg" if "masks" in experiment else ""
        given += ["detector.image_size=64", "detector.checkpoint=null", f"detector.architecture=yolov8n{head}"]
        given += ["trainer.precision=32-true"]
    train(
        *given, "validation_images=1", "trainer.max_epochs=-1", "trainer.max_steps=1", f"output_dir={tmp_path / 'out'}"
    )
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert (
        "detector.pt" if detects else "cache" if experiment == "cache_teacher" else f"{small}.safetensors"
    ) in written


def test_a_pruned_student_starts_from_its_teacher() -> None:
    torch.manual_seed(0)
    teacher, student = build_sam("mini_conv"), build_sam("mini_conv_slim")
    DistillDecoupled(student, Teacher(teacher), ADAMW, init_from_teacher=True)
    theirs, ours = teacher.image_encoder.state_dict(), student.image_encoder.state_dict()
    assert set(ours) < set(theirs)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    with pytest.raises(ValueError, match="init_from_teacher must be false"):
        _copy_shared_tensors(torch.nn.Linear(2, 3), torch.nn.Linear(4, 3))
