"""The benchmark of a card in miniature on the CPU: each part prints its rows."""

import re

import pytest
import torch
from support import ROOT


@pytest.mark.slow
def test_each_part_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu  # pyright: ignore[reportMissingImports]

    gpu.main(["--miniature", "--device", "cpu", "--no-compile", "--num-workers", "0", "--peak-tflops", "1"])
    printed = capsys.readouterr().out
    for title, rows, numbers in (
        ("image encoders", ("sam_vit_mini, fp32", "sam_vit_mini, bf16", "mini, fp32", "mini, bf16"), 4),
        ("mask decoder", ("8 boxes, fp32", "16 boxes, bf16"), 3),
        ("SegEvery", ("grid of 8 x 8, fp32", "grid of 8 x 8, bf16", "16 boxes, bf16"), 5),
        ("distillation", ("embeddings cached in fp16", "embeddings cached in int8"), 4),
    ):
        part = printed.split(f"\n{title}", 1)[1].split("\n\n")[0]
        for name in rows:
            cells = re.search(rf"^  {re.escape(name)} +(.+)$", part, re.MULTILINE)
            assert cells is not None, f"{title} has no row {name}:\n{part}"
            assert len(cells[1].split()) == numbers
    same = re.search(r"grid of 8 x 8, fp32 .* (\d+) +(\d+)$", printed, re.MULTILINE)
    assert same is not None
    assert int(same[1]) > 0  # masks
    assert int(same[2]) == 0  # of which none differs from itself


def test_changed_masks_are_counted_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu  # pyright: ignore[reportMissingImports]

    from mobilesamv2.masks import encode

    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    for i, columns in enumerate((slice(0, 2), slice(2, 4), slice(4, 6))):
        masks[i, columns] = True
    a, b, c = encode(masks)
    assert gpu.count_changed([a, b], [a, b]) == 0
    assert gpu.count_changed([a, b], [a, c]) == 2  # b is new, c is missing
    assert gpu.count_changed([], [a]) == gpu.count_changed([a], []) == 1


def test_a_missing_card_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here: --miniature --device cpu"):
        gpu.main([])
