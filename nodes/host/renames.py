"""Workflows saved under older names.

The editor offers to replace the nodes of a graph that it opens; the server takes graphs with old names as they are.
"""

from comfy_api.latest import ComfyAPI, io
from server import PromptServer

# Old id -> new id, and the inputs of the old node that were widgets, in their order.
NODES = {
    "KandinskyVideoSchedule": ("KandinskyVideoParameterCurve", ["parameter", "curve", "interpolation", "start", "end"])
}
# An old id, and those of its inputs that were 0 to 100; for the editor web/kandinsky_video.js divides them.
PERCENT = "KandinskyVideoSchedule", ("start", "end")
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
    old, percent = PERCENT
    if node.get("class_type") == old:
        inputs.update({name: inputs[name] / 100 for name in percent if isinstance(inputs.get(name), (int, float))})
    node["class_type"], _ = NODES.get(node.get("class_type"), (node.get("class_type"), ()))
    for before, now in INPUTS.get(node["class_type"], {}).items():
        if before in inputs:
            inputs.setdefault(now, inputs.pop(before))
