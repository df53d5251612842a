"""Which extra of the package installs a library that is missing."""

from __future__ import annotations

EXTRA_OF = {
    **dict.fromkeys(("pytorch_lightning", "lightning", "hydra", "omegaconf", "submitit", "tensorboard"), "train"),
    **dict.fromkeys(("wandb", "lvis", "matplotlib", "tabulate", "jinja2", "hydra_plugins"), "train"),
    **dict.fromkeys(("ultralytics", "cv2"), "detector"),
    "gradio": "app",
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export"),
}
"""Extras by the name under which a library is imported."""


def missing_library(error: ImportError) -> str:
    """Return the sentence for a library that can't be imported, with the command that installs it.

    Args:
        error: of the import.
    """
    library = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(library)
    if not isinstance(error, ModuleNotFoundError) or extra is None:
        return str(error)
    return f"This requires {library}, which is not installed: pip install 'mobilesamv2[{extra}]'"
