"""What fine-tuning trains: parts, low-rank updates, and prompts of a mask."""

from pathlib import Path

import pytest
import torch
from support.training import ADAMW, trainer

from mobilesamv2 import build_sam, load_sam
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.samples import PromptSamples, to_model_inputs
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.models.low_rank import LowRankUpdate, merge_low_rank
from mobilesamv2.recipes.run_outputs import sam_writers, write_files
from mobilesamv2.structures import PointLabel
from mobilesamv2.tasks.train_prompted_masks import TrainPromptedMasks


def data() -> TrainingData:
    samples = PromptSamples(SyntheticDataset(6), 256, prompts_per_image=2, mask_stride=2)
    return TrainingData(samples, batch_size=2, validation_images=2)


@pytest.mark.parametrize("name", ["mini", "sam_vit_mini"])
def test_low_rank_updates_are_trained_and_merged(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    sam = build_sam(name)
    before = {key: value.clone() for key, value in sam.state_dict().items()}
    task = TrainPromptedMasks(sam, ADAMW, image_encoder="lora", decoder="lora", lora_rank=2)
    trained = {key for key, value in sam.named_parameters() if value.requires_grad}
    assert trained
    assert all(".parametrizations.weight.0." in key for key in trained)
    trainer(tmp_path, max_steps=2).fit(task, datamodule=data())
    updates = [module for module in sam.modules() if isinstance(module, LowRankUpdate)]
    assert all(update.up.any() for update in updates)  # each one learns, those whose weight the decoder reads too
    sam.eval()
    images, box = torch.randn(1, 3, 256, 256), torch.tensor([[20.0, 30.0, 200.0, 210.0]])
    [path] = write_files(sam_writers(sam), tmp_path)
    loaded = load_sam(path)
    with torch.no_grad():
        embeddings = [model.image_encoder(images) for model in (sam, loaded)]
        masks = [model.decode(embeddings[0], boxes_xyxy=box)[0] for model in (sam, loaded)]
    assert torch.allclose(*embeddings, atol=1e-5)
    assert any(name.endswith(".up") for name, _ in sam.named_parameters())  # which may be trained on
    assert torch.allclose(*masks, atol=1e-5)
    changed = {key for key, value in loaded.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.endswith(".weight") and before[key].ndim == 2 for key in changed)
    assert merge_low_rank(loaded) is loaded


def test_the_decoder_may_stay_while_the_encoder_is_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sam = build_sam("micro_conv")
    before = {key: value.clone() for key, value in sam.state_dict().items()}
    task = TrainPromptedMasks(sam, ADAMW, image_encoder="full", decoder="frozen")
    trainer(tmp_path, max_steps=1).fit(task, datamodule=data())
    changed = {key.split(".")[0] for key, value in sam.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"image_encoder"}


def test_masks_are_prompts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = TrainPromptedMasks(build_sam("mini"), ADAMW, mask_prompts=True)
    before = task.sam.prompt_encoder.mask_downscaling[0].weight.clone()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(task, datamodule=data())
    assert not torch.equal(task.sam.prompt_encoder.mask_downscaling[0].weight, before)
    assert 0 <= run.callback_metrics["val/miou_mask"] <= 1
    targets = torch.zeros(40, 128, 128)
    targets[:, 40:80, 40:80] = 1
    logits = torch.full((40, 64, 64), -3.0)
    logits[:, 20:40, 20:30] = 3.0  # the left half
    points = torch.full((40, 1, 2), 100.0)
    prompt = {"points": points, "labels": torch.ones(40, 1, dtype=torch.int64), "multimask_output": True}
    given = task._append_mask(prompt, logits, targets)
    assert torch.equal(given["mask_input"][:, 0], logits)
    assert not given["multimask_output"]
    assert set(given["labels"][:, 1].tolist()) == {1, -1}  # a point in the missing half, or none
    added = given["points"][:, 1][given["labels"][:, 1] == 1]
    assert (added[:, 0] > 110).all()
    assert (added[:, 0] < 160).all()


def test_a_step_may_train_one_kind_of_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    task = TrainPromptedMasks(build_sam("mini"), ADAMW, draw_prompts=True).train()
    decode = task.sam.decode
    samples = PromptSamples(SyntheticDataset(2), 256, prompts_per_image=2, points=3)
    batch = to_model_inputs(samples.collate([samples[0], samples[1]]))
    drawn = []
    for step in range(80):
        monkeypatch.setattr(TrainPromptedMasks, "global_step", step)
        drawn += [kind for kind, _ in task._prompts(batch)]
    assert len(drawn) == 80
    assert 25 <= drawn.count("box") <= 55
    assert min(drawn.count("point"), drawn.count("points")) >= 8
    assert [kind for kind, _ in task.eval()._prompts(batch)] == ["box", "point", "points"]
    monkeypatch.setattr(TrainPromptedMasks, "global_step", drawn.index("box"))
    loss, ious = task.train()._loss(batch)
    loss.backward()
    assert list(ious) == ["box"]
    left_out = task.sam.mask_decoder.output_hypernetworks_mlps[3].layers[0].weight
    assert left_out.grad is not None
    assert not left_out.grad.any()
    monkeypatch.setattr(TrainPromptedMasks, "global_step", drawn.index("points"))
    given = []
    monkeypatch.setattr(task.sam, "decode", lambda *args, **prompt: given.append(prompt) or decode(*args, **prompt))
    task._loss(batch)
    assert (batch["masks"] > 0).ne(batch["masks"] > 0.5).any()  # cells that an object covers in part are no error
    assert PointLabel.BACKGROUND not in given[0]["labels"]


def test_what_can_not_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_encoder must be frozen, lora or full, got all"):
        TrainPromptedMasks(build_sam("mini"), ADAMW, image_encoder="all")
    with pytest.raises(ValueError, match="must be lora or full, got frozen for both"):
        TrainPromptedMasks(build_sam("mini"), ADAMW, decoder="frozen")
    with pytest.raises(ValueError, match="linear layers, as ViT and TinyViT have, and micro_conv has none"):
        TrainPromptedMasks(build_sam("micro_conv"), ADAMW, image_encoder="lora")
