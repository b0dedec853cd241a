"""Graphs in API format for the real server, ways to run them, and what tests read from a run."""

import copy
import io
import json

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tools.comfy.client import Client
from tools.comfy.graphs import upstream
from tools.comfy.server import Server

SEED = 7
STEPS = 3
FRAMES = 4
NODE_IDS = {
    f"KandinskyVideo{name}"
    for name in (
        "UNetLoader",
        "TextEncoderLoader",
        "MoVQLoader",
        "TemporalMoVQLoader",
        "TextEncode",
        "FirstFrame",
        "EncodeImage",
        "DecodeImage",
        "Keyframes",
        "Interpolate",
        "DecodeVideo",
        "ToLatent",
        "FromLatent",
        "ChooseFirstPicture",
        "ChooseFrameRate",
        "EncodeFrames",
        "CrossFade",
        "SwitchBlocks",
        "ContactSheet",
        "Difference",
        "MotionGrid",
        "AttentionMaps",
        "DDPM",
        "Sigmas",
        "FirstFrameGuider",
        "KeyframeGuider",
        "InterpolationGuider",
        "FillGaps",
        "ParameterCurve",
        "TextOverTime",
        "FrameCondition",
        "PickFrames",
        "JoinClips",
    )
}


def node(class_type, **inputs):
    """One node; an input that names another node is a link, such as `link("movq")`."""
    return {"class_type": class_type, "inputs": inputs}


def link(id, slot=0):
    return [id, slot]


def unet(file):
    return node("KandinskyVideoUNetLoader", unet_name=file, weight_dtype="fp32")


def saved(id):
    """The two nodes that save the latent of node `id`, as `<id>.file`."""
    return {
        f"{id}.latent": node("KandinskyVideoToLatent", samples=link(id)),
        f"{id}.file": node("SaveLatent", samples=link(f"{id}.latent"), filename_prefix=id),
    }


# A whole clip of the tiny models: 64x64 pixels, from a prompt to frames.
CHAIN = {
    "keyframe_unet": unet("kv-tiny/keyframes.safetensors"),
    "interpolation_unet": unet("kv-tiny/interpolation.safetensors"),
    "text_encoder": node(
        "KandinskyVideoTextEncoderLoader",
        text_encoder_name="kv-tiny/flan-ul2",
        projections_name="kv-tiny/t5_projections.safetensors",
        weight_dtype="fp32",
    ),
    "movq": node("KandinskyVideoMoVQLoader", movq_name="kv-tiny/movq.safetensors", weight_dtype="fp32"),
    "video_movq": node(
        "KandinskyVideoTemporalMoVQLoader", video_movq_name="kv-tiny/video_movq.safetensors", weight_dtype="fp32"
    ),
    "positive": node(
        "KandinskyVideoTextEncode", text_encoder=link("text_encoder"), text="a red fox in the snow", projection="base"
    ),
    "first_frame": node(
        "KandinskyVideoFirstFrame",
        model=link("keyframe_unet"),
        positive=link("positive"),
        width=128,
        height=128,
        seed=SEED,
        steps=STEPS,
        guidance=5.0,
    ),
    "picture": node("KandinskyVideoDecodeImage", movq=link("movq"), samples=link("first_frame")),
    "encoded": node("KandinskyVideoEncodeImage", movq=link("movq"), image=link("picture"), width=64, height=64),
    "keyframes": node(
        "KandinskyVideoKeyframes",
        model=link("keyframe_unet"),
        positive=link("positive"),
        first_frame=link("encoded"),
        frames=FRAMES,
        motion="medium",
        motion_score=10,
        noise_augmentation=20,
        text_guidance=5.0,
        image_guidance=2.0,
        steps=STEPS,
        seed=SEED,
    ),
    "video": node(
        "KandinskyVideoInterpolate",
        model=link("interpolation_unet"),
        positive=link("positive"),
        samples=link("keyframes"),
        skip_frames="auto",
        guidance=0.5,
        steps=STEPS,
        seed=SEED,
    ),
    "frames": node("KandinskyVideoDecodeVideo", video_movq=link("video_movq"), samples=link("video")),
    "frames.file": node("SaveImage", images=link("frames"), filename_prefix="frames"),
    **saved("first_frame"),
    **saved("keyframes"),
    **saved("video"),
}


def chain(*ends, more=None, **changes):
    """The nodes of CHAIN that the nodes `ends` need.

    more: {id: node} to add or replace; changes: {id: {input: value}} to set in nodes that are there.
    """
    nodes = copy.deepcopy(CHAIN | (more or {}))
    for id, inputs in changes.items():
        nodes[id]["inputs"] |= inputs
    needed = upstream(nodes, list(ends))
    return {id: nodes[id] for id in nodes if id in needed}


class Flagged(Server):
    """A server with further start-up flags."""

    flags = ()

    def command(self):
        return [*super().command(), *self.flags]


class PreviewClient(Client):
    """Asks for previews with every graph, as the editor does where its user has chosen them."""

    def queue(self, graph):
        body = {"prompt": graph, "client_id": self.id, "extra_data": {"preview_method": "latent2rgb"}}
        return json.loads(self.request("/prompt", body))["prompt_id"]


def cached(run):
    """Ids of the nodes the server did not run again."""
    return {id for kind, data in run.events if kind == "execution_cached" for id in data["nodes"]}


def forget(client):
    """Empties the server's cache of outputs and unloads its models."""
    client.free()
    # The request is dealt with when a graph is done, so one has to run before it is certain to have been.
    client.run({"text": node("PrimitiveString", value=""), "end": node("PreviewAny", source=link("text"))})


def log_of(server, action):
    """What the server's log says while `action` is called, and what that returns."""
    start = server.log.stat().st_size
    done = action()
    with server.log.open(encoding="utf-8") as log:
        log.seek(start)
        return log.read(), done


def picture(content):
    """The pixels `[h, w, 3]` in [0, 1] of a picture file's bytes."""
    return torch.from_numpy(numpy.array(Image.open(io.BytesIO(content)).convert("RGB"))) / 255


def latents(server, run):
    """Node id -> the tensor it saved, of every latent a run saved."""
    return {id: latent(server, shown["latents"][0]) for id, shown in run.outputs.items() if "latents" in shown}


def latent(server, file):
    return load_file(server.output / file["subfolder"] / file["filename"])["latent_tensor"]


def put_latent(server, name, samples):
    """Writes a LATENT that the host's Load Latent reads; returns that node."""
    # The version key is how the host knows that nothing needs rescaling.
    save_file(
        {"latent_tensor": samples.contiguous(), "latent_format_version_0": torch.tensor([])},
        server.input / f"{name}.latent",
    )
    return node("LoadLatent", latent=f"{name}.latent")


def run_here(pack_nodes, graph):
    """Runs a graph of the pack's own nodes in this process; returns node id -> its first output."""
    results = {}
    with torch.inference_mode():
        for id, each in graph.items():  # CHAIN is in an order that works
            inputs = {
                name: results[value[0]] if isinstance(value, list) else value for name, value in each["inputs"].items()
            }
            results[id] = pack_nodes[each["class_type"]].execute(**inputs).args[0]
    return results
