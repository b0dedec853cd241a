"""Measures how many steps the stages need with ComfyUI's samplers, and with EasyCache: `python -m evaluation.steps`.

Runs in ComfyUI's Python. Every stage is judged by itself at the published guidance, on scenes that were never trained
on, from pixels alone; then the whole clip. Writes docs/tiny/steps.md, and a chart beside it.
"""

import argparse
import contextlib
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch

from kv_core.pictures.images import psnr, to_pixels
from tools import host
from tools.comfy import pack
from training import world

from . import benchmark, chart, record
from .in_host import OWN, OWN_SPACINGS, PUBLISHED, HostJudge, Setting
from .record import Results, Task

# Not ddim, which is euler where nothing is masked, nor ddpm, which is euler_ancestral.
SAMPLERS = [
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
]
TWO_CALLS = {"dpmpp_sde", "heun"}  # of the U-Net a step, so half as many steps are looked at
STEP_COUNTS = [5, 8, 10, 15, 20]
SPACING = "karras"  # what the keyframes' samplers are compared with
SPACED, SPACED_STEPS = (OWN, "euler", "dpmpp_2m", "dpmpp_sde"), 10  # for the other spacings
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
    shows it; psnr_published: against the clip of the published settings and the same seed, where these are others.
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
    apart = {} if torch.equal(pixels, published) else {"psnr_published": psnr(pixels, published, 2).mean().item()}
    return {
        **benchmark.compare(pixels, scenes),
        "error": (world.read(pixels).centre - world.positions(scenes, times)[0]).norm(dim=1).mean().item(),
        "flicker": benchmark.change(pixels, still),
        "flicker_true": benchmark.change(truth, still),
        "psnr": psnr(pixels, truth, 2).mean().item(),
        **apart,
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


def settings(
    stages: Sequence[str], samplers: Sequence[str] = SAMPLERS, steps: Sequence[int] = STEP_COUNTS
) -> list[str]:
    """Every stage with a setting as it is written, "keyframes euler/karras/10"; samplers, steps: of the keyframes."""
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
    return list(dict.fromkeys(f"{stage} {text}" for stage, texts in found.items() for text in texts))


def plan(keys: Sequence[str], clips: int) -> list[Task]:
    return [(key, str(index)) for key in keys for index in range(clips)]


def measure(judge: HostJudge, tasks: Sequence[Task]) -> Iterator[dict]:
    """What each task gave, in their order."""
    for key, index in tasks:
        stage, text = key.split(" ")
        with torch.inference_mode(), judge.using(settings_of(stage, text)):
            yield MEASUREMENTS[stage](judge, int(index))


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


TITLES = {
    "keyframes": "Keyframes",
    "first_frame": "First frame",
    "interpolation": "Interpolation",
    "clip": "Whole clips",
}


def tables(results: Results) -> str:
    """A table a stage."""
    stages = dict.fromkeys(key.split(" ")[0] for key in results)
    return "\n".join(f"## {TITLES[stage]}\n\n{table(results, stage)}\n" for stage in stages)


def table(results: Results, stage: str) -> str:
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


PANELS = {  # title: what is measured, times what, lowest and highest value, and whether these are logarithms
    "shape, colour and direction match, %": ("all", 100, 0, 105, False),
    "flicker of still parts, of 255": ("flicker", 1, 0.1, 50, True),
    "PSNR to the true clip, dB": ("psnr", 1, 10, 36, False),
}


def draw(results: Results):
    """A matplotlib figure of the keyframes' samplers over U-Net calls; the published one with its own spacing too."""
    lines = chart_lines(results)
    figure, axes = chart.panels(1, len(PANELS))
    for axis, (title, (what, scale, low, high, logarithmic)) in zip(axes, PANELS.items()):
        for name, rows in lines.items():
            points = sorted((row["calls"][0], scale * row[what][0]) for row in rows)
            axis.plot(*zip(*points), marker="o", markersize=3, label=name)
        axis.set(title=title, xlabel="U-Net calls a clip", xscale="log", ylim=(low, high))
        axis.set_yscale("log" if logarithmic else "linear")
        axis.set_xticks([5, 10, 20, 50], [5, 10, 20, 50])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def chart_lines(results: Results) -> dict[str, list[dict]]:
    """{line: summaries of its settings}: of keyframes at one spacing, or published throughout, without a cache."""
    lines: dict[str, list[dict]] = {}
    for key, rows in results.items():
        stage, text = key.split(" ")
        if stage != "keyframes":
            continue
        setting, own = Setting.parse(text), PUBLISHED[stage]
        published = (setting.sampler, setting.spacing) == (own.sampler, own.spacing)
        if not setting.cache and (published or setting.spacing == SPACING):
            name = f"{setting.sampler}, {setting.spacing}" if published else setting.sampler
            lines.setdefault(name, []).append(summary(list(rows.values())))
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    host.add_option(parser)
    record.add_options(parser, "steps.md")
    parser.add_argument("--stages", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS, help="of the keyframes, by ComfyUI's names")
    parser.add_argument("--steps", nargs="+", type=int, default=STEP_COUNTS, help="of the keyframes")
    parser.add_argument("--clips", type=int, default=12, help="of every setting (default: 12)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the tensors are too small for more to pay
    tasks = plan(settings(options.stages, options.samplers, options.steps), options.clips)
    page = record.Page("steps", options.out, options.models, tables)
    line = record.command("steps", parser, options, ["stages", "samplers", "steps", "clips"])

    def run(tasks):
        if tasks:
            with host_judge(options) as judge:
                yield from measure(judge, tasks)

    results = page.run(options, tasks, run, line)
    if any(key.startswith("keyframes") for key in results):
        draw(results).savefig(options.out.with_suffix(".png"))


@contextlib.contextmanager
def host_judge(options: argparse.Namespace) -> Iterator[HostJudge]:
    """A judge in a ComfyUI of its own, which does not report."""
    with tempfile.TemporaryDirectory() as folder:
        module = pack.load(host.prepare(options.comfyui).path, Path(folder))
        import comfy.utils

        comfy.utils.PROGRESS_BAR_ENABLED = False
        logging.disable(logging.INFO)
        yield HostJudge(options.models, module, pack.nodes(module))


if __name__ == "__main__":
    main()
