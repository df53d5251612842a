"""Trains: ``python train.py experiment=distill_tinyvit``. See ``--help`` and the README."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint

import schema
from mobilesamv2.checkpoints import save_mobile_sam, save_weights
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.samples import EncoderSamples
from mobilesamv2.models.object_detector import save_detector
from mobilesamv2.models.sam import Sam
from mobilesamv2.tasks.detect import DetectObjects
from mobilesamv2.tasks.distill import Distill, teacher_identity
from preflight import (
    dataset_checks,
    environment,
    loggers,
    output_folder,
    refuse_sweep_of_processes,
    require_all,
    sentences,
    weight_checks,
    without_noise,
)

schema.register()

DISTILLATIONS = ("DistillDecoupled", "DistillSemiCoupled", "DistillCoupled", "DistillPromptInLoop")


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Composes, builds, fits, and writes the weights."""
    without_noise()
    folder = output_folder(cfg)
    with sentences():
        refuse_sweep_of_processes(cfg)
        require_files(cfg)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        task, samples = BUILDERS[task_name(cfg)](cfg)
        data = TrainingData(samples, cfg.batch_size, cfg.validation_images, cfg.num_workers, cfg.seed, cfg.max_broken)
        # Alone, a process that fails would wait for the others; amid an accumulation, a part of the gradient is lost.
        when_stopped = cfg.trainer.accumulate_grad_batches == 1 and cfg.trainer.devices in (1, "1")
        by_epoch = ModelCheckpoint(folder / "checkpoints", save_last=True, save_on_exception=when_stopped)
        by_time = CheckpointAfterSteps(
            folder / "checkpoints", "recent", train_time_interval=timedelta(minutes=cfg.checkpoint_minutes)
        )
        trainer = instantiate(
            cfg.trainer,
            logger=loggers(cfg.logger, folder),
            callbacks=[by_epoch, by_time, LearningRateMonitor("step")],
            default_root_dir=str(folder),
            _convert_="all",
        )
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {p: p.numel() for p in task.parameters()}
        trained = sum(size for p, size in sizes.items() if p.requires_grad)
        print(f"training {trained:,} of {sum(sizes.values()):,} parameters; writing to {folder}")
        ids = samples.images.image_ids  # pyright: ignore[reportAttributeAccessIssue]
        (folder / "images.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
        (folder / "environment.json").write_text(json.dumps(environment(cfg.seed), indent=2))
    # A checkpoint holds tensors and plain values alone, so that nothing in it is executed.
    trainer.fit(task, datamodule=data, ckpt_path=cfg.resume, weights_only=True)
    if trainer.is_global_zero:
        print(f"written: {', '.join(map(str, write_weights(task, folder)))}")


class CheckpointAfterSteps(ModelCheckpoint):
    """Saves between optimizer steps alone: amid an accumulation a run can't be resumed exactly."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Saves, unless gradients are being accumulated."""
        if not trainer.fit_loop._should_accumulate():
            super().on_train_batch_end(trainer, *args, **kwargs)


Built = tuple[pl.LightningModule, EncoderSamples]


def build_distillation(cfg: DictConfig) -> Built:
    """A student, its teacher, and the cache of the teacher's embeddings."""
    student, teacher = build_model(cfg.model, cfg.encoder), build_model(cfg.teacher, None)
    identity = teacher_identity(teacher, str(cfg.trainer.precision)) | {"images": images_identity(cfg.dataset)}
    cache = EmbeddingCache(cfg.task.cache, identity) if cfg.task.cache else None
    task = instantiate(
        cfg.task, student=student, teacher=teacher, cache=cache, optimizer=instantiate(cfg.optimizer), _convert_="all"
    )
    return task, build_samples(cfg, student.image_size)


def images_identity(node: DictConfig) -> str:
    """What tells the image ids of one data set from those of another."""
    parts = [str(node[key]) for key in ("annotations", "size", "seed") if key in node]
    return " ".join([node._target_.rsplit(".", 1)[1], *parts])


def build_finetuning(cfg: DictConfig) -> Built:
    """A model and the objects that it is asked for."""
    sam = build_model(cfg.model, cfg.encoder)
    task = instantiate(cfg.task, sam=sam, optimizer=instantiate(cfg.optimizer), _convert_="all")
    return task, build_samples(cfg, sam.image_size)


def build_detection(cfg: DictConfig) -> Built:
    """A detector and the boxes that it is to find."""
    if cfg.detector is None:
        raise ValueError("This task trains a detector: name one with detector=yolov8n, say.")
    detector = instantiate(cfg.detector, _convert_="all")
    task = instantiate(cfg.task, detector=detector, optimizer=instantiate(cfg.optimizer), _convert_="all")
    return task, build_samples(cfg, detector.image_size)


def build_samples(cfg: DictConfig, image_size: int) -> EncoderSamples:
    """What the task trains on: its samples of the data set."""
    images = instantiate(cfg.dataset, _convert_="all")
    return instantiate(cfg.samples, images=images, image_size=image_size, _convert_="all")


BUILDERS: dict[str, Callable[[DictConfig], Built]] = {
    **dict.fromkeys(DISTILLATIONS, build_distillation),
    "FinetuneDecoder": build_finetuning,
    "DetectObjects": build_detection,
}


def task_name(cfg: DictConfig) -> str:
    """Name of the task's class."""
    return cfg.task._target_.rsplit(".", 1)[1]


def build_model(node: DictConfig, encoder: DictConfig | None) -> Sam:
    """A model of conf/model, with another image encoder where conf/encoder names one."""
    return instantiate(node, encoder=encoder.name if encoder else None, _convert_="all")


def require_files(cfg: DictConfig) -> None:
    """Nothing, if every file that the run reads is there; otherwise one error that names all that are missing."""
    read = {
        **dict.fromkeys(DISTILLATIONS, (cfg.model, cfg.teacher)),
        "FinetuneDecoder": (cfg.model,),
        "DetectObjects": (cfg.detector,),
    }
    checks = weight_checks(*read[task_name(cfg)])
    checks += dataset_checks(cfg.dataset)
    if cfg.resume and not Path(cfg.resume).is_file():
        raise FileNotFoundError(f"There is no checkpoint {cfg.resume} to resume from.")
    require_all(checks)


def write_weights(task: pl.LightningModule, folder: Path) -> list[Path]:
    """What was trained, in the formats that other tools read.

    A detector becomes an ultralytics ``.pt``, a SAM safetensors and, where it is of that shape, ``mobile_sam.pt`` too.
    """
    if isinstance(task, DetectObjects):
        save_detector(task.detector, folder / "detector.pt")
        return [folder / "detector.pt"]
    sam: Sam = task.student if isinstance(task, Distill) else task.sam  # pyright: ignore
    written = [folder / f"{sam.name}.safetensors".replace("/", "_")]
    save_weights(sam, written[0])
    if (sam.name, sam.encoder_name) == ("mobile_sam", "tiny_vit_5m"):
        written.append(folder / "mobile_sam.pt")
        save_mobile_sam(sam, written[1])
    return written


if __name__ == "__main__":
    main()
