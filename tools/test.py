"""Run every check of this pack: `python3 tools/test.py [pytest arguments]`.

Finds or sets up ComfyUI (see host.py), then runs ruff and pytest in ComfyUI's Python.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from tools import host  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run ruff and pytest with a ComfyUI. Any other argument goes to pytest.", allow_abbrev=False
    )
    host.add_option(parser)
    parser.add_argument("--slow", action="store_true", help="run the tests marked slow too")
    options, pytest_arguments = parser.parse_known_args()
    found = host.prepare(options.comfyui)
    if not options.slow:
        pytest_arguments = ["-m", "not slow", *pytest_arguments]
    environ = {**host.PATIENT_THREADS, **os.environ, "COMFYUI_PATH": str(found.path), "PYTHONUTF8": "1"}
    ruff_arguments = ["check", ".", "--extend-exclude", ".cache"]  # without git, ruff does not read .gitignore
    style = run(found.python, "ruff", ruff_arguments, environ) if has(found.python, "ruff") else 0
    if not has(found.python, "pytest"):
        raise host.HostError(f"ComfyUI's Python has no pytest: run `{found.python} -m pip install pytest` once.")
    return run(found.python, "pytest", pytest_arguments, environ) or style


def has(python: Path, module: str) -> bool:
    return host.succeeds(python, "-m", module, "--version")


def run(python: Path, module: str, arguments: list[str], environ: dict[str, str]) -> int:
    """Run one tool from the repository's root; returns its exit code."""
    with host.step(f"Running {module}"):
        return subprocess.run([python, "-m", module, *arguments], cwd=host.ROOT, env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(host.guard(main))
