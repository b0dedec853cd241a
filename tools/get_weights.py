"""Download the published weights into ComfyUI's model folders: `python3 tools/get_weights.py`.

No node downloads anything. `--dry-run` lists what would be downloaded, where it goes and how much space it needs. This
file runs in any Python 3.10 or newer: it checks the options, finds ComfyUI (see host.py) and starts download/weights.py
in ComfyUI's Python.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from kv_core.files.published import PUBLISHED  # noqa: E402
from tools import host  # noqa: E402

DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Download the published weights of Kandinsky Video 1.1, verify their checksums, and convert them "
        "to safetensors in the folders where the loader nodes look. After an interruption, the same command resumes."
    )
    parser.add_argument("--dry-run", action="store_true", help="only list what would be done; write nothing")
    parser.add_argument("--only", nargs="+", choices=PUBLISHED, metavar="PART", help=f"some of: {', '.join(PUBLISHED)}")
    types = "type of the weights (default: as published); with 8 bits, MoVQs stay as published"
    parser.add_argument("--dtype", choices=DTYPES, help=types)
    kept = "also keep the downloaded files, in models/kandinsky-video-download"
    parser.add_argument("--keep-original", action="store_true", help=kept)
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    comfyui = "a ComfyUI folder (default: COMFYUI_PATH, else the one this pack is installed in, else that of host.py)"
    parser.add_argument("--comfyui", metavar="PATH", help=comfyui)
    return parser


def find_comfyui(option: str | None) -> tuple[Path, Path]:
    """An existing ComfyUI and its Python. Raises HostError."""
    path = host.find_comfyui(option)
    if path is not None:
        return path, host.find_python(path)
    path, python = host.CACHE / "ComfyUI", host.environment_python(host.ENVIRONMENT)
    if not (host.is_comfyui(path) and python.is_file()):
        raise host.HostError("There is no ComfyUI yet: name one with --comfyui, or run `python3 tools/host.py`.")
    return path, python


def main() -> int:
    settings = vars(arguments().parse_args())
    path, python = find_comfyui(settings.pop("comfyui"))
    settings["models"] = str(path / "models")
    environ = {**os.environ, "PYTHONUTF8": "1"}
    child = subprocess.Popen([python, "-m", "tools.download.weights", json.dumps(settings)], cwd=host.ROOT, env=environ)
    return host.wait(child)


if __name__ == "__main__":
    sys.exit(host.guard(main))
