"""The model card of saved weights: what they learned from, how well they do, their licence, and how to load them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from mobilesamv2.data.json_files import read_json
from mobilesamv2.model_zoo import checkpoint_files
from mobilesamv2.models.sam import Sam

CARD_FILE = "README.md"

SETTINGS = (
    *("recipe", "experiment", "task.", "model.", "encoder", "teacher.", "dataset.", "samples.", "optimizer."),
    *("trainer.precision", "batch_size", "images", "seed", "ema"),
)
"""Settings of a run that a card lists, by the beginnings of their names."""

Paths = str | Path | Sequence[str | Path]


def model_card(
    sam: Sam, source: str, run: str | Path | None = None, results: Paths = (), licence: str | None = None
) -> str:
    """Return a model card, Markdown with the front matter that the Hugging Face Hub reads.

    Args:
        sam: the model.
        source: the folder or ``OWNER/REPOSITORY`` that it is loaded from.
        run: folder of the training, for its ``run.json``.
        results: ``results.json`` of one evaluation or several, or their folders.
        licence: of the weights, as an SPDX identifier.

    Raises:
        FileNotFoundError: if a run or a result is missing.
        ValueError: if a file is not what a training or an evaluation writes, or is of another model.
    """
    files = [results] if isinstance(results, str | Path) else list(results)
    front = ["library_name: mobilesamv2", "pipeline_tag: mask-generation", "tags: [segment-anything]"]
    if licence is not None:
        front.append(f"license: {licence.lower()}")
    parameters = sum(parameter.numel() for parameter in sam.parameters())
    encoder = "" if sam.encoder_name == sam.name else f" with the image encoder `{sam.encoder_name}`"
    lines = [
        *("---", *front, "---", "", f"# {PurePath(source).name}", ""),
        f"`{sam.name}`{encoder}: a segment-anything model of {parameters:,} parameters for images of "
        f"{sam.image_size} x {sam.image_size} pixels, written by mobilesamv2.",
        *("", "## Use", "", "```python", "from mobilesamv2 import SegAny, SegEvery", ""),
        f'segany = SegAny.from_pretrained("{source}")  # masks of prompts',
        f'segevery = SegEvery.from_pretrained("{source}")  # masks of everything',
        *("```", "", "## Training", "", *_training(run, sam)),
        *("", "## Results", "", *(_results(files, sam) or ["No evaluation is given."])),
        *("", "## Licence", ""),
        f"The weights: {licence}." if licence else "The licence of the weights is not stated.",
        "Distilled or fine-tuned weights are also under the terms of the model and the data that they learned from.",
    ]
    return "\n".join(lines) + "\n"


def _training(folder: str | Path | None, sam: Sam) -> list[str]:
    """Return what a run records of its settings, as a table."""
    if folder is None:
        return ["No record of a training is given."]
    path = Path(folder) / "run.json"
    record = _record(path, "a training", "identity")
    identity = record["identity"]
    if identity.get("model.name", sam.name) != sam.name:
        raise ValueError(f"{path} is of a training of {identity['model.name']}, and the card of {sam.name}.")
    learned = [f"images of {_short(identity.get('dataset._target_'))}"]
    if identity.get("teacher.name") and identity.get("recipe") == "distill":
        learned.insert(0, f"the model `{identity['teacher.name']}` as its teacher")
    steps = (record.get("result") or {}).get("steps")
    how_long = "a run that is not finished" if steps is None else f"{steps:,} steps"
    rows = [
        f"| `{key.removesuffix('._target_')}` | {_short(value) if key.endswith('_target_') else value} |"
        for key, value in identity.items()
        if key.startswith(SETTINGS) and value is not None and not key.endswith(("_partial_", "allow_partial"))
    ]
    return [f"Learned from {' and '.join(learned)}, in {how_long}.", "", "| setting | value |", "|---|---|", *rows]


def _results(files: Sequence[str | Path], sam: Sam) -> list[str]:
    """Return the metrics of evaluations of the model with their intervals, a table each."""
    lines: list[str] = []
    for given in files:
        path = Path(given) / "results.json" if Path(given).is_dir() else Path(given)
        result = _record(path, "an evaluation", "metrics", "protocol", "run")
        _require_same_model(path, result["run"], sam)
        intervals = result.get("interval") or {}
        rows = [_metric_row(name, value, intervals.get(name)) for name, value in result["metrics"].items()]
        in_clicks = ", `NoC` in clicks" if any(map(_is_clicks, result["metrics"])) else ""
        facts = ", ".join(_facts(result))
        head = f"In percent{in_clicks}, with the 95% interval over images{f' ({facts})' if facts else ''}:"
        lines += [*([""] if lines else []), head, "", "| metric | value | interval |", "|---|---|---|", *rows]
    return lines


def _require_same_model(path: Path, run: Mapping[str, Any], sam: Sam) -> None:
    """Check that an evaluation is of the model that the card is of.

    Two files of weights can't be told apart here: a model in memory has no file.
    """
    recorded = run.get("model") or {}
    name, encoder = recorded.get("name"), recorded.get("encoder", sam.encoder_name)
    if name != sam.name or encoder != sam.encoder_name:
        of = name or "a detector alone"
        of += f" with the encoder {encoder}" if name == sam.name else ""
        raise ValueError(f"{path} is of an evaluation of {of}, and the card of {sam.name}.")


def _facts(result: Mapping[str, Any]) -> list[str]:
    """Return what was measured how: prompts, weights, images, annotations."""
    protocol, run = result["protocol"], result["run"]
    facts = []
    if protocol.get("sampler"):
        points = protocol.get("points_per_side")
        facts.append(f"prompts of `{protocol['sampler']}`" + (f", {points} x {points} points" if points else ""))
    for what, part in (("detector", run.get("detector")), ("weights", run.get("model"))):
        facts += [f"{what} `{PurePath(file).name}`" for file in checkpoint_files(part or {})]
    if protocol.get("num_images"):
        facts.append(f"{protocol['num_images']} images")
    if protocol.get("annotations"):
        facts.append(f"annotations `{PurePath(protocol['annotations']).name}`")
    if protocol.get("against"):
        facts.append(f"against {protocol['against']}")
    return facts


def _metric_row(name: str, value: float | None, bounds: Sequence[float] | None) -> str:
    """Return a line of a table: percent, or clicks as they are."""
    scale, form = (1, ".2f") if _is_clicks(name) else (100, ".1f")
    interval = "" if bounds is None else f"{scale * bounds[0]:{form}} to {scale * bounds[1]:{form}}"
    return f"| {name} | {'-' if value is None else f'{scale * value:{form}}'} | {interval} |"


def _is_clicks(name: str) -> bool:
    return name.startswith("NoC")


def _record(path: Path, what: str, *keys: str) -> dict[str, Any]:
    """Return a JSON file that has some keys."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}, which {what} writes into its output_dir.")
    record = read_json(path)
    if not isinstance(record, dict) or not all(isinstance(record.get(key), dict) for key in keys):
        raise ValueError(f"{path} must be what {what} writes, with {' and '.join(keys)}.")
    return record


def _short(target: Any) -> str:
    """Return the last part of a dotted name."""
    return str(target).rpartition(".")[2]
