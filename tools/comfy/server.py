"""A running ComfyUI that has only this pack loaded."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from tools.comfy.client import Client, ServerError
from tools.host import PATIENT_THREADS, ROOT, Host

PACK = "kandinsky-video"  # its folder's name in custom_nodes
PACK_NODE = "KandinskyVideoUNetLoader"  # asked for after the start, to see that the pack was loaded
START_SECONDS = 300
STOP_SECONDS = 20


class Server:
    """A ComfyUI process on a free local port, with this pack as its only custom node.

    All it writes lies in the folder `work`: input/, user/, server.log, and output/ unless `output` names another
    folder; ComfyUI's own folder stays as it is. device: "cpu", or "auto" for the accelerator that torch sees.
    verbose: the log goes to the terminal instead.
    """

    def __init__(
        self, host: Host, work: Path, *, output: Path | None = None, device: str = "auto", verbose: bool = False
    ):
        self.host = host
        self.work = work.absolute()
        self.device = device
        self.verbose = verbose
        self.log = self.work / "server.log"
        self.input = self.work / "input"
        self.output = output or self.work / "output"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        for folder in (self.work / "custom_nodes", self.input, self.output):
            folder.mkdir(parents=True, exist_ok=True)
        self.install(self.work / "custom_nodes" / PACK)
        self.port = free_port()
        self.client = Client(f"http://127.0.0.1:{self.port}")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def install(self, folder: Path) -> None:
        """Make the pack appear as this folder."""
        link_pack(folder)

    def command(self) -> list[str]:
        flags = ["--cpu"] if self.device == "cpu" or not has_accelerator(self.host.python) else []
        return [
            *[str(self.host.python), str(self.host.path / "main.py"), *flags, "--port", str(self.port)],
            *["--base-directory", str(self.work), "--output-directory", str(self.output)],
            *["--database-url", "sqlite:///:memory:"],
            *["--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK, "--disable-api-nodes"],
        ]

    def _start(self) -> None:
        # Nothing here may reach for the network, whatever a library does when it is left alone.
        environ = {**PATIENT_THREADS, **os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        with self.log.open("wb") as log:
            output: dict[str, Any] = {} if self.verbose else {"stdout": log, "stderr": subprocess.STDOUT}
            process = self.process = subprocess.Popen(self.command(), cwd=self.work, env=environ, **output)
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if process.poll() is not None:
                raise ServerError(f"ComfyUI stopped while it started. {self.log_tail()}")
            if time.monotonic() > end:
                raise ServerError(f"ComfyUI did not answer within {START_SECONDS} s. {self.log_tail()}")
            time.sleep(0.2)
        if not self.client.object_info(PACK_NODE):
            raise ServerError(f"ComfyUI did not load this pack. {self.log_tail('Cannot import', 'comfy_entrypoint')}")

    def _answers(self) -> bool:
        """Whether this very server is ready; another program could have taken the port meanwhile."""
        try:
            return str(self.work) in self.client.get("/system_stats")["system"]["argv"]
        except (OSError, ValueError, KeyError):
            return False

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log_tail(self, *words: str, lines: int = 15) -> str:
        """The log's last lines (those with one of the words, if any are given), for an error message."""
        if self.verbose:
            return "Its log is above."
        text = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [line for line in text if any(word in line for word in words)] or text
        return "\n".join([f"The end of {self.log}:", *found[-lines:]])


def link_pack(link: Path) -> None:
    """Make this pack appear as a folder in custom_nodes."""
    if link.exists() and link.samefile(ROOT):
        return
    link.unlink(missing_ok=True)  # a link whose target has moved
    if os.name == "nt":  # symbolic links need a privilege there, junctions do not
        subprocess.run(["cmd", "/c", "mklink", "/J", link, ROOT], check=True, capture_output=True)
    else:
        link.symlink_to(ROOT, target_is_directory=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def has_accelerator(python: Path) -> bool:
    """Whether torch sees a device other than the CPU."""
    devices = "(torch.cuda, torch.xpu, torch.backends.mps)"
    probe = f"import sys, torch; sys.exit(not any(device.is_available() for device in {devices}))"
    return subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode == 0
