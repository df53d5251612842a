"""EfficientSAM as a teacher: of students of its own family alone."""

import pytest
import torch
from support.training import ADAMW

from mobilesamv2 import build_sam
from mobilesamv2.data.samples import EncoderSamples
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.tasks.distill import DistillDecoupled
from mobilesamv2.tasks.teacher import Teacher, teacher_identity

SIDE = 64


def test_a_student_imitates_its_embedding_and_takes_its_decoder() -> None:
    torch.manual_seed(0)
    teacher = build_sam("efficient_sam_vits", image_size=SIDE)
    student = build_sam("efficient_sam_vitt", encoder="timm/resnet18", image_size=SIDE)
    task = DistillDecoupled(student, Teacher(teacher), ADAMW).eval()
    samples = EncoderSamples(SyntheticDataset(2), SIDE, resizing=teacher.resizing)
    batch = samples.collate([samples[0], samples[1]])
    assert batch["pixels"].shape == (2, 3, SIDE, SIDE)
    mse, cosine = task._errors(batch)
    with torch.no_grad():
        expected = (student.image_encoder(batch["pixels"]) - teacher.image_encoder(batch["pixels"])).square().mean()
    assert mse.item() == pytest.approx(expected.item(), rel=1e-5)
    cosine.backward()
    assert all(p.grad is not None for p in student.image_encoder.parameters())
    for part in ("prompt_encoder", "mask_decoder"):
        theirs = teacher.get_submodule(part).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in student.get_submodule(part).state_dict().items())
    assert "without antialiasing" in str(teacher_identity(teacher)["preprocessing"])


@pytest.mark.parametrize("name", ["mini", "sam2_mini"])
def test_students_of_other_families_are_refused(name: str) -> None:
    teacher = Teacher(build_sam("efficient_sam_vitt", image_size=256))
    message = f"of its teacher's family, SAM, SAM-HQ, SAM 2 or EfficientSAM, got {name} for efficient_sam_vitt"
    with pytest.raises(ValueError, match=message):
        DistillDecoupled(build_sam(name), teacher, ADAMW)
