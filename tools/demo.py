"""Make a clip with the tiny models: `python3 tools/demo.py`. With --help it says what else it can do.

This part runs in any Python 3.10 or newer: it checks the options, finds or sets up ComfyUI (see host.py) and hands over
to render.py in ComfyUI's Python.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from tools import host  # noqa: E402


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a wrong option with one sentence."""

    def error(self, message: str):
        self.exit(2, f"{message}\n")


def arguments() -> Parser:
    parser = Parser(
        description="Make a clip with ComfyUI and this pack's tiny models. They know one small world: a circle, "
        "square, triangle or cross in red, green, blue, yellow, purple or cyan, moving left, right, up or down or "
        "standing still on a black, white, grey or brown background. All else is what the real models go through.",
    )
    prompt = 'what the clip shows (default: "a red circle moving right on a black background")'
    parser.add_argument("--prompt", help=prompt)
    parser.add_argument("--negative", help="what it must not show (default: the models' own null prompt)")
    parser.add_argument("--image", type=Path, metavar="FILE", help="animate this picture, not a drawn one")
    rates = "12, 45 or 177 frames in 5.5 s (default: medium)"
    parser.add_argument("--fps", choices=["low", "medium", "high"], default="medium", help=rates)
    parser.add_argument("--motion", choices=["low", "medium", "high", "extreme"], help="how much moves")
    parser.add_argument("--seed", type=int, help="the same seed gives the same clip")
    parser.add_argument("--width", type=int, default=64, metavar="PIXELS", help="a multiple of 64 (default: 64)")
    parser.add_argument("--height", type=int, default=64, metavar="PIXELS", help="a multiple of 64 (default: 64)")
    parser.add_argument("--steps", type=int, default=50, help="of every sampler but interpolation (default: 50)")
    parser.add_argument("--out", type=Path, metavar="FILE.mp4", help="the clip's file (default: a new one in output/)")
    parser.add_argument("--serve", action="store_true", help="leave ComfyUI open in the end, to go on in its editor")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto", help="auto: the accelerator torch sees")
    parser.add_argument("--verbose", action="store_true", help="show ComfyUI's log")
    host.add_option(parser)
    return parser


def find_fault(options: argparse.Namespace) -> str | None:
    """One sentence on the first option that cannot be right, before anything is set up."""
    if options.image and not options.image.is_file():
        return f"--image: there is no file {options.image}."
    for name in ("width", "height"):
        pixels = getattr(options, name)
        if not 64 <= pixels <= 2048 or pixels % 64:
            return f"--{name}: {pixels} is not a multiple of 64 between 64 and 2048."
    if options.seed is not None and not 0 <= options.seed < 2**64:
        return f"--seed: {options.seed} is not between 0 and {2**64 - 1}."
    if not 1 <= options.steps <= 1000:
        return f"--steps: {options.steps} is not between 1 and 1000."
    if options.out and options.out.suffix.lower() != ".mp4":
        return f"--out: {options.out} does not end in .mp4, the only kind that the demo writes."
    if options.out and not options.out.parent.is_dir():
        return f"--out: there is no folder {options.out.parent}."
    return None


def main() -> int:
    parser = arguments()
    options = parser.parse_args()
    fault = find_fault(options)
    if fault:
        parser.error(fault)
    found = host.prepare(options.comfyui)
    settings = {
        name: str(value.absolute()) if isinstance(value, Path) else value for name, value in vars(options).items()
    }
    settings["comfyui"] = str(found.path)
    child = subprocess.Popen([found.python, "-m", "tools.comfy.render", json.dumps(settings)], cwd=host.ROOT)
    return host.wait(child)


if __name__ == "__main__":
    sys.exit(host.guard(main))
