"""Distillation between models of unlike sizes."""

from pathlib import Path

import pytest
import torch
from support.training import ADAMW, trainer

from mobilesamv2 import build_sam, load_sam
from mobilesamv2.checkpoints import save_weights
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.samples import EncoderSamples, PromptSamples, to_model_inputs
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.models.sam_hq import SamHq, sam_hq_vit
from mobilesamv2.tasks.distill import DistillDecoupled, resample_embedding
from mobilesamv2.tasks.distill_masks import DistillMasks
from mobilesamv2.tasks.teacher import Teacher, teacher_identity


def data(samples: type[EncoderSamples] = EncoderSamples, **settings) -> TrainingData:
    """Scenes for a teacher of 256 pixels and a student of 128."""
    return TrainingData(
        samples(SyntheticDataset(8), 256, student_size=128, **settings), batch_size=2, validation_images=2
    )


def test_the_decoder_reads_the_teachers_embedding_on_another_grid() -> None:
    """The positions of cells and prompts are shares of the side: no weight depends on the grid."""
    torch.manual_seed(0)
    large, small = build_sam("mini"), build_sam("mini", image_size=128)
    for part in ("prompt_encoder", "mask_decoder"):
        getattr(small, part).load_state_dict(getattr(large, part).state_dict())
    cells = small.prompt_encoder.image_positions(), large.prompt_encoder.image_positions()
    # a cell of the small grid is two by two of the large one, and its centre is theirs
    centre = (torch.arange(8) + 0.5) / 8
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    assert torch.allclose(cells[0][0].permute(1, 2, 0), large.prompt_encoder.pe_layer(torch.stack([x, y], -1)))
    assert cells[1].shape[-1] == 2 * cells[0].shape[-1] == 16
    sparse = large.prompt_encoder(boxes_xyxy=torch.tensor([[40.0, 60.0, 200.0, 190.0]]) - 0.5)[0]
    half = small.prompt_encoder(boxes_xyxy=torch.tensor([[20.0, 30.0, 100.0, 95.0]]) - 0.5)[0]
    assert torch.allclose(sparse, half, atol=1e-5)


def hq(width: int = 64, side: int = 256) -> SamHq:
    """A SAM-HQ in miniature, of random weights."""
    sizes = {"embed_dim": 96, "depth": 2, "num_heads": 3, "global_attn_indexes": (1,)}
    encoder = sam_hq_vit("samvit_base_patch16", image_size=side, out_channels=width, **sizes)
    return SamHq(encoder, image_size=side, embed_dim=width, decoder_heads=4, decoder_mlp_dim=256).eval()


def test_a_sam_hq_learns_all_of_its_teachers_embedding() -> None:
    """Its finer features are a level of their own; here they alone are off, and learn from it."""
    torch.manual_seed(0)
    student, samples = hq(), EncoderSamples(SyntheticDataset(1), 256)
    batch = to_model_inputs(samples.collate([samples[0]]))
    off = torch.cat([torch.zeros(64), torch.full((128,), 2.0)])[:, None, None]
    for weights, expected in ((None, 2.0), ([1.0, 3.0], 3.0)):
        task = DistillDecoupled(student, Teacher(hq()), ADAMW, level_weights=weights)
        theirs = student.image_encoder(batch["pixels"]).detach() + off
        task.teacher.embedding = lambda batch, theirs=theirs: theirs
        mse, _ = task._errors(batch)
        assert mse.item() == pytest.approx(expected, rel=1e-5)
    mse.backward()
    for name in ("compress_vit_feat", "embedding_encoder"):
        for parameter in student.image_encoder.get_submodule(name).parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"SAM-HQ must have its teacher's image size and embedding width \(256, 64\)"):
        DistillDecoupled(hq(side=128), Teacher(hq()), ADAMW)


def test_a_sam_hq_teaches_no_sam() -> None:
    """Its mask decoder has further parts, whatever the width."""
    for name in ("mini", "mini_conv"):
        with pytest.raises(ValueError, match="of its teacher's family, SAM, SAM-HQ, SAM 2 or EfficientSAM, got mini"):
            DistillDecoupled(build_sam(name), Teacher(hq()), ADAMW)


def test_a_constant_embedding_stays_constant() -> None:
    assert torch.allclose(resample_embedding(torch.full((1, 2, 16, 16), 3.0), 8), torch.tensor(3.0))
    same = torch.randn(1, 2, 4, 4)
    assert resample_embedding(same, 4) is same


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("mini", 64), ("micro_conv", 128)])
def test_a_student_of_another_size_learns_and_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, width: int
) -> None:
    torch.manual_seed(0)
    teacher, student = build_sam("sam_vit_mini"), build_sam(name, image_size=128)
    cache = EmbeddingCache(tmp_path / "cache", teacher_identity(teacher))
    with caplog.at_level("INFO"):
        task = DistillDecoupled(student, Teacher(teacher, cache), ADAMW, mask_padding=True)
    assert "an input of 128 pixels, the teacher one of 256" in caplog.text
    assert ("keeps its own" in caplog.text) == (width != 64)
    losses: list[float] = []
    for _ in range(2):  # the second time from the cache
        run = trainer(tmp_path, max_epochs=3)
        run.fit(task, datamodule=data())
        losses.append(float(run.callback_metrics["val/loss"]))
    assert losses[1] < losses[0]
    has_teachers = all(
        value.shape == theirs.shape and torch.equal(value, theirs)
        for value, theirs in zip(
            student.mask_decoder.state_dict().values(), teacher.mask_decoder.state_dict().values(), strict=True
        )
    )
    assert has_teachers == (width == 64)
    save_weights(student, tmp_path / "student.safetensors")
    again = load_sam(tmp_path / "student.safetensors")
    assert (again.image_size, again.embedding_channels) == (128, width)
    assert again.state_dict().keys() == student.state_dict().keys()  # without the projection


def test_masks_are_compared_in_the_teachers_frame(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = build_sam("sam_vit_mini"), build_sam("mini", image_size=128)
    task = DistillMasks(student, Teacher(teacher), ADAMW, train_decoder=True, rounds=1)
    run = trainer(tmp_path, max_steps=2)
    run.fit(task, datamodule=data(PromptSamples, prompts_per_image=2))
    assert torch.isfinite(run.callback_metrics["train/loss"])
    prompt = {"boxes_xyxy": torch.ones(1, 4)}
    for all_masks, number in ((False, 3), (True, 4)):
        assert task._decode(torch.zeros(1, 64, 8, 8), prompt, 64, all_masks)[0].shape == (1, number, 64, 64)


def test_a_cache_without_padding_can_not_be_resampled(tmp_path: Path) -> None:
    teacher = build_sam("sam_vit_mini")
    cache = EmbeddingCache(tmp_path, teacher_identity(teacher), store_padding=False)
    with pytest.raises(ValueError, match=r"store_padding must be true, got false: the embeddings are resampled"):
        DistillDecoupled(build_sam("mini", image_size=128), Teacher(teacher, cache), ADAMW, mask_padding=True)


def test_image_sizes_have_a_step() -> None:
    with pytest.raises(ValueError, match="image_size must be a multiple of 32 pixels from 32 to 8192, got 100"):
        build_sam("mini", image_size=100)
