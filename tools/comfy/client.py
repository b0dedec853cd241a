"""A client of the API of a running ComfyUI. Runs in ComfyUI's Python (aiohttp)."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from tools.comfy.graphs import Graph
from tools.host import HostError

OnEvent = Callable[[str, Any], None]  # an event's type, and its data: a dict, or a preview's bytes


class ServerError(HostError):
    """The server did not start, died, or refused a graph; the message says why."""


@dataclass(frozen=True)
class Run:
    """What came of one queued graph.

    status: "success", "error" or "interrupted". outputs: node id -> what the node showed, as in /history. error: the
    sentence the node raised. events: (type, data) in the order the server sent them; a preview's data is its bytes.
    """

    status: str
    outputs: dict[str, Any]
    error: str | None
    events: list[tuple[str, Any]]

    def progress(self) -> dict[str, list[tuple[float, float]]]:
        """Node id -> the (value, max) pairs of its `progress` events."""
        steps: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for kind, data in self.events:
            if kind == "progress":
                steps[data["node"]].append((data["value"], data["max"]))
        return dict(steps)

    def files(self) -> list[dict[str, str]]:
        """Every file the graph saved: dicts of filename, subfolder and type."""
        shown = [items for node in self.outputs.values() for items in node.values() if isinstance(items, list)]
        return [item for items in shown for item in items if isinstance(item, dict) and "filename" in item]


class Client:
    """The API of the server at `address`, such as http://127.0.0.1:8188. Errors are ServerError."""

    def __init__(self, address: str):
        self.address = address
        self.id = uuid.uuid4().hex

    def request(self, path: str, body: dict[str, Any] | None = None, timeout: float = 60) -> bytes:
        """GET, or POST where there is a body; returns the answer's bytes."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know this machine
        with direct.open(request, timeout=timeout) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self.request(path))

    def object_info(self, node: str = "") -> dict[str, Any]:
        return self.get(f"/object_info/{node}".rstrip("/"))

    def queue(self, graph: Graph) -> str:
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

    def run(self, graph: Graph, on_event: OnEvent = lambda kind, data: None, timeout: float = 600) -> Run:
        """Queue a graph and wait for it, listening to its events."""
        return asyncio.run(self._run(graph, on_event, timeout))

    async def _run(self, graph: Graph, on_event: OnEvent, timeout: float) -> Run:
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

    def _finished(self, prompt: str, events: list[tuple[str, Any]]) -> Run | None:
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

    def download(self, file: dict[str, str]) -> bytes:
        """The bytes of a saved file, given as in `Run.files`."""
        names = ("filename", "subfolder", "type")
        return self.request("/view?" + urllib.parse.urlencode({name: file[name] for name in names}))


def _event(message: Any) -> tuple[str, Any]:
    if message.type is aiohttp.WSMsgType.BINARY:
        return "preview", message.data
    content = json.loads(message.data)
    return content["type"], content["data"]


def _is_end(events: list[tuple[str, Any]], prompt: str) -> bool:
    """The server says that nothing of the prompt runs any more; its history has it by then."""
    return bool(events) and events[-1] == ("executing", {"node": None, "prompt_id": prompt})


def _refusal(answer: dict[str, Any], graph: Graph) -> str:
    reasons = [
        f"{graph[node]['class_type']}: {error['message']} ({error['details']})"
        for node, found in answer.get("node_errors", {}).items()
        for error in found["errors"]
    ]
    return "The server refused the graph: " + "; ".join(reasons or [answer["error"]["message"]])
