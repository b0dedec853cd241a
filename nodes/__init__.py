"""The nodes: thin, each `execute` says what a stage does; what it takes to do it in ComfyUI is in host/."""

from comfy_api.latest import ComfyExtension, io

from .choices import ChooseFirstPicture, ChooseFrameRate
from .experiments.attention_maps import AttentionMaps
from .experiments.blocks import SwitchBlocks
from .experiments.cross_fade import CrossFade
from .experiments.curves import ParameterCurve, TextOverTime
from .experiments.custom_sampling import (
    DDPMSampler,
    FillGaps,
    FirstFrameGuider,
    InterpolationGuider,
    KeyframeGuider,
    PublishedSchedule,
)
from .experiments.frame_conditions import FrameCondition, JoinClips, PickFrames
from .experiments.inspect import ContactSheet, Difference
from .experiments.motion_grid import MotionGrid
from .first_frame import FirstFrame
from .host import files, renames
from .interpolation import Interpolate
from .keyframes import Keyframes
from .latents import FromLatent, ToLatent
from .loaders import MoVQLoader, TemporalMoVQLoader, TextEncoderLoader, UNetLoader
from .movq import DecodeImage, DecodeVideo, EncodeFrames, EncodeImage
from .text import TextEncode


class KandinskyVideoExtension(ComfyExtension):
    async def on_load(self):
        files.add_model_folders()
        await renames.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            UNetLoader,
            TextEncoderLoader,
            MoVQLoader,
            TemporalMoVQLoader,
            TextEncode,
            FirstFrame,
            EncodeImage,
            DecodeImage,
            Keyframes,
            Interpolate,
            DecodeVideo,
            ToLatent,
            FromLatent,
            ChooseFirstPicture,
            ChooseFrameRate,
            EncodeFrames,
            CrossFade,
            SwitchBlocks,
            ContactSheet,
            Difference,
            MotionGrid,
            AttentionMaps,
            DDPMSampler,
            PublishedSchedule,
            FirstFrameGuider,
            KeyframeGuider,
            InterpolationGuider,
            FillGaps,
            ParameterCurve,
            TextOverTime,
            FrameCondition,
            PickFrames,
            JoinClips,
        ]
