"""The goldens' weights as files, the parts the pack's loaders make of them, and its stages with the goldens' inputs."""

import json
from dataclasses import dataclass

import pytest
import torch
from einops import rearrange
from safetensors.torch import save_file

from kv_core.networks.interpolation_unet import InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeUNet
from kv_core.networks.movq import MoVQ
from kv_core.networks.operations import TorchOperations
from kv_core.networks.text_encoder import TextModel
from kv_core.sampling.settings import FirstFrame, Interpolation, Keyframes, Run
from tests.support import recipe

MOVQ_SIZES = ("ch", "ch_mult", "num_res_blocks", "z_channels", "in_channels", "out_ch")
TEXT_SIZES = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size")


def write(folder, part, tensors, config):
    path = folder / f"{part}.safetensors"
    save_file(tensors, path, {"kandinsky_video": json.dumps({"part": part, "config": config})})
    return str(path)


def write_unet(folder, part, recipe_part, network, config):
    tensors = recipe.fill(network(**config, operations=TorchOperations), recipe_part).state_dict()
    return write(folder, part, {**tensors, "null_embedding": recipe.null_embedding(recipe_part)}, config)


def write_movq(folder, part, recipe_part, temporal):
    case = recipe.golden(recipe_part)[1]["config"]
    config = {name: case[name] for name in MOVQ_SIZES}
    network = MoVQ(**config, temporal=temporal, operations=TorchOperations)
    return write(folder, part, recipe.fill(network, recipe_part).state_dict(), config)


def write_text(folder):
    """Paths of the encoder's and the projections' files."""
    case = recipe.golden("text")[1]
    config = {name: case["t5_config"][name] for name in TEXT_SIZES}
    model = TextModel(config, case["context_dim"], operations=TorchOperations)
    projections = {
        f"{name}.{key}": value
        for name, projection in model.projections.items()
        for key, value in recipe.fill(projection, name).state_dict().items()
    }
    encoder = recipe.fill(model.text_encoder, "text_encoder").state_dict()
    sizes = {"d_model": config["d_model"], "context_dim": case["context_dim"], "names": list(model.projections)}
    return write(folder, "text_encoder", encoder, config), write(folder, "projections", projections, sizes)


class Parts:
    """Loads every part from the goldens' weights, stored in `dtype`, through the pack's own loaders."""

    def __init__(self, adapters, folder):
        self.adapters = adapters
        loops = recipe.golden("loops")[1]
        self._keyframes = write_unet(folder, "keyframe_unet", "keyframe_unet", KeyframeUNet, loops["keyframe_config"])
        self._interpolation = write_unet(
            folder, "interpolation_unet", "interpolation_unet_default", InterpolationUNet, loops["interpolation_config"]
        )
        self._movqs = {
            "image_movq": write_movq(folder, "image_movq", "image_movq", temporal=False),
            "video_movq": write_movq(folder, "video_movq", "video_movq_default", temporal=True),
        }
        self._text = write_text(folder)

    def keyframe_model(self, dtype="fp32"):
        return self.adapters.unets.load_unet(self._keyframes, dtype)

    def interpolation_model(self, dtype="fp32"):
        return self.adapters.unets.load_unet(self._interpolation, dtype)

    def movq(self, part, dtype="fp32"):
        return self.adapters.movq.load_movq(self._movqs[part], part, dtype)

    def text_patcher(self, dtype="fp32"):
        return self.adapters.text_encoder.text_encoder_patcher(*self._text, dtype)


class GoldenNoise:
    """The noise the published implementation drew, in the order it is asked for."""

    seed = 0

    def __init__(self, stage, shape):
        tensors, _ = recipe.golden("loops")
        self._initial = shape(tensors[f"{stage}.initial_noise"])
        self._steps = [shape(noise) for noise in tensors[f"{stage}.step_noise"]]
        self._augmentation = tensors.get(f"{stage}.augmentation_noise")

    def initial(self, shape):
        assert self._initial.shape == tuple(shape)
        return self._initial.clone()

    def step(self, index, sample):
        return self._steps[index].to(sample)

    def augmentation(self, shape):
        return self._augmentation.reshape(shape)


@dataclass(frozen=True, eq=False)
class GoldenRun(Run):
    """A run with noise other than that of its seed."""

    given: object = None

    @property
    def noise(self):
        return self.given


def frames_first(tensor):
    return rearrange(tensor, "f c h w -> 1 c f h w")


RUN = {"steps", "sampler", "sigmas", "denoise"}
NOT_OF_STAGES = {*RUN, "positive", "negative"}


class Stages:
    """The three stages with the goldens' inputs; settings of the stage and of the run change them."""

    def __init__(self, adapters):
        self.sampling, self.guiders, self.prompts = adapters.sampling, adapters.guiders, adapters.prompts
        self.tensors, self.case = recipe.golden("loops")
        self.guidance = self.case["guidance"]
        self.text = self.encoded(self.tensors["context"], self.tensors["context_mask"])

    def first_frame(self, model, noise=None, **changes):
        settings, run = self._split({"width": 128, "height": 128, "guidance": self.guidance["first_frame"]}, changes)
        noise = noise or GoldenNoise("first_frame", lambda noise: noise[:, :, None])
        return self._run(self.guiders.first_frame(model, self._prompts(changes), FirstFrame(**settings)), run, noise)

    def keyframes(self, model, noise=None, first_frame=None, **changes):
        given = {
            "frames": self.case["num_frames"],
            "motion_score": self.case["motion_score"],
            "noise_augmentation": self.case["noise_augmentation"],
            "text_guidance": self.guidance["text"],
            "image_guidance": self.guidance["image"],
        }
        settings, run = self._split(given, changes)
        frame = self.tensors["keyframes.first_frame"][None, :, None] if first_frame is None else first_frame
        noise = noise or GoldenNoise("keyframes", frames_first)
        guided = self.guiders.keyframes(model, self._prompts(changes), frame, Keyframes(**settings), noise)
        return self._run(guided, run, noise)

    def interpolation(self, model, skip_frames=3, noise=None, samples=None, **changes):
        stage = f"interpolation_skip{skip_frames}"
        given = {"skip_frames": skip_frames, "guidance": self.guidance["interpolation"]}
        settings, run = self._split(given, {"steps": 10} | changes)
        samples = frames_first(self.tensors[f"{stage}.key_frames"]) if samples is None else samples
        noise = noise or GoldenNoise(stage, frames_first)
        guided = self.guiders.interpolation(model, self._prompts(changes), samples, Interpolation(**settings))
        return self._run(guided, run, noise)

    def encoded(self, context, mask):
        """A CONDITIONING as Encode Text makes it."""
        prompt = self.prompts.Prompt((), ((0, (context, mask)),))
        return self.prompts.conditioning(prompt)

    def _prompts(self, changes):
        return self.guiders.Prompts(changes.get("positive", self.text), changes.get("negative"))

    def _split(self, settings, changes):
        """Changed settings of a stage, and what is left of the changes, for its run."""
        settings = settings | {name: value for name, value in changes.items() if name not in NOT_OF_STAGES}
        return settings, {name: changes[name] for name in changes.keys() & RUN}

    def _run(self, guided, run, noise):
        with torch.inference_mode():
            return self.sampling.run(guided, GoldenRun(**run, given=noise))


@pytest.fixture(scope="module")
def adapters(pack_nodes, pack):
    """The pack's adapters, as in `adapters.sampling`."""
    return pack.nodes.host


@pytest.fixture(scope="module")
def parts(adapters, tmp_path_factory):
    return Parts(adapters, tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def stages(adapters):
    return Stages(adapters)


@pytest.fixture(scope="module")
def keyframe_model(parts):
    return parts.keyframe_model()


@pytest.fixture(scope="module")
def interpolation_model(parts):
    return parts.interpolation_model()


@pytest.fixture
def calls(adapters, monkeypatch):
    """Shapes of what the U-Nets were given, call by call."""
    shapes = []

    def watch(unet):
        forward = unet._forward

        def watched(self, x, *arguments, **conditions):
            shapes.append(tuple(x.shape))
            return forward(self, x, *arguments, **conditions)

        monkeypatch.setattr(unet, "_forward", watched)

    watch(adapters.unets.HostKeyframeUNet)
    watch(adapters.unets.HostInterpolationUNet)
    return shapes
