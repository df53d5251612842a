"""Models with their weights, by name: the package's own, published ones, files, folders and the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mobilesamv2.checkpoints import save_weights
from mobilesamv2.files import write_text_atomic
from mobilesamv2.hub import HUB_FILE, find_on_hub, is_repository
from mobilesamv2.model_card import CARD_FILE, Paths, model_card
from mobilesamv2.model_zoo import (
    MODEL_FILES,
    PACKAGE_WEIGHTS,
    find_named,
    find_or_download,
    require_weights,
    shipped_models,
)
from mobilesamv2.models.sam import Sam
from mobilesamv2.names import did_you_mean
from mobilesamv2.registry import build_sam, list_models, load_sam

MINIATURE_SIDE = 256
"""Pixels; models of an input of this side and less are too small for photographs."""


def load_pretrained(name: str | Path, weights: str | Path = "weights", download: bool | None = None) -> Sam:
    """Build a model with its weights, in eval mode on the CPU; published weights that are missing are downloaded.

    What is downloaded is printed before, with its size and licence.

    Args:
        name: a model whose weights ship with the package (``mini_conv``); a model with published weights
            (``mobile_sam``, ``sam_vit_b``, ``sam_vit_l``, ``sam_vit_h``, ``efficientvit_l2``); the single file of such
            a model, ``FOLDER/mobile_sam.pt`` for example; a safetensors file of this project; a folder with a
            ``model.safetensors``; or ``OWNER/REPOSITORY`` of the Hugging Face Hub.
        weights: folder of published files, which ``mobilesamv2 download NAME`` fills; relative to the working
            directory. A file that it lacks is looked up in the folder named by the environment variable
            ``MOBILESAMV2_WEIGHTS`` or, if that is not set, in ``mobilesamv2/weights`` of the user's cache folder.
        download: whether a published file that no folder has is downloaded, into ``weights`` if that folder exists,
            else into the second one. None downloads it, unless the environment has ``MOBILESAMV2_DOWNLOAD=0``,
            ``HF_HUB_OFFLINE=1`` or ``CI=true``; ``MOBILESAMV2_DOWNLOAD=1`` overrides the last two. So is a repository
            of the Hub that its client's cache lacks, into that cache.

    Raises:
        FileNotFoundError: if a file does not exist and is not downloaded; the message says where it is published.
        ValueError: if there are no weights under this name, or the downloaded file has another SHA-256.
        ConnectionError: if the file or the Hub can't be reached, or the Hub has no such repository.

    Example:
        >>> sam = load_pretrained("mini_conv")
        >>> sam.name, sam.image_size, sam.thresholds
        ('mini_conv', 256, Thresholds(pred_iou_thresh=0.25, stability_score_thresh=0.6))
    """
    path, name = Path(name), str(name)
    if name in shipped_models():
        return load_sam(PACKAGE_WEIGHTS / f"{name}.safetensors")
    if name in MODEL_FILES:
        return build_sam(
            name, [find_or_download(file, weights, download) for file in MODEL_FILES[name]], allow_partial=False
        )
    if path.suffix == ".safetensors":
        return load_sam(find_named(path, weights))
    if path.suffix in (".pt", ".pth"):
        return _load_published_file(find_named(path, weights))
    if path.is_dir():
        return load_sam(_weights_in(path))
    if is_repository(name):
        return load_sam(find_on_hub(name, download))
    known = list_models(pretrained=True)
    near = "" if name in list_models() else did_you_mean(name, known)
    hint = f" For your own weights: load_sam(file), or build_sam('{name}', file)." if name in list_models() else ""
    raise ValueError(
        f"There are no weights for '{name}'.{near} Available: {', '.join(known)}, files, folders and owner/repository."
        f"{hint}"
    )


def load_model(
    name: str | None, checkpoint: Sequence[str | Path], weights: str | Path = "weights", download: bool | None = None
) -> Sam:
    """Build the model that ``--model`` and ``--checkpoint`` of the command line describe, in eval mode on the CPU.

    Args:
        name: as in ``load_pretrained``, or, with weight files, as in ``build_sam``; None where the only weight file
            says what model it is of.
        checkpoint: weight files that together contain the model, as ``find_named`` takes them; empty for those of the
            name.
        weights: as in ``load_pretrained``.
        download: as in ``load_pretrained``.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if there are no weights under this name, or the files do not fit or do not tell the model.
        ConnectionError: as in ``load_pretrained``.
    """
    files = [find_named(file, weights) for file in checkpoint]
    if name is not None and files:
        return build_sam(name, files, allow_partial=False)
    if name is not None:
        return load_pretrained(name, weights, download)
    if len(files) != 1:
        raise ValueError(f"--model must name the model of {len(files)} weight files, got none.")
    return load_sam(files[0]) if files[0].suffix == ".safetensors" else _load_published_file(files[0])


def _weights_in(folder: Path) -> Path:
    """Return the path of a folder's weight file, and the way out where transformers wrote the weights otherwise."""
    file, pickled = folder / HUB_FILE, folder / "pytorch_model.bin"
    if file.is_file():
        return file
    if pickled.is_file():
        raise ValueError(
            f"{folder} must hold a {HUB_FILE}, got {pickled.name}: load it by the name of its model, "
            f"build_sam('sam_vit_b', '{pickled}') for example."
        )
    if any(folder.glob("*.index.json")):
        raise ValueError(
            f"{folder} must hold a {HUB_FILE}, got weights in several files. transformers joins them: "
            f"SamModel.from_pretrained('{folder}').save_pretrained(OTHER_FOLDER, max_shard_size='50GB')."
        )
    return file


def _load_published_file(path: Path) -> Sam:
    """Load the model that is published as a single file of this name."""
    require_weights(path)
    for name, files in MODEL_FILES.items():
        if files == (path.name,):
            return build_sam(name, path, allow_partial=False)
    raise ValueError(
        f"The file name {path} does not identify a model; load it with build_sam(NAME, {str(path)!r}), or on the "
        f"command line with --model NAME --checkpoint {path}."
    )


def toy_warning(sam: Sam) -> str:
    """Return a sentence if a model is a miniature, which is weak on photographs; empty for other models."""
    if sam.image_size > MINIATURE_SIDE:
        return ""
    if sam.name in shipped_models():
        return f"{sam.name} ships with this package, was trained on synthetic scenes only and is weak on photographs."
    return f"{sam.name} is a miniature model, with an input of {sam.image_size} pixels, and is weak on photographs."


def toy_note(sam: Sam, weights: str | Path = "weights") -> str:
    """Return ``toy_warning`` and where a better model is; empty for models that are no miniatures.

    Args:
        sam: the model.
        weights: folder of published weight files, for the command that the note contains.
    """
    warning = toy_warning(sam)
    better = f" Get mobile_sam, which is better, with `mobilesamv2 download mobile_sam -o {weights}`."
    return f"{warning}{better}" if warning else ""


# Not huggingface_hub's PyTorchModelHubMixin: it rebuilds a model from the JSON of its constructor's arguments, which
# for ``Sam`` are networks, so that models would have to import the registry; and it falls back to a pickle.
def save_pretrained(
    sam: Sam, folder: str | Path, *, run: str | Path | None = None, results: Paths = (), licence: str | None = None
) -> Path:
    """Write a model and its card into a folder that ``load_pretrained`` accepts, and return the path of the weights.

    Args:
        sam: a model built by name.
        folder: created if missing; a ``README.md`` in it is replaced.
        run: folder of the training that made it, for the card.
        results: ``results.json`` of one evaluation or several, or their folders, for the card.
        licence: of the weights, as an SPDX identifier, ``Apache-2.0`` for example.

    Raises:
        ValueError: if the model can't be rebuilt (see ``save_weights``), or a file for the card is none.
        FileNotFoundError: if a file for the card is missing.
    """
    return _write_pretrained(sam, Path(folder), str(folder), run, results, licence)


def push_to_hub(
    sam: Sam,
    repo_id: str,
    private: bool = False,
    *,
    run: str | Path | None = None,
    results: Paths = (),
    licence: str | None = None,
) -> str:
    """Upload a model and its card to the Hugging Face Hub for ``load_pretrained(repo_id)``; return the commit's URL.

    Args:
        sam: a model built by name.
        repo_id: ``OWNER/REPOSITORY``, created if missing.
        private: make a new repository private.
        run: as in ``save_pretrained``.
        results: as in ``save_pretrained``.
        licence: as in ``save_pretrained``.

    Raises:
        ValueError: if the model can't be rebuilt (see ``save_weights``), or a file for the card is none.
        FileNotFoundError: if a file for the card is missing.
        huggingface_hub.errors.HfHubHTTPError: if there is no login (``hf auth login``), or no write permission.
    """
    import tempfile

    from huggingface_hub import HfApi

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        _write_pretrained(sam, Path(folder), repo_id, run, results, licence)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=repo_id))


def _write_pretrained(
    sam: Sam, folder: Path, source: str, run: str | Path | None, results: Paths, licence: str | None
) -> Path:
    """Write the weights and the card of a model that is loaded from ``source``; nothing if one can't be written."""
    card = model_card(sam, source, run, results, licence)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(sam, folder / HUB_FILE)
    write_text_atomic(folder / CARD_FILE, card)
    return folder / HUB_FILE
