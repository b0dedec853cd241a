"""Shows what a finished training gave: the stages' losses, a contact sheet and clips as GIF.

    python -m evaluation.report

Reads the curves in the training's work folder, makes six clips with the trained files and writes report.md with its
pictures. Charts need matplotlib.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from kv_core.pictures.images import to_images, to_pixels
from kv_core.pictures.sheets import table_sheet
from kv_core.sampling.frames import CLIP_SECONDS
from training import world

from . import chart
from .benchmark import Judge

PROMPTS = (
    "a red circle moving right on a black background",
    "a green square moving down on a white background",
    "a yellow triangle moving left on a grey background",
    "a purple cross moving up on a white background",
    "a cyan circle standing still on a brown background",
    "a blue square moving left on a grey background",
)
GIFS = (0, 2, 3)  # of the prompts
SHEET_FRAMES = range(0, 45, 4)  # the keyframes
Curve = list[tuple[int, float]]  # (step, loss)


def make(work: Path, models: Path, folder: Path) -> None:
    """Writes everything into `folder`; work: the training's own folder, for its curves."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = {path.stem: read_curve(path) for path in sorted(work.glob("*.csv"))}
    if not curves:
        sys.exit(f"{work} holds no curves: run `python -m training.train` first.")
    plot(curves).savefig(folder / "curves.png")
    judge, clips = Judge(models), []
    for seed, prompt in enumerate(PROMPTS):
        print(f"Making a clip of {prompt}.", flush=True)
        clips.append(judge.pipe(prompt, width=world.SIZE, height=world.SIZE, seed=seed))
    contact_sheet(clips, PROMPTS).save(folder / "contact-sheet.png")
    for i in GIFS:
        save_gif(clips[i], folder / f"{PROMPTS[i].replace(' ', '-')}.gif")
    (folder / "report.md").write_text(text(curves), encoding="utf-8")
    print(f"The report is in {folder}.")


def text(curves: dict[str, Curve]) -> str:
    rows = (f"| {name} | {points[-1][0]} | {points[-1][1]:.4f} |\n" for name, points in curves.items() if points)
    return f"""# The tiny model's training

![Keyframes of six prompts](contact-sheet.png)

By `python -m evaluation.report`, after [training](../../training/README.md). What its clips show is measured by the
[benchmark](benchmark.md).

## Stages

| stage | steps | loss at the end |
| --- | ---: | ---: |
{"".join(rows)}
![Loss over steps](curves.png)
"""


def contact_sheet(clips: Sequence[Sequence[Image.Image]], prompts: Sequence[str]) -> Image.Image:
    """A row a clip: the prompt, then its keyframes under their numbers."""
    rows = [torch.cat([to_pixels(clip[frame]) for frame in SHEET_FRAMES]) for clip in clips]
    cells = ((torch.stack(rows) + 1) / 2).movedim(2, -1)
    sheet = table_sheet(cells, prompts, [str(frame) for frame in SHEET_FRAMES])
    return to_images((255 * sheet[None]).round().to(torch.uint8))[0]


def save_gif(clip: Sequence[Image.Image], path: Path, scale: int = 3) -> None:
    frames = [frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.BICUBIC) for frame in clip]
    duration = round(1000 * CLIP_SECONDS / len(frames))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0)


def read_curve(path: Path) -> Curve:
    """A stage's curve; a resumed run may have noted a step twice, the last one counts."""
    with path.open(newline="", encoding="utf-8") as file:
        return sorted({int(step): float(loss) for step, loss in csv.reader(file)}.items())


def plot(curves: dict[str, Curve]):
    """A matplotlib figure of all curves, one panel each: the loss over the steps."""
    figure, axes = chart.panels(-(-len(curves) // 2), 2, height=2.2)
    for axis, (name, points) in zip(axes, curves.items()):
        axis.plot(*zip(*points))
        axis.set(title=name, yscale="log")
    for axis in axes[len(curves) :]:
        axis.remove()
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("training-work"), help="the training's folder")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with the trained files")
    parser.add_argument("--out", type=Path, default=Path("docs/tiny"), help="folder for report and pictures")
    options = parser.parse_args(arguments)
    make(options.work, options.models, options.out)


if __name__ == "__main__":
    main()
