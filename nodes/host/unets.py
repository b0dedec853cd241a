"""The two U-Nets as native MODELs of the host, so that its LoRA, caching, previews and offload work on them.

Beside text and mask, a branch of the guidance carries these keys in its conditioning:
both: `kv_texts`, where the text changes over the frames or gaps: a list of (first frame, context, mask);
keyframe U-Net: `kv_mode` ("image" or "video"), `kv_condition` `[1, 5, F, h, w]` (condition latent and mask; none:
zeros), `kv_motion_score` and `kv_noise_augmentation` (int or `[1, F]`);
interpolation U-Net: `kv_neighbours` `[1, 8, G, h, w]` (left and right frame of every gap; none: zeros, and no
temporal layer acts), `kv_skip_frames` (int or `[1, G]`).
What a forward pass leaves out stands in the host's transformer_options under OFF (see kv_core.networks.unet.Off).
"""

import itertools
import logging

import comfy.conds
import comfy.context_windows
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...kv_core.files.detection import SIZES_TENSOR
from ...kv_core.networks import memory
from ...kv_core.networks.attention import Text
from ...kv_core.networks.interpolation_unet import InterpolationUNet
from ...kv_core.networks.keyframe_unet import KeyframeUNet
from ...kv_core.networks.unet import ALL_ON
from ...kv_core.pictures import latent_rgb
from ...kv_core.sampling import diffusion, frames
from . import files
from . import weights as storage

OFF = "kandinsky_video_off"

# Conditions with a number for every frame or gap, where they are `[1, F]`.
BY_FRAME = ("motion_score", "noise_augmentation", "skip_frames")

DEFAULT_MOTION_SCORE = 10
DEFAULT_NOISE_AUGMENTATION = 20


def attention(q, k, v, heads, mask=None, options=None):
    """kv_core's attention call by the host's chosen kernel; `options` are the host's transformer_options."""
    # The host's 8-bit kernels do not reliably honour a mask.
    return optimized_attention(
        q, k, v, heads, mask=mask, low_precision_attention=mask is None, transformer_options=options or {}
    )


def operations(weight_dtype, compute_dtype, device, attention=attention):
    """The host's layers for these types, with the attention call kv_core looks for among them."""
    picked = comfy.ops.pick_operations(weight_dtype, compute_dtype, load_device=device)
    if weight_dtype == torch.int8:
        picked = storage.int8_layers(picked)
    return type("KandinskyOperations", (picked,), {"attention": staticmethod(attention)})


class ModelSampling(comfy.model_sampling.ModelSamplingDiscrete):
    """The published schedule in the host's terms: sigma = sqrt((1 - abar) / abar) at every training step."""

    # abar is exactly 0 at the last step; the host's samplers need a finite sigma there (this one is 4096).
    FLOOR = 2.0**-24

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.sigma_data = 1.0
        self.num_timesteps = diffusion.TRAINING_STEPS
        abar = diffusion.alphas_cumprod().double().clamp(min=self.FLOOR)
        self.set_sigmas(((1 - abar) / abar).sqrt())


class Epsilon(ModelSampling, comfy.model_sampling.EPS):
    pass


class Velocity(ModelSampling, comfy.model_sampling.V_PREDICTION):
    def calculate_denoised(self, sigma, model_output, model_input):
        """As the host's, but exact at the last step, where there is no signal at all and x0 = -v."""
        denoised = super().calculate_denoised(sigma, model_output, model_input)
        sigma = comfy.model_sampling.reshape_sigma(sigma, model_output.ndim)
        return torch.where(sigma < self.sigma_max.to(sigma), denoised, -model_output)


class KeyframeLatentFormat(comfy.latent_formats.LatentFormat):
    """Latents of the image MoVQ `[1, 4, F, h, w]`, unscaled. Previews show the middle keyframe."""

    latent_channels = 4
    latent_dimensions = 3

    def latent_rgb_factors_reshape(self, x0):
        return x0[:, :, x0.shape[2] // 2]


class InterpolationLatentFormat(KeyframeLatentFormat):
    """The three frames of every gap `[1, 12, G, h, w]`, frame-major. Previews show the middle one of the middle gap."""

    latent_channels = 12

    def latent_rgb_factors_reshape(self, x0):
        return x0[:, 4:8, x0.shape[2] // 2]


class KeyframeConfig(comfy.supported_models_base.BASE):
    unet_extra_config = {}
    latent_format = KeyframeLatentFormat


class InterpolationConfig(KeyframeConfig):
    latent_format = InterpolationLatentFormat


class HostUNet:
    """Mixed into kv_core's U-Nets: the call as the host makes it, open to its wrappers (EasyCache is one)."""

    def __init__(self, *, dtype, **arguments):
        super().__init__(dtype=dtype, **arguments)
        self.dtype = dtype

    def forward(self, x, timesteps, context=None, control=None, transformer_options={}, **conditions):  # noqa: B006
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        return WrapperExecutor.new_class_executor(self._forward, self, wrappers).execute(
            x, timesteps, context, control, transformer_options, **conditions
        )


class HostKeyframeUNet(HostUNet, KeyframeUNet):
    def _forward(self, x, timesteps, context, control, transformer_options, **conditions):
        off = transformer_options.get(OFF, ALL_ON)
        return KeyframeUNet.forward(self, x, timesteps, off=off, options=transformer_options, **conditions)


class HostInterpolationUNet(HostUNet, InterpolationUNet):
    def _forward(self, x, timesteps, context, control, transformer_options, skip_frames, **conditions):
        predicted, neighbours = x.split([12, 8], dim=1)  # the host puts conditions behind the sample
        x = frames.between(neighbours, predicted)
        conditions |= {"skip_frames": skip_frames.flatten(), "off": transformer_options.get(OFF, ALL_ON)}
        return InterpolationUNet.forward(self, x, timesteps, options=transformer_options, **conditions)


class CONDTuple(comfy.conds.CONDRegular):
    """One value a branch, of any kind, as a tuple."""

    def process_cond(self, batch_size, **kwargs):
        return self._copy_with(self.cond * batch_size)

    def can_concat(self, other):
        return True

    def concat(self, others):
        return tuple(itertools.chain(self.cond, *(other.cond for other in others)))

    def size(self):
        return [len(self.cond)]


class Prompt:
    """One branch's text, which the U-Net reads once for all steps of a run.

    Not `kept` where hooks may change the weights from step to step.
    """

    def __init__(self, context, mask, kept=True):
        self.context, self.mask, self.kept = context, mask, kept
        self.alone = False  # where it and others at once are too much for the memory
        self._readings = {}  # by U-Net: the host may run copies on several devices

    def read(self, unet, device, dtype):
        reading = self._readings.get(id(unet))
        if reading is None:
            context = comfy.model_management.cast_to_device(self.context, device, dtype)
            reading = unet.read_text(context, self.mask)
            if self.kept:
                self._readings[id(unet)] = reading
        return reading


def _one_by_one(value, count):
    """What one call takes for `count` branches -> what a call for each takes."""
    if isinstance(value, dict):
        parts = {key: _one_by_one(each, count) for key, each in value.items()}
        return [{key: part[i] for key, part in parts.items()} for i in range(count)]
    if torch.is_tensor(value) and value.ndim and len(value) == count:
        return value.split(1)
    if isinstance(value, (list, tuple)) and len(value) == count:
        return [value[i : i + 1] for i in range(count)]
    return [value] * count


class BranchPrompts:
    """The texts of one branch: `frames` names one of `prompts` for each frame; left out, there is one for all."""

    def __init__(self, prompts, frames=None):
        self.prompts, self.frames = prompts, frames

    @property
    def alone(self):
        """Whether this branch and others at once are too much for the memory."""
        return self.prompts[0].alone

    @alone.setter
    def alone(self, alone):
        self.prompts[0].alone = alone

    def at(self, indices):
        """The same for some of the frames only."""
        return self if self.frames is None else BranchPrompts(self.prompts, [self.frames[i] for i in indices])

    def read(self, unet, device, dtype):
        if self.frames is None:
            return self.prompts[0].read(unet, device, dtype)
        runs = [(index, len(list(run))) for index, run in itertools.groupby(self.frames)]
        texts = [self.prompts[index].read(unet, device, dtype) for index, _ in runs]
        return Text.over_frames(texts, [count for _, count in runs])


class VideoModel(comfy.model_base.BaseModel):
    """What both models share: text that is never padded by repetition, the null embedding, the memory estimate."""

    def __init__(self, config, prediction, unet, sampling, null_embedding, model_channels):
        super().__init__(config, prediction, device="meta", unet_model=unet)
        self.device = None  # where its weights are, which the patcher says
        self.model_sampling = sampling()
        self.null_embedding = null_embedding
        self.model_channels = model_channels
        rgb, bias = latent_rgb.factors(model_channels)
        self.latent_format.latent_rgb_factors, self.latent_format.latent_rgb_factors_bias = rgb, bias

    def extra_conds(self, **kwargs):
        if "projection" not in kwargs:
            raise ValueError("This U-Net needs text from Encode Text (Flan-UL2), but got another encoder's.")
        self.check_latent(kwargs["noise"].shape)
        kept, count = not kwargs.get("hooks"), kwargs["noise"].shape[2]
        context, mask = kwargs["cross_attn"], kwargs["attention_mask"]
        # ComfyUI's Conditioning (Concat) appends tokens and drops their mask; what was masked is 0.
        mask = torch.cat([mask, (context[:, mask.shape[1] :] != 0).any(-1).to(mask)], dim=1)
        texts = kwargs.get("kv_texts", [(0, context, mask)])
        prompts = [Prompt(context, mask, kept) for _, context, mask in texts]
        frames = [sum(start <= frame for start, _, _ in texts) - 1 for frame in range(count)] if texts[1:] else None
        return {"prompts": CONDTuple((BranchPrompts(prompts, frames),))}

    def check_latent(self, shape):
        channels, step = self.latent_format.latent_channels, 2 ** (len(self.diffusion_model.down_samples) - 1)
        if len(shape) != 5 or shape[1] != channels or shape[3] % step or shape[4] % step:
            raise ValueError(
                f"This U-Net samples latents [1, {channels}, frames, h, w] with h and w multiples of {step}, but got "
                f"{list(shape)}: connect the latent of its guider, or an empty one of such a size."
            )

    def _apply_model(
        self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, *, prompts, **conditions,  # noqa: B006
    ):  # fmt: skip
        """Predicts for all branches at once or, where memory runs out at that, one by one for the rest of the run."""

        def predict(x, t, c_concat, transformer_options, prompts, conditions):
            dtype = self.get_dtype_inference()
            text = Text.joined([prompt.read(self.diffusion_model, x.device, dtype) for prompt in prompts])
            return super(VideoModel, self)._apply_model(
                x, t, c_concat, c_crossattn, control, transformer_options, text=text, **conditions
            )

        if not any(prompt.alone for prompt in prompts):
            try:
                return predict(x, t, c_concat, transformer_options, prompts, conditions)
            except Exception as error:  # only the host knows which ones mean that memory ran out
                comfy.model_management.raise_non_oom(error)
                if len(prompts) == 1:
                    raise
            # Beyond the exception, which holds what was computed so far.
            for prompt in prompts:
                prompt.alone = True
            comfy.model_management.soft_empty_cache()
            logging.warning(f"Out of memory with {len(prompts)} branches of guidance at once: going on one by one.")
        named = {key: transformer_options[key] for key in ("cond_or_uncond", "uuids") if key in transformer_options}
        each = [_one_by_one(value, len(prompts)) for value in (x, t, c_concat, named, prompts, conditions)]
        return torch.cat([
            predict(x, t, c_concat, transformer_options | named, prompts, conditions)
            for x, t, c_concat, named, prompts, conditions in zip(*each)
        ])  # fmt: skip

    def state_dict_for_saving(self, unet_state_dict, *others, **more):
        """With what its file needs besides, so that what the host saves loads again."""
        if any(isinstance(weight, storage.QuantizedTensor) for weight in self.diffusion_model.parameters()):
            # The host would leave out their scales.
            raise ValueError("Weights in int8 cannot be saved: load this U-Net with another weight dtype and save it.")
        sizes = self.model_config.unet_config
        unet_state_dict = {**unet_state_dict, SIZES_TENSOR: torch.empty(0, sizes["head_dim"], sizes["groups"])}
        if self.null_embedding is not None:
            unet_state_dict["null_embedding"] = self.null_embedding
        return super().state_dict_for_saving(unet_state_dict, *others, **more)

    def resize_cond_for_context_window(self, cond_key, cond_value, window, x_in, device, retain_index_list=[]):  # noqa: B006
        if cond_key == "prompts" and window.dim == 2:
            frames = torch.arange(x_in.shape[2])
            shown = window.get_tensor(frames, dim=0, retain_index_list=retain_index_list).tolist()
            return cond_value._copy_with(tuple(prompts.at(shown) for prompts in cond_value.cond))
        if cond_key in BY_FRAME and cond_value.cond.ndim == 2:
            return comfy.context_windows.slice_cond(
                cond_value, window, x_in, device, temporal_dim=1, retain_index_list=retain_index_list
            )
        return None

    def extra_conds_shapes(self, **kwargs):
        # When it loads a model the host counts on two branches; so that three are counted, each one shows up here.
        return {"branch": [1]}

    def memory_required(self, input_shape, cond_shapes={}):  # noqa: B006
        batch, _, rows, height, width = input_shape
        batch = max(batch, len(cond_shapes.get("branch", ())))
        return memory.unet(batch * rows, height, width, self.model_channels, self.get_dtype_inference())


class KeyframeModel(VideoModel):
    """Draws first frames and keyframes, latents `[1, 4, F, h, w]`."""

    def extra_conds(self, **kwargs):
        noise, device = kwargs["noise"], kwargs["device"]
        values, count = super().extra_conds(**kwargs), noise.shape[2]
        condition, mode = kwargs.get("kv_condition"), kwargs.get("kv_mode", "image" if count == 1 else "video")
        if mode == "image" and count != 1:
            raise ValueError(
                f"A first frame is one frame, but the latent has {count}: connect the latent of First Frame Guider."
            )
        if condition is None:
            condition = torch.zeros_like(noise[:1, :1]).expand(-1, 5, -1, -1, -1)

        def per_frame(key, default):
            value = kwargs.get(key, default)
            return comfy.conds.CONDRegular(torch.as_tensor(value, dtype=torch.long, device=device).expand(1, count))

        return values | {
            "c_concat": comfy.conds.CONDNoiseShape(condition.to(device)),
            "mode": comfy.conds.CONDConstant(mode),
            "motion_score": per_frame("kv_motion_score", DEFAULT_MOTION_SCORE),
            "noise_augmentation": per_frame("kv_noise_augmentation", DEFAULT_NOISE_AUGMENTATION),
        }


class InterpolationModel(VideoModel):
    """Predicts the three frames in every gap, latents `[1, 12, G, h, w]`."""

    def extra_conds(self, **kwargs):
        noise, device = kwargs["noise"], kwargs["device"]
        neighbours = kwargs.get("kv_neighbours")
        conditional = neighbours is not None
        if not conditional:
            neighbours = torch.zeros_like(noise[:1, :8])

        def number(value):
            value = torch.as_tensor(value, dtype=torch.long, device=device)
            return comfy.conds.CONDRegular(value if value.ndim else value[None])

        return super().extra_conds(**kwargs) | {
            "c_concat": comfy.conds.CONDNoiseShape(neighbours.to(device)),
            "temporal_mask": CONDTuple((conditional,)),
            "skip_frames": number(kwargs.get("kv_skip_frames", 1)),
            "perturbation_time": number(0),
        }


_PARTS = {
    "keyframe_unet": (KeyframeModel, KeyframeConfig, HostKeyframeUNet, comfy.model_base.ModelType.EPS, Epsilon),
    "interpolation_unet": (
        InterpolationModel,
        InterpolationConfig,
        HostInterpolationUNet,
        comfy.model_base.ModelType.V_PREDICTION,
        Velocity,
    ),
}


def load_unet(path, weight_dtype="default", disable_dynamic=False):
    """Loads either U-Net, told apart by its tensors, as a ModelPatcher.

    `weight_dtype`: a name from storage.WEIGHT_DTYPES; "default" leaves it to the host. Raises ValueError.
    """
    checkpoint = files.open_checkpoint(path, expect=tuple(_PARTS))
    state_dict = checkpoint.state_dict()
    model_class, config_class, unet, prediction, sampling = _PARTS[checkpoint.part]
    load_device = comfy.model_management.get_torch_device()
    config = config_class(checkpoint.config)
    stored = storage.WEIGHT_DTYPES[weight_dtype] or comfy.model_management.unet_dtype(
        load_device,
        model_params=comfy.utils.calculate_parameters(state_dict),
        supported_dtypes=config.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(state_dict),
    )
    compute = comfy.model_management.unet_manual_cast(stored, load_device, config.supported_inference_dtypes)
    config.set_inference_dtype(storage.layer_dtype(stored, compute), compute)
    config.custom_operations = operations(stored, compute, load_device)
    channels = checkpoint.config["model_channels"]
    model = model_class(config, prediction, unet, sampling, checkpoint.null_embedding, channels)
    storage.load(model.diffusion_model, state_dict, stored)
    patcher = make_patcher(model, load_device, comfy.model_management.unet_offload_device(), disable_dynamic)
    patcher.cached_patcher_init = (load_unet, (path, weight_dtype))
    return patcher


def make_patcher(module, load_device, offload_device, disable_dynamic=False):
    """Puts a module with its weights under the host's memory management."""
    # Which class CoreModelPatcher is depends on the host's flags, so it is read at the time of the call.
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    if not comfy.model_management.is_device_cpu(offload_device):
        module.to(offload_device)
    return patcher_class(module, load_device=load_device, offload_device=offload_device)
