"""What the host adds to sampling works on the pack's models: weight types, patches, previews, caches, cancelling."""

import pytest
import torch

from kv_core.sampling.diffusion import SeededNoise


def test_weights_stored_smaller_compute_the_same_but_for_rounding(stages, parts, keyframe_model):
    full = stages.keyframes(keyframe_model, steps=5)
    for dtype, tolerance in (("fp16", 0.05), ("bf16", 0.4)):
        out = stages.keyframes(parts.keyframe_model(dtype), steps=5)
        assert 0 < (out - full).abs().max() < tolerance


def test_fp8_weights_run(stages, parts):
    assert stages.keyframes(parts.keyframe_model("fp8_e4m3fn"), steps=2).isfinite().all()
    assert stages.interpolation(parts.interpolation_model("fp8_e5m2"), steps=2).isfinite().all()


def test_no_call_is_made_for_branches_without_weight(stages, keyframe_model, interpolation_model, calls):
    stages.keyframes(keyframe_model, steps=1, text_guidance=3.0, image_guidance=3.0)
    stages.keyframes(keyframe_model, steps=1, text_guidance=3.0, image_guidance=1.0)
    stages.interpolation(interpolation_model, steps=1, guidance=0.0)
    assert [shape[0] for shape in calls] == [2, 2, 1]


def test_the_null_embedding_as_negative_prompt_changes_nothing(stages, adapters, keyframe_model):
    null = adapters.prompts.null_conditioning(keyframe_model.model.null_embedding, stages.text)
    expected = stages.keyframes(keyframe_model, steps=3)
    assert torch.equal(stages.keyframes(keyframe_model, steps=3, negative=null), expected)


def test_a_negative_prompt_keeps_its_own_length(stages, keyframe_model, calls, monkeypatch):
    negative = stages.encoded(torch.ones(1, 3, 32), torch.ones(1, 3, dtype=torch.long))
    out = stages.keyframes(keyframe_model, steps=3, negative=negative)
    assert not torch.allclose(out, stages.keyframes(keyframe_model, steps=3), atol=1e-3)
    assert [shape[0] for shape in calls[:3]] == [3, 3, 3], "texts of any length go together"
    calls.clear()
    monkeypatch.setattr(keyframe_model.model, "memory_required", lambda *shapes, **more: 1e18)  # one branch a call
    torch.testing.assert_close(stages.keyframes(keyframe_model, steps=3, negative=negative), out, atol=1e-5, rtol=0)
    assert [shape[0] for shape in calls] == [1] * 9


def test_prompts_joined_by_the_host_are_read_to_their_ends(stages, keyframe_model, calls):
    """ComfyUI appends the tokens of the second prompt, and leaves the mask as short as the first one's was."""
    from nodes import ConditioningConcat

    (first, values), second = stages.text[0], torch.cat([torch.randn(1, 2, 32), torch.zeros(1, 1, 32)], dim=1)
    joined = ConditioningConcat().concat(stages.text, [[second, {}]])[0]
    mask = torch.cat([values["attention_mask"], torch.tensor([[1, 1, 0]])], dim=1)
    whole = [[torch.cat([first, second], dim=1), {**values, "attention_mask": mask}]]
    out = stages.keyframes(keyframe_model, steps=2, positive=joined)
    assert torch.equal(out, stages.keyframes(keyframe_model, steps=2, positive=whole))
    assert not torch.allclose(out, stages.keyframes(keyframe_model, steps=2), atol=1e-3)


def test_prompts_for_a_part_of_the_run(stages, keyframe_model):
    """One behind the other they are both read; where neither counts there is a sentence and no zeros."""
    from nodes import ConditioningSetTimestepRange

    def ranged(text, *part):
        return ConditioningSetTimestepRange().set_range(text, *part)[0]

    first, other = stages.text, stages.encoded(torch.randn(1, 3, 32), torch.ones(1, 3))
    whole = stages.keyframes(keyframe_model, steps=4)
    assert torch.equal(stages.keyframes(keyframe_model, steps=4, positive=ranged(first, 0.0, 1.0)), whole)
    both = ranged(first, 0.0, 0.4) + ranged(other, 0.4, 1.0)
    assert not torch.allclose(stages.keyframes(keyframe_model, steps=4, positive=both), whole, atol=1e-3)
    with pytest.raises(ValueError, match="Sample Keyframes has no active positive prompt at step 2 of 4: make the"):
        stages.keyframes(keyframe_model, steps=4, positive=ranged(first, 0.0, 0.4))
    with pytest.raises(ValueError, match="no active negative prompt at step 1 of 4"):
        stages.keyframes(keyframe_model, steps=4, negative=ranged(other, 0.4, 1.0))


@pytest.fixture
def little_memory(adapters, monkeypatch):
    """U-Nets that run out of memory with more than one branch at once; their calls' numbers of branches."""
    calls = []
    for unet in (adapters.unets.HostKeyframeUNet, adapters.unets.HostInterpolationUNet):

        def forward(self, x, *arguments, forward=unet._forward, **conditions):
            calls.append(len(x))
            if len(x) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(self, x, *arguments, **conditions)

        monkeypatch.setattr(unet, "_forward", forward)
    return calls


@pytest.mark.parametrize("stage, branches", [("keyframes", 3), ("interpolation", 2)])
def test_branches_go_one_by_one_when_memory_runs_out(stages, parts, request, caplog, stage, branches):
    model = {"keyframes": parts.keyframe_model, "interpolation": parts.interpolation_model}[stage]()
    expected = getattr(stages, stage)(model, steps=3)
    calls = request.getfixturevalue("little_memory")
    torch.testing.assert_close(getattr(stages, stage)(model, steps=3), expected, atol=2e-5, rtol=0)
    assert calls == [branches] + [1] * 3 * branches, "tried together once a run"
    assert caplog.text.count(f"Out of memory with {branches} branches of guidance at once") == 1


def test_one_branch_that_does_not_fit_is_an_error(stages, keyframe_model, adapters, monkeypatch):
    def never(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(adapters.unets.HostKeyframeUNet, "_forward", never)
    with pytest.raises(torch.OutOfMemoryError):
        stages.keyframes(keyframe_model, steps=1)


def test_a_seed_decides_everything_and_leaves_the_global_state_alone(stages, keyframe_model):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (stages.keyframes(keyframe_model, steps=3, noise=SeededNoise(s)) for s in (7, 7, 8))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=0.1)
    assert torch.equal(state, torch.get_rng_state())


def test_inputs_are_left_as_they_are(stages, keyframe_model, interpolation_model):
    before = {name: tensor.clone() for name, tensor in stages.tensors.items()}
    options = stages.text[0][1].copy()
    stages.keyframes(keyframe_model, steps=2)
    stages.interpolation(interpolation_model, steps=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in stages.tensors.items())
    assert stages.text[0][1].keys() == options.keys()


def test_progress_and_previews(stages, keyframe_model, interpolation_model, monkeypatch):
    import comfy.cli_args
    import comfy.utils

    reports = []
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **_: reports.append((value, total, preview))
    )
    for stage, model in (
        (stages.first_frame, keyframe_model),
        (stages.keyframes, keyframe_model),
        (stages.interpolation, interpolation_model),
    ):
        reports.clear()
        stage(model, steps=3)
        assert (reports[0][:2], reports[-1][:2]) == ((1, 3), (3, 3))
        _, picture, _ = reports[-1][2]
        assert picture.size in ((8, 8), (16, 16)) and picture.getextrema()[0][0] < picture.getextrema()[0][1]


def test_cancel(stages, keyframe_model):
    import comfy.model_management as management

    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        stages.keyframes(keyframe_model)


def test_easycache(stages, keyframe_model, calls):
    from comfy_extras.nodes_easycache import EasyCacheNode

    cached = EasyCacheNode.execute(keyframe_model, 0.5, 0.1, 0.95, False)[0]
    stages.keyframes(cached, steps=10)
    assert len(calls) < 10


def test_context_windows(stages, keyframe_model, calls):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    windows = (4, 2, "standard_static", 1, False, "pyramid", 2, False)
    windowed = ContextWindowsManualNode.execute(keyframe_model, *windows)[0]
    out = stages.keyframes(windowed, steps=2, frames=8, noise=SeededNoise(0))
    assert out.shape[2] == 8 and all(shape[2] <= 5 for shape in calls)


def test_lora(stages, keyframe_model):
    import comfy.sd

    key = "diffusion_model.down_samples.1.self_attention_block.attention.to_query"
    shape = keyframe_model.model.get_parameter(f"{key}.weight").shape
    lora = {f"{key}.lora_A.weight": torch.ones(2, shape[1]), f"{key}.lora_B.weight": torch.ones(shape[0], 2)}
    patched, _ = comfy.sd.load_lora_for_models(keyframe_model, None, lora, 1.0, 0.0)
    expected = stages.keyframes(keyframe_model, steps=2)
    assert not torch.allclose(stages.keyframes(patched, steps=2), expected, atol=1e-3)
    assert torch.equal(stages.keyframes(keyframe_model, steps=2), expected), "the model itself stays unpatched"


def test_hooks_see_the_final_combination(stages, keyframe_model):
    seen = []

    def remember(args):
        seen.append(args["denoised"])
        return args["denoised"]

    patched = keyframe_model.clone()
    patched.set_model_sampler_post_cfg_function(remember)
    out = stages.keyframes(patched, steps=2)
    # The last step of this schedule returns its clean prediction, clamped.
    assert len(seen) == 2 and torch.allclose(out, seen[-1].clamp(-1, 1), atol=1e-6)


def test_a_function_in_the_place_of_guidance(stages, keyframe_model, calls):
    """It sees two predictions and one scale, whose plain combination is the guidance of three branches."""
    from comfy_extras.nodes_model_advanced import RescaleCFG

    def plain(args):
        assert args["cond_scale"] == 5.0
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

    patched = keyframe_model.clone()
    patched.set_model_sampler_cfg_function(plain)
    for image_guidance in (3.0, 1.0, 5.0):  # at 1 and at 5 one branch has no weight, but is part of both predictions
        settings = {"steps": 3, "text_guidance": 5.0, "image_guidance": image_guidance}
        expected = stages.keyframes(keyframe_model, **settings)
        calls.clear()
        torch.testing.assert_close(stages.keyframes(patched, **settings), expected, atol=1e-4, rtol=0)
        assert [shape[0] for shape in calls] == [3, 3, 3]
        rescaled = RescaleCFG().patch(keyframe_model, 0.7)[0]
        assert not torch.allclose(stages.keyframes(rescaled, **settings), expected, atol=1e-2)


def test_functions_around_guidance_are_told_what_they_need(stages, keyframe_model, calls):
    """Those behind guidance can make it again from two predictions; that in its place knows the prompts as well."""

    def again(args):
        conditional, unconditional = args["cond_denoised"], args["uncond_denoised"]
        guided = unconditional + args["cond_scale"] * (conditional - unconditional)
        torch.testing.assert_close(guided, args["denoised"], atol=1e-4, rtol=0)
        seen.append(args["cond"] is not None and args["uncond"] is not None)
        return args["denoised"]

    def plain(args):
        seen.append(bool(args["input_cond"] and args["input_uncond"]))
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

    seen, settings = [], {"steps": 2, "text_guidance": 5.0, "image_guidance": 5.0}
    expected = stages.keyframes(keyframe_model, **settings)
    behind, instead = keyframe_model.clone(), keyframe_model.clone()
    behind.set_model_sampler_post_cfg_function(again)
    instead.set_model_sampler_cfg_function(plain)
    for patched in (behind, instead):
        torch.testing.assert_close(stages.keyframes(patched, **settings), expected, atol=1e-4, rtol=0)
    assert seen == [True] * 4
    assert [shape[0] for shape in calls] == [2, 2, 3, 3, 3, 3], "a branch without weight is part of what they get"


def test_a_function_in_the_place_of_the_models_calls(stages, keyframe_model):
    import comfy.samplers

    def twice(args):
        names = ("model", "conds", "input", "sigma", "model_options")
        return [2 * out for out in comfy.samplers.calc_cond_batch(*(args[name] for name in names))]

    patched = keyframe_model.clone()
    patched.set_model_sampler_calc_cond_batch_function(twice)
    expected = stages.keyframes(keyframe_model, steps=2)
    assert not torch.allclose(stages.keyframes(patched, steps=2), expected, atol=1e-2)


def test_stock_samplers_of_the_host(stages, keyframe_model, interpolation_model):
    import comfy.sample

    for model, shape in ((keyframe_model, (1, 4, 1, 8, 8)), (interpolation_model, (1, 12, 3, 8, 8))):
        latent = torch.zeros(shape)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for sampler in ("euler", "dpmpp_2m", "ddpm", "uni_pc"):
            with torch.inference_mode():
                out = comfy.sample.sample(
                    model, noise, 4, 6.0, sampler, "normal", stages.text, stages.text, latent, seed=0
                )
            assert out.isfinite().all(), sampler


def test_not_a_number_is_an_error(stages, parts):
    model = parts.keyframe_model()
    model.model.diffusion_model.out_layer[2].bias[0] = float("nan")
    with pytest.raises(ValueError, match="Sample Keyframes ended in NaN.*bf16 or fp32"):
        stages.keyframes(model, steps=1)


def test_wrong_models_and_texts_are_refused(stages, keyframe_model, interpolation_model):
    with pytest.raises(ValueError, match="Sample Keyframes needs the keyframe U-Net.*got the interpolation U-Net"):
        stages.keyframes(interpolation_model)
    with pytest.raises(ValueError, match="Sample First Frame needs the keyframe U-Net"):
        stages.first_frame(interpolation_model)
    with pytest.raises(ValueError, match="Interpolate Frames needs the interpolation U-Net.*got the keyframe U-Net"):
        stages.interpolation(keyframe_model)
    with pytest.raises(ValueError, match="text_guidance is nan, expected a number from 0 to 30"):
        stages.keyframes(keyframe_model, text_guidance=float("nan"))
    narrow = stages.encoded(torch.zeros(1, 4, 16), torch.ones(1, 4))
    with pytest.raises(ValueError, match="negative of width 32, but got 16"):
        stages.keyframes(keyframe_model, negative=narrow)
    fitting = [[torch.zeros(1, 4, 32), {"attention_mask": torch.ones(1, 4)}]]
    with pytest.raises(ValueError, match=r"negative from Encode Text \(Flan-UL2\), but got another encoder's"):
        stages.keyframes(keyframe_model, negative=fitting)


def test_a_foreign_model_is_refused(stages):
    class Stranger:
        model = torch.nn.Linear(1, 1)

    with pytest.raises(ValueError, match=r"got another model \(Linear\)"):
        stages.keyframes(Stranger())
