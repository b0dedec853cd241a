"""Run every check of this pack: `python3 tools/test.py [pytest arguments]`.

Finds or sets up ComfyUI (see host.py), then runs ruff, mypy and pytest in ComfyUI's Python.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from tools import host  # noqa: E402

CHECKS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
}
# A worker starts its own ComfyUI server, about 3 GB with it.
MOST_WORKERS = 4


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Run ruff, mypy and the tests with a ComfyUI. Without an option the quick tests run, which take "
        "minutes and cover every node, workflow, golden and message at least once.",
        epilog="Any other argument goes to pytest: a file, -k WORDS, -x. Tests that are named run only if they belong "
        "to what is chosen: add --all or --slow for the others.",
        allow_abbrev=False,
    )
    host.add_option(parser)
    parser.add_argument("--all", action="store_true", help="the thorough tests too: all cases of what is quick")
    parser.add_argument("--slow", action="store_true", help="every test: the browser and long runs too")
    workers = min(os.cpu_count() or 1, MOST_WORKERS)
    parser.add_argument(
        "-j", type=int, default=workers, metavar="N", help=f"test in N processes (default: {workers}; 1: in one)"
    )
    return parser


def main() -> int:
    start = time.monotonic()
    options, pytest_arguments = arguments().parse_known_args()
    found = host.prepare(options.comfyui, tests=True)
    # One thread a process: the tiny models' tensors are too small for threads to pay.
    environ = {"OMP_NUM_THREADS": "1", **os.environ, "COMFYUI_PATH": str(found.path), "PYTHONUTF8": "1"}
    codes = [run(found.python, title, command, environ) for title, command in CHECKS.items()]
    if not has(found.python, "pytest"):
        raise host.HostError(
            f"ComfyUI's Python has no pytest: run `{found.python} -m pip install {' '.join(host.dev_packages())}` once."
        )
    command = ["pytest", *chosen(options.all, options.slow), *pytest_arguments]
    if options.j > 1 and has(found.python, "xdist"):
        command[1:1] = ["-n", str(options.j), "--dist", "loadfile"]
    codes.append(run(found.python, "pytest", command, environ))
    print(f"All in {host.duration(time.monotonic() - start)}: {'failed' if any(codes) else 'passed'}.")
    return max(codes)


def chosen(thorough: bool, slow: bool) -> list[str]:
    """pytest's arguments that choose the tests; by default pyproject.toml chooses the quick ones."""
    if slow:
        return ["-m", ""]
    return ["-m", "not slow"] if thorough else []


def has(python: Path, module: str) -> bool:
    return host.succeeds(python, "-c", f"import {module}")


def run(python: Path, title: str, command: list[str], environ: dict[str, str]) -> int:
    """Run one tool from the repository's root; returns its exit code, 0 for a checker that is not installed."""
    if title in CHECKS and not has(python, command[0]):
        print(f"{title}: left out, ComfyUI's Python has no {command[0]}.")
        return 0
    with host.step(f"Running {title}"):
        return subprocess.run([python, "-m", *command], cwd=host.ROOT, env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(host.guard(main))
