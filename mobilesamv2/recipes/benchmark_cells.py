"""The cells of a benchmark: each model under each protocol, an evaluation with a folder of its own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mobilesamv2.files import read_arrays
from mobilesamv2.model_zoo import MODEL_FILES
from mobilesamv2.names import did_you_mean
from mobilesamv2.recipes.overrides import group_options

WAY_OUT = "Name another folder, -o FOLDER, or delete that one."


@dataclass(frozen=True)
class Choice:
    """A model or a protocol.

    Attributes:
        label: its name in folders and tables.
        overrides: of ``mobilesamv2 evaluate``, which choose it.
    """

    label: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A model under a protocol.

    Attributes:
        model: its label.
        protocol: its label.
        folder: of the evaluation.
        overrides: of ``mobilesamv2 evaluate``, all but ``output_dir``.
        config_dir: of further configurations; None where there are none.
    """

    model: str
    protocol: str
    folder: Path
    overrides: tuple[str, ...]
    config_dir: Path | None = None

    @property
    def arguments(self) -> list[str]:
        """Return the arguments of ``mobilesamv2`` that evaluate this cell alone."""
        return ["evaluate", *config_arguments(self.config_dir), *self.overrides, f"output_dir={self.folder}"]

    @property
    def command(self) -> str:
        """Return the command that evaluates this cell alone."""
        return shlex.join(["mobilesamv2", *self.arguments])


def config_arguments(config_dir: Path | None) -> list[str]:
    """Return the arguments of a program of Hydra's that name a folder of further configurations."""
    return [] if config_dir is None else ["--config-dir", str(config_dir.resolve())]


def model_choices(texts: Sequence[str], config_dir: Path | None = None) -> list[Choice]:
    """Return the models that a user names: see ``_choices``; a name is of conf/model or of ``list_models()``.

    conf/ is that of ``config_dir`` too.

    A model of conf/model has the weights of its file there, a published one those of ``paths.weights``, and any other
    random ones.

    Raises:
        ValueError: if there is no such model, or two have one label.
    """
    return _choices(texts, "model", partial(_named_model, config_dir=config_dir))


def protocol_choices(texts: Sequence[str], config_dir: Path | None = None) -> list[Choice]:
    """Return the protocols that a user names: see ``_choices``; a name is of conf/protocol, or a task that evaluates.

    conf/ is that of ``config_dir`` too.

    Raises:
        ValueError: if there is no such protocol, or two have one label.
    """
    return _choices(texts, "protocol", partial(_named_protocol, config_dir=config_dir))


def _choices(texts: Sequence[str], kind: str, find: Callable[[str], tuple[str, ...]]) -> list[Choice]:
    """Return what texts choose: names with commas between, ``NAME KEY=VALUE`` or ``LABEL: KEY=VALUE KEY=VALUE``."""
    chosen: list[Choice] = []
    for text in texts:
        first, *overrides = shlex.split(text) or [""]
        if first.endswith(":"):
            chosen.append(Choice(_folder_name(first[:-1], kind), tuple(overrides)))
        elif overrides:
            chosen.append(Choice(_folder_name(first, kind), (*find(first), *overrides)))
        else:
            names = [name for name in first.split(",") if name]
            chosen += [Choice(_folder_name(name, kind), find(name)) for name in names]
    labels = [choice.label for choice in chosen]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"Every {kind} must have a name of its own, got {twice} twice; 'LABEL: KEY=VALUE' sets it.")
    if not chosen:
        raise ValueError(f"There must be a {kind} at least, got none: --{kind}s NAME,NAME.")
    return chosen


def _folder_name(label: str, kind: str) -> str:
    name = label.replace("/", "-")
    if not name or name.startswith(".") or name in ("logs", "report"):
        raise ValueError(f"The name of a {kind} must be one of a folder, other than logs and report, got '{label}'.")
    return name


def _named_model(name: str, config_dir: Path | None) -> tuple[str, ...]:
    in_conf = [each for each in group_options("model", config_dir) if each != "by_name"]
    if name in in_conf:
        return (f"model={name}",)
    if name in MODEL_FILES:
        files = ",".join(f"'${{weights:${{paths.weights}},{file}}}'" for file in MODEL_FILES[name])
        return "model=by_name", f"model.name={name}", f"model.checkpoint=[{files}]"
    from mobilesamv2.registry import TIMM_PREFIX, list_models  # here, since it imports torch

    if name in list_models() or name.startswith(TIMM_PREFIX):
        return "model=by_name", f"model.name={name}"
    known = sorted({*in_conf, *list_models()})
    raise ValueError(f"There is no model '{name}'.{did_you_mean(name, known)} Available: {', '.join(known)}.")


def _named_protocol(name: str, config_dir: Path | None) -> tuple[str, ...]:
    protocols = group_options("protocol", config_dir)
    tasks = [task for task in group_options("task", config_dir) if task.startswith("evaluate_")]
    if name in protocols:
        return (f"protocol={name}",)
    if name in tasks:
        return (f"task={name}",)
    known = [*protocols, *tasks]
    raise ValueError(f"There is no protocol '{name}'.{did_you_mean(name, known)} Available: {', '.join(known)}.")


def benchmark_cells(
    models: Sequence[Choice],
    protocols: Sequence[Choice],
    shared: Sequence[str],
    folder: Path,
    config_dir: Path | None = None,
) -> list[Cell]:
    """Return the cells of a benchmark, all protocols of a model before the next.

    Args:
        models: the rows of the table.
        protocols: that each is evaluated under.
        shared: overrides of every cell, such as those of the data set.
        folder: of the benchmark.
        config_dir: of further configurations.

    Raises:
        ValueError: if a model has images of its own, or a setting is given two values of which one would win.
    """
    for model in models:
        own = next((each for each in model.overrides if re.match(r"[+~]*dataset\b", each)), None)
        if own is not None:
            raise ValueError(
                f"All models must have the same images, got {own} for {model.label}: set it for all of them, outside "
                "--models, or of a protocol."
            )
        for protocol in protocols:
            _require_one_value(model, protocol, Choice("every cell", tuple(shared)))
    return [
        Cell(
            model.label,
            protocol.label,
            folder / model.label / protocol.label,
            (*model.overrides, *protocol.overrides, *shared),
            config_dir,
        )
        for model in models
        for protocol in protocols
    ]


def _require_one_value(*choices: Choice) -> None:
    """Check that no two choices set one key to different values; a key that is removed has none."""
    first: dict[str, tuple[str, Choice]] = {}
    for choice in choices:
        for each in choice.overrides:
            key, value = _key_and_value(each)
            earlier, other = first.setdefault(key, (each, choice))
            if other is not choice and value != _key_and_value(earlier)[1]:
                raise ValueError(
                    f"A setting must have one value in a cell, got {earlier} for {other.label} and {each} for "
                    f"{choice.label}: leave one of them out."
                )


def _key_and_value(override: str) -> tuple[str, str | None]:
    """Return what ``KEY=VALUE``, ``+KEY=VALUE`` or ``++KEY=VALUE`` sets; the value of ``~KEY`` is None."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, None if override.startswith("~") else value


def waiting_cells(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that are not done, and keep in memory nothing of what the others were compared with.

    Raises:
        ValueError: as in ``is_done``.
    """
    waiting = [cell for cell in cells if not is_done(cell)]
    if len(waiting) < len(cells):
        from mobilesamv2.recipes.benchmark_inputs import forget  # as below

        forget()
    return waiting


def is_done(cell: Cell, with_photos: bool = True) -> bool:
    """Return whether a cell has its result.

    Args:
        cell: of ``benchmark_cells``.
        with_photos: compare every photo, which takes as long as to read them all.

    Raises:
        ValueError: if its folder holds the result of other settings or files than a run would have today.
    """
    if not (cell.folder / "results.json").is_file():
        return False
    from mobilesamv2.recipes.benchmark_inputs import changed_inputs  # here, since it imports Lightning
    from mobilesamv2.recipes.benchmark_settings import require_same_settings
    from mobilesamv2.recipes.run import compose_run

    cfg = compose_run("evaluate", cell.overrides, cell.config_dir)
    require_same_settings(cell.folder, cell.overrides, cfg, WAY_OUT)
    try:
        changed = next(changed_inputs(cell.folder, cfg, with_photos), None)
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}. {WAY_OUT}") from error
    if changed is not None:
        raise ValueError(f"{cell.folder} holds a result of {changed}. {WAY_OUT}")
    return True


def images_done(cell: Cell) -> int:
    """Return how many images of a cell are evaluated and on disk.

    Raises:
        ValueError: if a file of them can't be read.
    """
    return sum(
        each.size
        for path in sorted(cell.folder.glob("progress/*.npz"))
        for each in read_arrays(path, ["image_id"]).values()
    )
