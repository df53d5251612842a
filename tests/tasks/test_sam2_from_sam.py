"""A SAM 2 that starts from a SAM: the same masks, finer levels of 0, and what is left to train."""

import math
from pathlib import Path

import pytest
import torch
from support.training import ADAMW, trainer

from mobilesamv2 import build_sam, load_pretrained
from mobilesamv2.checkpoints import save_weights
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.samples import EncoderSamples, PromptSamples, to_model_inputs
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.models.sam2 import Sam2
from mobilesamv2.recipes import run
from mobilesamv2.structures import Thresholds
from mobilesamv2.tasks.distill import DistillDecoupled
from mobilesamv2.tasks.distill_masks import DistillMasks
from mobilesamv2.tasks.sam2_from_sam import start_from_sam
from mobilesamv2.tasks.teacher import Teacher

FINER = ("neck.conv_s0.", "neck.conv_s1.", "neck.convs.2.", "neck.convs.3.")


@pytest.fixture
def started() -> Sam2:
    torch.manual_seed(0)
    student = build_sam("sam2_mini_conv")
    assert isinstance(student, Sam2)
    start_from_sam(student, load_pretrained("mini_conv"))
    return student


def packed(coarse: torch.Tensor) -> torch.Tensor:
    """Return an embedding whose finer levels are 0."""
    return torch.cat([coarse, coarse.new_zeros(len(coarse), 3 * coarse.shape[1], *coarse.shape[2:])], dim=1)


def test_without_sam2s_own_tokens_the_logits_are_sams(started: Sam2, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the predicted IoU is the sigmoid of SAM's, shifted and scaled."""
    sam, decoder = load_pretrained("mini_conv"), started.mask_decoder
    monkeypatch.setattr(decoder, "_output_tokens", sam.mask_decoder._output_tokens)
    monkeypatch.setattr(decoder, "iou_index", 0)
    coarse, points, labels = torch.randn(1, 128, 16, 16), torch.rand(3, 1, 2) * 256, torch.ones(3, 1)
    with torch.no_grad():
        (ours, our_iou), (theirs, their_iou) = (
            model.decode(embedding, points, labels) for model, embedding in ((started, packed(coarse)), (sam, coarse))
        )
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert torch.allclose(our_iou, (4 * (their_iou - 0.5)).sigmoid(), atol=1e-5)


def test_the_same_masks_pass_the_threshold_of_predicted_iou() -> None:
    student = build_sam("sam2_mini")
    start_from_sam(student, build_sam("mini"))
    assert build_sam("mini").thresholds == Thresholds(0.88, 0.95)  # SAM's
    assert student.thresholds.pred_iou_thresh == pytest.approx(1 / (1 + math.exp(-4 * 0.38)))
    assert student.thresholds.stability_score_thresh == 0.95


def test_with_them_masks_of_scenes_are_nearly_sams(started: Sam2) -> None:
    sam, samples = load_pretrained("mini_conv"), PromptSamples(SyntheticDataset(2, split="test"), 256)
    batch = to_model_inputs(samples.collate([samples[0], samples[1]]))
    boxes = batch["boxes_xyxy"].flatten(0, 1)
    started.train()  # in eval mode another mask may take the place of an unstable one
    with torch.no_grad():
        coarse = sam.image_encoder(batch["pixels"]).repeat_interleave(6, dim=0)
        ours, our_iou = started.decode(packed(coarse), boxes_xyxy=boxes, multimask_output=False)
        theirs, their_iou = sam.decode(coarse, boxes_xyxy=boxes, multimask_output=False)
    both, either = ((ours > 0) & (theirs > 0)).flatten(1).sum(1), ((ours > 0) | (theirs > 0)).flatten(1).sum(1)
    assert (both / either.clamp(min=1)).mean() > 0.85
    assert (our_iou - their_iou).abs().mean() < 0.08


def test_only_the_coarsest_level_is_trained(started: Sam2) -> None:
    levels = started.image_encoder(torch.randn(1, 3, 256, 256)).split(started.level_channels, dim=1)
    assert [bool(level.any()) for level in levels] == [True, False, False]
    frozen = {name for name, parameter in started.image_encoder.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in started.image_encoder.named_parameters() if name.startswith(FINER)}
    levels[0].square().sum().backward()  # which reaches all the rest: distributed training requires a gradient
    assert all(p.grad is not None for p in started.image_encoder.parameters() if p.requires_grad)


def test_a_step_learns_sams_embedding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = build_sam("sam2_mini_conv")
    task = DistillDecoupled(
        student, Teacher(load_pretrained("mini_conv")), ADAMW, level_weights=[1], init_from_teacher=True
    )
    theirs = task.teacher.sam.image_encoder.state_dict()
    ours = student.image_encoder.state_dict()  # timm wraps a pruned backbone in a module of its own
    assert torch.equal(ours["backbone.body.blocks.4.2.bn3.weight"], theirs["backbone.body.model.blocks.4.2.bn3.weight"])
    before = {key: value.clone() for key, value in student.state_dict().items()}
    samples = EncoderSamples(SyntheticDataset(3, (60, 90)), 256)
    trainer(tmp_path, max_epochs=1).fit(task, datamodule=TrainingData(samples, batch_size=2, validation_images=1))
    after = student.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert "image_encoder.neck.convs.0.weight" in changed
    assert all(key.startswith("image_encoder.") and not key.startswith(FINER, 14) for key in changed)
    with pytest.raises(ValueError, match=r"task\.level_weights must be 1 number\(s\)"):
        DistillDecoupled(student, task.teacher, ADAMW, level_weights=[1, 1, 1])


def test_what_can_teach_a_sam2() -> None:
    with pytest.raises(ValueError, match=r"of its teacher's family.*; task=distill takes a SAM for SAM 2"):
        DistillMasks(build_sam("sam2_mini_conv"), Teacher(build_sam("mini_conv")), ADAMW)
    with pytest.raises(ValueError, match="of its teacher's family"):
        DistillDecoupled(build_sam("mini_conv"), Teacher(build_sam("sam2_mini_conv")), ADAMW)
    with pytest.raises(ValueError, match="must have its teacher's image size and embedding width"):
        DistillDecoupled(build_sam("sam2_mini"), Teacher(build_sam("mini_conv")), ADAMW)
    other, student = build_sam("mini"), build_sam("sam2_mini")
    other.mask_decoder.extra = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="from a SAM of its own embedding and decoder alone, got mini for sam2_mini"):
        start_from_sam(student, other)


def test_a_trained_sam2_is_not_overwritten(tmp_path: Path) -> None:
    save_weights(build_sam("sam2_mini_conv"), tmp_path / "trained.safetensors")
    given = ["experiment=distill_sam2_mini_from_sam", f"model.checkpoint={tmp_path / 'trained.safetensors'}"]
    given += ["dataset.limit=8", "validation_images=2", "trainer.accelerator=cpu", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(ValueError, match=r"model\.checkpoint must be null where a SAM teaches a SAM 2, .*trained"):
        run.train(*given)
