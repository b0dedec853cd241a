"""Fixtures for tests that need ComfyUI: a real server with this pack, and the pack loaded in this process."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.browser import opened
from tests.support.golden_parts import (  # noqa: F401
    adapters,
    calls,
    interpolation_model,
    keyframe_model,
    parts,
    stages,
)
from tests.support.tiny_clip import clip  # noqa: F401
from tests.support.tiny_parts import tiny  # noqa: F401
from tools.comfy.pack import load, nodes
from tools.comfy.server import Server
from tools.host import CACHE, Host, check_version, find_comfyui, is_comfyui


@pytest.fixture(scope="session")
def comfyui():
    """The ComfyUI folder that the tests use."""
    path = find_comfyui(os.environ.get("COMFYUI_PATH")) or CACHE / "ComfyUI"
    if not is_comfyui(path):
        pytest.fail("These tests need a ComfyUI: run `python3 tools/test.py`, which sets one up.", pytrace=False)
    return path


@pytest.fixture(scope="session")
def comfyui_host(comfyui):
    """The same with the Python that runs it."""
    return Host(comfyui, check_version(comfyui), Path(sys.executable))


@pytest.fixture(scope="session")
def server(comfyui_host, tmp_path_factory):
    """A running server on the CPU, one for the whole session; `.client` talks to it, `.output` is where it saves."""
    with Server(comfyui_host, tmp_path_factory.mktemp("server"), device="cpu") as running:
        yield running


@pytest.fixture(scope="session")
def address(server):
    return server.client.address


@pytest.fixture(scope="session")
def usual_errors(address):
    """What the editor complains about without any template."""
    with opened(address) as editor:
        return set(editor.errors)


@pytest.fixture
def run_graph(server):
    """Call with a graph in API format: runs it on the server, fails the test unless it succeeds, returns its Run."""

    def run(graph, timeout=300):
        done = server.client.run(graph, timeout=timeout)
        assert done.status == "success", done.error
        return done

    return run


@pytest.fixture(scope="session")
def pack(comfyui, tmp_path_factory):
    """The pack's module, loaded in this process."""
    return load(comfyui, tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="session")
def pack_nodes(pack):
    """Node id -> node class."""
    return nodes(pack)
