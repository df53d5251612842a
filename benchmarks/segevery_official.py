"""What MobileSAM's and MobileSAMv2's own code do in ``segevery.py``; a process of its own for each.

mobilesam-mirror overwrites timm's TinyViT, and mobilesam-lite carries a package of this project's name, so neither may
meet this project's code. Work comes as a JSON file and goes out as one (see ``segevery.py``).
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask


class Clock:
    """Seconds of each call of a module, after the device has finished."""

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self.seconds = 0.0
        self.device = device
        module.register_forward_pre_hook(lambda *_: self._add(-1))
        module.register_forward_hook(lambda *_: self._add(1))

    def _add(self, sign: int) -> None:
        self.seconds += sign * now(self.device)


def now(device: torch.device) -> float:
    """Seconds, once the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def memory(device: torch.device, *, peak: bool) -> int:
    """Bytes that are held, or that were held at most: by this process, or on the GPU where there is one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    # getrusage would start from what the parent held
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:" if peak else "VmRSS:")[1].split()[0])


FAST_POINTS_PER_BATCH = 256
"""Points that are decoded at a time in the fast way, instead of the generator's 64."""


def speed_up(image_encoder: torch.nn.Module) -> None:
    """Compile the encoder, the first of segment-anything-fast's steps; bfloat16 and larger batches are the callers'.

    Source: github.com/pytorch-labs/segment-anything-fast. Its sparse weights and its own kernel for the ViTs' attention
    with relative positions, which TinyViT lacks, are left out.
    """
    image_encoder.compile(mode="max-autotune")


def give_float32(mask_decoder: torch.nn.Module) -> None:
    """Have a decoder that runs in bfloat16 return float32: the generator passes its predictions to NumPy."""
    mask_decoder.register_forward_hook(lambda *call: tuple(tensor.float() for tensor in call[-1]))


def grid(job: dict[str, Any], image: np.ndarray, device: torch.device) -> dict[str, Any]:
    """MobileSAM's mask generator with its defaults."""
    from mobile_sam import SamAutomaticMaskGenerator, sam_model_registry

    sam = sam_model_registry["vit_t"]()
    sam.load_state_dict(torch.load(job["weights"], weights_only=True))
    sam.eval().to(device)
    loaded = memory(device, peak=False)
    points = np.array(job["points"])
    if job.get("fast"):
        give_float32(sam.mask_decoder)
    if job.get("compiled"):
        speed_up(sam.image_encoder)
    SamAutomaticMaskGenerator(sam, points_per_side=None, point_grids=[points[:1]]).generate(image)  # warms up
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=None,
        points_per_batch=FAST_POINTS_PER_BATCH if job.get("fast") else 64,
        point_grids=[points],
        output_mode="coco_rle",
        box_nms_thresh=job["nms_iou"],
    )
    encoder, decoder = Clock(sam.image_encoder, device), Clock(sam.mask_decoder, device)
    start = now(device)
    records = generator.generate(image)
    seconds = now(device) - start
    scale = np.array([image.shape[1], image.shape[0]])
    index = [int(np.abs(points * scale - np.array(record["point_coords"][0])).sum(1).argmin()) for record in records]
    masks = [record["segmentation"] for record in records]
    result = {"masks": masks, "prompt_index": index, "peak": memory(device, peak=True), "loaded": loaded}
    return result | times(seconds, encoder, decoder)


@torch.no_grad()
def boxes(job: dict[str, Any], image: np.ndarray, device: torch.device) -> dict[str, Any]:
    """Do what MobileSAMv2's demo does with boxes: 320 at a time, every mask enlarged at once."""
    spec = importlib.util.find_spec("mobilesam_lite")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("mobilesam-lite is not installed: pip install -e '.[test]'.")
    sys.path.insert(0, next(iter(spec.submodule_search_locations)))
    sys.modules.pop("mobilesamv2", None)
    from mobilesamv2.build_sam import build_PromptGuidedDecoder, build_sam_vit_t_encoder
    from mobilesamv2.modeling import Sam

    from mobilesamv2 import SamPredictor

    weights = torch.load(job["weights"], weights_only=True)
    parts = build_PromptGuidedDecoder()
    image_encoder = build_sam_vit_t_encoder()
    for module, name in (
        (image_encoder.encoder, "image_encoder."),
        (parts["PromtEncoder"], "prompt_encoder."),
        (parts["MaskDecoder"], "mask_decoder."),
    ):
        module.load_state_dict({k.removeprefix(name): v for k, v in weights.items() if k.startswith(name)})
    sam: Any = Sam(image_encoder, parts["PromtEncoder"], parts["MaskDecoder"]).eval().to(device)
    if job.get("compiled"):
        speed_up(image_encoder)
    predictor = SamPredictor(sam)
    loaded = memory(device, peak=False)

    def run(boxes_xyxy: np.ndarray) -> torch.Tensor:
        predictor.set_image(image)
        inputs = torch.from_numpy(predictor.transform.apply_boxes(boxes_xyxy, predictor.original_size)).to(device)
        embedding = torch.repeat_interleave(predictor.features, 320, dim=0)
        positions = torch.repeat_interleave(sam.prompt_encoder.get_dense_pe(), 320, dim=0)
        found = []
        for batch in inputs.split(320):
            sparse, dense = sam.prompt_encoder(points=None, boxes=batch, masks=None)
            low_res, _ = sam.mask_decoder(
                image_embeddings=embedding[: len(batch)],
                image_pe=positions[: len(batch)],
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
                simple_type=True,
            )
            low_res = predictor.model.postprocess_masks(low_res, predictor.input_size, predictor.original_size)
            found.append(((low_res > sam.mask_threshold) * 1.0).squeeze(1))
        return torch.cat(found)

    given = np.array(job["boxes_xyxy"], dtype=np.float32)
    run(given[:1])
    encoder, decoder = Clock(sam.image_encoder, device), Clock(sam.mask_decoder, device)
    start = now(device)
    masks = run(given)
    seconds = now(device) - start
    peak = memory(device, peak=True)
    rles = [coco_mask.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8))) for mask in masks]
    rles = [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in rles]
    result = {"masks": rles, "prompt_index": list(range(len(rles))), "peak": peak, "loaded": loaded}
    return result | times(seconds, encoder, decoder)


def times(seconds: float, encoder: Clock, decoder: Clock) -> dict[str, float]:
    """Seconds by stage."""
    rest = seconds - encoder.seconds - decoder.seconds
    return {"encoder": encoder.seconds, "decoder": decoder.seconds, "rest": rest}


def main(job_file: str, out_file: str) -> None:
    """Do the job."""
    job = json.loads(Path(job_file).read_text())
    image = np.asarray(Image.open(job["image"]).convert("RGB"))
    device = torch.device(job["device"])
    with torch.autocast(device.type, torch.bfloat16, enabled=bool(job.get("fast"))):
        result = {"grid": grid, "boxes": boxes}[job["work"]](job, image, device)
    Path(out_file).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
