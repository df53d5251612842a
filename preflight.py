"""What evaluate.py and train.py do before they run: look for files, and turn a user's mistakes into sentences."""

import inspect
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_class, get_method, instantiate
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from pytorch_lightning.plugins.environments import SLURMEnvironment

from mobilesamv2.data.provenance import sha256_of
from mobilesamv2.models.sam import Sam
from mobilesamv2.released import require_released


@contextmanager
def sentences() -> Iterator[None]:
    """Ends the program with one sentence, and no traceback, where a file is missing or a value makes no sense.

    ``HYDRA_FULL_ERROR=1`` shows the traceback all the same.
    """
    try:
        yield
    except MissingMandatoryValue as error:
        raise SystemExit(f"error: {str(error).splitlines()[0]}") from error
    except (OSError, ValueError, ImportError, InstantiationException) as error:
        reason = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(reason, OSError | ValueError | ImportError) or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        raise SystemExit(f"error: {reason}") from error


def require_file(path: str) -> None:
    """Nothing, if there is such a file or folder.

    Raises:
        FileNotFoundError: there is not.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no file {path}.")


def refuse_sweep_of_processes(cfg: DictConfig) -> None:
    """Nothing, unless a sweep on this machine would start several processes a job, each of which would sweep anew.

    Raises:
        ValueError: it would.
    """
    if not is_sweep():
        return
    if "basic_launcher" in HydraConfig.get().launcher._target_ and cfg.trainer.devices not in (1, "1"):
        raise ValueError("A sweep on this machine runs its jobs in one process: trainer.devices=1.")


def loggers(node: DictConfig | None, folder: Path) -> list[Any]:
    """The loggers of conf/logger, which write into a folder; Weights & Biases works offline where there is no login.

    There the jobs of a sweep are one group, named after the sweep's folder, and each is named after what it was told.
    """
    if node and "wandb" in node and not os.environ.get("WANDB_API_KEY"):
        netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        if not (netrc.is_file() and "wandb.ai" in netrc.read_text()):
            os.environ.setdefault("WANDB_MODE", "offline")
    # in a sweep the folder is the job's, and output_dir the sweep's
    built = []
    for name, logger in (node or {}).items():
        given = {"save_dir": str(folder)}
        if name == "wandb" and is_sweep():
            told = {"group": folder.parent.name, "name": HydraConfig.get().job.override_dirname or folder.name}
            given |= {key: value for key, value in told.items() if key not in logger}
        built.append(instantiate(logger, **given, _convert_="all"))
    return built


def is_sweep() -> bool:
    """Whether this run is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def finds_its_folder() -> bool:
    """Whether this job, were it queued again, would find the folder that it writes into now; said, if it would not.

    By default the folder is named after the time, which submitit hands on and Slurm alone does not.
    """
    if "SLURM_JOB_ID" in os.environ and not _is_folder_named() and not is_sweep():
        print(
            "This job will not be queued again if it is stopped: name its folder, output_dir=FOLDER.", file=sys.stderr
        )
        return False
    return True


def require_shared_folder() -> None:
    """Nothing, unless processes that torchrun or srun started would each write into a folder of their own.

    Raises:
        ValueError: they would.
    """
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    is_one_of_many = by_torchrun or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if is_one_of_many and not _is_folder_named() and not is_sweep():
        raise ValueError(
            "Several processes were started, and each would write into a folder named after its own time: name one for "
            "all, output_dir=FOLDER."
        )


def _is_folder_named() -> bool:
    return HydraConfig.initialized() and any(
        o.lstrip("+").startswith("output_dir=") for o in HydraConfig.get().overrides.task
    )


def cluster_plugins() -> list[Any]:
    """On Slurm, its environment without Lightning's own requeueing, which would disturb ours."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def progress_bars(trainer: DictConfig) -> list[Callback]:
    """The bar of conf/trainer: tqdm's, which a log file shows as it goes, whatever else is installed."""
    return [TQDMProgressBar()] if trainer.get("enable_progress_bar", True) else []


def without_noise() -> None:
    """Leaves out what Lightning says that no user of these programs can act on."""
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",  # its own use of torch
        ".*does not have many workers.*",  # num_workers is in conf
        ".*Experiment logs directory .* exists.*",  # checkpoints and log share output_dir
        r".*module\(s\) in eval mode at the start.*",  # teachers and frozen parts; the tasks set the modes
    ):
        warnings.filterwarnings("ignore", message=message)
    lightning = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    lightning.addFilter(lambda record: "litlogger" not in record.getMessage())


def build_model(node: DictConfig, encoder: DictConfig | None) -> Sam:
    """A model of conf/model, with another image encoder where conf/encoder names one."""
    with_encoder = {"encoder": encoder.name} if encoder else {}
    return instantiate(node, **with_encoder, _convert_="all")


def weight_checks(*nodes: DictConfig | None) -> list[Callable[[], Any]]:
    """A check for each weight file that models and detectors name under ``checkpoint``."""
    return [partial(require_released, file) for node in nodes if node is not None for file in weight_files(node)]


def weight_files(node: DictConfig) -> list[str]:
    """The files that a node names under ``checkpoint``: none, one or several."""
    checkpoint: Any = node.get("checkpoint")
    return list(checkpoint) if OmegaConf.is_list(checkpoint) else [checkpoint] if checkpoint else []


def dataset_checks(node: DictConfig, with_images: bool = True) -> list[Callable[[], Any]]:
    """A check of the files that a data set of conf/dataset names."""
    settings: Any = OmegaConf.to_container(node, resolve=True)
    if not with_images and "images" in settings:
        settings["images"] = None
    return [partial(get_class(node._target_).require_files, settings)]


def described(node: DictConfig | None) -> dict[str, Any] | None:
    """A model, teacher or detector of conf/ as plain values, with the hashes of its weight files."""
    if node is None:
        return None
    values: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # pyright: ignore
    del values["_target_"]
    return values | {"sha256": [sha256_of([file]) for file in weight_files(node)]}


def warn_of_random_weights(nodes: Mapping[str, Any]) -> None:
    """Says on stderr which models have no checkpoint, of nodes of conf/ or their descriptions, by name."""
    for name, node in nodes.items():
        if node is not None and "checkpoint" in node and node["checkpoint"] is None:
            print(f"{name}.checkpoint is null: its weights are random, and so is the result.", file=sys.stderr)


def needs_detector(cfg: DictConfig) -> bool:
    """Whether the prompt sampler takes a detector."""
    return "detector" in inspect.signature(get_method(cfg.prompt_sampler._target_)).parameters


def require_all(checks: list[Callable[[], Any]]) -> None:
    """Runs checks, and raises one error that names everything that is missing."""
    missing = []
    for check in checks:
        try:
            check()
        except FileNotFoundError as error:
            missing.append(str(error))
    if missing:
        raise FileNotFoundError("\n".join(missing))


def output_folder(cfg: DictConfig) -> Path:
    """Where a run writes: ``output_dir``, or in a sweep the job's own folder inside it."""
    return Path(HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else cfg.output_dir)


def refuse_half_weights(cfg: DictConfig) -> None:
    """Nothing, unless the weights themselves would be of another precision than single.

    Raises:
        ValueError: they would.
    """
    precision = str(cfg.trainer.precision)
    if precision in ("16-true", "bf16-true", "64-true", "64", "transformer-engine", "transformer-engine-float16"):
        raise ValueError(f"trainer.precision={precision} keeps weights in that precision; use 32-true or bf16-mixed.")


def environment(seed: int) -> dict[str, Any]:
    """What else decides the numbers: versions, commit, seed; null for what can't be found out."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("mobilesamv2", "torch", "timm", "ultralytics", "pycocotools", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    try:
        git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    return {"versions": versions, "commit": commit or None, "seed": seed}
