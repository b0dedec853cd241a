"""Write the English words of the editor, locales/en/nodeDefs.json, from the nodes: `python tools/authoring/words.py`.

The nodes' schemas are where English is worded; the file only lets translators, and tests, see what there is to say.
Runs in ComfyUI's Python, which `python3 tools/host.py` prints.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from tools import host  # noqa: E402
from tools.authoring import templates  # noqa: E402

LANGUAGES = ("en", "zh", "ru")
LOCALES = host.ROOT / "locales"
ENGLISH = LOCALES / "en" / "nodeDefs.json"
PACK_NODES = "KandinskyVideo"  # what their ids begin with


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes locales/en/nodeDefs.json from the nodes' schemas.")
    host.add_option(parser)
    with tempfile.TemporaryDirectory() as work, templates.new_server(parser.parse_args().comfyui, Path(work)) as server:
        words = english(server.client.object_info())
    ENGLISH.write_text(json.dumps(words, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n")
    print(f"Wrote the words of {len(words)} nodes to {ENGLISH}.")
    return 0


def english(object_info: dict[str, Any]) -> dict[str, Any]:
    """Node id -> its words, under the keys by which the editor looks them up in nodeDefs.json."""
    return {id: node_words(info) for id, info in object_info.items() if id.startswith(PACK_NODES)}


def node_words(info: dict[str, Any]) -> dict[str, Any]:
    inputs = {name: spec[1] for name, spec, _ in templates.flat_inputs(info["input"], {})}
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {
            name: {"name": options.get("display_name") or name, "tooltip": options["tooltip"]}
            for name, options in inputs.items()
        },
        "outputs": {str(slot): {"name": name, "tooltip": tooltip} for slot, (name, tooltip) in enumerate(outputs)},
    }


if __name__ == "__main__":
    sys.exit(host.guard(main))
