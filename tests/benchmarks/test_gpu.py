"""The benchmark of a card in miniature on the CPU: each part prints its rows."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT


@pytest.mark.slow
def test_each_part_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("mobile_sam", "mobilesam_lite"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu  # pyright: ignore[reportMissingImports]

    gpu.main(["--miniature", "--device", "cpu", "--no-compile", "--num-workers", "0", "--peak-tflops", "1"])
    printed = capsys.readouterr().out
    for title, rows, numbers in (
        ("image encoders", ("sam_vit_mini, fp32", "sam_vit_mini, bf16", "mini, fp32", "mini, bf16"), 4),
        ("mask decoder", ("8 boxes, fp32", "16 boxes, bf16"), 3),
        ("SegEvery", ("grid of 8 x 8, fp32", "grid of 8 x 8, bf16", "16 boxes, bf16"), 6),
        ("the official", ("official, 16 points", "official, 16 points, bf16", "ours, 16 points"), 3),
        ("the official", ("official, 16 boxes", "official, 16 boxes, bf16", "ours, 16 boxes"), 3),
        ("distillation", ("fp16 embeddings", "int8 embeddings", "fp16 embeddings and pixels"), 6),
    ):
        part = printed.split(f"\n{title}", 1)[1].split("\n\n")[0]
        for name in rows:
            cells = re.search(rf"^  {re.escape(name)}  +(.+)$", part, re.MULTILINE)
            assert cells is not None, f"{title} has no row {name}:\n{part}"
            assert len(cells[1].split()) == numbers
    same = re.search(r"grid of 8 x 8, fp32 .* (\d+) +(\d+) +(\d+)$", printed, re.MULTILINE)
    assert same is not None
    assert int(same[1]) > 0  # masks
    assert int(same[2]) == int(same[3]) == 0  # of which none differs from itself


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_training_with_kept_pixels_reads_them_from_disk(
    workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu  # pyright: ignore[reportMissingImports]

    kept = gpu.MINIATURE.photos * 192 * 256 * 3  # bytes of the pixels
    on_disk: list[int] = []

    def note(*args: Any, **settings: Any) -> tuple[float, float]:
        on_disk.append(sum(pixels.num_bytes() for pixels in args[4].pixel_caches.values()))
        return train(*args, **settings)

    train = gpu.distillation.train_ours
    monkeypatch.setattr(gpu.distillation, "train_ours", note)
    args = Namespace(compile=False, num_workers=workers, peak_tflops=None)
    gpu.training(gpu.MINIATURE, torch.device("cpu"), args, tmp_path)
    printed = capsys.readouterr().out
    decoded = dict(re.findall(r"^  (\S+ embeddings.*?)  +\d.* (\d+)$", printed, re.MULTILINE))
    passes = 2 * gpu.MINIATURE.photos
    assert decoded == {
        "fp16 embeddings": str(passes),
        "int8 embeddings": str(passes),
        "fp16 embeddings and pixels": "0",
        "int8 embeddings and pixels": "0",
    }
    assert [number > kept for number in on_disk] == [False, False, True, True]
    assert on_disk[:2] == [0, 0]


def test_missing_official_packages_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(gpu, "OFFICIAL_PACKAGES", ("torch", "no_such_package"))
    gpu.official(gpu.MINIATURE, Namespace(), tmp_path)
    assert "left out: no_such_package not installed; `pip install -e '.[test]'` adds them" in capsys.readouterr().out


def test_changed_masks_are_counted_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu  # pyright: ignore[reportMissingImports]

    from mobilesamv2.masks import encode

    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    for i, columns in enumerate((slice(0, 2), slice(2, 4), slice(4, 6))):
        masks[i, columns] = True
    a, b, c = encode(masks)
    assert gpu.count_changed([a, b], [a, b]) == (0, 0)
    assert gpu.count_changed([a, b], [a, c]) == (1, 1)  # c is missing, b is new
    assert gpu.count_changed([], [a]) == (1, 0)
    assert gpu.count_changed([a], []) == (0, 1)


def test_a_missing_card_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here: --miniature --device cpu"):
        gpu.main([])
