"""A running ComfyUI that has only this pack loaded, and a client of its API. Runs in ComfyUI's Python (aiohttp)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tools.host import PATIENT_THREADS, ROOT, Host, HostError

PACK = "kandinsky-video"  # its folder's name in custom_nodes
PACK_NODE = "KandinskyVideoUNetLoader"  # asked for after the start, to see that the pack was loaded
START_SECONDS = 300
STOP_SECONDS = 20

OnEvent = Callable[[str, Any], None]  # the data is a dict, of a preview its bytes


class ServerError(HostError):
    """The server did not start, died, or refused a graph; the message says why."""


@dataclass(frozen=True)
class Run:
    """What came of one queued graph.

    status: "success", "error" or "interrupted". outputs: node id -> what the node showed, as in /history. error: the
    sentence the node raised. events: (type, data) in the order the server sent them; a preview's data is its bytes.
    """

    status: str
    outputs: dict
    error: str | None
    events: list[tuple[str, Any]]

    def progress(self) -> dict[str, list[tuple[float, float]]]:
        """Node id -> the (value, max) pairs of its `progress` events."""
        steps = defaultdict(list)
        for kind, data in self.events:
            if kind == "progress":
                steps[data["node"]].append((data["value"], data["max"]))
        return dict(steps)

    def files(self) -> list[dict]:
        """Every file the graph saved: dicts of filename, subfolder and type."""
        shown = [items for node in self.outputs.values() for items in node.values() if isinstance(items, list)]
        return [item for items in shown for item in items if isinstance(item, dict) and "filename" in item]


class Client:
    """The API of the server at `address`, such as http://127.0.0.1:8188. Errors are ServerError."""

    def __init__(self, address: str):
        self.address = address
        self.id = uuid.uuid4().hex

    def request(self, path: str, body: dict | None = None, timeout: float = 60) -> bytes:
        """GET, or POST where there is a body; returns the answer's bytes."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know this machine
        with direct.open(request, timeout=timeout) as answer:
            return answer.read()

    def get(self, path: str) -> dict:
        return json.loads(self.request(path))

    def object_info(self, node: str = "") -> dict:
        return self.get(f"/object_info/{node}".rstrip("/"))

    def queue(self, graph: dict) -> str:
        """Queue a graph in API format; returns its prompt id. Raises ServerError with what validation found."""
        try:
            return json.loads(self.request("/prompt", {"prompt": graph, "client_id": self.id}))["prompt_id"]
        except urllib.error.HTTPError as error:
            raise ServerError(_refusal(json.loads(error.read()), graph)) from None

    def wait(self, prompt: str, timeout: float = 600) -> Run:
        """Wait until a queued graph is done, asking the history."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if done := self._finished(prompt, []):
                return done
            time.sleep(0.1)
        raise ServerError(f"The graph was not done after {timeout:.0f} s.")

    def run(self, graph: dict, on_event: OnEvent = lambda kind, data: None, timeout: float = 600) -> Run:
        """Queue a graph and wait for it, listening to its events."""
        return asyncio.run(self._run(graph, on_event, timeout))

    async def _run(self, graph: dict, on_event: OnEvent, timeout: float) -> Run:
        events: list[tuple[str, Any]] = []
        url = f"{self.address}/ws?clientId={self.id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as connection:
            await connection.receive()  # the greeting: from here on events of this client are sent to it
            prompt = self.queue(graph)
            end = time.monotonic() + timeout
            while not _is_end(events, prompt):
                try:
                    message = await connection.receive(timeout=max(end - time.monotonic(), 0.01))
                except asyncio.TimeoutError:
                    self.interrupt(prompt)
                    raise ServerError(f"The graph was not done after {timeout:.0f} s.") from None
                if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                    raise ServerError("The server closed the connection while the graph ran.")
                events.append(_event(message))
                on_event(*events[-1])
        done = self._finished(prompt, events)
        assert done, "the history has what has ended"
        return done

    def _finished(self, prompt: str, events: list) -> Run | None:
        entry = self.get(f"/history/{prompt}").get(prompt)
        if entry is None:
            return None
        messages = dict(entry["status"]["messages"])
        if "execution_interrupted" in messages:
            return Run("interrupted", entry["outputs"], None, events)
        error = messages.get("execution_error", {}).get("exception_message")
        return Run(entry["status"]["status_str"], entry["outputs"], error and error.strip(), events)

    def interrupt(self, prompt: str) -> None:
        self.request("/interrupt", {"prompt_id": prompt})

    def free(self) -> None:
        """Ask the server to drop its cached outputs and unload every model, after the running graph."""
        self.request("/free", {"unload_models": True, "free_memory": True})

    def download(self, file: dict) -> bytes:
        """The bytes of a saved file, given as in `Run.files`."""
        names = ("filename", "subfolder", "type")
        return self.request("/view?" + urllib.parse.urlencode({name: file[name] for name in names}))


def _event(message: Any) -> tuple[str, Any]:
    if message.type is aiohttp.WSMsgType.BINARY:
        return "preview", message.data
    content = json.loads(message.data)
    return content["type"], content["data"]


def _is_end(events: list, prompt: str) -> bool:
    """The server says that nothing of the prompt runs any more; its history has it by then."""
    return bool(events) and events[-1] == ("executing", {"node": None, "prompt_id": prompt})


def _refusal(answer: dict, graph: dict) -> str:
    reasons = [
        f"{graph[node]['class_type']}: {error['message']} ({error['details']})"
        for node, found in answer.get("node_errors", {}).items()
        for error in found["errors"]
    ]
    return "The server refused the graph: " + "; ".join(reasons or [answer["error"]["message"]])


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

    def __exit__(self, *exception) -> None:
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
