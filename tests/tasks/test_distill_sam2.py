"""Distillation of SAM 2: weights of its levels, students without the finer ones, its cache, every kind for a step."""

from pathlib import Path

import pytest
import torch
from support.random_weights import stir
from support.runs import train
from support.training import ADAMW, trainer

from mobilesamv2 import build_sam
from mobilesamv2.checkpoints import save_weights
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.samples import EncoderSamples, PromptSamples, to_model_inputs
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.models.pyramid import unpack_levels
from mobilesamv2.registry import load_sam
from mobilesamv2.tasks.distill import DistillDecoupled
from mobilesamv2.tasks.distill_masks import DistillMasks
from mobilesamv2.tasks.teacher import Teacher, teacher_identity
from mobilesamv2.transforms import Resizing


def task_with(encoder: str, **settings) -> DistillDecoupled:
    torch.manual_seed(0)
    student = build_sam("sam2_mini", encoder=encoder)
    return DistillDecoupled(student, Teacher(build_sam("sam2_mini")), ADAMW, **settings).eval()


def test_the_loss_is_the_weighted_mean_of_the_levels() -> None:
    """A level's error is that of its own maps; here the student's are 1, 2 and 3 off."""
    samples = EncoderSamples(SyntheticDataset(1), 256, resizing=Resizing.SQUARE)
    batch = samples.collate([samples[0]])
    for weights, expected in (
        (None, (1 + 4 + 9) / 3),
        ([1, 1, 1], (1 + 4 + 9) / 3),
        ([4, 2, 1], (4 * 1 + 2 * 4 + 1 * 9) / 7),
        ([1, 0, 0], 1.0),
    ):
        task = task_with("tiny_vit_mini", level_weights=weights)
        with torch.no_grad():
            embedding = task.student.image_encoder(batch["pixels"])
            assert [tuple(level.shape[1:]) for level in unpack_levels(embedding)] == [
                (64, 16, 16),
                (16, 32, 32),
                (8, 64, 64),
            ]
            off = torch.cat([torch.full((n,), by) for n, by in ((64, 1.0), (64, 2.0), (128, 3.0))])
            task.teacher.embedding = lambda batch, embedding=embedding, off=off: embedding + off[:, None, None]
            mse, cosine = task._errors(batch)
        assert mse.item() == pytest.approx(expected, rel=1e-5)
        assert 0 < cosine.item() < 2


def test_a_student_without_finer_levels_learns_the_first_channels() -> None:
    samples = EncoderSamples(SyntheticDataset(1), 256, resizing=Resizing.SQUARE)
    batch = samples.collate([samples[0]])
    for stride, number, channels in ((16, 1, 64), (8, 2, 128)):
        task = task_with(f"tiny_vit_mini_stride{stride}", level_weights=[1] * number)
        assert task.student.embedding_channels == channels
        with torch.no_grad():
            student, teacher = task.student.image_encoder(batch["pixels"]), task.teacher.embedding(batch)
            mse, _ = task._errors(batch)
        errors = (student - teacher[:, :channels]).square().split(64, dim=1)
        assert mse.item() == pytest.approx(sum(error.mean().item() for error in errors) / number, rel=1e-5)


@pytest.mark.parametrize(
    ("model", "encoder", "weights", "message"),
    [
        ("mini", None, [1.0], "must be null for mini: its embedding has one level"),
        (
            "sam2_mini",
            "tiny_vit_mini",
            [1, 1],
            r"must be 3 number\(s\) of at least 0, .* of tiny_vit_mini from stride 16",
        ),
        ("sam2_mini", "tiny_vit_mini", [0, 0, 0], "not all 0"),
        ("sam2_mini", "tiny_vit_mini", [1, -1, 1], r"at least 0, .* got \[1, -1, 1\]"),
        ("sam2_mini", "tiny_vit_mini_stride16", [1, 1, 1], r"must be 1 number\(s\)"),
    ],
)
def test_weights_that_are_not_of_the_levels(
    model: str, encoder: str | None, weights: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"task\.level_weights .*{message}"):
        DistillDecoupled(build_sam(model, encoder=encoder), Teacher(build_sam(model)), ADAMW, level_weights=weights)


def test_a_teacher_must_have_the_levels_of_its_student() -> None:
    teacher = Teacher(build_sam("sam2_mini", encoder="tiny_vit_mini_stride16"))
    with pytest.raises(ValueError, match=r"levels of its student sam2_hiera_mini, got tiny_vit_mini_stride16"):
        DistillDecoupled(build_sam("sam2_mini"), teacher, ADAMW)


def test_levels_that_no_student_learns_are_neither_computed_nor_kept(tmp_path: Path) -> None:
    """A quarter of the bytes, in a cache of their own, and the same gradient for a student without finer levels."""
    torch.manual_seed(0)
    sam, student = build_sam("sam2_mini"), build_sam("sam2_mini", encoder="tiny_vit_mini_stride16")
    coarse, full = Teacher(sam, levels=1), Teacher(sam)
    pixels = torch.randn(1, 3, 256, 256)
    assert torch.equal(coarse.encode(pixels), full.encode(pixels)[:, : sam.level_channels[0]])
    samples = EncoderSamples(SyntheticDataset(2), 256, resizing=Resizing.SQUARE)
    batch = to_model_inputs(samples.collate([samples[0], samples[1]]))
    losses = [DistillDecoupled(student, teacher, ADAMW).eval()._errors(batch)[0] for teacher in (coarse, full)]
    assert torch.equal(*losses)
    cache = EmbeddingCache(tmp_path, teacher_identity(sam, levels=1))
    kept = Teacher(sam, cache, levels=1)
    assert torch.allclose(kept.embedding(batch), coarse.encode(batch["pixels"]), atol=1e-2)
    cache.flush()
    with pytest.raises(ValueError, match="levels"):
        EmbeddingCache(tmp_path, teacher_identity(sam))
    assert teacher_identity(sam, levels=3) == teacher_identity(sam)


def test_levels_of_a_teacher_that_others_need() -> None:
    sam = build_sam("sam2_mini")
    for levels in (0, 4, True, "1"):
        with pytest.raises(ValueError, match=rf"teacher\.levels must be null or from 1 to 3 .* got {levels}\."):
            Teacher(sam, levels=levels)  # pyright: ignore[reportArgumentType]
    coarse = Teacher(sam, levels=1)
    with pytest.raises(
        ValueError, match=r"got sam2_hiera_mini with teacher\.levels=1, which leaves out the finer ones"
    ):
        DistillDecoupled(build_sam("sam2_mini"), coarse, ADAMW)
    student = build_sam("sam2_mini", encoder="tiny_vit_mini_stride16")
    with pytest.raises(
        ValueError, match=r"teacher\.levels must be null, got 1: the teacher's masks are decoded from all"
    ):
        DistillMasks(student, coarse, ADAMW)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decoupled", "semi_coupled", "coupled", "prompt_in_loop"])
@pytest.mark.parametrize("encoder", ["tiny_vit_mini", "tiny_vit_mini_stride16"])
def test_every_kind_takes_a_step_with_a_cache_and_its_student_is_rebuilt(
    kind: str, encoder: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    teacher, student = build_sam("sam2_mini"), build_sam("sam2_mini", encoder=encoder)
    cached = Teacher(teacher, EmbeddingCache(tmp_path / "cache", teacher_identity(teacher)))
    if kind == "decoupled":
        task = DistillDecoupled(student, cached, ADAMW)
        samples = EncoderSamples(SyntheticDataset(3), 256, resizing=Resizing.SQUARE)
    else:
        rounds = int(kind == "prompt_in_loop")
        task = DistillMasks(student, cached, ADAMW, train_decoder=kind != "semi_coupled", rounds=rounds)
        samples = PromptSamples(SyntheticDataset(3), 256, resizing=Resizing.SQUARE, prompts_per_image=2)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(task, datamodule=TrainingData(samples, batch_size=2, validation_images=1))
    assert cached.images_encoded == 3  # and the second epoch reads the cache
    changed = {key.split(".")[0] for key, value in student.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"image_encoder"} | ({"mask_decoder"} if kind in ("coupled", "prompt_in_loop") else set())
    save_weights(student, tmp_path / "student.safetensors")
    again = load_sam(tmp_path / "student.safetensors")
    assert (again.name, again.encoder_name) == ("sam2_mini", encoder)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in student.state_dict().items())


def test_bytes_of_a_cached_embedding(tmp_path: Path) -> None:
    """Four times those of a SAM: at full size 8 MiB in fp16 and 4 MiB in int8, beside 4 bytes of scale a channel."""
    torch.manual_seed(0)
    teacher = build_sam("sam2_mini")
    embedding = torch.randn(1, 1024, 64, 64)
    for dtype, most in (("fp16", 8 * 2**20 + 2**12), ("int8", 4 * 2**20 + 2**14)):
        cache = EmbeddingCache(tmp_path / dtype, teacher_identity(teacher), dtype=dtype)
        cache.write([1], embedding)
        cache.flush()
        size = sum(path.stat().st_size for path in cache.folder.iterdir())
        print(f"{dtype}: {size / 2**20:.3f} MiB")
        assert most - 2**14 < size <= most


def test_a_stride_16_decoder_adds_nothing() -> None:
    """An embedding whose finer levels are 0 gives the same masks as one without them, in each way to decode."""
    sam = build_sam("sam2_mini", encoder="tiny_vit_mini_stride16")
    stir(sam, seed=0)
    coarse = torch.randn(1, 64, 16, 16)
    packed = torch.cat([coarse, torch.zeros(1, 192, 16, 16)], dim=1)
    points, labels = torch.rand(5, 1, 2) * 256, torch.ones(5, 1)
    for embeddings in ((coarse, packed), (coarse.expand(5, -1, -1, -1), packed.expand(5, -1, -1, -1))):
        for multimask_output in (False, True):
            ours, theirs = (sam.decode(e, points, labels, multimask_output=multimask_output) for e in embeddings)
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))
    with pytest.raises(ValueError, match="must have 64, 128 or 256 channels, got 192"):
        sam.image_context(packed[:, :192])


def test_weights_of_levels_from_the_command_line(tmp_path: Path) -> None:
    given = ["experiment=distill_sam2_tinyvit", "model.name=sam2_mini", "encoder=tiny_vit_mini"]
    given += ["model@teacher=by_name", "teacher.name=sam2_mini", "dataset=synthetic", "dataset.limit=3"]
    given += [f"cache.folder={tmp_path / 'cache'}", "validation_images=1", "trainer.max_steps=1"]
    train(*given, "task.level_weights=[4,2,1]", f"output_dir={tmp_path / 'out'}")
    assert (tmp_path / "out" / "sam2_mini.safetensors").is_file()
    for weights, message in (("[1,1]", r"must be 3 number\(s\)"), ("[1,-1,1]", "must each be at least 0")):
        with pytest.raises(SystemExit, match=rf"task\.level_weights {message}"):
            train(*given, f"task.level_weights={weights}", f"output_dir={tmp_path / 'no'}")
