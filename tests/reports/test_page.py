"""The page of a report in a browser: at the width of a phone and of a desk, sorted, enlarged, and printed."""

from pathlib import Path
from typing import Any

import pytest
from support.runs import write_run

from mobilesamv2.cli.main import main
from mobilesamv2.data.lvis import LvisDataset


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path: Path, browser: Any) -> None:
    main(["synthesize", str(tmp_path / "scenes"), "--scenes", "4", "--size", "64", "--workers", "0"])
    scenes = LvisDataset(tmp_path / "scenes" / "annotations.json", tmp_path / "scenes" / "images")
    for points, share in ((16, 0.3), (32, 0.9), (64, 0.6)):
        write_run(scenes, tmp_path / "sweep" / str(points), share, points_per_side=points)
    main(["report", str(tmp_path / "sweep"), "--baseline", "16"])
    page, asked, errors = browser.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto((tmp_path / "sweep" / "report" / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
    heads = page.locator("th")
    heads.nth(heads.all_inner_texts().index("AR@1000")).click()
    assert page.locator("tbody tr td:first-child").all_inner_texts() == ["32 x 32", "64 x 64", "16 x 16"]
    page.locator(".masks img").first.click()
    assert page.locator("dialog img").bounding_box()["width"] > 700
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 1032, "height": 703})  # A4, landscape, within its margins
    rights = "[...document.querySelectorAll('table, img, pre')].map(e => e.getBoundingClientRect().right)"
    assert max(page.evaluate(rights)) <= 1032
    page.close()
    assert errors == []
    assert [address[:5] for address in asked if not address.startswith("data:")] == ["file:"] * 2
