"""What hosting needs beside the code: workflows, the issue form and the project's facts name things that exist."""

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

from tools.host import ROOT, dev_packages

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path):
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


def test_every_workflow_is_there():
    assert [path.stem for path in WORKFLOWS] == ["node-diff", "publish", "test"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_exists(path):
    content = read(path)
    assert content["name"] and content[True], "YAML reads the key `on` as true"
    assert content["permissions"] == {"contents": "read"}
    for step in steps(path):
        if "uses" in step:
            assert re.fullmatch(r"(actions|Comfy-Org)/[\w-]+@v\d+", step["uses"])
        for name in re.findall(r"(?:\.ci|tests|tools)/[\w./-]+|pyproject\.toml", step.get("run", "")):
            assert (ROOT / name).is_file(), name
        for name in step.get("with", {}).get("cache-dependency-path", "").split():
            assert (ROOT / name).is_file(), name


def test_the_tests_run_on_every_python_that_is_supported():
    matrix = read(ROOT / ".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix == {"python": ["3.10", "3.11", "3.12", "3.13"]}
    assert f'requires-python = ">={matrix["python"][0]}"' in PYPROJECT


def test_what_is_published_is_tested_against_its_tag():
    run = next(step["run"] for step in steps(ROOT / ".github/workflows/publish.yml") if "run" in step)
    version = re.search(r'^version = "(.+)"$', PYPROJECT, re.MULTILINE)
    assert version and 'version = \\"${GITHUB_REF_NAME#v}\\"' in run


def test_the_bug_form_asks_for_what_is_needed():
    form = read(ROOT / ".github/ISSUE_TEMPLATE/bug.yml")
    fields = {field["id"]: field for field in form["body"]}
    assert {"log", "versions", "workflow"} <= fields.keys()
    assert all(field["validations"]["required"] for field in fields.values())
    asked = fields["versions"]["attributes"]["value"]
    for thing in ("Pack", "ComfyUI", "Python", "torch", "Operating system", "GPU"):
        assert thing in asked


def test_the_address_is_one():
    """Wherever the repository's own address stands, it is the one of pyproject.toml."""
    block = re.search(r"^\[project\.urls\]\n(.*?)\n\n", PYPROJECT, re.MULTILINE | re.DOTALL)[1]
    urls = dict(re.findall(r'^"?([\w ]+)"? = "(.+)"$', block, re.MULTILINE))
    assert urls.keys() == {"Repository", "Documentation", "Bug Tracker"}
    repository = urls["Repository"]
    assert all(url.startswith("https://") and url.startswith(repository) for url in urls.values())
    branch = "/tree/main/"
    assert (ROOT / urls["Documentation"].removeprefix(repository + branch)).is_dir()
    for page in [ROOT / "README.md", *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/**/*.yml")]:
        owner = repository.rsplit("/", 1)[0]
        for address in re.findall(rf"{owner}/[\w.-]+", page.read_text(encoding="utf-8")):
            assert address.removesuffix(".git") == repository, page


def test_the_registry_knows_the_publisher():
    assert re.search(r'^PublisherId = "[a-z][a-z0-9-]+"$', PYPROJECT, re.MULTILINE)
    assert re.search(r'^DisplayName = ".+"$', PYPROJECT, re.MULTILINE)


# What ComfyUI's requirements bring, by the names they are imported under, and ComfyUI's own modules.
BROUGHT = set(
    "aiohttp av einops filelock huggingface_hub numpy PIL psutil safetensors tokenizers torch tqdm transformers "
    "yaml".split()
)
HOSTS = set(
    "comfy comfy_api comfy_execution comfy_extras comfyui_version execution folder_paths latent_preview "
    "node_helpers".split()
)
ROOMS = {path.name for path in ROOT.iterdir() if path.is_dir()}


@pytest.mark.parametrize("room", ["tools", "tests", "training", "evaluation"])
def test_every_package_is_declared(room):
    """A module that is imported comes with Python, with ComfyUI, or by the extra `dev`."""
    declared = {re.split(r"[\[>=<~!]", line)[0].removeprefix("pytest-") for line in dev_packages()}
    known = set(sys.stdlib_module_names) | BROUGHT | HOSTS | ROOMS | declared
    found = {name: path for path in (ROOT / room).rglob("*.py") for name in imported(path)}
    assert {name: path for name, path in found.items() if name not in known} == {}


def imported(path: Path):
    """The first names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]
