"""Time of the mask decoder for box prompts on one image: this project and SAM's own code, same weights, in one run.

    OMP_NUM_THREADS=2 python benchmarks/mask_decoder.py     # wants segment-anything-py, as the tests do

Full size, random weights: 256 channels, 64 x 64 cells, one mask a prompt. Both start from the image embedding and the
embedded prompts and end with low-res logits. SAM's code gets 64 prompts at a time, as its mask generator has it.
The ratio wants a machine without other work: threads that wait for one another are slowed the most by it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from segment_anything.modeling import MaskDecoder as OfficialMaskDecoder
from segment_anything.modeling import TwoWayTransformer
from torch import Tensor

from mobilesamv2.models.mask_decoder import MaskDecoder
from mobilesamv2.models.prompt_encoder import PromptEncoder

OFFICIAL_BATCH = 64


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds of a run, and its logits."""
    start = time.perf_counter()
    logits = run()
    return time.perf_counter() - start, logits


@torch.inference_mode()
def main() -> None:
    """Print both times, their ratio and the largest difference of the logits."""
    parser = argparse.ArgumentParser(description="Our mask decoder and SAM's on the same prompts.")
    parser.add_argument("--prompts", type=int, default=320)
    parser.add_argument("--official-prompts", type=int, help="fewer for SAM's code; its time is scaled up")
    parser.add_argument("--repeats", type=int, default=1, help="the two take turns, and the fastest of each counts")
    args = parser.parse_args()
    torch.manual_seed(0)
    official = OfficialMaskDecoder(
        transformer_dim=256,
        transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
    ).eval()
    ours = MaskDecoder().eval()
    ours.load_state_dict(official.state_dict())
    prompt_encoder = PromptEncoder(256, image_size=1024, grid=64).eval()
    corners = torch.rand(args.prompts, 2, 2) * 1024
    sparse, dense = prompt_encoder(boxes_xyxy=torch.cat([corners.amin(1), corners.amax(1)], 1))
    positions, embedding = prompt_encoder.image_positions(), torch.randn(1, 256, 64, 64)
    timed_prompts = args.official_prompts or args.prompts

    def run_official() -> Tensor:
        parts = sparse[:timed_prompts].split(OFFICIAL_BATCH)
        return torch.cat([official(embedding, positions, p, dense, multimask_output=False)[0] for p in parts])

    ours(embedding, positions, sparse[:8], dense, multimask_output=False)
    official(embedding, positions, sparse[:8], dense, multimask_output=False)

    def run_ours() -> Tensor:
        return ours(embedding, positions, sparse, dense, multimask_output=False)[0]

    turns = [(timed(run_ours), timed(run_official)) for _ in range(args.repeats)]
    our_time = min(seconds for (seconds, _), _ in turns)
    their_time = min(seconds for _, (seconds, _) in turns) * args.prompts / timed_prompts
    (_, our_logits), (_, their_logits) = turns[-1]
    difference = (our_logits[:timed_prompts] - their_logits).abs().max().item()

    print(f"{args.prompts} boxes, one mask each, {torch.get_num_threads()} threads, torch {torch.__version__}")
    scaled = "" if timed_prompts == args.prompts else f" (from {timed_prompts} prompts)"
    print(f"SAM's mask decoder  {their_time:7.2f} s{scaled}")
    print(f"ours                {our_time:7.2f} s")
    print(f"ratio               {their_time / our_time:7.2f}")
    print(f"largest difference  {difference:.1e} on logits up to {their_logits.abs().max().item():.2f}")


if __name__ == "__main__":
    main()
