"""MobileSAMv2's claims, checked against a folder of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mobilesamv2.evaluation.results import percent
from mobilesamv2.reports.compare import ar_change
from mobilesamv2.reports.labels import role_label, unique
from mobilesamv2.reports.stated import KEPT_SHARE, SPEEDUP, DemoFigures
from mobilesamv2.reports.sweep import Run, stage_times

GRIDS = ("GridProposals", "Grid", "Hierarchical")

Outcome = Literal["held", "failed", "unresolved"]
"""Unresolved: the 95% interval of the difference contains 0."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and its measurement.

    Attributes:
        text: the claim.
        outcome: whether it held here.
        measured: the figures.
    """

    text: str
    outcome: Outcome
    measured: str


@dataclass(frozen=True)
class ClaimRuns:
    """The evaluations that the claims are about.

    Attributes:
        grids: the teacher's, by any grid, on the images of ``boxes``.
        dense: the 64 x 64 points with three masks each that the paper compares AR with; one of ``grids``, or on fewer
            images.
        boxes_beside_dense: the teacher's by the detector's boxes, on the images of ``dense``.
        boxes: the teacher's, by the detector's boxes.
        student: the student's, by the same boxes.
        start: that of the student before it learned, on the first of the images; None if it was not measured.
        labels: what a reader calls each, by the name of its folder.
    """

    grids: list[Run]
    dense: Run
    boxes_beside_dense: Run
    boxes: Run
    student: Run
    start: Run | None
    labels: dict[str, str]

    @property
    def dense_apart(self) -> list[Run]:
        """Return the dense grid and the boxes beside it if they are of fewer images than the others, else nothing."""
        return [] if self.boxes_beside_dense is self.boxes else [self.dense, self.boxes_beside_dense]

    @property
    def in_order(self) -> list[Run]:
        """Return all of them, in the order of the tables."""
        return [*self.grids, self.boxes, self.student]

    @property
    def best_grid(self) -> Run:
        """Return the grid of the highest mean AR."""
        return max(self.grids, key=lambda run: run.result["metrics"]["mAR"] or 0.0)


def select_runs(
    runs: Sequence[Run], teacher: str, student: str, dense_runs: Sequence[Run] = (), start_runs: Sequence[Run] = ()
) -> ClaimRuns:
    """Select the evaluations of the claims from those of a folder.

    Args:
        runs: of ``load_runs``.
        teacher: model name of the teacher.
        student: model name of the student.
        dense_runs: those of another folder, where the 64 x 64 grid and the boxes were measured on fewer images; empty
            if ``runs`` has that grid.
        start_runs: those of another folder, of the student before it learned; empty if it was not measured.

    Raises:
        ValueError: if one is missing, or there are several of it.
    """
    # both folders may have a run of one name
    dense_runs = [replace(run, name=f"{run.folder.parent.name}/{run.name}") for run in dense_runs]
    dense = _single(_runs_of(dense_runs or runs, teacher, "GridProposals", dense=True), DENSE_OF.format(teacher))
    boxes = _single(_runs_of(runs, teacher, "ObjectAware"), BOXES_OF.format(teacher))
    beside = _single(_runs_of(dense_runs or runs, teacher, "ObjectAware"), BOXES_OF.format(teacher))
    of_student = _single(_runs_of(runs, student, "ObjectAware"), BOXES_OF.format(student))
    start = _single(_runs_of(start_runs, student, "ObjectAware"), BOXES_OF.format(student)) if start_runs else None
    grids = _runs_of(runs, teacher, *GRIDS)
    if not grids:
        raise ValueError(f"The claims require an evaluation of {teacher} with a grid on all images, got none.")
    apart = [dense, beside] if dense_runs else []
    for run in (*grids, *apart, boxes, of_student):
        _require_measured(run)
    roles = {teacher: "teacher", student: "student"}
    labels = {run.name: role_label(run, roles) for run in (*grids, boxes, of_student)}
    labels |= {run.name: f"{role_label(run, roles)}, {run.result['protocol']['num_images']} images" for run in apart}
    return ClaimRuns(grids, dense, beside, boxes, of_student, start, unique(labels))


DENSE_OF = "{} with prompt_sampler=grid_proposals of 64 points per side"
BOXES_OF = "{} with prompt_sampler=object_aware"


def _runs_of(runs: Sequence[Run], model: str, *samplers: str, dense: bool = False) -> list[Run]:
    """Return the evaluations of a model by any of some samplers; ``dense``: of 64 x 64 points with three masks each."""
    return [
        run
        for run in runs
        if run.result["protocol"].get("sampler") in samplers
        and (run.result["run"].get("model") or {}).get("name") == model
        and (_is_dense(run) or not dense)
    ]


def _single(found: Sequence[Run], what: str) -> Run:
    if len(found) != 1:
        raise ValueError(f"The claims require one evaluation of {what}, got {len(found)}.")
    return found[0]


def evaluate_claims(runs: ClaimRuns) -> list[Claim]:
    """Evaluate each claim.

    The first one compares the dense grid, whose number of prompts and so its time is the same on every image, with the
    boxes on all images, whose number varies.

    The second one is about differences: it is held where the lower bound of the interval against the best grid is above
    0, failed where an upper bound is below 0, and unresolved where the interval contains 0. A dense grid on fewer
    images is no candidate for the best grid; its own difference, on its images, can only fail the claim.

    The third one is about distillation where the student was measured before it too: with the tensors that it takes
    over from its teacher a student may keep much without learning anything. It is then unresolved where the interval of
    what it learned contains 0.
    """
    unit, times = stage_times([*runs.grids, *runs.dense_apart, runs.boxes])
    decoder = {name: stages["mask_decoder"] for name, stages in times.items()}
    dense, boxes = (decoder[run.name] for run in (runs.dense, runs.boxes))
    prompts = [run.result["protocol"]["mean_prompts_decoded"] for run in (runs.dense, runs.boxes)]
    others = [run.name for run in runs.grids if run is not runs.dense]
    best = runs.best_grid
    change, low, high = ar_change(best.folder, runs.boxes.folder)
    against = f"{_points(change, low, high)} against the best one, {runs.labels[best.name]}"
    failed = high < 0
    if runs.dense_apart:
        on_fewer = ar_change(runs.dense.folder, runs.boxes_beside_dense.folder)
        against += f"; {_points(*on_fewer)} against {runs.labels[runs.dense.name]}"
        failed |= on_fewer[2] < 0
    return [
        Claim(
            f"Object-aware boxes take at least {SPEEDUP:g} times less mask-decoder time than a grid of 64 x 64.",
            "held" if dense >= SPEEDUP * boxes else "failed",
            f"{dense / boxes:.1f} times less, by the same code: {boxes:.0f} {unit} for {prompts[1]:.0f} boxes with "
            f"one mask each, {dense:.0f} {unit} for {prompts[0]:.0f} points with three"
            + "".join(f"; {decoder[name] / boxes:.1f} times less than {runs.labels[name]}" for name in others),
        ),
        Claim(
            "Object-aware boxes have a higher mean AR over K than any grid on all images.",
            "failed" if failed else "held" if low > 0 else "unresolved",
            against,
        ),
        _student_claim(runs),
    ]


def _student_claim(runs: ClaimRuns) -> Claim:
    """Evaluate the third claim."""
    teacher_ar, student_ar = (run.result["metrics"]["mAR"] or 0.0 for run in (runs.boxes, runs.student))
    share = student_ar / teacher_ar if teacher_ar else 0.0
    text = f"The distilled student keeps {KEPT_SHARE:.0%} of its teacher's mean AR"
    measured = f"{share:.0%}: {percent(student_ar)} of {percent(teacher_ar)}, "
    measured += _points(*ar_change(runs.boxes.folder, runs.student.folder))
    if runs.start is None:
        return Claim(f"{text}.", "held" if share >= KEPT_SHARE else "failed", measured)
    learned, low, high = learned_change(runs.start, runs.student)
    images = runs.start.result["protocol"]["num_images"]
    return Claim(
        f"{text}, and more than before it was distilled.",
        "failed" if share < KEPT_SHARE or high < 0 else "held" if low > 0 else "unresolved",
        f"{measured}; {_points(learned, low, high)} by distillation, on {images} images",
    )


def learned_change(start: Run, student: Run) -> tuple[float, float, float]:
    """Return what distillation adds to the student's mean AR, on the images of its start, and the 95% interval."""
    return ar_change(start.folder, student.folder, others_left_out=True)


def _points(change: float, low: float, high: float) -> str:
    """Format a difference of fractions and its interval in percentage points."""
    return f"{100 * change:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points"


def demo_figures(runs: ClaimRuns, seed: int) -> DemoFigures:
    """Return the figures of the claims as numbers.

    Args:
        runs: the evaluations of a demo.
        seed: of its test scenes.
    """
    _, times = stage_times([runs.dense, runs.boxes])
    dense, boxes = (times[run.name]["mask_decoder"] for run in (runs.dense, runs.boxes))
    best, protocol, metrics = runs.best_grid, runs.boxes.result["protocol"], runs.boxes.result["metrics"]
    gain = [round(100 * x, 2) for x in ar_change(best.folder, runs.boxes.folder)]
    dense_gain = [round(100 * x, 2) for x in ar_change(runs.dense.folder, runs.boxes_beside_dense.folder)]
    mean_ar, student = metrics["mAR"] or 0.0, runs.student.result["metrics"]["mAR"] or 0.0
    gain_1000 = [round(100 * x, 2) for x in ar_change(best.folder, runs.boxes.folder, "AR@1000")]
    if runs.start is None:
        raise ValueError("The figures of a demo include the student before it was distilled: run that demo again.")
    learned = [round(100 * x, 2) for x in learned_change(runs.start, runs.student)]
    return DemoFigures(
        seed=seed,
        scenes=protocol["num_images"],
        dense_scenes=runs.dense.result["protocol"]["num_images"],
        boxes=round(protocol["mean_prompts_decoded"], 1),
        speedup=round(dense / boxes, 2),
        ar_1000=round(100 * (metrics["AR@1000"] or 0.0), 2),
        mean_ar=round(100 * mean_ar, 2),
        grid_mean_ar=round(100 * (best.result["metrics"]["mAR"] or 0.0), 2),
        best_grid=best.result["protocol"]["points_per_side"],
        gain=gain[0],
        gain_low=gain[1],
        gain_high=gain[2],
        dense_gain=dense_gain[0],
        dense_gain_low=dense_gain[1],
        dense_gain_high=dense_gain[2],
        gain_1000=gain_1000[0],
        gain_1000_low=gain_1000[1],
        gain_1000_high=gain_1000[2],
        kept=round(student / mean_ar, 4) if mean_ar else 0.0,
        start_scenes=runs.start.result["protocol"]["num_images"],
        learned=learned[0],
        learned_low=learned[1],
        learned_high=learned[2],
    )


def _is_dense(run: Run) -> bool:
    protocol = run.result["protocol"]
    return protocol.get("points_per_side") == 64 and bool(protocol.get("multimask"))


def _require_measured(run: Run) -> None:
    """Check that an evaluation has what the claims and their tables read."""
    wanted = {
        "protocol": ("multimask", "mean_prompts_decoded", "mean_proposals"),
        "ms": ("image_encoder", "mask_decoder", "postprocessing", "total"),
    }
    for part, keys in wanted.items():
        missing = [key for key in keys if (run.result[part] or {}).get(key) is None]
        if missing:
            raise ValueError(f"{run.folder / 'results.json'} lacks {part}.{missing[0]}: repeat that evaluation.")
    if not run.result["run"].get("encoder_cost"):
        raise ValueError(f"{run.folder / 'results.json'} lacks run.encoder_cost: repeat that evaluation.")
    if not all(times["mask_decoder"] for times in (run.result["ms"], run.result["cpu_ms"]) if times):
        raise ValueError(f"{run.folder / 'results.json'} has no time of the mask decoder: repeat that evaluation.")
