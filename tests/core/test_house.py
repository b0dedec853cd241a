"""The shape of the house: which room may know which, and how large its parts may grow."""

import ast
import re
import subprocess

import pytest

from tools.host import ROOT

# Room -> the rooms of this repository that it may import, beside itself.
ARROWS = {
    "kv_core": set(),
    "nodes/host": {"kv_core"},
    "nodes": {"kv_core", "nodes/host", "nodes/experiments"},  # its __init__ lists the experiments
    "nodes/experiments": {"kv_core", "nodes/host", "nodes"},
    "tools": {"kv_core"},
    "training": {"kv_core"},
    "evaluation": {"kv_core", "training", "tools"},
}
MOST_LINES, MOST_PARAMETERS = 400, 7


def files():
    found = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    return [name for name in found if (ROOT / name).is_file()] or [
        str(path.relative_to(ROOT)) for room in ARROWS for path in (ROOT / room).rglob("*.py")
    ]


def tree(name):
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def room(name):
    """The innermost room that a file or module belongs to; None outside of the house."""
    inside = [each for each in ARROWS if name == each or name.startswith(each + "/")]
    return max(inside, key=len, default=None)


def imported(name):
    """The repository's paths, without .py, of the modules that a file imports."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name.replace(".", "/") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = name.split("/")[: -node.level] if node.level else []
            path = "/".join([*base, *(node.module or "").split(".")]).rstrip("/")
            yield from (f"{path}/{alias.name}" for alias in node.names)


def test_arrows_point_one_way():
    wrong = [
        (name, target)
        for name in files()
        if (here := room(name))
        for target in imported(name)
        if (there := room(target)) and there != here and there not in ARROWS[here]
    ]
    assert wrong == []


def test_only_the_list_of_nodes_knows_the_experiments():
    knows = [
        name for name in files() if room(name) == "nodes" and any("experiments" in path for path in imported(name))
    ]
    assert knows == ["nodes/__init__.py"]


def test_the_core_knows_no_host():
    names = re.compile(r"\bcomfy\b|diffusion_models|text_encoders/|Load U-Net|Load MoVQ|ComfyUI's", re.IGNORECASE)
    for name in files():
        if room(name) == "kv_core":
            found = names.search((ROOT / name).read_text(encoding="utf-8"))
            assert not found, (name, found[0])


@pytest.mark.parametrize("folder", [*(each for each in ARROWS if "/" not in each), "tests"])
def test_no_file_is_long(folder):
    for name in files():
        if name.startswith(f"{folder}/"):
            assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= MOST_LINES, name


def test_no_function_takes_many_parameters():
    for name in files():
        if not name.startswith(("nodes/", "kv_core/")):
            continue
        for node in ast.walk(tree(name)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name != "execute":
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                taken = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
                assert len(taken) <= MOST_PARAMETERS, (name, node.name, taken)
