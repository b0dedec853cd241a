"""The sampling loops and the whole pipeline against the published implementation's numbers."""

import shutil

import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file

from kv_core.networks.interpolation_unet import InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeUNet
from kv_core.networks.operations import TorchOperations
from kv_core.networks.text_encoder import Tokens
from kv_core.pipeline import FILE_STEMS, Clip, KandinskyVideoPipeline, get_T2V_pipeline, motion_score
from kv_core.sampling.curves import Curve, ParameterCurve
from kv_core.sampling.diffusion import SeededNoise
from kv_core.sampling.frames import FrameCondition
from kv_core.sampling.settings import FirstFrame, Interpolation, Keyframes, Run
from tests.support.families import thorough
from tests.support.golden_networks import movq as build_movq
from tests.support.golden_networks import text_model as build_text_model
from tests.support.recipe import fill, golden, null_embedding
from tools.host import ROOT

PRECISIONS = [thorough(torch.float64, 1e-5), (torch.float32, 1e-4)]


class GoldenNoise:
    """One stage's noise out of a golden file, in the layouts our stages sample in."""

    def __init__(self, dtype, initial, steps, augmentation=None):
        self.dtype, self.initials, self.steps, self.augmentations = dtype, initial, steps, augmentation

    def _layout(self, noise):
        return rearrange(noise, "t c h w -> 1 c t h w").to(self.dtype)

    def initial(self, shape):
        noise = self._layout(self.initials)
        assert noise.shape == shape
        return noise

    def step(self, index, sample):
        return self._layout(self.steps[index])

    def augmentation(self, shape):
        return self.augmentations.reshape(shape)


def build_pipeline(dtype, tokens=None, stages=()):
    """A pipeline with the goldens' weights; `stages` is the noise of its sampling stages, in order."""
    loops, case = golden("loops")
    keyframe = KeyframeUNet(**case["keyframe_config"], operations=TorchOperations, dtype=dtype)
    interpolation = InterpolationUNet(**case["interpolation_config"], operations=TorchOperations, dtype=dtype)
    stages = iter(stages)
    return KandinskyVideoPipeline(
        build_text_model(dtype),
        lambda text: tokens,
        (fill(keyframe, "keyframe_unet"), null_embedding("keyframe_unet")),
        (fill(interpolation, "interpolation_unet_default"), null_embedding("interpolation_unet_default")),
        build_movq(golden("image_movq")[1], "image_movq", dtype),
        build_movq(golden("video_movq_default")[1], "video_movq_default", dtype),
        noise=lambda seed: next(stages),
    )


@pytest.mark.thorough
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@torch.no_grad()
def test_first_frame_loop(dtype, tolerance):
    tensors, case = golden("loops")
    noise = GoldenNoise(dtype, tensors["first_frame.initial_noise"], tensors["first_frame.step_noise"])
    texts = (tensors["context"], tensors["context_mask"]), None
    out = build_pipeline(dtype, stages=[noise]).first_frame(
        texts, FirstFrame(128, 128, case["guidance"]["first_frame"]), Run(50)
    )
    torch.testing.assert_close(out[:, :, 0].float(), tensors["first_frame.out"], atol=tolerance, rtol=tolerance)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@torch.no_grad()
def test_keyframe_loop(dtype, tolerance):
    tensors, case = golden("loops")
    noise = GoldenNoise(dtype, *(tensors[f"keyframes.{name}_noise"] for name in ("initial", "step", "augmentation")))
    texts = (tensors["context"], tensors["context_mask"]), None
    first_frame = tensors["keyframes.first_frame"][None, :, None].to(dtype)
    settings = Keyframes(
        case["num_frames"],
        case["motion_score"],
        case["noise_augmentation"],
        case["guidance"]["text"],
        case["guidance"]["image"],
    )
    out = build_pipeline(dtype, stages=[noise]).keyframes(texts, first_frame, settings, Run(50))
    expected = rearrange(tensors["keyframes.out"], "t c h w -> 1 c t h w")
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@pytest.mark.parametrize("skip_frames", [3, 1])
@torch.no_grad()
def test_interpolation_loop(skip_frames, dtype, tolerance):
    tensors, case = golden("loops")
    part = f"interpolation_skip{skip_frames}"
    noise = GoldenNoise(dtype, tensors[f"{part}.initial_noise"], tensors[f"{part}.step_noise"])
    texts = (tensors["context"], tensors["context_mask"]), None
    keyframes = rearrange(tensors[f"{part}.key_frames"], "t c h w -> 1 c t h w").to(dtype)
    settings = Interpolation(skip_frames, case["guidance"]["interpolation"])
    out = build_pipeline(dtype, stages=[noise]).interpolate(texts, keyframes, settings, Run(10))
    assert torch.equal(out[:, :, ::4], keyframes)
    new = torch.stack([out[0, :, i::4] for i in (1, 2, 3)])  # frame c g h w
    expected = rearrange(tensors[f"{part}.out"], "g (f c) h w -> f c g h w", f=3)
    torch.testing.assert_close(new.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["t2v_low", thorough("t2v_medium"), thorough("t2v_high"), "i2v_medium"])
def test_pipeline(name, monkeypatch):
    tensors, case = golden("pipeline")
    stages = []
    for i in range(4):
        if f"{name}.initial_noise.{i}" in tensors:
            stages.append(
                GoldenNoise(
                    torch.float64,
                    tensors[f"{name}.initial_noise.{i}"],
                    tensors[f"{name}.step_noise.{i}"],
                    tensors[f"{name}.augmentation_noise"],
                )
            )
    pipe = build_pipeline(torch.float64, Tokens(tensors["input_ids"], tensors["attention_mask"], False), stages)
    seen = {}
    for stage in ("decode_image", "decode_video"):
        method = getattr(pipe, stage)
        monkeypatch.setattr(
            pipe, stage, lambda latent, stage=stage, method=method: seen.setdefault(stage, (latent, method(latent)))[1]
        )
    frames = pipe(
        "",
        image=Image.fromarray(tensors["i2v.image"].numpy()) if name.startswith("i2v") else None,
        width=case["width"],
        height=case["height"],
        fps=case["cases"][name]["fps"],
        motion=case["cases"][name]["motion"],
        key_frame_guidance_scale=case["guidance"]["first_frame"],
        guidance_weight_prompt=case["guidance"]["text"],
        guidance_weight_image=case["guidance"]["image"],
        interpolation_guidance_scale=case["guidance"]["interpolation"],
        noise_augmentation=case["noise_augmentation"],
        keyframes=case["num_frames"],
    )
    if name.startswith("t2v"):
        assert seen["decode_image"][1].tobytes() == tensors[f"{name}.first_frame"].numpy().tobytes()
    latents = rearrange(seen["decode_video"][0][0], "c t h w -> t c h w")
    torch.testing.assert_close(latents.float(), tensors[f"{name}.latents"], atol=1e-5, rtol=1e-5)
    ours = seen["decode_video"][1].int()
    difference = (ours - tensors[f"{name}.frames"].int()).abs()
    assert difference.max() <= 1 and difference.count_nonzero() <= difference.numel() / 1000
    assert [frame.tobytes() for frame in frames] == [frame.numpy().tobytes() for frame in seen["decode_video"][1]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"width": 100}, "100x512, expected multiples of 64"),
        ({"height": 0}, "height is 0, expected a whole number from 64 to 4096"),
        ({"width": 2**20}, "width is 1048576, expected"),
        ({"fps": "fast"}, "'fast', expected one of low, medium, high"),
        ({"noise_augmentation": -5}, "noise_augmentation is -5, expected a whole number from 0 to 999"),
        ({"noise_augmentation": 1000}, "noise_augmentation is 1000, expected"),
        ({"keyframes": 1}, "frames is 1, expected a whole number from 2 to 240"),
        ({"keyframes": 2.5}, "frames is 2.5, expected a whole number"),
        ({"guidance_weight_image": float("nan")}, "image_guidance is nan, expected a number from 0 to 30"),
        ({"steps": (50, 0, 10)}, "steps is 0, expected a whole number from 1 to 1000"),
        ({"steps": (50, 50)}, r"steps is \(50, 50\), expected those of first frame, keyframes and interpolation"),
        ({"steps": 50}, "steps is 50, expected those"),
        ({"steps": (50, 50.0, 10)}, "steps is 50.0, expected a whole number"),
        ({"width": 2112}, "width is 4224, expected a whole number from 64 to 4096"),
        ({"seed": -1}, "seed is -1, expected"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_pipeline(torch.float32)("a cat", **arguments)


def test_a_file_without_a_null_embedding_asks_for_a_negative_prompt():
    tensors, _ = golden("loops")
    pipe, texts = build_pipeline(torch.float32), ((tensors["context"], tensors["context_mask"]), None)
    pipe.keyframe = pipe.keyframe[0], None
    with pytest.raises(ValueError, match="holds no null embedding: give a negative prompt"):
        pipe.first_frame(texts, FirstFrame(64, 64), Run(1))


def test_what_only_the_nodes_can_do_is_refused(weights):
    pipe, frame = get_T2V_pipeline("cpu", weights), torch.zeros(1, 4, 1, 8, 8)
    texts = pipe.encode_text("a red fox")
    held = Keyframes(2, conditions=(FrameCondition(frame, -1, show=False, hold=True),))
    for settings in (held, Keyframes(2, init_video=torch.zeros(1, 4, 2, 8, 8))):
        with pytest.raises(ValueError, match="neither holds frames nor starts from a clip"):
            pipe.keyframes(texts, frame, settings, Run(1))
    for run in (Run(1, denoise=0.5), Run(1, sampler="euler"), Run(1, sigmas=torch.ones(2))):
        with pytest.raises(ValueError, match="leave out sampler, sigmas and denoise"):
            pipe.first_frame(texts, FirstFrame(64, 64), run)


def test_curves_and_shown_frames_reach_the_python_call(weights):
    pipe, frame = get_T2V_pipeline("cpu", weights), torch.zeros(1, 4, 1, 8, 8)
    texts = pipe.encode_text("a red fox")

    def sample(**settings):
        return pipe.keyframes(texts, frame, Keyframes(3, **settings), Run(2))

    plain, rising = sample(), Curve(((0, 1.0), (2, 30.0)), "linear")
    for parameter in Keyframes.CURVED:
        assert not torch.equal(sample(curves=(ParameterCurve(parameter, rising),)), plain), parameter
    assert not torch.equal(sample(conditions=(FrameCondition(frame + 1, -1, show=True, hold=False),)), plain)
    clip = torch.zeros(1, 4, 3, 8, 8)
    gaps = [pipe.interpolate(texts, clip, Interpolation(skip), Run(1)) for skip in (3, (3, 3), (3, 7))]
    torch.testing.assert_close(gaps[0], gaps[1], atol=1e-5, rtol=0)
    assert (gaps[0] - gaps[2]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="3 gap lengths, but 2 gaps between 3 frames"):
        pipe.interpolate(texts, clip, Interpolation((1, 2, 3)), Run(1))


def test_only_a_first_frame_that_is_drawn_has_a_size():
    assert Clip(width=2112, height=64).stages and Clip(width=2048).drawn.width == 4096


def test_stages_record_no_gradients_and_progress_comes_before_a_step(weights, monkeypatch):
    pipe, order = get_T2V_pipeline("cpu", weights), []
    texts, frame = pipe.encode_text("a red fox"), torch.zeros(1, 4, 1, 8, 8)
    forward = KeyframeUNet.forward

    def watched(self, *arguments, **more):
        order.append(torch.is_grad_enabled())
        return forward(self, *arguments, **more)

    monkeypatch.setattr(KeyframeUNet, "forward", watched)
    pipe.first_frame(texts, FirstFrame(64, 64), Run(2), lambda *step: order.append(step))
    assert order == [("first frame", 0, 2), False, False, ("first frame", 1, 2), False, False]
    assert not pipe.encode_image(Image.new("RGB", (64, 64)), 64, 64).requires_grad
    assert not pipe.decode_video(frame).requires_grad


def test_unknown_motion_warns_and_means_medium(caplog):
    assert [motion_score(name) for name in ("low", "medium", "high", "extreme")] == [1, 10, 50, 100]
    assert not caplog.records
    assert motion_score("normal") == 10
    assert "expected one of low, medium, high, extreme" in caplog.text


def test_progress_can_cancel_and_nan_is_named():
    tensors, _ = golden("loops")
    texts = (tensors["context"], tensors["context_mask"]), None
    pipe = build_pipeline(torch.float32)
    pipe.noise = SeededNoise
    seen = []

    def stop(stage, step, steps):
        seen.append((stage, step, steps))
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.first_frame(texts, FirstFrame(64, 64, 1.0), Run(5), progress=stop)
    assert seen == [("first frame", step, 5) for step in range(3)]
    texts[0][0].fill_(float("nan"))
    with pytest.raises(ValueError, match="first frame ended in NaN"):
        pipe.first_frame(texts, FirstFrame(64, 64, 1.0), Run(2))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with the tiny weights under the published names: both MoVQ as .pt, the rest as safetensors."""
    root = tmp_path_factory.mktemp("weights")
    models = ROOT / "models"
    folder = root / "published"
    shutil.copytree(models / "text_encoders/kv-tiny/flan-ul2", folder / "flan_ul2_encoder")
    shutil.copy(models / "text_encoders/kv-tiny/t5_projections.safetensors", folder)
    shutil.copy(models / "diffusion_models/kv-tiny/interpolation.safetensors", folder)
    shutil.copy(models / "diffusion_models/kv-tiny/keyframes.safetensors", folder / "t2v.safetensors")
    for name in ("movq", "video_movq"):
        torch.save(load_file(models / f"vae/kv-tiny/{name}.safetensors"), folder / f"{name}.pt")
    return folder


def test_pipeline_from_a_folder(weights):
    pipe = get_T2V_pipeline("cpu", cache_dir=weights)
    seen = []

    def clip(prompt, **arguments):
        return pipe(prompt, width=128, height=64, fps="medium", steps=(2, 2, 1), keyframes=3, **arguments)

    first = clip("a red fox", seed=5, progress=lambda *step: seen.append(step))
    assert [frame.size for frame in first] == [(128, 64)] * 9
    assert seen == [
        ("first frame", 0, 2),
        ("first frame", 1, 2),
        ("keyframes", 0, 2),
        ("keyframes", 1, 2),
        ("interpolation", 0, 1),
    ]
    assert first == clip("a red fox", seed=5)
    for other in (
        clip("a red fox", seed=6),
        clip("a blue whale", seed=5),
        clip("a red fox", seed=5, motion="extreme"),
        clip("a red fox", seed=5, negative_prompt="rain"),
    ):
        assert other != first


def test_the_seed_reaches_every_stage(weights):
    pipe = get_T2V_pipeline("cpu", weights)
    texts = pipe.encode_text("a red fox")
    frame, clip = torch.zeros(1, 4, 1, 8, 8), torch.zeros(1, 4, 2, 8, 8)
    stages = [
        lambda seed: pipe.first_frame(texts, FirstFrame(64, 64, 1.0), Run(2, seed)),
        lambda seed: pipe.keyframes(texts, frame, Keyframes(2), Run(2, seed)),
        lambda seed: pipe.interpolate(texts, clip, Interpolation(), Run(2, seed)),
    ]
    for stage in stages:
        assert torch.equal(stage(1), stage(1)) and not torch.equal(stage(1), stage(2))


def test_every_part_has_its_own_type(weights):
    pipe = get_T2V_pipeline(dict.fromkeys(FILE_STEMS, "cpu"), weights, dtype_map={"keyframe_unet": torch.bfloat16})
    types = [next(module.parameters()).dtype for module in (pipe.keyframe[0], pipe.interpolation[0], pipe.text_model)]
    assert types == [torch.bfloat16, torch.float32, torch.float32]
    assert pipe("a fox", width=64, height=64, fps="low", steps=(1, 1, 1), keyframes=2)[0].size == (64, 64)


def test_a_missing_file_is_named(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "weights")
    (folder / "movq.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"movq.safetensors or movq.pt is missing in .*weights"):
        get_T2V_pipeline("cpu", cache_dir=folder)
