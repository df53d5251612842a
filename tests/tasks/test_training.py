"""Losses, samples, and the training tasks under a Trainer."""

import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from support.training import ADAMW, trainer

from mobilesamv2 import build_sam, load_sam
from mobilesamv2.checkpoints import save_weights
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.samples import EncoderSamples, PromptSamples, to_model_inputs
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.tasks.distill import DistillDecoupled
from mobilesamv2.tasks.losses import MaskLoss, dice_loss, mask_iou
from mobilesamv2.tasks.teacher import Teacher, teacher_identity
from mobilesamv2.tasks.train_prompted_masks import TrainPromptedMasks


def test_losses_by_hand() -> None:
    sure = torch.tensor([[[50.0, 50.0], [-50.0, -50.0]]])
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert dice_loss(sure, target).item() == pytest.approx(1 - (2 + 1) / (2 + 1 + 1))
    assert mask_iou(sure, target).item() == 0.5
    assert mask_iou(-sure.abs(), target * 0).item() == 0.0


def test_the_loss_of_masks_by_hand() -> None:
    """Probabilities of a half everywhere, on an object of one cell in four."""
    logits, targets = torch.zeros(1, 3, 2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]).expand(1, 3, 2, 2)
    focal = (0.25 + 3 * 0.75) / 4 * 0.5**2 * math.log(2)  # weights of fore- and background, share of the error, loss
    dice = 1 - (2 * 0.5 + 1) / (4 * 0.5**2 + 1 + 1)
    for weights, expected in (
        ({}, 20 * focal + dice),
        ({"focal_weight": 0.0, "dice_weight": 0.5, "bce_weight": 2.0}, 0.5 * dice + 2 * math.log(2)),
        ({"focal_weight": 3.0, "dice_weight": 0.0, "bce_weight": 1.0}, 3 * focal + math.log(2)),
    ):
        loss = MaskLoss(**weights).mask_terms(logits, targets)
        assert loss.shape == (1, 3)
        assert loss[0].tolist() == pytest.approx([expected] * 3)
    predicted_iou, target_iou = torch.tensor([[0.5, 0.9]]), torch.tensor([[0.7, 0.9]])
    assert MaskLoss(iou_weight=2.0).iou_term(predicted_iou, target_iou)[0].tolist() == pytest.approx([0.08, 0.0])


def test_prompts_lie_on_their_masks() -> None:
    samples = PromptSamples(SyntheticDataset(6, (120, 200)), image_size=256, prompts_per_image=5, box_jitter=0.0)
    for i in range(6):
        sample = samples[i]
        assert sample["rgb"].shape == (256, 256, 3)
        assert sample["masks"].shape == (5, 64, 64)
        assert sample["weights"].tolist() == [1.0] * 5
        for mask, box, point in zip(sample["masks"], sample["boxes_xyxy"], sample["points"][:, 0], strict=True):
            assert (box[:2] <= point + 1e-3).all()
            assert (point <= box[2:] + 1e-3).all()
            y, x = (mask >= 0.5).nonzero(as_tuple=True)
            if len(x):  # a mask of a few pixels may fill no cell of four by four, and a thin tip neither
                edges = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]) * 4
                assert (edges[:2] >= box[:2] - 4).all()
                assert (edges[2:] <= box[2:] + 6).all()
                assert (edges - box).abs().min() <= 6


def test_an_image_without_objects_weighs_nothing() -> None:
    class Empty(SyntheticDataset):
        def __getitem__(self, index: int):
            image, truth = super().__getitem__(index)
            return image, type(truth)(truth.image_id, truth.size, [], [], [])

    samples = PromptSamples(Empty(8), image_size=256)
    assert samples[0]["weights"].sum() == 0
    task = TrainPromptedMasks(build_sam("mini"), ADAMW, image_encoder="full")
    trainer(Path("."), max_steps=1).fit(task, datamodule=TrainingData(samples, batch_size=2))
    assert all(torch.isfinite(p).all() for p in task.sam.parameters())


def test_nothing_left_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be left to train on, got 1 of 8 with validation_images=7"):
        TrainingData(EncoderSamples(SyntheticDataset(8), 256), batch_size=4, validation_images=7)


def distillation(folder: Path, teacher: object = None) -> tuple[DistillDecoupled, TrainingData]:
    torch.manual_seed(0)
    teacher = teacher or build_sam("sam_vit_mini")
    student = build_sam("mini")
    cache = EmbeddingCache(folder / "cache", teacher_identity(teacher), shard_size=5)
    task = DistillDecoupled(student, Teacher(teacher, cache), ADAMW, warmup_images=8)
    return task, TrainingData(EncoderSamples(SyntheticDataset(14), 256), batch_size=4, validation_images=2)


class Modes(pl.Callback):
    """Notes the modes in which steps run."""

    def __init__(self) -> None:
        self.student: set[bool] = set()
        self.teacher: set[bool] = set()
        self.validation: set[bool] = set()

    def on_train_batch_start(self, trainer, module: DistillDecoupled, batch, batch_idx: int) -> None:
        self.student |= {m.training for m in module.student.image_encoder.modules()}
        self.teacher |= {m.training for m in module.teacher.sam.modules()}

    def on_validation_batch_start(self, trainer, module: DistillDecoupled, *args) -> None:
        self.validation |= {m.training for m in module.modules()}


@pytest.mark.slow
def test_distillation_trains_the_student_and_reads_the_teacher_once(tmp_path: Path) -> None:
    task, data = distillation(tmp_path)
    decoder = {k: v.clone() for k, v in task.student.mask_decoder.state_dict().items()}
    encoder = {k: v.clone() for k, v in task.student.image_encoder.state_dict().items()}
    teacher_before = {k: v.clone() for k, v in task.teacher.sam.state_dict().items()}
    modes, counts, losses = Modes(), [], []
    watch = pl.callbacks.LambdaCallback(
        on_train_epoch_end=lambda t, m: (
            counts.append(m.teacher.images_encoded),
            losses.append(float(t.callback_metrics["train/loss"])),
        )
    )
    trainer(tmp_path, max_epochs=6, callbacks=[modes, watch]).fit(task, datamodule=data)

    assert (modes.student, modes.teacher, modes.validation) == ({True}, {False}, {False})
    assert losses[-1] < losses[0]
    # 12 images to train on and 2 to validate on, each encoded once
    assert counts[0] == counts[-1] == task.teacher.images_encoded == 14
    again = {k: v for k, v in task.student.image_encoder.state_dict().items() if v.dtype.is_floating_point}
    assert any(not torch.equal(v, encoder[k]) for k, v in again.items())
    assert all(torch.equal(v, decoder[k]) for k, v in task.student.mask_decoder.state_dict().items())
    assert all(torch.equal(v, teacher_before[k]) for k, v in task.teacher.sam.state_dict().items())
    assert all(p.grad is None for p in task.teacher.sam.parameters())

    later, data = distillation(tmp_path)
    trainer(tmp_path, max_epochs=1).fit(later, datamodule=data)
    assert later.teacher.images_encoded == 0


def test_the_teacher_is_in_no_checkpoint_and_runs_resume(tmp_path: Path) -> None:
    task, data = distillation(tmp_path)
    checkpoints = pl.callbacks.ModelCheckpoint(tmp_path, filename="one", save_last=True)
    settings = {"enable_checkpointing": True, "max_epochs": 1}
    trainer(tmp_path, callbacks=[checkpoints], **settings).fit(task, datamodule=data)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == {f"student.{k}" for k in task.student.state_dict()}
    assert len(EmbeddingCache(tmp_path / "cache", task.teacher.cache.identity)) == 14

    later, data = distillation(tmp_path)
    steps = trainer(tmp_path, max_epochs=2)
    steps.fit(later, datamodule=data, ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert (steps.current_epoch, steps.global_step) == (2, 6)


def test_another_teacher_is_refused(tmp_path: Path) -> None:
    task, _ = distillation(tmp_path)
    task.teacher.cache.write([0], torch.zeros(1, 64, 16, 16))
    task.teacher.cache.flush()
    torch.manual_seed(1)
    other = build_sam("sam_vit_mini")
    with pytest.raises(ValueError, match="differ from this run's: weights_sha256"):
        distillation(tmp_path, other)


@pytest.mark.parametrize("freeze", [True, False])
def test_finetuning_trains_what_it_should(tmp_path: Path, freeze: bool) -> None:
    torch.manual_seed(0)
    sam = build_sam("mini")
    before = {k: v.clone() for k, v in sam.state_dict().items()}
    task = TrainPromptedMasks(sam, ADAMW, image_encoder="frozen" if freeze else "full")
    data = TrainingData(
        PromptSamples(SyntheticDataset(10), 256, prompts_per_image=3), batch_size=4, validation_images=2
    )
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(task, datamodule=data)
    changed = {k.split(".")[0] for k, v in sam.state_dict().items() if not torch.equal(v, before[k])}
    trained = {"prompt_encoder", "mask_decoder"} | (set() if freeze else {"image_encoder"})
    assert changed == trained
    for name in ("val/loss", "val/miou_box", "val/miou_point"):
        assert torch.isfinite(runner.callback_metrics[name])


def test_several_points_lie_in_the_object_or_where_its_mask_is_wrong(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scenes = PromptSamples(SyntheticDataset(10), 256, prompts_per_image=3, mask_stride=2, points=4)
    task = TrainPromptedMasks(build_sam("mini"), ADAMW)
    runner = trainer(tmp_path, max_steps=1)
    runner.fit(task, datamodule=TrainingData(scenes, batch_size=4, validation_images=2))
    for kind in ("box", "point", "points"):
        assert 0 <= runner.callback_metrics[f"train/miou_{kind}"] <= 1
    prompts: list[dict[str, torch.Tensor]] = []
    decode = task.sam.decode
    task.sam.decode = lambda embeddings, **prompt: prompts.append(prompt) or decode(embeddings, **prompt)
    batch = to_model_inputs(scenes.collate([scenes[0], scenes[1]]))
    for training in (True, False):
        with torch.no_grad():
            task.train(training)._loss(batch)
    assert [prompt["multimask_output"] for prompt in prompts] == [False, True, False] * 2
    points, labels = prompts[2]["points"], prompts[2]["labels"]
    assert (points.shape, labels.shape) == ((6, 5, 2), (6, 5))
    assert torch.equal(points[:, 0], batch["points"].flatten(0, 1)[:, 0])
    assert (labels[:, 0] == 1).all()
    assert (labels[:, 1] >= 0).all()
    assert (labels.diff(dim=1)[labels[:, :-1] == -1] == 0).all()  # padding comes last
    assert (labels == 0).any()
    x, y = (points / 2).long().unbind(-1)
    shares = batch["masks"].flatten(0, 1)[torch.arange(6)[:, None], y, x]
    assert (shares[labels == 0] <= 0.5).all()
    assert (prompts[5]["points"].shape, prompts[5]["labels"].unique().tolist()) == ((6, 3, 2), [1])


@pytest.mark.slow
def test_overfits_one_scene(tmp_path: Path) -> None:
    """The gradient points the right way: the loss of one scene falls."""
    torch.manual_seed(0)
    task = TrainPromptedMasks(build_sam("mini"), ADAMW, image_encoder="full", focal_weight=2.0)
    data = TrainingData(PromptSamples(SyntheticDataset(1), 256, prompts_per_image=4), batch_size=1)
    losses: list[float] = []
    watch = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda t, *args: losses.append(float(t.callback_metrics["train/loss"]))
    )
    trainer(tmp_path, max_epochs=60, callbacks=[watch]).fit(task, datamodule=data)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    save_weights(task.sam, tmp_path / "mini.safetensors")
    assert load_sam(tmp_path / "mini.safetensors").name == "mini"
