"""The pack in this process, as ComfyUI loads it. Runs in ComfyUI's Python, which `python3 tools/host.py` prints."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tools.host import ROOT

NAME = "kandinsky_video_pack"


def load(comfyui: Path, base_directory: Path) -> ModuleType:
    """The pack's module, loaded by path, under a name that is not its folder's. Once a process.

    ComfyUI's folder goes to the front of sys.path, before this repository: so `import nodes` means ComfyUI's nodes.py,
    and the pack's own `nodes` is only ever reached as `kandinsky_video_pack.nodes`.
    """
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    # Before anything reads them: the CPU, and no input, output or user folder inside ComfyUI.
    args.cpu = True
    args.base_directory = str(base_directory)
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


def nodes(pack: ModuleType) -> dict[str, type[Any]]:
    """Node id -> node class, as the pack's entry point lists them."""

    async def listed() -> list[type[Any]]:
        extension = await pack.comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(listed())}
