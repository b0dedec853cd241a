"""What computing in 16 bits costs: the same clip with one part after another in fp16 and bf16, against float32.

    python -m evaluation.precision

Runs the tiny model by kv_core.pipeline, some minutes on a CPU, and writes docs/tiny/precision.md.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
import torch

from kv_core.pictures.images import psnr
from kv_core.pipeline import FILE_STEMS, load_pipeline

from . import record
from .benchmark import FILES
from .record import Results, Task

PROMPT = "a red circle moving right on a black background"
COMPUTED = {
    "text_encoder": "text encoder",
    "keyframe_unet": "keyframe U-Net, first frame too",
    "interpolation_unet": "interpolation U-Net",
    "image_movq": "image MoVQ",
    "video_movq": "temporal MoVQ",
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def clip(models: Path, dtypes, fps: str = "medium", steps: Sequence[int] = (20, 20, 10)) -> torch.Tensor:
    """Frames `[t, h, w, 3]` 0 to 255 of the prompt's clip; dtypes: one type, or one for every part."""
    pipe = load_pipeline({part: models / file for part, file in FILES.items()}, "cpu", dtypes)
    frames = pipe(PROMPT, width=64, height=64, fps=fps, seed=7, steps=steps)
    return torch.stack([torch.from_numpy(numpy.array(frame)) for frame in frames]).float()


def decibels(frames: torch.Tensor, expected: torch.Tensor) -> float:
    """PSNR of the whole clip."""
    return psnr(frames, expected, 255, dims=None).item()


def plan() -> list[Task]:
    """(part or "all", type)"""
    return [(part, dtype) for part in (*COMPUTED, "all") for dtype in DTYPES]


def measure(models: Path, tasks: Sequence[Task]) -> Iterator[dict]:
    """What each task gave, in their order."""
    exact = clip(models, torch.float32) if tasks else None
    for part, dtype in tasks:
        dtypes = {each: DTYPES[dtype] if part in (each, "all") else torch.float32 for each in FILE_STEMS}
        yield {"psnr": decibels(clip(models, dtypes), exact)}


def table(results: Results) -> str:
    lines = [f"| computed in | {' | '.join(DTYPES)} |", "| --- | ---: | ---: |"]
    for part, rows in results.items():
        cells = (f"{row['psnr']:.0f} dB" for row in rows.values())
        lines.append(f"| {COMPUTED.get(part, part)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    record.add_options(parser, "precision.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the tensors are too small for more to pay
    page = record.Page("precision", options.out, options.models, table)
    page.run(options, plan(), lambda tasks: measure(options.models, tasks), "python -m evaluation.precision")


if __name__ == "__main__":
    main()
