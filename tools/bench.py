"""Measure every stage's time and memory: `python3 tools/bench.py`. With --help it says what else it can do.

This part finds or sets up ComfyUI (see host.py) and has measure.py run in ComfyUI's Python, in a process of its own for
every stage, so that each one's peak of host memory is its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from tools import host  # noqa: E402

STAGES = ("text", "first-frame", "keyframes", "interpolation", "encode-image", "decode-image", "decode-video")
COLUMNS = (
    ("stage", "stage"),
    ("cold", "cold s"),
    ("warm", "warm s"),
    ("spread", "least to most"),
    ("tflop", "TFLOP"),
    ("rate", "TFLOP/s"),
    ("share", "of matmul"),
    ("peak", "peak GB"),
    ("reserved", "reserved GB"),
    ("host", "host GB"),
    ("estimate", "estimate / peak"),
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time one step of every stage with random weights, cold and warm, its arithmetic against the "
        "machine's own matrix products, its peak memory and ComfyUI's estimate of it."
    )
    sizes = "small: for a CPU, in some minutes (default); full: as published"
    parser.add_argument("--size", choices=["small", "full"], default="small", help=sizes)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: the accelerator torch sees)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32 on a CPU")
    parser.add_argument("--width", type=int, default=512, metavar="PIXELS", help="of the clip (default: 512)")
    parser.add_argument("--height", type=int, default=512, metavar="PIXELS")
    parser.add_argument("--repeat", type=int, default=5, help="warm runs; the table shows their median (default: 5)")
    parser.add_argument("--compile", action="store_true", help="through torch.compile, without graph breaks")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write every number there too")
    host.add_option(parser)
    return parser.parse_args()


def main() -> int:
    options = parse()
    found = host.prepare(options.comfyui)
    settings = {name: value for name, value in vars(options).items() if name not in ("comfyui", "out", "stages")}
    results = []
    for stage in options.stages:
        command = [str(found.python), "-m", "tools.measure", json.dumps({**settings, "stage": stage})]
        with host.step(f"Measuring {stage}"):
            child = subprocess.run(command, cwd=host.ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if child.returncode:
            host.show(f"{stage} failed; the others go on.")
            continue
        results.append(json.loads(child.stdout.splitlines()[-1]))
    if not results:
        return 1
    print(table(results))
    if options.out:
        options.out.write_text(json.dumps({"command": sys.argv[1:], "results": results}, indent=1) + "\n", "utf-8")
    return 0 if len(results) == len(options.stages) else 1


def table(results: list[dict]) -> str:
    """The results as a Markdown table."""
    lines = [" | ".join(title for _, title in COLUMNS), " | ".join("---" for _ in COLUMNS)]
    for result in results:
        first = result["times"]
        row = {**result, "spread": f"{min(first):.3g} to {max(first):.3g}"}
        lines.append(" | ".join(shown(row.get(name)) for name, _ in COLUMNS))
    where = "{machine}, {device}, {dtype}, torch {torch}; matrix products at {matmul:.3g} TFLOP/s".format(**results[0])
    return "\n".join([*(f"| {line} |" for line in lines), "", where])


def shown(value) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(host.guard(main))
