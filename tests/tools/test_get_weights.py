"""tools/get_weights.py, which finds ComfyUI and hands over, and the table of what there is to download."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kv_core.files.checkpoints import open_checkpoint
from kv_core.files.detection import PART_NAMES
from kv_core.files.published import PUBLISHED
from tests.support.small_hub import TINY
from tools import get_weights, host
from tools.authoring import notes, templates
from tools.download import weights
from tools.download.places import PLACES

# The command


def test_the_command_hands_over(models, monkeypatch):
    comfyui = models.parent
    comfyui.mkdir()
    (comfyui / "main.py").touch()
    (comfyui / "comfyui_version.py").write_text('__version__ = "0.30.0"\n')
    calls = []
    monkeypatch.setattr(host, "find_python", lambda path: Path(sys.executable))
    monkeypatch.setattr(sys, "argv", ["get_weights.py", "--comfyui", str(comfyui), "--only", "text", "movq", "--yes"])
    child = type("Child", (), {"wait": lambda self: 7})
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: calls.append(command) or child())
    assert get_weights.main() == 7
    [[python, _, module, settings]] = calls
    assert (python, module) == (Path(sys.executable), "tools.download.weights")
    assert json.loads(settings) == {
        "dry_run": False,
        "only": ["text", "movq"],
        "dtype": None,
        "keep_original": False,
        "yes": True,
        "models": str(models),
    }


def test_without_comfyui(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(host, "CACHE", tmp_path)
    with pytest.raises(host.HostError, match="There is no ComfyUI yet"):
        get_weights.find_comfyui(None)


def test_types_are_the_converters():
    from kv_core.files.conversion import DTYPES

    assert set(get_weights.DTYPES) == DTYPES.keys() == weights.BYTES.keys()


# The table


def test_the_table_names_every_part_once():
    assert sorted(entry.part for entry in PUBLISHED.values()) == sorted(PART_NAMES) == sorted(PLACES)


@pytest.mark.parametrize("key", PUBLISHED)
def test_the_readme_has_the_tables_facts(key):
    entry = PUBLISHED[key]
    rows = [row for row in (host.ROOT / "README.md").read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    [row] = [row for row in rows if f"| `{key}` |" in row]
    facts = (
        entry.name,
        PLACES[entry.part].folder,
        entry.repository,
        f"{entry.parameters / 1e9:.2f} B",
        f"{entry.gigabytes} GB",
    )
    assert all(fact in row for fact in facts), row


def test_templates_link_to_the_published_files_of_their_tiny_ones():
    links = {value: templates.links_to_models([value, "default"]).get("models") for value in notes.TINY}
    assert [entry.part for entry in notes.TINY.values()] == [
        open_checkpoint(next(path for path in TINY.glob(f"*/{value}"))).part for value in links
    ]
    assert links["kv-tiny/flan-ul2"] is None, "a folder, which the editor cannot download"
    assert links["kv-tiny/movq.safetensors"] == [
        {
            "name": "movq.pt",
            "url": "https://huggingface.co/ai-forever/KandinskyVideo_1_1/resolve/main/movq.pt",
            "directory": "vae",
        }
    ]
    # The editor offers a linked file when a list is set to its name, which no template does.
    assert not {link["name"] for models in links.values() for link in models or []} & notes.TINY.keys()
