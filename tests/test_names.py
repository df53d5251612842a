"""The nearest names to one that does not exist."""

import pytest

from mobilesamv2.names import did_you_mean


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("distil_tinyvit", ["distill_tinyvit", "distill_tinyvit_11m"], " Did you mean 'distill_tinyvit'?"),
        ("Mobile-SAM", ["mini", "mobile_sam"], " Did you mean 'mobile_sam'?"),
        ("gird", ["grid", "hierarchical"], " Did you mean 'grid'?"),
        ("yolov8q", ["yolov8n", "yolov8s", "sam"], " Did you mean 'yolov8s' or 'yolov8n'?"),
        ("nothing", ["grid", "hierarchical"], ""),
        ("", ["grid"], ""),
    ],
)
def test_the_nearest_names_are_suggested(name: str, known: list[str], said: str) -> None:
    assert did_you_mean(name, known) == said


def test_a_name_is_written_as_it_is_typed() -> None:
    assert did_you_mean("mini_con", ["mini_conv"], "model={}") == " Did you mean model=mini_conv?"
