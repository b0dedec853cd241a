"""The two U-Nets as native MODELs of the host, so that its LoRA, caching, previews and offload work on them.

What a branch of the guidance is given beside text and mask is described in prompts.py.
"""

import itertools
import logging

import comfy.conds
import comfy.context_windows
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...kv_core.files.detection import SIZES_TENSOR
from ...kv_core.networks import memory
from ...kv_core.networks.attention import Text
from ...kv_core.networks.interpolation_unet import InterpolationUNet
from ...kv_core.networks.keyframe_unet import KeyframeUNet
from ...kv_core.pictures import latent_rgb
from ...kv_core.sampling import diffusion, frames
from . import files, prompts, weights
from .patchers import make_patcher

# Conditions with a number for every frame or gap, where they are `[1, F]`.
BY_FRAME = ("motion_score", "noise_augmentation", "skip_frames")


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
        return KeyframeUNet.forward(self, x, timesteps, options=transformer_options, **conditions)


class HostInterpolationUNet(HostUNet, InterpolationUNet):
    def _forward(self, x, timesteps, context, control, transformer_options, skip_frames, **conditions):
        predicted, neighbours = x.split([12, 8], dim=1)  # the host puts conditions behind the sample
        x, conditions["skip_frames"] = frames.between(neighbours, predicted), skip_frames.flatten()
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


class VideoModel(comfy.model_base.BaseModel):
    """What both models share: text that is never padded by repetition, the null embedding, the memory estimate.

    A model names the classes of its `config`, `unet` and `sampling`, its `prediction`, and its `branch` of a prompt.
    """

    split_branches = False  # whether, in this run, all branches of the guidance at once are too much for the memory

    def __init__(self, config, null_embedding):
        super().__init__(config, self.prediction, device="meta", unet_model=self.unet)
        self.device = None  # where its weights are, which the patcher says
        self.model_sampling = self.sampling()
        self.null_embedding = null_embedding
        self.model_channels = config.unet_config["model_channels"]
        # Of the network as it is made: in a run, a patch may stand in the place of a layer.
        self.layers = {name: type(module) for name, module in self.diffusion_model.named_modules()}
        rgb, bias = latent_rgb.factors(self.model_channels)
        self.latent_format.latent_rgb_factors, self.latent_format.latent_rgb_factors_bias = rgb, bias

    def extra_conds(self, **kwargs):
        prompt, noise, device = prompts.prompt_of(kwargs), kwargs["noise"], kwargs["device"]
        if prompt is None:
            raise ValueError("This U-Net needs text from Encode Text (Flan-UL2), but got another encoder's.")
        self.check_latent(noise.shape)
        self.split_branches = False  # a run begins
        texts = prompts.texts_of(prompt, kwargs["cross_attn"], kwargs["attention_mask"], noise.shape[2])
        return {"texts": CONDTuple((texts,)), **self.branch_conds(prompt.branch or self.branch(), noise, device)}

    def check_latent(self, shape):
        channels, step = self.latent_format.latent_channels, 2 ** (len(self.diffusion_model.down_samples) - 1)
        if len(shape) != 5 or shape[1] != channels or shape[3] % step or shape[4] % step:
            raise ValueError(
                f"This U-Net samples latents [1, {channels}, frames, h, w] with h and w multiples of {step}, but got "
                f"{list(shape)}: connect the latent of its guider, or an empty one of such a size."
            )

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **conditions):  # noqa: B006
        """Predicts for all branches at once or, where memory runs out, one by one for the rest of the run."""
        branches = len(conditions["texts"])
        if not self.split_branches:
            try:
                return self._predict(x, t, c_concat, transformer_options, conditions)
            except Exception as error:  # only the host knows which ones mean that memory ran out
                comfy.model_management.raise_non_oom(error)
                if branches == 1:
                    raise
            # Outside the handler: the exception holds on to what was computed so far.
            self.split_branches = True
            comfy.model_management.soft_empty_cache()
            logging.warning(f"Out of memory with {branches} branches of guidance at once: continuing one at a time.")
        named = {key: transformer_options[key] for key in ("cond_or_uncond", "uuids") if key in transformer_options}
        each = [_one_by_one(value, branches) for value in (x, t, c_concat, named, conditions)]
        return torch.cat([
            self._predict(x, t, c_concat, transformer_options | named, conditions)
            for x, t, c_concat, named, conditions in zip(*each)
        ])  # fmt: skip

    def _predict(self, x, t, c_concat, transformer_options, conditions):
        texts, dtype = conditions["texts"], self.get_dtype_inference()
        rows = max(map(len, texts))  # a row for each frame where the text of some branch changes over them
        texts = [text for branch in texts for text in (branch if len(branch) == rows else branch * rows)]
        conditions = {**conditions, "texts": Text.joined([text.to(x.device, dtype) for text in texts])}
        return super()._apply_model(x, t, c_concat, None, None, transformer_options, **conditions)

    def state_dict_for_saving(self, unet_state_dict, *others, **more):
        """With what its file needs besides, so that what the host saves loads again."""
        if any(isinstance(weight, weights.QuantizedTensor) for weight in self.diffusion_model.parameters()):
            # The host would leave out their scales.
            raise ValueError("Weights in int8 cannot be saved: load this U-Net with another weight dtype and save it.")
        sizes = self.model_config.unet_config
        unet_state_dict = {**unet_state_dict, SIZES_TENSOR: torch.empty(0, sizes["head_dim"], sizes["groups"])}
        if self.null_embedding is not None:
            unet_state_dict["null_embedding"] = self.null_embedding
        return super().state_dict_for_saving(unet_state_dict, *others, **more)

    def resize_cond_for_context_window(self, cond_key, cond_value, window, x_in, device, retain_index_list=[]):  # noqa: B006
        if cond_key == "texts" and window.dim == 2:
            frames = torch.arange(x_in.shape[2])
            shown = window.get_tensor(frames, dim=0, retain_index_list=retain_index_list).tolist()
            return cond_value._copy_with(
                tuple(texts if len(texts) == 1 else tuple(texts[i] for i in shown) for texts in cond_value.cond)
            )
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

    config, unet, sampling, branch = KeyframeConfig, HostKeyframeUNet, Epsilon, prompts.KeyframeBranch
    prediction = comfy.model_base.ModelType.EPS

    def branch_conds(self, branch, noise, device):
        count = noise.shape[2]
        mode, condition = branch.mode or ("image" if count == 1 else "video"), branch.condition
        if mode == "image" and count != 1:
            raise ValueError(
                f"A first frame is one frame, but the latent has {count}: connect the latent of First Frame Guider."
            )
        if condition is None:
            condition = torch.zeros_like(noise[:1, :1]).expand(-1, 5, -1, -1, -1)

        def per_frame(value):
            return comfy.conds.CONDRegular(torch.as_tensor(value, dtype=torch.long, device=device).expand(1, count))

        return {
            "c_concat": comfy.conds.CONDNoiseShape(condition.to(device)),
            "mode": comfy.conds.CONDConstant(mode),
            "motion_score": per_frame(branch.motion_score),
            "noise_augmentation": per_frame(branch.noise_augmentation),
        }


class InterpolationModel(VideoModel):
    """Predicts the three frames in every gap, latents `[1, 12, G, h, w]`."""

    config, unet, sampling, branch = InterpolationConfig, HostInterpolationUNet, Velocity, prompts.InterpolationBranch
    prediction = comfy.model_base.ModelType.V_PREDICTION

    def branch_conds(self, branch, noise, device):
        conditional = branch.neighbours is not None
        neighbours = branch.neighbours if conditional else torch.zeros_like(noise[:1, :8])

        def number(value):
            return comfy.conds.CONDRegular(torch.atleast_1d(torch.as_tensor(value, dtype=torch.long, device=device)))

        per_gap = isinstance(branch.skip_frames, tuple)
        return {
            "c_concat": comfy.conds.CONDNoiseShape(neighbours.to(device)),
            "temporal_mask": CONDTuple((conditional,)),
            "skip_frames": number([branch.skip_frames] if per_gap else branch.skip_frames),
            "perturbation_time": number(0),
        }


MODELS = {"keyframe_unet": KeyframeModel, "interpolation_unet": InterpolationModel}


def load_unet(path, weight_dtype="default", disable_dynamic=False):
    """Loads either U-Net, told apart by its tensors, as a ModelPatcher.

    `weight_dtype`: a name from weights.WEIGHT_DTYPES; "default" leaves it to the host. Raises ValueError.
    """
    checkpoint = files.open_checkpoint(path, expect=tuple(MODELS))
    state_dict = checkpoint.tensors
    model_class = MODELS[checkpoint.part]
    load_device = comfy.model_management.get_torch_device()
    config = model_class.config(checkpoint.config)
    stored = weights.WEIGHT_DTYPES[weight_dtype] or comfy.model_management.unet_dtype(
        load_device,
        model_params=comfy.utils.calculate_parameters(state_dict),
        supported_dtypes=config.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(state_dict),
    )
    compute = comfy.model_management.unet_manual_cast(stored, load_device, config.supported_inference_dtypes)
    config.set_inference_dtype(weights.layer_dtype(stored, compute), compute)
    config.custom_operations = weights.operations(stored, compute, load_device)
    model = model_class(config, checkpoint.null_embedding)
    weights.load(model.diffusion_model, state_dict, stored)
    patcher = make_patcher(model, load_device, comfy.model_management.unet_offload_device(), disable_dynamic)
    patcher.cached_patcher_init = (load_unet, (path, weight_dtype))
    return patcher
