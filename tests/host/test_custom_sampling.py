"""The stages taken apart: by way of the host's custom sampler they give what the stages give, with any sampler."""

import pytest
import torch

from kv_core.sampling.settings import Keyframes
from tests.support.families import quick_cases
from tests.support.golden_parts import GoldenNoise, frames_first
from tests.support.tiny_parts import KEYFRAMES, sample, scene, sigmas
from training import world

SEED = KEYFRAMES["seed"]
CIRCLE = scene("red", "circle", "right", (16, 30))
PROMPT = "a red circle moving right on a black background"
SAMPLERS = ("euler", "heun", "dpmpp_2m", "dpmpp_3m_sde", "uni_pc", "lcm", "euler_ancestral_cfg_pp")


@pytest.fixture(scope="module")
def published(tiny):
    return tiny.node("DDPM")


def keyframe_guider(tiny, **changes):
    given = {"model": tiny.unet, "positive": tiny.text(PROMPT), "first_frame": tiny.frame(CIRCLE)}
    return tiny.nodes("KeyframeGuider", **KEYFRAMES | given | changes)


def test_a_first_frame_is_the_stage_s_own(tiny, published):
    given = {"model": tiny.unet, "positive": tiny.text(PROMPT), "width": 128, "height": 128, "guidance": 5.0}
    expected = tiny.node("FirstFrame", seed=SEED, steps=8, **given)
    found = sample(*tiny.nodes("FirstFrameGuider", **given), sigmas(tiny), published)
    assert torch.equal(tiny.node("FromLatent", latent=found, kind="frame")["samples"], expected["samples"])


def test_keyframes_are_the_stage_s_own(tiny, published):
    expected = tiny.keyframes(CIRCLE, PROMPT, steps=8)
    found = sample(*keyframe_guider(tiny), sigmas(tiny), published)
    assert torch.equal(tiny.node("FromLatent", latent=found, kind="keyframes")["samples"], expected["samples"])
    stage = tiny.keyframes(CIRCLE, PROMPT, steps=1, sampler=published, sigmas=sigmas(tiny))
    assert torch.equal(stage["samples"], expected["samples"]), "sigmas decide, not steps"


@pytest.mark.parametrize("kind", ["keyframes", "video"])
def test_gaps_are_the_stage_s_own(tiny, published, kind):
    frames = tiny.latent(kind, tiny.encode(CIRCLE, [0.0, 2.0, 4.0]), **({"frame_rate": 8.2} if kind == "video" else {}))
    given = {
        "model": tiny.interpolation_unet,
        "positive": tiny.text(PROMPT),
        "samples": frames,
        "skip_frames": "auto",
        "guidance": 0.5,
    }
    expected = tiny.node("Interpolate", steps=4, seed=SEED, **given)
    trailing = sigmas(tiny, "trailing", 4, model=tiny.interpolation_unet)
    gaps = sample(*tiny.nodes("InterpolationGuider", **given), trailing, published)
    found = tiny.node("FillGaps", samples=frames, gaps=gaps)
    assert torch.equal(found["samples"], expected["samples"]) and found["frame_rate"] == expected["frame_rate"]
    with pytest.raises(ValueError, match=r"needs the sampled gaps \[1, 12, 1, 8, 8\].*but got \[1, 12, 2, 8, 8\]"):
        tiny.node("FillGaps", samples=tiny.latent("keyframes", frames["samples"][:, :, :2]), gaps=gaps)


@pytest.mark.thorough
def test_the_published_numbers_come_from_the_hosts_nodes(adapters, stages, keyframe_model):
    """The goldens' own noise through the guider, its sampler and the schedule."""
    noise = GoldenNoise("keyframes", frames_first)
    case = stages.case
    settings = Keyframes(
        case["num_frames"],
        case["motion_score"],
        case["noise_augmentation"],
        stages.guidance["text"],
        stages.guidance["image"],
    )
    first_frame = stages.tensors["keyframes.first_frame"][None, :, None]
    prompts = adapters.guiders.Prompts(stages.text)
    guided = adapters.guiders.keyframes(keyframe_model, prompts, first_frame, settings, noise)
    noise.generate_noise = lambda latent: noise.initial(latent["samples"].shape)
    schedule = adapters.ddpm.schedule(keyframe_model, "leading", 50)
    out = sample(guided.guider, guided.latent, schedule, adapters.ddpm.DDPM(noise), noise)
    torch.testing.assert_close(out["samples"], frames_first(stages.tensors["keyframes.out"]), atol=1e-4, rtol=0)


def test_schedules(tiny, adapters):
    table = tiny.unet.get_model_object("model_sampling").sigmas
    expected = torch.cat([table[torch.arange(980, -1, -20)], torch.zeros(1)])
    assert torch.equal(sigmas(tiny, steps=50), expected)
    assert torch.equal(sigmas(tiny, "trailing", 10)[:-1], table[torch.arange(999, 0, -100)])
    assert torch.equal(sigmas(tiny, steps=25, denoise=0.5), expected[25:]), "the last half of fifty"
    karras = sigmas(tiny, "karras", 25)
    assert len(karras) == 26 and karras[-1] == 0 and (karras.diff() < 0).all()
    torch.testing.assert_close(karras[[0, -2]], table[[980, 0]])
    assert len(sigmas(tiny, steps=600, denoise=0.5)) == 501, "there are no more below the middle"


@pytest.mark.parametrize("spacing", ["leading", "trailing", "karras"])
def test_a_part_of_a_schedule_has_all_its_steps(tiny, adapters, spacing):
    """Also where steps / denoise is no whole number; it begins as near to that part as the spacing can."""
    sampling = tiny.unet.get_model_object("model_sampling")
    for steps in (1, 7, 10):
        for percent in range(5, 100, 9):
            found = sigmas(tiny, spacing, steps, percent / 100)
            assert len(found) == steps + 1 and found[-1] == 0 and (found.diff() < 0).all()
            first = float(sampling.timestep(found[:1]))
            if spacing == "trailing":
                assert first == 10 * percent - 1
            if spacing == "leading":
                assert first == 10 * percent // steps * (steps - 1)


def test_a_schedule_split_in_two_goes_on_where_it_stopped(tiny, published):
    """Without noise in the steps the halves give what the whole gives."""
    from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise

    class Still:
        def step(self, index, sample):
            return torch.zeros_like(sample)

    sampler = type(published)(Still())
    guider, latent = keyframe_guider(tiny)
    whole = sigmas(tiny, steps=6)
    once = sample(guider, latent, whole, sampler)["samples"]
    half = sample(guider, latent, whole[:4], sampler)
    assert (half["samples"] - once).abs().mean() > 0.05, "it is not finished yet"
    twice = sample(guider, half, whole[3:], sampler, Noise_EmptyNoise())["samples"]
    torch.testing.assert_close(twice, once, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "wrong, shown",
    [
        (torch.tensor([1.0]), "but got 1"),
        (torch.tensor([]), "but got none"),
        (torch.tensor([0.0, 1.0, 2.0]), "but got 0, 1, 2"),
        (torch.tensor([float("nan"), 0.0]), "but got nan, 0"),
        (torch.tensor([float("inf"), 0.0]), "but got inf, 0"),
        (torch.tensor([[2.0, 1.0], [1.0, 0.0]]), "but got 2, 1, 1, 0"),
        (torch.tensor([2.0, 0.0, 0.0]), "but got 2, 0, 0"),
        (torch.tensor([4.0, 2.0]), "but got 4, 2: .*; for part of one, use SamplerCustomAdvanced"),
    ],
)
def test_sigmas_no_sampler_can_follow_are_refused(tiny, wrong, shown):
    with pytest.raises(ValueError, match=f"Sample Keyframes needs at least 2 sigmas that decrease to 0.*{shown}"):
        tiny.keyframes(CIRCLE, PROMPT, sigmas=wrong)


@pytest.mark.parametrize("timesteps", [(500, 300, 700), (700, 300, 500), (300, 300)])
def test_the_published_sampler_refuses_sigmas_that_do_not_fall(tiny, published, timesteps):
    """Through SamplerCustomAdvanced they reach it unchecked, and a step upwards has a negative variance."""
    levels = tiny.unet.get_model_object("model_sampling").sigmas[list(timesteps)]
    with pytest.raises(ValueError, match=r"DDPM \(published\) needs decreasing sigmas, but got \["):
        sample(*keyframe_guider(tiny), levels, published)


def test_a_foreign_model_has_no_published_schedule(tiny):
    class Stranger:
        def get_model_object(self, name):
            return torch.nn.Identity()

    with pytest.raises(ValueError, match="needs the noise schedule of a Kandinsky Video U-Net, but got Identity: "):
        sigmas(tiny, model=Stranger())


def test_a_replaced_noise_schedule_is_refused(tiny):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    flow = ModelSamplingSD3().patch(tiny.unet, 3.0)[0]
    with pytest.raises(ValueError, match="Sample Keyframes needs the noise schedule of .* without a node such as"):
        tiny.keyframes(CIRCLE, PROMPT, model=flow)


def test_a_guider_takes_its_own_latent_only(tiny, published):
    guider, latent = keyframe_guider(tiny)
    other = {"samples": latent["samples"][:, :, :-1]}
    with pytest.raises(ValueError, match=r"Keyframe Guider needs its own latent, \[1, 4, 12, 8, 8\], but got .* 11"):
        sample(guider, other, sigmas(tiny, steps=2), published)


LATENTS = {
    "another model's": (torch.ones(1, 16, 12, 8, 8), r"latents \[1, 4, frames, h, w\] .* but got \[1, 16, 12, 8, 8\]"),
    "a size between": (torch.ones(1, 4, 12, 9, 8), r"h and w multiples of 4, but got \[1, 4, 12, 9, 8\]: connect"),
}


@pytest.mark.parametrize("case", LATENTS)
def test_the_hosts_ksampler_says_which_latent_the_unet_takes(tiny, case):
    from nodes import KSampler

    samples, sentence = LATENTS[case]
    text = tiny.text(PROMPT)
    with pytest.raises(ValueError, match=sentence):
        KSampler().sample(tiny.unet, 0, 1, 1.0, "euler", "normal", text, text, {"samples": samples})


def test_a_first_frame_is_not_sampled_over_several_frames(tiny, published):
    guider, _ = tiny.nodes(
        "FirstFrameGuider", model=tiny.unet, positive=tiny.text(PROMPT), width=64, height=64, guidance=5.0
    )
    with pytest.raises(ValueError, match="A first frame is one frame, but the latent has 12: connect the latent of"):
        sample(guider, {"samples": torch.zeros(1, 4, 12, 8, 8)}, sigmas(tiny, steps=2), published)


def check_clip(tiny, samples):
    """The red circle throughout, where the published sampler has it to about a pixel."""
    seen = tiny.read(tiny.latent("keyframes", samples))
    assert seen.found.all()
    assert (seen.colour == CIRCLE.colour).all() and (seen.shape == CIRCLE.shape).float().mean() > 0.9
    track = world.positions(CIRCLE, torch.arange(12.0))[0]
    assert (seen.centre - track).norm(dim=1).max() < 3.5


@pytest.mark.parametrize("name", quick_cases("ddpm (published)", "euler", of=["ddpm (published)", *SAMPLERS]))
def test_samplers_of_the_host(tiny, published, name):
    from comfy.samplers import sampler_object

    sampler = published if name == "ddpm (published)" else sampler_object(name)
    out = sample(*keyframe_guider(tiny), sigmas(tiny, "karras", 20), sampler)["samples"]
    assert out.isfinite().all()
    check_clip(tiny, out)


def test_predictions_are_clamped_for_any_sampler(tiny):
    """The published thresholding; at this guidance they would leave the range."""
    from comfy.samplers import KSAMPLER

    seen = []

    def one_call(model, x, given, extra_args=None, **_):
        seen.append(model(x, given[:1], **extra_args))
        return seen[0]

    sample(*keyframe_guider(tiny, text_guidance=20.0), sigmas(tiny), KSAMPLER(one_call))
    assert seen[0].max() == 1 and seen[0].min() == -1


@pytest.mark.slow
def test_every_sampler_of_the_host(tiny):
    """Keyframes, first frame and interpolation with each; the keyframes show the clip, all numbers are finite."""
    from comfy.samplers import SAMPLER_NAMES, sampler_object

    frames = tiny.latent("keyframes", tiny.encode(CIRCLE, [0.0, 2.0, 4.0]))
    text = tiny.text(PROMPT)
    for name in SAMPLER_NAMES:
        sampler = sampler_object(name)
        check_clip(tiny, tiny.keyframes(CIRCLE, PROMPT, sampler=sampler, sigmas=sigmas(tiny, "karras", 25))["samples"])
        video = tiny.node(
            "Interpolate",
            model=tiny.interpolation_unet,
            positive=text,
            samples=frames,
            skip_frames="auto",
            guidance=0.5,
            steps=1,
            seed=SEED,
            sampler=sampler,
            sigmas=sigmas(tiny, "karras", 12),
        )
        seen = tiny.read(video)
        track = world.positions(CIRCLE, torch.arange(9.0) / 2)[0]
        assert seen.found.all() and (seen.centre - track).norm(dim=1).max() < 3.5, name
        picture = tiny.node(
            "FirstFrame",
            model=tiny.unet,
            positive=text,
            width=128,
            height=128,
            seed=SEED,
            steps=1,
            guidance=5.0,
            sampler=sampler,
            sigmas=sigmas(tiny, "karras", 25),
        )
        assert picture["samples"].isfinite().all() and picture["samples"].abs().max() < 1.2, name
