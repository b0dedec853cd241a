"""What people plug in and type wrongly: the server copes, or answers with one sentence that says what cures it."""

import math
import os
import pickle
import shutil

import numpy
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.support.helpers import CHAIN, chain, latents, link, log_of, node, put_latent, saved
from tools.comfy.client import ServerError
from tools.host import ROOT

MODELS = ROOT / "models"
KEYFRAMES = "diffusion_models/kv-tiny/keyframes.safetensors"
INTERPOLATION = "diffusion_models/kv-tiny/interpolation.safetensors"
MOVQ = "vae/kv-tiny/movq.safetensors"
VIDEO_MOVQ = "vae/kv-tiny/video_movq.safetensors"
TEXT_ENCODER = "text_encoders/kv-tiny/flan-ul2/model.safetensors"
PROJECTIONS = "text_encoders/kv-tiny/t5_projections.safetensors"

FOLDERS = {
    "unet_name": "diffusion_models",
    "movq_name": "vae",
    "video_movq_name": "vae",
    "text_encoder_name": "text_encoders",
    "projections_name": "text_encoders",
}


@pytest.fixture
def complaint(server):
    """Call with a graph that cannot run: the sentence that the server's checks, or else a node, answer with."""

    def run(graph):
        try:
            done = server.client.run(graph)
        except ServerError as refused:
            return str(refused)
        assert done.status == "error", "it ran"
        return done.error

    return run


def assert_sentence(message, *words):
    """One line, one sentence, and all the words in it."""
    assert "\n" not in message and len(message) < 400, message
    assert message.endswith(".") and ". " not in message, message
    assert all(word in message for word in words), message


# The node's own ranges and lists, which the host checks before anything runs.
REFUSED = {
    "one keyframe": ("keyframes", "frames", 1, "smaller than min of 2"),
    "too many keyframes": ("keyframes", "frames", 241, "bigger than max of 240"),
    "no width": ("first_frame", "width", 0, "smaller than min of 64"),
    "a negative height": ("encoded", "height", -64, "smaller than min of 64"),
    "no step": ("video", "steps", 0, "smaller than min of 1"),
    "too many steps": ("keyframes", "steps", 1001, "bigger than max of 1000"),
    "a negative seed": ("video", "seed", -1, "smaller than min of 0"),
    "a seed of 65 bits": ("first_frame", "seed", 2**64, "bigger than max"),
    "infinite guidance": ("keyframes", "text_guidance", math.inf, "bigger than max of 30"),
    "an unknown motion": ("keyframes", "motion", "fast", "not in list"),
    "an unknown weight type": ("movq", "weight_dtype", "int8", "not in list"),
    "a missing file": ("keyframe_unet", "unet_name", "t2v.pt", "tools/get_weights.py --only keyframes'"),
    "missing projections": ("text_encoder", "projections_name", "t5_projections.pt", "--only projections'"),
    "a path out of the folder": ("movq", "movq_name", "../movq.pt", "--only movq'"),
    "the image MoVQ for a video": ("frames", "video_movq", link("movq"), "KV_MOVQ"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_it_runs(complaint, case):
    id, name, value, words = REFUSED[case]
    message = complaint(chain("frames.file", **{id: {name: value}}))
    assert message.startswith(f"The server refused the graph: {CHAIN[id]['class_type']}: ") and words in message


WRONG = {
    "the interpolation U-Net for a first frame": (
        {"first_frame": {"model": link("interpolation_unet")}},
        "Sample First Frame needs the keyframe U-Net",
        "Load U-Net",
    ),
    "the interpolation U-Net for keyframes": (
        {"keyframes": {"model": link("interpolation_unet")}},
        "Sample Keyframes needs the keyframe U-Net",
        "Load U-Net",
    ),
    "the keyframe U-Net for interpolation": (
        {"video": {"model": link("keyframe_unet")}},
        "Interpolate Frames needs the interpolation U-Net",
        "Load U-Net",
    ),
    "guidance": ({"first_frame": {"guidance": math.nan}}, "guidance is nan, expected a number from 0 to 30"),
    "text guidance": ({"keyframes": {"text_guidance": math.nan}}, "text_guidance is nan, expected a number"),
    "interpolation guidance": ({"video": {"guidance": math.nan}}, "guidance is nan, expected a number"),
    "a width between the steps": (
        {"first_frame": {"width": 100}},
        "The size is 100x128, expected multiples of 64 pixels",
    ),
    "a height between the steps": ({"encoded": {"height": 72}}, "The size is 64x72, expected multiples of 64 pixels"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(complaint, case):
    changes, *words = WRONG[case]
    assert_sentence(complaint(chain("video.file", **changes)), *words)


FOREIGN_LATENTS = {
    "16 channels": ((1, 16, 8, 8), "frame", "4 channels", "got [1, 16, 8, 8]", "Kandinsky MoVQ"),
    "three axes": ((4, 8, 8), "frame", "[1, 4, frames, h, w], but got [4, 8, 8]"),
    "several frames": ((2, 4, 8, 8), "frame", "one frame", "got 2: choose 'keyframes'"),
    "another kind": ((1, 4, 8, 8), "keyframes", "Encode Image (MoVQ)", "but got keyframes"),
    "a size between the steps": ((1, 4, 8, 12), "frame", "multiples of 64 pixels, but got 96x64", "encode the image"),
}


@pytest.mark.parametrize("case", FOREIGN_LATENTS)
def test_a_foreign_first_frame(server, complaint, case):
    shape, kind, *words = FOREIGN_LATENTS[case]
    more = {
        "foreign": put_latent(server, case, torch.zeros(shape)),
        "encoded": node("KandinskyVideoFromLatent", latent=link("foreign"), kind=kind),
    }
    assert_sentence(complaint(chain("keyframes.file", more=more)), *words)


def test_one_frame_cannot_be_interpolated(server, complaint):
    more = {
        "one": put_latent(server, "one", torch.zeros(1, 4, 8, 8)),
        "keyframes": node("KandinskyVideoFromLatent", latent=link("one"), kind="keyframes"),
    }
    assert_sentence(complaint(chain("video.file", more=more)), "at least 2 frames, but got 1", "Sample Keyframes")


@pytest.mark.parametrize("text", ["", " \n", "лиса 狐 🦊"])
def test_odd_prompts(run_graph, text):
    run_graph(chain("keyframes.file", positive={"text": text}))


def test_a_long_prompt_is_cut(server, run_graph):
    words = "a red fox in the snow at night".split() * 20
    log, long = log_of(server, lambda: run_graph(chain("keyframes.file", positive={"text": " ".join(words)})))
    assert log.count("The prompt is longer than 128 tokens") == 1
    cut = run_graph(chain("keyframes.file", positive={"text": " ".join(words[:127])}))  # and the end token
    long, cut = (latents(server, run)["keyframes.file"] for run in (long, cut))
    assert torch.equal(long, cut)


NOT_A_NUMBER = {
    "first frame": ("keyframe_unet", "unet_name", KEYFRAMES, "out_layer.2.bias", "Sample First Frame ended in NaN"),
    "interpolation": (
        "interpolation_unet",
        "unet_name",
        INTERPOLATION,
        "out_layer.2.bias",
        "Interpolate Frames ended in NaN",
    ),
    "text": (
        "text_encoder",
        "projections_name",
        PROJECTIONS,
        "projection_base.1.bias",
        "The text encoder produced NaN",
    ),
    "encoding": ("movq", "movq_name", MOVQ, "encoder.conv_out.bias", "The MoVQ produced NaN"),
    "decoding": ("video_movq", "video_movq_name", VIDEO_MOVQ, "decoder.conv_out.bias", "The MoVQ produced NaN"),
}


@pytest.mark.parametrize("case", NOT_A_NUMBER)
def test_not_a_number(server, complaint, case):
    id, name, source, tensor, words = NOT_A_NUMBER[case]
    tensors = load_file(MODELS / source)
    tensors[tensor][0] = math.nan
    with safe_open(MODELS / source, "pt") as file:
        put_file(server, name, f"nan {case}.safetensors", lambda path: save_file(tensors, path, file.metadata()))
    message = complaint(chain("frames.file", **{id: {name: f"nan {case}.safetensors"}}))
    assert_sentence(message, words, "bf16 or fp32" if "U-Net" in message else "its file is damaged")


def put_file(server, input, name, write):
    """Puts a file where the loaders with that input look for theirs."""
    path = server.work / "models" / FOLDERS[input] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)


def copy(source):
    return lambda path: shutil.copyfile(MODELS / source, path)


def cut(source):
    return lambda path: path.write_bytes((MODELS / source).read_bytes()[:-1000])


def bare_folder(path):
    path.mkdir()
    shutil.copyfile(MODELS / TEXT_ENCODER, path / "model.safetensors")


WRONG_FILES = {
    "a MoVQ as U-Net": ("keyframe_unet", "unet_name", copy(MOVQ), "the image MoVQ", "Load MoVQ takes it"),
    "a U-Net as MoVQ": ("movq", "movq_name", copy(KEYFRAMES), "the keyframe U-Net", "Load U-Net takes it"),
    "the temporal MoVQ as MoVQ": ("movq", "movq_name", copy(VIDEO_MOVQ), "Load Temporal MoVQ takes it"),
    "the MoVQ as temporal MoVQ": ("video_movq", "video_movq_name", copy(MOVQ), "Load MoVQ takes it"),
    "an encoder as projections": ("text_encoder", "projections_name", copy(TEXT_ENCODER), "a T5 encoder"),
    "a U-Net as encoder": ("text_encoder", "text_encoder_name", copy(KEYFRAMES), "the keyframe U-Net", "Load U-Net"),
    "a folder without tokenizer": ("text_encoder", "text_encoder_name", bare_folder, "no tokenizer.json", "Flan-UL2's"),
    "a cut U-Net": ("keyframe_unet", "unet_name", cut(KEYFRAMES), "cut short", "download"),
    "a cut MoVQ": ("movq", "movq_name", cut(MOVQ), "cut short", "download"),
    "cut projections": ("text_encoder", "projections_name", cut(PROJECTIONS), "cut short", "download"),
    "a web page": ("movq", "movq_name", lambda path: path.write_text("<html>"), "web page", "download"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files(server, complaint, case):
    id, input, write, *words = WRONG_FILES[case]
    name = case if write is bare_folder else f"{case}.safetensors"
    put_file(server, input, name, write)
    assert_sentence(complaint(chain("frames.file", **{id: {input: name}})), *words)


def test_the_editor_shows_the_sentence_after_a_plain_type(server):
    put_file(server, "movq_name", "page.safetensors", lambda path: path.write_text("<html>"))
    done = server.client.run(chain("frames.file", movq={"movq_name": "page.safetensors"}))
    [shown] = [data for kind, data in done.events if kind == "execution_error"]
    assert shown["exception_type"] == "ValueError"
    assert_sentence(shown["exception_message"].strip(), "page.safetensors is a web page")


def test_the_named_loaders_are_nodes(pack, pack_nodes):
    titles = {node.define_schema().display_name for node in pack_nodes.values()}
    assert set(pack.nodes.host.files.LOADED_BY.values()) <= titles


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_never_runs(server, complaint, tmp_path, save):
    made = tmp_path / "made"
    put_file(server, "unet_name", "code.pt", lambda path: save({"unet": Malicious(made)}, path))
    assert_sentence(complaint(chain("keyframes.file", keyframe_unet={"unet_name": "code.pt"})), "can run code")
    assert not made.exists()


def ramp():
    return Image.fromarray(numpy.add.outer(numpy.arange(80), numpy.arange(96)).astype(numpy.uint8))


def transparent():
    image = ramp().convert("RGBA")
    image.putalpha(ramp())
    return image


IMAGES = {
    "grey.png": ramp,
    "transparent.png": transparent,
    "grey-transparent.png": lambda: transparent().convert("LA"),
    "palette.png": lambda: ramp().convert("P"),
    "16-bit.png": lambda: Image.fromarray(numpy.asarray(ramp()).astype(numpy.uint16) * 257),
    "cmyk.jpg": lambda: ramp().convert("RGB").convert("CMYK"),
    "cmyk.tiff": lambda: ramp().convert("RGB").convert("CMYK"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_kinds_of_images(server, run_graph, name):
    """All show the same, so whatever the host's Load Image makes of the colours, the latent is nearly that of RGB."""
    more = {}
    pictures = {name: IMAGES[name](), "rgb.png": ramp().convert("RGB"), "negative.png": ramp().point(lambda x: 255 - x)}
    for file, picture in pictures.items():
        picture.save(server.input / file)
        more[f"{file}.picture"] = node("LoadImage", image=file)
        inputs = CHAIN["encoded"]["inputs"] | {"image": link(f"{file}.picture")}
        more |= {file: node(CHAIN["encoded"]["class_type"], **inputs), **saved(file)}
    files = latents(server, run_graph(chain(*(f"{file}.file" for file in pictures), more=more)))
    latent, rgb, negative = (files[f"{file}.file"] for file in pictures)
    assert (latent - rgb).abs().mean() < 0.4 * (latent - negative).abs().mean()


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (63, 65), (2000, 40)])
def test_sizes_of_images(server, run_graph, size):
    Image.new("RGB", size, "white").save(server.input / "white.png")
    more = {
        "picture": node("LoadImage", image="white.png"),
        "decoded": node("KandinskyVideoDecodeImage", movq=link("movq"), samples=link("encoded")),
        "decoded.file": node("SaveImage", images=link("decoded"), filename_prefix="decoded"),
    }
    (file,) = run_graph(chain("decoded.file", more=more)).files()
    assert Image.open(server.output / file["filename"]).size == (64, 64)


def test_several_images(server, complaint):
    ramp().save(server.input / "two.gif", save_all=True, append_images=[ramp().rotate(180)])
    graph = chain("keyframes.file", more={"picture": node("LoadImage", image="two.gif")})
    assert_sentence(complaint(graph), "takes one image, but got 2", "ImageFromBatch")
