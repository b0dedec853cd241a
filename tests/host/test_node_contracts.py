"""What other people's workflows rely on: ids, inputs and their order; and what a user reads: tooltips and errors."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

SNAPSHOT = Path(__file__).parent / "frozen_nodes.json"

DISPLAY_NAMES = {
    "KandinskyVideoUNetLoader": "Load U-Net",
    "KandinskyVideoTextEncoderLoader": "Load Text Encoder (Flan-UL2)",
    "KandinskyVideoMoVQLoader": "Load MoVQ",
    "KandinskyVideoTemporalMoVQLoader": "Load Temporal MoVQ",
    "KandinskyVideoTextEncode": "Encode Text (Flan-UL2)",
    "KandinskyVideoFirstFrame": "Sample First Frame (Kandinsky 3)",
    "KandinskyVideoEncodeImage": "Encode Image (MoVQ)",
    "KandinskyVideoDecodeImage": "Decode Image (MoVQ)",
    "KandinskyVideoKeyframes": "Sample Keyframes (U-Net3D)",
    "KandinskyVideoInterpolate": "Interpolate Frames (U-Net3D)",
    "KandinskyVideoDecodeVideo": "Decode Video (temporal MoVQ)",
    "KandinskyVideoToLatent": "Export Latent",
    "KandinskyVideoFromLatent": "Import Latent",
    "KandinskyVideoChooseFirstPicture": "Choose First Picture",
    "KandinskyVideoChooseFrameRate": "Choose Frame Rate",
    "KandinskyVideoEncodeFrames": "Encode Frames (MoVQ)",
    "KandinskyVideoCrossFade": "Cross-Fade Frames",
    "KandinskyVideoSwitchBlocks": "Switch Blocks",
    "KandinskyVideoContactSheet": "Contact Sheet",
    "KandinskyVideoDifference": "Latent Difference",
    "KandinskyVideoMotionGrid": "Motion Grid",
    "KandinskyVideoAttentionMaps": "Attention Maps",
    "KandinskyVideoDDPM": "DDPM (published)",
    "KandinskyVideoSigmas": "Published Schedule",
    "KandinskyVideoFirstFrameGuider": "First Frame Guider",
    "KandinskyVideoKeyframeGuider": "Keyframe Guider",
    "KandinskyVideoInterpolationGuider": "Interpolation Guider",
    "KandinskyVideoFillGaps": "Fill Gaps",
    "KandinskyVideoParameterCurve": "Parameter Curve",
    "KandinskyVideoTextOverTime": "Encode Text over Time",
    "KandinskyVideoFrameCondition": "Frame Condition",
    "KandinskyVideoPickFrames": "Pick Frames",
    "KandinskyVideoJoinClips": "Join Clips",
}


@pytest.fixture(scope="module")
def schemas(pack_nodes):
    return {id: node.GET_SCHEMA() for id, node in pack_nodes.items()}


@pytest.fixture(scope="module")
def sockets(pack, pack_nodes):
    return pack.nodes.sockets


@pytest.fixture
def execute(pack_nodes):
    """Runs a node, named without the pack's prefix, on Python values."""

    def run(name, **inputs):
        with torch.inference_mode():
            return pack_nodes[f"KandinskyVideo{name}"].execute(**inputs).args

    return run


def described(schema):
    """What is frozen of a node: its inputs and outputs in order."""

    def one(given):
        options = getattr(given, "options", None)
        # Which files there are is no part of the contract.
        frozen = options if options and not given.id.endswith("_name") else None
        kind = "optional" if given.optional else "required"
        return {"id": given.id, "type": given.get_io_type(), "kind": kind, **({"options": frozen} if frozen else {})}

    return {
        "inputs": [one(given) for given in schema.inputs],
        "outputs": [{"id": output.id, "type": output.get_io_type()} for output in schema.outputs],
    }


def test_the_nodes_of_the_design(schemas):
    assert {id: schema.display_name for id, schema in schemas.items()} == DISPLAY_NAMES
    assert {schema.category for schema in schemas.values()} == {"Kandinsky Video", "Kandinsky Video/experiments"}


def test_what_has_landed_stays(schemas):
    """A failure here breaks saved workflows. New nodes, and new inputs that are optional and last, go into the file."""
    frozen = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert frozen.keys() == schemas.keys(), "nodes may be added to the snapshot, never taken away"
    for id, expected in frozen.items():
        assert described(schemas[id]) == expected, id


def test_inputs_that_may_stay_open_are_last(schemas):
    for schema in schemas.values():
        optional = [given.optional for given in schema.inputs]
        assert optional == sorted(optional), schema.node_id


def test_everything_is_explained(schemas):
    for schema in schemas.values():
        assert len(schema.description) > 40 and schema.description.endswith("."), schema.node_id
        assert "kandinsky" in schema.search_aliases and len(schema.search_aliases) > 2, schema.node_id
        for part in [*schema.inputs, *schema.outputs]:
            assert part.tooltip and len(part.tooltip) > 20 and part.tooltip.endswith("."), (schema.node_id, part.id)


def test_numbers_state_their_range(schemas):
    numbers = [given for schema in schemas.values() for given in schema.inputs if hasattr(given, "min")]
    assert len(numbers) > 10
    for given in numbers:
        largest = "2^64 - 1" if given.max == 2**64 - 1 else f"{given.max:g}"
        assert f"{given.min:g}" in given.tooltip and largest in given.tooltip, given.id


def test_an_old_host_gets_one_sentence(pack, monkeypatch):
    import asyncio

    import comfyui_version

    for old in ("0.3.64", "0.29.9"):
        monkeypatch.setattr(comfyui_version, "__version__", old)
        with pytest.raises(RuntimeError, match=f"needs ComfyUI 0.30.0 or newer, but this is {old}: update ComfyUI"):
            asyncio.run(pack.comfy_entrypoint())
    for new in ("0.30.0", "0.101.2", "1.0.0"):
        monkeypatch.setattr(comfyui_version, "__version__", new)
        asyncio.run(pack.comfy_entrypoint())


def frame(sockets, *shape, fill=0.0):
    return sockets.latent("frame", torch.full(shape, fill))


REFUSED = {
    "a plain LATENT": (
        lambda s: {"samples": torch.zeros(1, 4, 1, 8, 8)},
        "Expected the latent of one image .made by"
        " Encode Image .MoVQ. or Sample First Frame .Kandinsky 3.., but got a plain LATENT",
    ),
    "another kind": (lambda s: s.latent("keyframes", torch.zeros(1, 4, 2, 8, 8)), "one image .*, but got keyframes"),
    "no latent": (lambda s: "text", "one image .*, but got str without samples"),
    "two frames": (lambda s: frame(s, 1, 4, 2, 8, 8), r"\[1, 4, 1, h, w\], but got \[1, 4, 2, 8, 8\]"),
    "four axes": (lambda s: frame(s, 1, 4, 8, 8), r"but got \[1, 4, 8, 8\]"),
    "a batch": (lambda s: frame(s, 2, 4, 1, 8, 8), r"but got \[2, 4, 1, 8, 8\]"),
    "16 channels": (lambda s: frame(s, 1, 16, 1, 8, 8), r"but got \[1, 16, 1, 8, 8\]"),
    "an odd size": (lambda s: frame(s, 1, 4, 1, 8, 12), "multiples of 64 pixels, but got 96x64"),
    "not a number": (lambda s: frame(s, 1, 4, 1, 8, 8, fill=float("nan")), "samples hold NaN"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_first_frame_is_refused(sockets, case):
    make, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        sockets.samples_of(make(sockets), "frame", for_unet=True)


def test_interpolation_needs_two_frames(execute, sockets):
    with pytest.raises(ValueError, match="at least 2 frames, but got 1"):
        execute(
            "Interpolate",
            model=None,
            positive=None,
            samples=sockets.latent("keyframes", torch.zeros(1, 4, 1, 8, 8)),
            skip_frames="auto",
            guidance=0.5,
            steps=1,
            seed=0,
        )


@pytest.mark.parametrize(
    "kind, skip_frames, expected",
    [
        ("keyframes", "auto", 3),
        ("video", "auto", 1),
        ("keyframes", "7", 7),
    ],
)
def test_skip_frames(pack, sockets, kind, skip_frames, expected):
    given = sockets.latent(kind, torch.zeros(1, 4, 3, 8, 8))
    _, settings = pack.nodes.interpolation.settings(given, skip_frames)
    assert settings.skip_frames == expected


@pytest.mark.parametrize("motion, score", [("low", 1), ("medium", 10), ("high", 50), ("extreme", 100), ("custom", 33)])
def test_motion(pack, motion, score):
    assert pack.nodes.keyframes.settings(motion, 33, None, frames=2).motion_score == score


PACE = 12 / 5.5  # keyframes per second as they are sampled


def test_clips_keep_their_pace(execute, sockets):
    """Cut, joined, cross-faded and taken through the host's nodes, a clip neither speeds up nor slows down."""
    clip = sockets.latent("keyframes", torch.rand(1, 4, 12, 8, 8))
    assert clip["frame_rate"] == pytest.approx(PACE)
    (picked,) = execute("PickFrames", samples=clip, position=-4, count=4)
    (joined,) = execute("JoinClips", first=clip, second=clip, overlap=4)
    assert (picked["frame_rate"], joined["frame_rate"], joined["samples"].shape[2]) == (*[pytest.approx(PACE)] * 2, 20)
    (video,) = execute("CrossFade", samples=clip)
    (longer,) = execute("CrossFade", samples=joined)
    assert video["frame_rate"] == pytest.approx(45 / 5.5)
    assert longer["frame_rate"] == pytest.approx(PACE * 77 / 20), "as long as before it was faded"
    (back,) = execute("FromLatent", latent=execute("ToLatent", samples=picked)[0], kind="keyframes")
    assert back["frame_rate"] == picked["frame_rate"]
    (twice,) = execute("CrossFade", samples=video)
    _, rate = execute("DecodeVideo", video_movq=Blank(0.0), samples=twice)
    assert rate == pytest.approx(177 / 5.5)


def test_two_pictures_become_keyframes_through_the_hosts_nodes(execute, sockets):
    import comfy_extras.nodes_post_processing as processing  # before nodes_latent, which it imports
    from comfy_extras.nodes_latent import LatentBatch, LatentConcat

    pictures = [sockets.latent("frame", torch.rand(1, 4, 1, 8, 8)) for _ in range(2)]
    first, second = (execute("ToLatent", samples=picture)[0] for picture in pictures)
    expected = torch.cat([picture["samples"] for picture in pictures], dim=2)
    joined = {
        "Batch Latents": processing.BatchLatentsNode.execute({"latent0": first, "latent1": second})[0],
        "LatentBatch": LatentBatch.execute(first, second)[0],
        "LatentConcat": LatentConcat.execute(first, second, "t")[0],
        "four axes": {"samples": expected[0].transpose(0, 1)},
    }
    for name, latent in joined.items():
        (keyframes,) = execute("FromLatent", latent=latent, kind="keyframes")
        assert torch.equal(sockets.samples_of(keyframes, "keyframes"), expected), name
        assert keyframes["kind"] == "keyframes"


@pytest.mark.parametrize(
    "shape, kind, sentence",
    [
        ((1, 16, 8, 8), "frame", r"4 channels.*but got \[1, 16, 8, 8\]"),
        ((1, 4, 8), "frame", r"but got \[1, 4, 8\]"),
        ((3, 4, 8, 8), "frame", "one frame for kind 'frame', but got 3: choose 'keyframes'"),
    ],
)
def test_a_latent_of_another_model_is_refused(execute, shape, kind, sentence):
    with pytest.raises(ValueError, match=sentence):
        execute("FromLatent", latent={"samples": torch.zeros(shape)}, kind=kind)


def test_pictures_are_taken_exactly(pack, pack_nodes):
    values = numpy.arange(256 * 3, dtype=numpy.uint8).reshape(1, 16, 16, 3)
    image = torch.from_numpy(values).float() / 255
    alpha = torch.rand(1, 16, 16, 1)
    to_picture = pack.nodes.pictures.to_picture
    for given in (image, torch.cat([image, alpha], dim=-1)):
        assert numpy.array_equal(numpy.asarray(to_picture(given)), values[0])
    grey = to_picture(image[..., :1])
    assert isinstance(grey, Image.Image) and numpy.array_equal(numpy.asarray(grey)[..., 2], values[0, :, :, 0])


def test_a_batch_of_pictures_is_refused(execute):
    with pytest.raises(ValueError, match="takes one image, but got 2: pick one with ImageFromBatch"):
        execute("EncodeImage", movq=None, image=torch.zeros(2, 64, 64, 3), width=64, height=64)


class Blank:
    """A MoVQ whose pictures are one colour."""

    def __init__(self, value):
        self.value = value

    def decode_video(self, latents, tile):
        self.tile = tile
        yield torch.full((len(latents), 3, 8, 8), self.value)


@pytest.mark.parametrize("value, expected", [(-2.0, 0), (0.0, 127), (0.999, 254), (2.0, 255)])
def test_frames_are_8_bit_and_rounded_down(execute, sockets, value, expected):
    video = sockets.latent("video", torch.zeros(1, 4, 44, 1, 1), frame_rate=8.2)
    images, frame_rate = execute("DecodeVideo", video_movq=Blank(value), samples=video)
    assert images.shape == (44, 8, 8, 3) and (images * 255 - expected).abs().max() < 1e-4
    assert frame_rate == 8.2


@pytest.mark.parametrize("given, sides", [({}, 0), ({"tile_size": 256}, 32)])
def test_tiles_are_counted_in_latent_pixels(execute, sockets, given, sides):
    movq = Blank(0.0)
    execute("DecodeVideo", video_movq=movq, samples=sockets.latent("video", torch.zeros(1, 4, 5, 1, 1)), **given)
    assert movq.tile == sides


def test_a_black_video_of_nan_is_an_error(execute, sockets):
    video = sockets.latent("video", torch.zeros(1, 4, 5, 1, 1), frame_rate=8.2)
    with pytest.raises(ValueError, match="MoVQ produced NaN.*fp32.*download it again"):
        execute("DecodeVideo", video_movq=Blank(float("nan")), samples=video)


@pytest.fixture
def model_folders(monkeypatch, tmp_path):
    """Two empty search paths of every category."""
    import folder_paths

    for category in ("diffusion_models", "vae", "text_encoders"):
        _, extensions = folder_paths.folder_names_and_paths[category]
        roots = [tmp_path / number / category for number in ("first", "second")]
        for root in roots:
            root.mkdir(parents=True)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, category, ([str(root) for root in roots], extensions))
    return tmp_path


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_lists_of_files(adapters, model_folders):
    files = adapters.files
    text, unets = (model_folders / "second" / name for name in ("text_encoders", "diffusion_models"))
    for name in (
        "flan/model-00001-of-00002.safetensors",
        "flan/model-00002-of-00002.safetensors",
        "flan/config.json",
        "kv-tiny/flan-ul2/model.safetensors",
        "kv-tiny/t5_projections.safetensors",
        "t5_projections.pt",
        "notes.txt",
    ):
        put(text / name)
    put(model_folders / "first/diffusion_models/t2v.pt")
    put(unets / "kv-tiny/keyframes.safetensors")
    assert files.names("text_encoders") == [
        "flan",
        "kv-tiny/flan-ul2",
        "kv-tiny/t5_projections.safetensors",
        "t5_projections.pt",
    ]
    preferred = "kv-tiny/keyframes.safetensors"
    assert files.choices("diffusion_models", preferred) == {"options": [preferred, "t2v.pt"], "default": preferred}
    assert files.choices("vae", "kv-tiny/movq.safetensors") == {"options": [], "default": None}
    assert files.path("text_encoders", "flan") == str(text / "flan")
    assert files.path("diffusion_models", "t2v.pt") == str(model_folders / "first/diffusion_models/t2v.pt")


def test_a_missing_file_gets_one_sentence(adapters, pack_nodes, model_folders):
    put(model_folders / "first/secret.safetensors")
    loader = pack_nodes["KandinskyVideoUNetLoader"]
    page = "huggingface.co/ai-forever/KandinskyVideo_1_1"
    for name, parts, there in (
        ("t2v.pt", "keyframes", f"t2v.safetensors there (8.3 GB from {page})"),
        ("mine/interpolation.safetensors", "interpolation", f"interpolation.safetensors there (8.0 GB from {page})"),
        (
            "../secret.safetensors",
            "keyframes interpolation",
            f"t2v.safetensors and interpolation.safetensors there (16.3 GB from {page})",
        ),
    ):
        answer = loader.validate_inputs(unet_name=name)
        assert answer == (
            f"'{name}' is not in ComfyUI's models/diffusion_models folder: run 'python3 tools/get_weights.py --only "
            f"{parts}' in this pack's folder, which puts {there}, and choose it in this node."
        )
        with pytest.raises(FileNotFoundError, match="no longer in ComfyUI's models/diffusion_models"):
            adapters.files.path("diffusion_models", name)
    text_loader = pack_nodes["KandinskyVideoTextEncoderLoader"]
    put(model_folders / "first/text_encoders/flan/model.safetensors")
    answer = text_loader.validate_inputs(text_encoder_name="flan", projections_name="t5_projections.pt")
    assert answer.startswith("'t5_projections.pt' is not in ComfyUI's models/text_encoders folder")
    put(model_folders / "first/text_encoders/t5_projections.pt")
    assert text_loader.validate_inputs(text_encoder_name="flan", projections_name="t5_projections.pt") is True
    assert text_loader.validate_inputs(text_encoder_name=None, projections_name=None) is True, "while linked"


def test_the_packs_own_models_are_found(pack_nodes, adapters):
    import folder_paths

    for category in adapters.files.CATEGORIES:
        paths = folder_paths.get_folder_paths(category)
        assert str(adapters.files.PACK / "models" / category) == paths[-1], "searched last"


def test_files_of_other_parts_are_refused_by_name(parts, adapters):
    with pytest.raises(ValueError, match="holds the temporal MoVQ instead of the image MoVQ"):
        adapters.movq.load_movq(parts._movqs["video_movq"], "image_movq")
    with pytest.raises(ValueError, match="the node Load U-Net takes it"):
        adapters.movq.load_movq(parts._keyframes, "image_movq")
