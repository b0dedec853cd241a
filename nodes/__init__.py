"""The nodes: thin, each `execute` says what a stage does; what it takes to do it in ComfyUI is in host/."""

from comfy_api.latest import ComfyExtension, io

from .attention_maps import AttentionMaps
from .blocks import SwitchBlocks
from .choices import ChooseFirstPicture, ChooseFrameRate
from .cross_fade import CrossFade
from .custom_sampling import (
    DDPMSampler,
    FillGaps,
    FirstFrameGuider,
    InterpolationGuider,
    KeyframeGuider,
    PublishedSchedule,
)
from .first_frame import FirstFrame
from .frame_conditions import FrameCondition, JoinClips, PickFrames
from .host import files
from .interpolation import Interpolate
from .keyframes import Keyframes
from .latents import FromLatent, ToLatent
from .loaders import MoVQLoader, TemporalMoVQLoader, TextEncoderLoader, UNetLoader
from .looking import ContactSheet, Difference, Report
from .motion_grid import MotionGrid
from .movq import DecodeImage, DecodeVideo, EncodeFrames, EncodeImage
from .schedules import Schedule, TextOverTime
from .text import TextEncode


class KandinskyVideoExtension(ComfyExtension):
    async def on_load(self):
        files.add_model_folders()

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
            Report,
            DDPMSampler,
            PublishedSchedule,
            FirstFrameGuider,
            KeyframeGuider,
            InterpolationGuider,
            FillGaps,
            Schedule,
            TextOverTime,
            FrameCondition,
            PickFrames,
            JoinClips,
        ]
