"""The demo's stated figures: the documentation shows what the file holds, and another demo is set beside them."""

import csv
from dataclasses import replace

from support import ROOT

from mobilesamv2.reports.stated import against_stated, demo_claims, demo_table, read_demo_figures
from mobilesamv2.reports.table import as_markdown


def test_the_documentation_shows_the_files() -> None:
    figures = read_demo_figures()
    guide, readme = ((ROOT / name).read_text() for name in ("docs/demo.md", "README.md"))
    assert as_markdown(demo_table(figures)) in guide
    assert demo_claims(figures) in guide
    assert demo_claims(figures) in readme
    with (ROOT / "benchmarks" / "results" / "demo_example.csv").open(newline="") as file:
        example = as_markdown(list(csv.reader(file)))
    assert example in guide
    assert example in readme
    assert len({one.seed for one in figures}) == len(figures)


def test_what_the_readme_claims_is_true_of_every_stated_seed() -> None:
    for one in read_demo_figures():
        assert one.speedup >= 16
        assert one.gain_low > 0
        assert abs(one.gain - (one.mean_ar - one.grid_mean_ar)) < 0.02
        assert one.kept >= 0.86
        assert one.learned_low > 0


def test_a_demo_is_inside_below_or_above_the_stated_range() -> None:
    one = read_demo_figures()[0]
    stated = [replace(one, seed=2, speedup=20.0, gain=2.0, kept=0.9), replace(one, seed=3, speedup=30.0, gain=4.0)]
    [(title, table)] = against_stated(replace(one, speedup=25.0, gain=1.0, kept=0.99), stated).items()
    assert title == "Beside the 2 demos of the documentation, seeds 2 to 3"
    assert table[1:3] == [
        ["decoder time, 64 x 64 over boxes", "25.0", "20.0 to 30.0", "inside"],
        ["boxes minus the best grid", "1.0 points", "2.0 to 4.0", "below"],
    ]
    assert table[3][1::2] == ["99%", "above"]
    [table] = against_stated(replace(one, speedup=19.96, gain=4.04, kept=0.904), stated).values()
    assert [row[3] for row in table[1:3]] == ["inside", "inside"]  # 20.0 and 4.0, as they are shown
