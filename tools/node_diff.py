"""Say what a change of the nodes breaks in saved workflows: `python3 tools/node_diff.py OLD NEW`.

OLD and NEW are two states of tests/host/frozen_nodes.json, which a test holds to the nodes. Ends with 1 if a workflow
saved with OLD may not load with NEW. Standard library only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def breaks(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One sentence for each thing that saved workflows have and the new nodes do not take."""
    found = [f"{node} is gone." for node in old if node not in new]
    for node in (node for node in old if node in new):
        for side in ("inputs", "outputs"):
            before, after = old[node][side], new[node][side]
            found += [f"{node}: {sentence}" for sentence in side_breaks(side[:-1], before, after)]
    return found


def side_breaks(side: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    """The same for a node's inputs, or its outputs. Workflows name them by their place, so new ones come last."""
    ids = [slot["id"] for slot in after]
    found = [f"{side} {slot['id']} is gone." for slot in before if slot["id"] not in ids]
    if not found and ids[: len(before)] != [slot["id"] for slot in before]:
        found.append(f"its {side}s are in another order; new ones must be last.")
    known = {slot["id"]: slot for slot in before}
    for slot in after:
        name, earlier = f"{side} {slot['id']}", known.get(slot["id"])
        required = slot.get("kind") == "required"
        if earlier is None:
            found += [f"{name} is new and required; it must be optional."] * required
            continue
        if required and earlier["kind"] == "optional":
            found.append(f"{name} was optional and is required.")
        took, takes = set(earlier["type"].split(",")), set(slot["type"].split(","))
        if not took <= takes or (side == "output" and took != takes):
            found.append(f"{name} was {earlier['type']} and is {slot['type']}.")
        for option in earlier.get("options", []):
            if option not in slot.get("options", [option]):
                found.append(f"{name} has no {option} any more.")
    return found


def main() -> int:
    if len(sys.argv) != 3:
        print("Usage: python3 tools/node_diff.py OLD NEW", file=sys.stderr)
        return 2
    old, new = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:])
    found = breaks(old, new)
    print("\n".join(found) or "Saved workflows still load.")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main())
