"""Models with their weights, by one name: those that ship, those that others released, files, folders and the Hub."""

from __future__ import annotations

from pathlib import Path

from mobilesamv2.checkpoints import save_weights
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompts.grid import Grid
from mobilesamv2.registry import build_sam, list_models, load_sam
from mobilesamv2.released import FILES

SHIPPED = Path(__file__).parent / "weights"
"""Weights that come with the package."""

HUB_FILE = "model.safetensors"
"""A model's file in a folder, or in a repository of the Hugging Face Hub."""


def load_pretrained(name: str | Path, weights: str | Path = "weights") -> Sam:
    """Builds a model with its weights, in eval mode on the CPU.

    Args:
        name: a model that ships (``mini_conv``, or ``mini_conv_points``, which went on with several points a prompt);
            one that others released (``mobile_sam``, ``sam_vit_b``, ``sam_vit_l``, ``sam_vit_h``,
            ``efficientvit_l2``), whose files lie in ``weights``; the one file of such a model, FOLDER/mobile_sam.pt
            say; a safetensors file of this project; a folder with a ``model.safetensors``; or OWNER/REPOSITORY of the
            Hugging Face Hub.
        weights: folder of the released files; ``mobilesamv2 download NAME`` fills it.

    Raises:
        FileNotFoundError: a file is not there; the sentence says where it is published.
        ValueError: no weights are known by this name.
        ConnectionError: the Hub can't be reached, or has no such repository.
    """
    path, name = Path(name), str(name)
    if name in shipped_models():
        return load_sam(SHIPPED / f"{name}.safetensors")
    if name in FILES:
        return build_sam(name, [Path(weights) / file for file in FILES[name]], allow_partial=False)
    if path.suffix == ".safetensors":
        return load_sam(path)
    if path.suffix in (".pt", ".pth"):
        return _of_released_file(path)
    if path.is_dir():
        return load_sam(path / HUB_FILE)
    if name.count("/") == 1 and not name.startswith("timm/") and not path.parent.is_dir():
        return load_sam(_from_hub(name))
    known = ", ".join([*shipped_models(), *FILES])
    of_registry = (
        f" Weights of your own: load_sam(file), or build_sam('{name}', file)." if name in list_models() else ""
    )
    raise ValueError(
        f"No weights are known as '{name}'; there are {known}, files, folders and owner/repository.{of_registry}"
    )


def _of_released_file(path: Path) -> Sam:
    """The model that is released as one file of this name, from this one."""
    for name, files in FILES.items():
        if files == (path.name,):
            return build_sam(name, path, allow_partial=False)
    raise ValueError(f"{path} does not say which model it holds: build_sam(NAME, {str(path)!r}).")


def shipped_models() -> list[str]:
    """Names of the models whose weights come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def default_grid(sam: Sam) -> Grid:
    """SAM's grid of points for a model.

    Models of the kind that ships think less of their own masks than SAM does of its: SAM's thresholds would leave none
    of them, and lower ones are taken.

    Args:
        sam: built by name.
    """
    return Grid(predicted_iou=0.25, stability=0.6) if sam.name in shipped_models() else Grid()


def save_pretrained(sam: Sam, folder: str | Path) -> Path:
    """Writes a model into a folder that ``load_pretrained`` takes, and returns the file's path.

    Raises:
        ValueError: the model can't be built again (see ``save_weights``).
    """
    path = Path(folder) / HUB_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(sam, path)
    return path


def push_to_hub(sam: Sam, repo_id: str, private: bool = False) -> str:
    """Uploads a model to the Hugging Face Hub for ``load_pretrained(repo_id)``, and returns the commit's URL.

    Args:
        sam: a model built by name.
        repo_id: OWNER/REPOSITORY, made if need be.
        private: whether a repository that is made is for its owner alone.

    Raises:
        ValueError: the model can't be built again (see ``save_weights``).
        huggingface_hub.errors.HfHubHTTPError: no login (``hf auth login``), or no right to write.
    """
    import tempfile

    from huggingface_hub import HfApi

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        path = save_pretrained(sam, folder)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_file(path_or_fileobj=path, path_in_repo=HUB_FILE, repo_id=repo_id))


def _from_hub(repo_id: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, HUB_FILE))
    except LocalEntryNotFoundError as error:
        raise ConnectionError(f"{repo_id} is not in the Hub's cache here, and the Hub can't be reached.") from error
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        raise ConnectionError(
            f"The Hugging Face Hub has no {HUB_FILE} in a repository {repo_id} that you may read."
        ) from error
