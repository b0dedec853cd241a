"""What a finished training shows of itself: report.md, the stages' curves, a contact sheet and clips as GIF."""

import csv
import math
import os
from pathlib import Path

from PIL import Image, ImageDraw

from kv_core.sampling.frames import CLIP_SECONDS
from training import world

from . import benchmark
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
QUICK = 0.1  # share of the benchmark that the report runs


def make(work, models, folder, progress=print):
    """Writes everything into `folder`; work: the training's own folder, for its curves."""
    folder.mkdir(parents=True, exist_ok=True)
    judge = Judge(models)
    clips = []
    for seed, prompt in enumerate(PROMPTS):
        progress(f"Drawing: {prompt}")
        clips.append(judge.pipe(prompt, width=world.SIZE, height=world.SIZE, seed=seed))
    contact_sheet(clips, PROMPTS).save(folder / "contact-sheet.png")
    for i in GIFS:
        save_gif(clips[i], folder / f"{PROMPTS[i].replace(' ', '-')}.gif")
    curves = {path.stem: read_curve(path) for path in sorted(Path(work).glob("*.csv"))}
    plot(curves).save(folder / "curves.png")
    rows = benchmark.summary(benchmark.run(models, benchmark.counts_of(QUICK), os.cpu_count() or 1))
    (folder / "report.md").write_text(text(curves, rows), encoding="utf-8")


def text(curves, rows):
    stages = [f"| {name} | {points[-1][0]:.0f} | {points[-1][1]:.4f} |" for name, points in curves.items() if points]
    return "\n".join(
        [
            "# The tiny model's training",
            "",
            "![Keyframes of six prompts](contact-sheet.png)",
            "",
            "## Stages",
            "",
            "| stage | steps | loss at the end |",
            "| --- | --- | --- |",
            *stages,
            "",
            "![Loss over steps](curves.png)",
            "",
            "## A short benchmark",
            "",
            "`python -m evaluation.benchmark` measures the same over more clips.",
            "",
            benchmark.table(rows),
            "",
        ]
    )


def contact_sheet(clips, prompts, scale=2):
    """A row a clip: its keyframes, and the prompt above them."""
    size, heading, gap = world.SIZE * scale // 2, 14, 2
    sheet = Image.new("RGB", (len(SHEET_FRAMES) * (size + gap), len(clips) * (size + heading + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (clip, prompt) in enumerate(zip(clips, prompts)):
        top = row * (size + heading + gap)
        pen.text((2, top + 1), prompt, fill="black")
        for column, frame in enumerate(SHEET_FRAMES):
            picture = clip[frame].resize((size, size), Image.Resampling.BICUBIC)
            sheet.paste(picture, (column * (size + gap), top + heading))
    return sheet


def save_gif(clip, path, scale=3):
    frames = [frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.BICUBIC) for frame in clip]
    duration = round(1000 * CLIP_SECONDS / len(frames))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0)


def read_curve(path):
    """[(step, loss)] of a stage's curve; a resumed run may have noted a step twice, the last one counts."""
    with path.open(newline="", encoding="utf-8") as file:
        return sorted({int(step): float(loss) for step, loss in csv.reader(file)}.items())


def plot(curves, width=480, height=220):
    """All curves, one panel each: the loss' logarithm over the steps."""
    picture = Image.new("RGB", (2 * width, -(-len(curves) // 2) * height), "white")
    pen = ImageDraw.Draw(picture)
    for place, (name, points) in enumerate(curves.items()):
        left, top = place % 2 * width + 50, place // 2 * height + 24
        right, bottom = left + width - 70, top + height - 50
        pen.rectangle((left, top, right, bottom), outline="grey")
        pen.text((left, top - 16), name, fill="black")
        logs = [math.log10(max(loss, 1e-6)) for _, loss in points]
        low, high, last = min(logs), max(logs), points[-1][0]
        span = max(high - low, 1e-6)
        pen.text((left - 46, top), f"{10**high:.2g}", fill="black")
        pen.text((left - 46, bottom - 10), f"{10**low:.2g}", fill="black")
        pen.text((right - 40, bottom + 4), f"{last}", fill="black")
        line = [
            (left + (right - left) * step / last, bottom - (bottom - top) * (log - low) / span)
            for (step, _), log in zip(points, logs)
        ]
        if len(line) > 1:
            pen.line(line, fill="blue", width=2)
    return picture
