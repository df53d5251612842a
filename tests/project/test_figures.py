"""No figure of the documentation can go stale: each is made of a file of results, or one of a list with a reason."""

import re
from typing import NamedTuple

import pytest
from support import ROOT

FIGURE = re.compile(
    r"(?<![\w.@-])(?<! x )(?!95%)(?:\d[\d,]*(?:\.\d+)?|\.\d+)\s"
    r"?(?:ms|s|min|minutes?|hours?|seconds?|[KMGT]i?B|%|times|points?)(?![\w/-])"
)
"""A number and a unit; "16 x 16 points" are a grid, and 95% is what all intervals have."""

PUBLISHED = "published, with its source"
LIMIT = "a limit or constant of the code, which test_stated_limits.py compares"
ARITHMETIC = "arithmetic"
CONVENTION = "a name or a convention, not a measurement"


class Allowed(NamedTuple):
    """Words of a page around figures that no command makes, and why they may stand there."""

    page: str
    words: str
    reason: str


ALLOWED = [
    Allowed("README.md", "ten tars for the papers' 1%", PUBLISHED),
    Allowed("data.md", "ten for the papers' 1%", PUBLISHED),
    Allowed("demo.md", "boxes take 16 times less time than a grid of 32 x 32 points, by SAM's own code", PUBLISHED),
    Allowed("demo.md", "the student keeps 86% of its teacher's AR@1000", PUBLISHED),
    Allowed("demo.md", "(held from 16 times)", "SPEEDUP of reports/stated.py"),
    Allowed("demo.md", "(held from 86%)", "KEPT_SHARE of reports/stated.py"),
    Allowed("evaluate.md", "1, 3 and 5 points sampled in it", CONVENTION),
    Allowed("export.md", "Weights of more than 1.9 GB", LIMIT),
    Allowed("models.md", "6.7 MB in fp16", LIMIT),
    Allowed("robustness.md", "in less than 10 s, and no code of it runs", LIMIT),
    Allowed("robustness.md", "at most 2 GB and about 2,000 files", LIMIT),
    Allowed("robustness.md", "more than 100 times its size (and 64 MB)", "the bounds of data/json_files.py"),
    Allowed("robustness.md", "a header that declares 10 GB", "the input of the test beside it"),
    Allowed("robustness.md", "whose header says 8 TB", "the input of the test beside it"),
    Allowed("segment.md", "more than 50 MB or 50 megapixels", LIMIT),
    Allowed("segment.md", "at most 2 GB and about 2,000 files", LIMIT),
    Allowed("segment.md", "downloaded once from npm (33 MB)", LIMIT),
    Allowed("segment.md", "up to 1.9 GB", LIMIT),
    Allowed("train.md", "215 GiB for its embeddings", ARITHMETIC),
    Allowed("train.md", "11 hours of an A100", "by segment-anything-fast's rates"),
    Allowed("train.md", "one GPU of 80 GB by estimate; not measured", "an estimate, and said to be one"),
    Allowed("train.md", "35 minutes of one GPU for all 19,809 images with 320 boxes, 36 hours", LIMIT),
    Allowed("train.md", "8 MiB an image at 1024 pixels in fp16, 4 MiB in int8", ARITHMETIC),
    Allowed("train.md", "2 and 1 MiB with", ARITHMETIC),
    Allowed("train.md", "4 and 2 MiB with", ARITHMETIC),
    Allowed("train.md", "boxes or 1 to 10 points", PUBLISHED),
    Allowed("train.md", "| `true` | 2.00 MiB |", ARITHMETIC),
    Allowed("train.md", "| 1.34 MiB |", ARITHMETIC),
    Allowed("train.md", "| `true` | 1.00 MiB |", ARITHMETIC),
    Allowed("train.md", "| 0.67 MiB |", ARITHMETIC),
    Allowed("train.md", "4 MiB as fp32 `.npy`, 2 MiB as fp16", ARITHMETIC),
    Allowed("train.md", "terabytes that 1%, 10% and all of SA-1B take", "parts of the data, not a measurement"),
    Allowed("train.md", "(64 points per side, and any others)", CONVENTION),
    Allowed("train.md", "at most 15 minutes are lost", LIMIT),
]


def plain(content: str) -> str:
    """A page as one line without what is generated, and without code between fences."""
    content = re.sub(r"<!-- (\w+): begin -->.*?<!-- \1: end -->", "", content, flags=re.S)
    content = re.sub(r"^```.*?^```$", "", content, flags=re.S | re.M)
    return " ".join(content.split())


def unexplained(page: str, content: str) -> dict[str, str]:
    """Figures of a page that are neither generated nor in the list, and the words around each."""
    text = plain(content)
    spans = [match.span() for match in re.finditer(r"`[^`]*`", text)]
    for allowed in ALLOWED:
        if allowed.page == page:
            spans += [match.span() for match in re.finditer(re.escape(allowed.words), text)]
    return {
        figure.group(): text[max(0, figure.start() - 40) : figure.end() + 20]
        for figure in FIGURE.finditer(text)
        if not any(start <= figure.start() and figure.end() <= end for start, end in spans)
    }


PAGES = {path.name: path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_each_figure_is_made_by_a_command_or_is_none_that_can_go_stale(page: str) -> None:
    """Give the script that measures it a text for the page (benchmarks/result_pages.py), or leave it out."""
    content = PAGES[page].read_text()
    assert unexplained(page, content) == {}
    assert [each.words for each in ALLOWED if each.page == page and each.words not in plain(content)] == []


def test_a_typed_figure_is_found_wherever_it_stands() -> None:
    page = "It takes 11 ms.\n\n```\n# 5 minutes\n```\n\nFrom\n44.1% on, `a 3 s`, 1.16 times\nas fast; .6 GB, "
    page += "16 x 16 points.\n"
    page += "<!-- x: begin -->\n9 s\n<!-- x: end -->\nA 95% interval, v1.2 MB."
    assert list(unexplained("index.md", page)) == ["11 ms", "44.1%", "1.16 times", ".6 GB"]
