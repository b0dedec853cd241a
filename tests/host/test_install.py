"""The pack as a person gets it, cloned or from the registry: it holds what it must, and runs as it comes."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.browser import needs_browser, opened, run_by_the_button
from tests.support.families import quick_cases
from tests.support.workflow_runs import VIDEOS, check_video, quick, saved
from tools.authoring import templates
from tools.comfy.server import PACK, Server
from tools.host import ROOT

TEMPLATE = "text-to-video-low"
# All that the archive of the registry holds: folders, and files of the first level.
HOLDS = {
    "models",
    "nodes",
    "kv_core",
    "web",
    "locales",
    "workflows",
    "subgraphs",
    "tools",
    "__init__.py",
    "pyproject.toml",
    "requirements.txt",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
}
MEGABYTES = 25
# Modules of ComfyUI itself, and those that its requirements bring under another name.
HOST = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "server",
    "comfyui_version",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "torch",
}
NAMES = {"PIL": "pillow"}


def tracked(*options):
    """The files of a clone; with options of `git ls-files`, some of them."""
    command = ["git", "-C", ROOT, "ls-files", "-z", *options]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name for name in found.split("\0") if name}


def archived():
    """The files of the archive: `comfy node pack` reads .comfyignore by the same rules as git its own lists."""
    return tracked() - tracked("--ignored", "--cached", "--exclude-from=.comfyignore")


FILES = {"clone": tracked, "archive": archived}

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None, reason="git says what a clone holds"
)


def test_the_archive_holds_what_it_must():
    files = archived()
    needed = {
        path for folder in ("models", "nodes", "kv_core", "web", "locales", "subgraphs") for path in tracked(folder)
    }
    needed |= {f"workflows/{name}.{suffix}" for name in templates.names() for suffix in ("json", "jpg")}
    needed |= {"tools/get_weights.py", "README.md", "LICENSE", "requirements.txt", "pyproject.toml", "__init__.py"}
    assert needed <= files


def test_the_archive_holds_nothing_else():
    files = archived()
    assert {name.split("/")[0] for name in files} <= HOLDS
    assert not [name for name in files if re.search(r"golden|manifest|^tests|^training|^docs|\.github|\.ci", name)]
    assert sum((ROOT / name).stat().st_size for name in files) < MEGABYTES * 1e6  # measured: 22.8 MB, 19.6 zipped
    tools = {name for name in files if name.startswith("tools/")}
    needed = needed_by("tools/get_weights.py") | needed_by("tools/weights.py")
    assert needed | {"tools/__init__.py", "tools/download/__init__.py"} == tools


def needed_by(file):
    """The file and those of tools/ that it needs, by their imports or as a module to run."""
    found, waiting = set(), [file]
    while waiting:
        name = waiting.pop()
        found.add(name)
        text = (ROOT / name).read_text(encoding="utf-8")
        names = set(re.findall(r"\btools\.([\w.]+)", text))
        for package, listed in re.findall(r"^ *from tools((?:\.\w+)*) import (.+)$", text, re.M):
            names |= {f"{package}.{each.strip().split(' ')[0]}".strip(".") for each in listed.split(",")}
        paths = {f"tools/{each.replace('.', '/')}.py" for each in names}
        waiting += [path for path in paths - found if (ROOT / path).is_file()]
    return found


def test_comfyui_brings_all_that_the_pack_imports(comfyui):
    """So that cloning and restarting is all; and the pack names no version that ComfyUI does not have."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    wanted = {re.match(r"[\w-]+", line)[0]: line for line in lines}
    hosts = (comfyui / "requirements.txt").read_text(encoding="utf-8").lower()
    for name, line in wanted.items():
        assert re.search(rf"^{name}\b", hosts, re.M), f"{name} is none of ComfyUI's"
        least = re.search(r">=([\d.]+)", line)
        if least:
            found = importlib.metadata.version(name)
            assert numbers(found) >= numbers(least[1])
    modules = {
        module for name in archived() if re.match(r"(nodes|kv_core)/.*\.py|__init__.py", name) for module in top(name)
    }
    own = {NAMES.get(module, module) for module in modules} - HOST - set(sys.stdlib_module_names)
    assert own - {"numpy", "tokenizers"} <= set(wanted)
    assert {line.strip('"') for line in re.findall(r'"[^"]+"', dependencies())} == set(lines)


def top(name):
    """The packages that a file imports, by absolute imports."""
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def dependencies():
    return re.search(r"^dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]


def numbers(version):
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


class Installed(Server):
    """A server whose custom_nodes holds a copy of the pack with some of its files, and nothing of this checkout."""

    files = ()

    def install(self, folder):
        for name in self.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


@pytest.mark.parametrize("source", quick_cases("archive", of=FILES))
def test_it_runs_as_it_comes(comfyui_host, tmp_path, source):
    server = Installed(comfyui_host, tmp_path, device="cpu")
    server.files = FILES[source]()
    with server:
        assert sorted(server.client.get("/api/workflow_templates")[PACK]) == templates.names()
        run = server.client.run(quick(templates.api_graph(TEMPLATE)))
        assert run.status == "success", run.error
        [video] = saved(server, run, ".mp4")
        check_video(video, *VIDEOS[TEMPLATE])
        downloaded = subprocess.run(
            [sys.executable, tmp_path / "custom_nodes" / PACK / "tools" / "get_weights.py", "--help"],
            capture_output=True,
            text=True,
        )
        assert downloaded.returncode == 0 and "--dry-run" in downloaded.stdout, downloaded.stderr


@pytest.mark.slow
@needs_browser
def test_cloned_opened_and_run_in_the_browser(comfyui_host, tmp_path):
    server = Installed(comfyui_host, tmp_path, device="cpu")
    server.files = tracked()
    with server:
        with opened(server.client.address, TEMPLATE) as editor:
            run_by_the_button(editor)
        [video] = server.output.rglob("*.mp4")
        check_video(video.read_bytes(), *VIDEOS[TEMPLATE])
