"""Where a part goes in ComfyUI and which node loads it: nodes/loaders.json, which the nodes read too."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tools import host


@dataclass(frozen=True)
class Place:
    """A folder in ComfyUI's models folder, and the title of the node that lists it."""

    folder: str
    node: str


# By the keys of detection.PART_NAMES.
PLACES = {
    part: Place(**entry)
    for part, entry in json.loads((host.ROOT / "nodes" / "loaders.json").read_text(encoding="utf-8")).items()
}
