"""The stages taken apart for the host's own Custom Sampler: guiders, sampler and noise levels."""

from comfy_api.latest import io

from ...kv_core.sampling.diffusion import SeededNoise
from ...kv_core.sampling.frames import interleave
from ...kv_core.sampling.settings import FirstFrame, Interpolation, Keyframes
from .. import inputs, interpolation, keyframes, sockets
from ..host import ddpm, guiders
from ..host.patchers import finite


def guider_outputs(shape):
    return [
        io.Guider.Output("guider", tooltip="The stage's guidance, for SamplerCustomAdvanced."),
        io.Latent.Output(
            "latent", tooltip=f"The latent to sample, {shape}, for latent_image of SamplerCustomAdvanced."
        ),
    ]


def output(guided):
    return io.NodeOutput(guided.guider, guided.latent)


class DDPMSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoDDPM",
            display_name="DDPM (published)",
            category=inputs.EXPERIMENTS,
            description="The default sampler of every stage. Together with Published Schedule and a stage's guider, "
            "SamplerCustomAdvanced gives exactly that stage's result for the same seed.",
            search_aliases=["kandinsky", "sampler", "ancestral", "ddpm"],
            inputs=[],
            outputs=[
                io.Sampler.Output(
                    "sampler",
                    tooltip="The original's ancestral sampler. The noise of its steps comes from the noise node's "
                    "seed, drawn on the CPU.",
                )
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(ddpm.DDPM())


class PublishedSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoSigmas",
            display_name="Published Schedule",
            category=inputs.EXPERIMENTS,
            description="The original's noise levels, or karras spacing over the same range, for SamplerCustomAdvanced "
            "or the sigmas input of a stage.",
            search_aliases=["kandinsky", "scheduler", "sigmas", "steps", "karras"],
            inputs=[
                io.Model.Input("model", tooltip="Either U-Net from Load U-Net; both have the same noise levels."),
                io.Combo.Input(
                    "spacing",
                    options=list(ddpm.SPACINGS),
                    default="leading",
                    tooltip="leading: the original's for first frame and keyframes; trailing: the original's for "
                    "interpolation; karras: fewer steps at high noise and more at low, which ComfyUI's "
                    "stochastic and multistep samplers need at low step counts.",
                ),
                inputs.number(
                    "steps",
                    50,
                    "Denoising steps; the original uses 50 leading and 10 trailing. Time grows in proportion.",
                ),
                inputs.number(
                    "denoise",
                    1.0,
                    "Denoising strength: below 1, sampling starts part of the way, for a latent that is not empty. The "
                    "number of steps does not change.",
                    step=0.01,
                ),
            ],
            outputs=[io.Sigmas.Output("sigmas", tooltip="The noise levels [steps + 1], falling, the last one 0.")],
        )

    @classmethod
    def execute(cls, model, spacing, steps, denoise) -> io.NodeOutput:
        return io.NodeOutput(ddpm.schedule(model, spacing, steps, denoise))


class FirstFrameGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoFirstFrameGuider",
            display_name="First Frame Guider",
            category=inputs.EXPERIMENTS,
            description="The guidance of Sample First Frame on its own, for ComfyUI's SamplerCustomAdvanced. Import "
            "the sampled latent with Import Latent, kind frame.",
            search_aliases=["kandinsky", "guider", "custom sampler", "text to image"],
            inputs=[
                inputs.model("keyframe"),
                inputs.positive(),
                *inputs.first_frame_size(),
                inputs.guidance(
                    "guidance", FirstFrame.guidance, "How strongly the image follows the prompt; 0 turns guidance off"
                ),
                inputs.negative(),
            ],
            outputs=guider_outputs("empty [1, 4, 1, height / 8, width / 8]"),
        )

    @classmethod
    def execute(cls, model, positive, width, height, guidance, negative=None) -> io.NodeOutput:
        prompts = guiders.Prompts(positive, negative)
        return output(guiders.first_frame(model, prompts, FirstFrame(width, height, guidance), "First Frame Guider"))


class KeyframeGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoKeyframeGuider",
            display_name="Keyframe Guider",
            category=inputs.EXPERIMENTS,
            description="The three-branch guidance of Sample Keyframes on its own, for ComfyUI's "
            "SamplerCustomAdvanced. Import the sampled latent with Import Latent, kind keyframes.",
            search_aliases=["kandinsky", "guider", "custom sampler", "three branches", "dual cfg"],
            inputs=[
                *inputs.clip(),
                inputs.seed(
                    "Seed of the noise that is added to the first frame. The same seed as the noise node's gives the "
                    "result of Sample Keyframes."
                ),
                inputs.negative(),
                inputs.curves(", ".join(Keyframes.CURVED)),
                inputs.frame_conditions(),
                inputs.init_video("the denoise of Published Schedule"),
            ],
            outputs=guider_outputs("[1, 4, frames, h, w]"),
        )

    @classmethod
    def execute(cls, model, positive, first_frame, seed, negative=None, init_video=None, **given) -> io.NodeOutput:
        clip = keyframes.settings(init_video=init_video, **given)
        frame = sockets.samples_of(first_frame, "frame", for_unet=True)
        prompts, noise = guiders.Prompts(positive, negative), SeededNoise(seed)
        return output(guiders.keyframes(model, prompts, frame, clip, noise, "Keyframe Guider"))


class InterpolationGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoInterpolationGuider",
            display_name="Interpolation Guider",
            category=inputs.EXPERIMENTS,
            description="The guidance of Interpolate Frames on its own, for ComfyUI's SamplerCustomAdvanced. Fill Gaps "
            "puts the sampled frames between the given ones.",
            search_aliases=["kandinsky", "guider", "custom sampler", "frame interpolation"],
            inputs=[*inputs.gaps(), inputs.negative(), inputs.curves(f"{Interpolation.CURVED[0]}, one value per gap")],
            outputs=guider_outputs("empty [1, 12, gaps, h, w], three frames per gap"),
        )

    @classmethod
    def execute(cls, model, positive, samples, negative=None, **given) -> io.NodeOutput:
        frames, gaps = interpolation.settings(samples, **given)
        prompts = guiders.Prompts(positive, negative)
        return output(guiders.interpolation(model, prompts, frames, gaps, "Interpolation Guider"))


class FillGaps(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoFillGaps",
            display_name="Fill Gaps",
            category=inputs.EXPERIMENTS,
            description="Puts the three frames that were sampled for each gap between the given frames.",
            search_aliases=["kandinsky", "interleave", "custom sampler", "frame interpolation"],
            inputs=[
                inputs.sequence("samples", "The frames connected to Interpolation Guider; they are kept unchanged."),
                io.Latent.Input("gaps", tooltip="What SamplerCustomAdvanced made of them, [1, 12, frames - 1, h, w]."),
            ],
            outputs=[
                sockets.VideoLatent.Output(
                    "video", tooltip="All frames in order, latent [1, 4, 4F - 3, h, w], for Decode Video."
                )
            ],
        )

    @classmethod
    def execute(cls, samples, gaps) -> io.NodeOutput:
        frames, predicted = sockets.samples_of(samples, "keyframes", "video", least=2), gaps["samples"]
        expected = (1, 12, frames.shape[2] - 1, *frames.shape[-2:])
        if predicted.shape != expected:
            raise ValueError(
                f"Fill Gaps needs the sampled gaps {list(expected)} of these frames, but got {list(predicted.shape)}: "
                "connect the frames that Interpolation Guider has."
            )
        video = interleave(frames.to(predicted), finite(predicted, "The interpolation U-Net"))
        return io.NodeOutput(sockets.interpolated(video, samples))
