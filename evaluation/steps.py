"""Measures how many steps the stages need with ComfyUI's samplers, and with EasyCache: `python -m evaluation.steps`.

Runs in ComfyUI's Python. Every stage is judged by itself at the published guidance, on scenes that were never trained
on, from pixels alone; then the whole clip. Each finished measurement is on disk at once, and the next run goes on.
"""

import argparse
import json
import logging
import math
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

import torch

from kv_core.files.conversion import appearing
from kv_core.pictures.images import to_pixels
from tools import host
from tools.comfy import pack
from training import world

from . import benchmark
from .chart import line_chart
from .in_host import OWN, OWN_SPACINGS, PUBLISHED, HostJudge, Setting

# Not ddim, which is euler where nothing is masked, nor ddpm, which is euler_ancestral.
SAMPLERS = (
    OWN,
    "euler",
    "euler_ancestral",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_sde",
    "heun",
    "uni_pc",
    "lcm",
    "res_multistep",
    "er_sde",
)
TWO_CALLS = {"dpmpp_sde", "heun"}  # of the U-Net a step, so half as many steps are looked at
STEPS = (5, 8, 10, 15, 20)
SPACING = "karras"  # what the keyframes' samplers are compared with
SPACED, SPACED_STEPS = (OWN, "euler", "dpmpp_2m", "dpmpp_sde"), 10  # for the other spacings
ROUND = 12  # clips of every setting before the next ones, so that a run that was stopped tells something of all
MORE = {
    "keyframes": (
        "published/leading/5 published/leading/20 published/leading/30 euler/leading/5 euler/leading/20 "
        "published/leading/50/0.3 published/leading/50/0.5 published/leading/50/0.8 euler/karras/20/0.2"
    ),
    "first_frame": (
        "published/leading/50 published/leading/20 published/leading/10 published/leading/5 published/karras/20 "
        "published/karras/10 published/karras/5 euler/leading/10 euler/leading/5 euler/karras/20 euler/karras/10 "
        "euler/karras/5 dpmpp_2m/karras/20 dpmpp_2m/karras/10 dpmpp_2m/karras/5"
    ),
    "interpolation": (
        "published/trailing/10 published/trailing/20 published/trailing/5 euler/trailing/10 euler/trailing/5 "
        "dpmpp_2m/trailing/10 dpmpp_2m/trailing/5"
    ),
    "clip": (
        "published/leading/50+published/leading/50+published/trailing/10 "
        "euler/karras/15+euler/karras/15+published/trailing/10 "
        "euler/karras/10+euler/karras/10+euler/trailing/10"
    ),
}


# One function a stage; each takes the judge, whose settings decide how it samples, and an index, as the benchmark's do.


def first_frame(judge, index):
    """A drawn picture: shape, colour and background; noise: mean deviation of the background's pixels, in 255ths."""
    scenes = benchmark.scene(index)
    image = judge.first_frame(judge.pipe.encode_text(scenes.captions()[0]), index)
    pixels = to_pixels(image.resize((world.SIZE, world.SIZE)))
    seen = world.read(pixels)
    found = {
        name: (seen.found & (getattr(seen, name) == getattr(scenes, name))).item()
        for name in ("shape", "colour", "background")
    }
    plain = pixels[0][:, benchmark.still_parts(pixels)]
    noise = 127.5 * (plain - plain.median(dim=1, keepdim=True).values).abs().mean().item()
    return {**found, "all": all(found.values()), "noise": noise, **judge.cost("first_frame")}


def keyframes(judge, index):
    """Twelve keyframes from a scene's true first frame: what they show, and how far they are from the true clip.

    error: pixels between the shape's centre and where it should be. psnr: against the true clip as the same decoder
    shows it; psnr_published: against the clip of the published settings and the same seed.
    """
    scenes, times = benchmark.scene(index), torch.arange(float(world.KEYFRAMES))
    texts, image = judge.pipe.encode_text(scenes.captions()[0]), benchmark.picture(scenes)

    def sampled():
        return judge.pixels(judge.keyframes(texts, image, index))

    def drawn():
        return judge.pixels(judge.pipe.movq.encode(world.draw(scenes, times)[0]).transpose(0, 1)[None])

    pixels, cost = sampled(), judge.cost("keyframes")
    truth = judge.kept(("true keyframes", index), drawn)
    with judge.using(PUBLISHED):
        published = judge.kept(("published keyframes", index), sampled)
    still = benchmark.still_parts(truth)
    return {
        **benchmark.compare(pixels, scenes),
        "error": (world.read(pixels).centre - world.positions(scenes, times)[0]).norm(dim=1).mean().item(),
        "flicker": benchmark.change(pixels, still),
        "flicker_true": benchmark.change(truth, still),
        "psnr": benchmark.psnr(pixels, truth).mean().item(),
        "psnr_published": benchmark.psnr(pixels, published).mean().item(),
        **cost,
    }


def interpolation(judge, index):
    """True keyframes of a fast scene, interpolated."""
    truth = judge.kept(("true clip", index), lambda: benchmark.true_clip(judge, index))
    return {**benchmark.judge_gaps(judge, index, *truth), **judge.cost("interpolation")}


def clip(judge, index):
    """Text to video from the prompt alone."""
    scenes = benchmark.scene(index)
    texts = judge.pipe.encode_text(scenes.captions()[0])
    latents = judge.keyframes(texts, judge.first_frame(texts, index), index)
    pixels = judge.pixels(judge.interpolate(texts, latents, index))
    still = benchmark.still_parts(pixels)
    flicker = {"flicker": benchmark.change(pixels, still)} if still.any() else {}
    return {**benchmark.compare(pixels, scenes), **flicker, **judge.cost(*PUBLISHED)}


MEASUREMENTS = {"first_frame": first_frame, "keyframes": keyframes, "interpolation": interpolation, "clip": clip}
COLUMNS = {  # of the tables, where a stage measures them: heading and digits
    "calls": ("U-Net calls", 1),
    "shape": ("shape", 0),
    "colour": ("colour", 0),
    "background": ("background", 0),
    "direction": ("direction", 0),
    "all": ("all", 0),
    "error": ("off, pixels", 2),
    "noise": ("noise of 255", 2),
    "flicker": ("flicker of 255", 2),
    "psnr": ("PSNR to the true clip, dB", 1),
    "psnr_faded": ("that of cross-fading, dB", 1),
    "psnr_published": ("PSNR to 50 published steps, dB", 1),
    "seconds": ("CPU seconds", 2),
}


def settings_of(stage, text):
    """{stage: Setting} of a setting as it is written; three, joined by +, for the whole clip."""
    return dict(zip(PUBLISHED if stage == "clip" else [stage], map(Setting.parse, text.split("+")), strict=True))


def plan(stages, samplers=SAMPLERS, steps=STEPS):
    """[(stage, setting as it is written)]; samplers and steps: of the keyframes."""
    found = {stage: MORE[stage].split() for stage in stages}
    if "keyframes" in found:
        published = str(PUBLISHED["keyframes"])
        grid = [
            f"{sampler}/{SPACING}/{count}"
            for sampler in samplers
            for count in steps
            if sampler not in TWO_CALLS or count <= max(steps) / 2
        ]
        spaced = [
            f"{sampler}/{spacing}/{SPACED_STEPS}"
            for sampler in SPACED
            for spacing in OWN_SPACINGS
            if sampler in samplers
        ]
        found["keyframes"] = [published, *grid, *spaced, *found["keyframes"]]
    return list(dict.fromkeys((stage, text) for stage, texts in found.items() for text in texts))


def measure(judge, tasks, clips, path, progress=print):
    """Measures what is missing in the JSON file `path`, {"stage setting": {index: measured}}, and returns all of it."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    todo = [
        (stage, text, index)
        for begin in range(0, clips, ROUND)
        for stage, text in tasks
        for index in range(begin, min(begin + ROUND, clips))
        if str(index) not in results.get(f"{stage} {text}", {})
    ]
    start = time.monotonic()
    for done, (stage, text, index) in enumerate(todo, 1):
        with torch.inference_mode(), judge.using(settings_of(stage, text)):
            results.setdefault(f"{stage} {text}", {})[str(index)] = MEASUREMENTS[stage](judge, index)
        _write(path, results)
        left = (time.monotonic() - start) / done * (len(todo) - done) / 60
        progress(f"{done} of {len(todo)}, {left:.0f} minutes left: {stage} {text}, clip {index}")
    return results


def _write(path, results):
    """All at once, so that a run that is killed leaves a whole file."""
    with appearing(path) as partial:
        partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def summary(rows):
    """Measured dicts of one setting -> {what: (mean, standard error)}; shares by the Wilson estimate's own error."""
    found = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row[key] for row in rows if key in row]
        found[key] = mean(values), (_share_error if isinstance(values[0], bool) else _mean_error)(values)
    return found


def _share_error(values):
    # With one success and one failure more: at 24 of 24 the plain formula says 0, which nobody believes.
    share = (sum(values) + 1) / (len(values) + 2)
    return math.sqrt(share * (1 - share) / (len(values) + 2))


def _mean_error(values):
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def table(results, stage):
    """A Markdown table of one stage's settings: means, most with ± one standard error."""
    rows = {key.split(" ")[1]: list(rows.values()) for key, rows in results.items() if key.split(" ")[0] == stage}
    found = {text: summary(rows) for text, rows in rows.items()}
    keys = [key for key in COLUMNS if any(key in row for row in found.values())]
    lines = ["| " + " | ".join(["sampler / spacing / steps", "clips", *(COLUMNS[key][0] for key in keys)]) + " |"]
    lines.append("| --- | ---: |" + " ---: |" * len(keys))
    for text, row in found.items():
        cells = [text.replace("+", " + "), str(len(rows[text])), *(_cell(key, row.get(key)) for key in keys)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(key, value):
    if value is None:
        return ""
    scale, unit = (100, " %") if key in ("shape", "colour", "background", "direction", "all") else (1, "")
    digits = COLUMNS[key][1]
    error = f" ± {scale * value[1]:.{digits}f}" if key in ("all", "flicker", "error", "noise", "psnr") else ""
    return f"{scale * value[0]:.{digits}f}{error}{unit}"


def chart(results):
    """The keyframes' samplers over U-Net calls; the published one with its own spacing too."""
    panels = {
        "shape, colour and direction match, %": ({}, 0, 100),
        "flicker of still parts, of 255": ({}, 0.1, 50),
        "PSNR to the true clip, dB": ({}, 10, 35),
    }
    for key, rows in results.items():
        stage, text = key.split(" ")
        setting = settings_of(stage, text).get("keyframes")
        if stage != "keyframes" or setting.cache or setting.spacing not in (SPACING, PUBLISHED[stage].spacing):
            continue
        if setting.spacing != SPACING and setting.sampler != OWN:
            continue
        name = setting.sampler if setting.spacing == SPACING else f"{setting.sampler}, {setting.spacing}"
        row = summary(list(rows.values()))
        for (lines, _, _), what, scale in zip(panels.values(), ("all", "flicker", "psnr"), (100, 1, 1)):
            lines.setdefault(name, []).append((row["calls"][0], scale * row[what][0]))
    return line_chart(panels, "U-Net calls a clip")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    host.add_option(parser)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with the tiny model's files")
    parser.add_argument("--stages", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS, help="of the keyframes, by ComfyUI's names")
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, help="of the keyframes")
    parser.add_argument("--clips", type=int, default=24, help="of every setting (default: 24)")
    parser.add_argument("--out", type=Path, default=Path("steps.json"), help="JSON file for every single result")
    parser.add_argument("--chart", type=Path, help="PNG file for a chart of the keyframes' samplers")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the tensors are too small for more to pay
    with tempfile.TemporaryDirectory() as folder:
        module = pack.load(host.prepare(options.comfyui).path, Path(folder))
        import comfy.utils

        comfy.utils.PROGRESS_BAR_ENABLED = False
        logging.disable(logging.INFO)
        judge = HostJudge(options.models, module, pack.nodes(module))
        tasks = plan(options.stages, options.samplers, options.steps)
        results = measure(judge, tasks, options.clips, options.out, lambda line: print(line, flush=True))
    results = {name: results[name] for name in map(" ".join, tasks)}
    for stage in options.stages:
        print(f"\n{stage}\n\n{table(results, stage)}")
    if options.chart:
        chart(results).save(options.chart, optimize=True)


if __name__ == "__main__":
    main()
