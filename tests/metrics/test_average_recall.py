"""AR@K against hand-made cases, pycocotools and lvis-api."""

import contextlib
import io
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support import ROOT
from support.masks import SIZE, rectangle

from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.results_files import read_results
from mobilesamv2.metrics.average_recall import GROUPS, AverageRecall, bootstrap_intervals, count_matches
from mobilesamv2.structures import GroundTruth


def truth(
    rles: list[dict], areas: list[float] | None = None, frequencies: list[str | None] | None = None
) -> GroundTruth:
    return GroundTruth(
        image_id=7,
        size=SIZE,
        rles=rles,
        areas=areas or [100.0] * len(rles),
        frequencies=frequencies or [None] * len(rles),
    )


def score(*counts) -> dict[str, float | None]:
    recall = AverageRecall([1, 2])
    for c in counts:
        recall.update(c)
    return recall.compute()


def test_an_object_found_at_six_of_ten_thresholds() -> None:
    """IoU 8/10: found at .50 to .80, seven thresholds."""
    counts = count_matches(truth([rectangle(0, 0, 10, 1)]), [rectangle(0, 0, 8, 1)], [0.9], [1, 2])
    assert counts.matched[0, 0].tolist() == [1] * 7 + [0] * 3
    assert score(counts)["AR@1"] == pytest.approx(0.7)


def test_k_keeps_the_best_scores_and_equal_scores_keep_their_order() -> None:
    objects = [rectangle(0, 0, 5, 5), rectangle(10, 10, 5, 5)]
    miss, hit = rectangle(20, 0, 5, 5), objects[0]
    assert score(count_matches(truth(objects), [miss, hit], [0.1, 0.2], [1, 2]))["AR@1"] == 0.5
    assert score(count_matches(truth(objects), [miss, hit], [0.2, 0.2], [1, 2]))["AR@1"] == 0.0
    assert score(count_matches(truth(objects), [miss, hit], [0.2, 0.2], [1, 2]))["AR@2"] == 0.5


def test_each_object_is_found_once_and_each_mask_finds_one() -> None:
    one = rectangle(0, 0, 5, 5)
    assert score(count_matches(truth([one]), [one, one], [0.5, 0.4], [1, 2]))["AR@2"] == 1.0
    assert score(count_matches(truth([one, one]), [one], [0.5], [1, 2]))["AR@1"] == 0.5


def test_among_equal_iou_the_last_object_is_taken() -> None:
    """Two twins, of which only the last has another mask that fits it: taking the first would find two."""
    first, last = rectangle(0, 0, 4, 4), rectangle(4, 0, 4, 4)
    between = rectangle(0, 0, 8, 4)  # IoU .5 with both
    counts = count_matches(truth([first, last]), [between, last], [0.9, 0.8], [1, 2])
    assert counts.matched[0, 1, 0] == 1  # at .5 `between` takes `last`, and nothing fits `first`


def test_groups_go_by_the_area_field_and_by_frequency() -> None:
    objects = [rectangle(0, 0, 5, 5), rectangle(10, 0, 5, 5), rectangle(20, 0, 5, 5)]
    counts = count_matches(truth(objects, [1024.0, 9216.0, 1e10 + 1], ["r", "c", "f"]), objects[:2], [0.9, 0.8], [1, 2])
    assert dict(zip(GROUPS, counts.n_gt.tolist(), strict=True)) == {
        "all": 3, "s": 1, "m": 2, "l": 1, "r": 1, "c": 1, "f": 1,
    }  # fmt: skip
    values = score(counts)
    assert (values["ARs@2"], values["ARm@2"], values["ARl@2"]) == (1.0, 1.0, 1.0)
    assert (values["ARr@2"], values["ARc@2"], values["ARf@2"]) == (1.0, 1.0, 0.0)


def test_recall_is_over_all_objects_and_not_over_images() -> None:
    one = rectangle(0, 0, 5, 5)
    found = count_matches(truth([one]), [one], [0.5], [1, 2])
    missed = count_matches(truth([one, one, one]), [], [], [1, 2])
    assert score(found, missed)["AR@1"] == 0.25


def test_an_empty_group_has_no_value() -> None:
    values = score(count_matches(truth([]), [rectangle(0, 0, 2, 2)], [0.5], [1, 2]))
    assert set(values.values()) == {None}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_names_the_image(bad: float) -> None:
    with pytest.raises(ValueError, match="image 7"):
        count_matches(truth([]), [rectangle(0, 0, 2, 2)], [bad])


def test_a_mask_of_another_size_names_the_image() -> None:
    with pytest.raises(ValueError, match="image 7"):
        count_matches(truth([]), [rectangle(0, 0, 2, 2, size=(30, 24))], [0.5])


def coco_files(draw_objects: list[list[tuple]], draw_masks: list[list[tuple]], folder: Path) -> tuple[Path, Path]:
    """Ground truth and results in files; ids are unordered and begin at 0 for images."""
    images = [{"id": 3 * (len(draw_objects) - 1 - i), "height": 24, "width": 30} for i in range(len(draw_objects))]
    annotations, results = [], []
    for image, objects, masks in zip(images, draw_objects, draw_masks, strict=True):
        for box, area, crowd in objects:
            annotations.append(
                {
                    "id": 1000 - len(annotations),  # COCOeval takes an id of 0 for unmatched
                    "image_id": image["id"],
                    "category_id": 1,
                    "segmentation": rectangle(*box),
                    "area": area,
                    "iscrowd": int(crowd),
                    "bbox": list(box),
                }
            )
        for box, value in masks:
            results.append({"image_id": image["id"], "category_id": 1, "segmentation": rectangle(*box), "score": value})
    ground_truth, detections = folder / "gt.json", folder / "dets.json"
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    ground_truth.write_text(json.dumps(content))
    detections.write_text(json.dumps(results))
    return ground_truth, detections


def ours(ground_truth: Path, detections: Path, ks: list[int]) -> AverageRecall:
    dataset = CocoDataset(ground_truth)
    results = dict(read_results(detections, dataset))
    recall = AverageRecall(ks)
    for i in range(len(dataset)):
        recall.update(count_matches(dataset.ground_truth(i), *results.get(i, ([], [])), ks))
    return recall


def cocoeval(ground_truth: Path, detections: Path, ks: list[int]) -> np.ndarray:
    """(groups all s m l, Ks) AR; -1 for an empty group."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(ground_truth))
        evaluation = COCOeval(coco, coco.loadRes(str(detections)), "segm")
        evaluation.params.useCats, evaluation.params.maxDets = 0, ks
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["recall"][:, 0].mean(0)


box = st.tuples(st.integers(0, 20), st.integers(0, 14), st.integers(1, 10), st.integers(1, 10))
area = st.sampled_from([0.0, 1.0, 1023.9, 1024.0, 1024.1, 9216.0, 1e10])
value = st.sampled_from([0.1, 0.5, 0.9, -1.0])
few = st.sampled_from([(0, 0, 8, 4), (0, 0, 4, 4), (4, 0, 4, 4), (0, 0, 8, 5), (0, 0, 10, 10), (0, 0, 10, 9)])
image = st.tuples(
    st.lists(st.tuples(st.one_of(box, few), area, st.booleans()), max_size=6),
    st.lists(st.tuples(st.one_of(box, few), value), max_size=8),
)


@settings(max_examples=60, deadline=None)
@given(images=st.lists(image, min_size=1, max_size=4))
def test_equals_cocoeval_on_adversarial_cases(images: list[tuple], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ties, twins, crowds, IoU at a threshold, areas at a bound, images without objects or masks, id 0."""
    if not any(masks for _, masks in images):
        return  # pycocotools can't load an empty results file
    files = coco_files([o for o, _ in images], [m for _, m in images], tmp_path_factory.mktemp("case"))
    theirs = cocoeval(*files, [1, 3, 8])
    values = ours(*files, [1, 3, 8]).compute()
    for g, group in enumerate(["", "s", "m", "l"]):
        for i, k in enumerate([1, 3, 8]):
            expected = None if theirs[g, i] < 0 else pytest.approx(theirs[g, i], abs=1e-12)
            assert values[f"AR{group}@{k}"] == expected


def test_equals_cocoeval_beyond_a_thousand_detections(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def boxes(n: int) -> list[tuple]:
        return [tuple(map(int, (*rng.integers(0, 15, 2), *rng.integers(1, 9, 2)))) for _ in range(n)]

    objects = [[(b, 50.0, False) for b in boxes(40)]]
    masks = [[(b, float(s)) for b, s in zip(boxes(1300), rng.integers(0, 50, 1300) / 50, strict=True)]]
    files = coco_files(objects, masks, tmp_path)
    values = ours(*files, [10, 100, 1000]).compute()
    theirs = cocoeval(*files, [10, 100, 1000])
    assert [values[f"AR@{k}"] for k in (10, 100, 1000)] == pytest.approx(theirs[0], abs=1e-12)


def test_equals_lvis_api_with_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 uses a name that NumPy dropped
    from lvis import LVIS, LVISEval, LVISResults

    rng = np.random.default_rng(1)

    def boxes(n: int) -> list[tuple]:
        return [tuple(map(int, (*rng.integers(0, 15, 2), *rng.integers(1, 9, 2)))) for _ in range(n)]

    objects = [[(b, 50.0, False) for b in boxes(20)] for _ in range(3)]
    masks = [[(b, float(s)) for b, s in zip(boxes(30), rng.permutation(30) / 30, strict=True)] for _ in range(3)]
    ground_truth, detections = coco_files(objects, masks, tmp_path)
    content = json.loads(ground_truth.read_text())
    content["categories"] = [{"id": 1, "name": "object", "frequency": "f"}]
    for record in content["images"]:
        record |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    ground_truth.write_text(json.dumps(content))
    values = ours(ground_truth, detections, [5, 20]).compute()
    for k in (5, 20):
        lvis = LVIS(str(ground_truth))
        evaluation = LVISEval(lvis, LVISResults(lvis, str(detections), max_dets=k), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        assert values[f"AR@{k}"] == pytest.approx(evaluation.eval["recall"][:, 0, 0].mean(), abs=1e-12)
        assert values[f"ARf@{k}"] == values[f"AR@{k}"]


def test_the_coco_api_example(shared_data: Path) -> None:
    """The result covers 99 of the file's 100 images; over those AR@100 is the published .482388."""
    dataset = CocoDataset(shared_data / "cocoapi" / "instances_val2014_100.json")
    results = dict(read_results(shared_data / "cocoapi" / "instances_val2014_fakesegm100_results.json", dataset))
    every, covered = AverageRecall(), AverageRecall()
    for i in range(len(dataset)):
        counts = count_matches(dataset.ground_truth(i), *results.get(i, ([], [])))
        every.update(counts)
        if counts.num_detections:
            covered.update(counts)
    assert covered.compute()["AR@100"] == pytest.approx(0.482388, abs=5e-7)
    assert every.compute()["AR@100"] == pytest.approx(0.482388 * 829 / 830, abs=5e-7)


def test_bootstrap_draws_images_and_is_seeded() -> None:
    one = rectangle(0, 0, 5, 5)
    found = [count_matches(truth([one]), [one], [0.5], [1]) for _ in range(30)]
    missed = [count_matches(truth([one]), [], [], [1]) for _ in range(30)]
    matched = np.stack([c.matched for c in found + missed])
    n_gt = np.stack([c.n_gt for c in found + missed])
    intervals = bootstrap_intervals(matched, n_gt, [1], seed=3)
    low, high = intervals["AR@1"]
    # a proportion of .5 over 60 draws: standard error .0645, so 1.96 of them either side
    assert low == pytest.approx(0.5 - 1.96 * 0.0645, abs=0.03)
    assert high == pytest.approx(0.5 + 1.96 * 0.0645, abs=0.03)
    assert intervals["ARr@1"] is None
    assert bootstrap_intervals(matched, n_gt, [1], seed=3) == intervals
    assert bootstrap_intervals(matched[:30], n_gt[:30], [1])["AR@1"] == [1.0, 1.0]


def test_k_may_cap_prompts() -> None:
    """Two prompts of three masks each: at K=1 all masks of the better prompt count, and none of the other's."""
    boxes = [(x, y, 8, 8) for y in (0, 10) for x in (0, 10, 20)]
    rles = [rectangle(*box) for box in boxes]
    scores = [0.1, 0.9, 0.3, 0.8, 0.7, 0.2]
    prompts = [0, 0, 0, 1, 1, 1]
    masks = count_matches(truth(rles), rles, scores, ks=[1, 2])
    capped = count_matches(truth(rles), rles, scores, ks=[1, 2], prompt_ranks=prompts)
    assert masks.matched[0, :, 0].tolist() == [1, 2]
    assert capped.matched[0, :, 0].tolist() == [3, 6]
    # the mask of a later prompt must not take the object away from one of the first
    twins = count_matches(truth(rles[:1]), rles[:1] * 2, [0.1, 0.9], [1], [0, 1])
    assert twins.matched[0, 0, 0] == 1


def test_the_benchmark_s_programs_agree(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--images", "2", "--detections", "30", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", ["average_recall.py", *arguments])
    runpy.run_path(str(ROOT / "benchmarks" / "average_recall.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["mobilesamv2", "faster-coco-eval", "pycocotools"]
    assert all(float(line.split()[-1]) < 1e-12 for line in lines[1:])
