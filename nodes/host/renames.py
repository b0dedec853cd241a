"""Workflows saved under older names: the editor replaces nodes as it opens them, the server inputs as it gets them."""

from comfy_api.latest import ComfyAPI, io
from server import PromptServer

# Old id -> new id, and the inputs of the old node that were widgets, in their order.
NODES = {
    "KandinskyVideoSchedule": ("KandinskyVideoParameterCurve", ["parameter", "curve", "interpolation", "start", "end"])
}
# Id -> {old name of an input: new name}.
INPUTS = {
    "KandinskyVideoParameterCurve": {"start": "start_percent", "end": "end_percent"},
    "KandinskyVideoKeyframes": {"schedule": "curves", "start": "init_video"},
    "KandinskyVideoKeyframeGuider": {"schedule": "curves", "start": "init_video"},
    "KandinskyVideoInterpolate": {"schedule": "curves", "gaps": "gap_lengths"},
    "KandinskyVideoInterpolationGuider": {"schedule": "curves"},
    "KandinskyVideoJoinClips": {"shared": "overlap"},
}


async def register():
    """Tells the host of the old names; nothing where the pack runs without a server."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    for old, (new, widgets) in NODES.items():
        names = [*widgets, "previous"]
        mapping = [{"new_id": INPUTS[new].get(name, name), "old_id": name} for name in names]
        replacement = io.NodeReplace(new, old, widgets, mapping, [{"new_idx": 0, "old_idx": 0}])
        await ComfyAPI().node_replacement.register(replacement)
    server.add_on_prompt_handler(upgraded)


def upgraded(request):
    """A request to run a graph, with the names of today: replacing nodes does not reach inputs of nodes that stay."""
    for node in request.get("prompt", {}).values():
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict):
            _upgrade(node, node["inputs"])
    return request


def _upgrade(node, inputs):
    node["class_type"], _ = NODES.get(node.get("class_type"), (node.get("class_type"), ()))
    for before, now in INPUTS.get(node["class_type"], {}).items():
        if before in inputs:
            inputs.setdefault(now, inputs.pop(before))
    window = [inputs.get(name) for name in ("start_percent", "end_percent")]
    if node["class_type"] in dict(NODES.values()) and all(isinstance(value, (int, float)) for value in window):
        if max(window) > 1:  # they were 0 to 100
            inputs["start_percent"], inputs["end_percent"] = (value / 100 for value in window)
