"""What computing in 16 bits costs: the same clip with one part after another in fp16 and bf16, against float32.

    python -m evaluation.precision

Runs the tiny model by kv_core.pipeline, some minutes on a CPU, and prints a Markdown table of peak signal-to-noise
ratios of the clip's frames in dB.
"""

import numpy
import torch

from kv_core.pipeline import PARTS, load_pipeline
from tools.host import ROOT

from .benchmark import FILES

PATHS = {part: ROOT / "models" / file for part, file in FILES.items()}
PROMPT = "a red circle moving right on a black background"
COMPUTED = ("text_encoder", "keyframe_unet", "interpolation_unet", "image_movq", "video_movq")


def clip(dtypes, fps="medium", steps=(20, 20, 10)):
    """Frames `[t, h, w, 3]` 0 to 255 of the prompt's clip, with every part in its type of `dtypes`."""
    pipe = load_pipeline(PATHS, "cpu", dtypes)
    frames = pipe(PROMPT, width=64, height=64, fps=fps, seed=7, steps=steps)
    return torch.stack([torch.from_numpy(numpy.array(frame)) for frame in frames]).float()


def decibels(frames, expected):
    return float(10 * torch.log10(255**2 / (frames - expected).square().mean()))


def main():
    exact = clip(torch.float32)
    print("| computed in | fp16 | bf16 |\n| --- | --- | --- |")
    for parts in (*((part,) for part in COMPUTED), COMPUTED):
        row = []
        for dtype in (torch.float16, torch.bfloat16):
            dtypes = {part: dtype if part in parts else torch.float32 for part in PARTS}
            row.append(f"{decibels(clip(dtypes), exact):.0f} dB")
        print(f"| {parts[0] if len(parts) == 1 else 'all'} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
