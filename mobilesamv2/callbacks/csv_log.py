"""The log of a run, metrics.csv: a kill at any moment leaves the rows that were written."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from typing_extensions import override

from mobilesamv2.files import named_in_errors, write_text_atomic

Row = dict[str, Any]
"""Values of a line by column."""


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger, except that a run that resumes in its folder keeps the rows of metrics.csv."""

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = AppendingWriter(self.log_dir)
        return self._experiment


class AppendingWriter(ExperimentWriter):
    """Lightning's writer, except that it appends to a file that is there, and replaces it whole for a new column.

    Lightning's own deletes the file when it begins, and writes it anew in place when a column is added. A row that
    repeats the one before is left out: that of a step is logged before a checkpoint, and after it by Lightning.
    """

    _latest: Row | None = None

    @override
    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics_dict, step)
        if self.metrics[-1] == self._latest:
            self.metrics.pop()
        else:
            self._latest = self.metrics[-1]

    @override
    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            columns, rows = read_rows(path)
            self.metrics_keys = columns
            write_rows(path, columns, rows)  # a killed run may have left a part of a line

    @override
    def save(self) -> None:
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        if self._record_new_keys() or not path.is_file():
            rows = read_rows(path)[1] if path.is_file() else []
            write_rows(path, self.metrics_keys, [*rows, *self.metrics])
        else:
            with named_in_errors(path), path.open("a", newline="") as file:
                file.write(_lines(self.metrics_keys, self.metrics))  # at once, so that a kill leaves few parts of lines
                file.flush()
                os.fsync(file.fileno())
        self.metrics = []


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Return the columns and the complete rows of a log, without a last line that a killed run left incomplete."""
    text = path.read_text()
    header, *rows = csv.reader(io.StringIO(text[: text.rfind("\n") + 1])) if "\n" in text else [[]]
    return header, [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a log whole; values that a row lacks are empty.

    Raises:
        OSError: if the file can't be written.
    """
    header = dict(zip(columns, columns, strict=True))
    write_text_atomic(path, _lines(columns, [header, *rows]) if columns else "")


def _lines(columns: Sequence[str], rows: Sequence[Row]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue()


def trim_metrics(path: Path, steps: int, validates_first: bool = False) -> None:
    """Remove from a log the rows that a run will log again, and a last line that a killed run left incomplete.

    Args:
        path: of metrics.csv; it need not exist.
        steps: optimizer steps of the checkpoint that the run resumes from.
        validates_first: the checkpoint is from before the validation that follows its last step, whose row of training
            alone is kept.

    Raises:
        OSError: if the file can't be written.
    """
    if not path.is_file():
        return
    columns, rows = read_rows(path)

    def is_kept(row: Row) -> bool:
        step = int(row["step"]) if row["step"].isdigit() else steps
        return step < steps - 1 or (step == steps - 1 and bool(not validates_first or row.get("train/loss")))

    write_rows(path, columns, [row for row in rows if is_kept(row)] if "step" in columns else rows)
