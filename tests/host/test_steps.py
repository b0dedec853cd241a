"""The study of steps and samplers: it measures what it says, goes on where it stopped, and its claims hold."""

import math
import re

import pytest
import torch

from evaluation import benchmark, steps
from evaluation.in_host import PUBLISHED, HostJudge, Setting
from tests.support.families import thorough
from tools.host import ROOT
from training import world

MODELS = ROOT / "models"


@pytest.fixture(scope="module")
def judge(pack, pack_nodes):
    return HostJudge(MODELS, pack, pack_nodes)


@pytest.fixture
def keyframes(judge):
    """The latent of one clip's keyframes at a setting as it is written."""
    texts, image = judge.pipe.encode_text("a red circle moving right"), benchmark.picture(benchmark.scene(0))

    def sample(setting, seed=0):
        with torch.inference_mode(), judge.using(steps.settings_of("keyframes", setting)):
            return judge.keyframes(texts, image, seed)

    return sample


def test_settings_are_read_as_they_are_written():
    for text in ("euler/karras/10", "published/leading/50/0.5"):
        assert str(Setting.parse(text)) == text
    assert steps.settings_of("keyframes", "heun/trailing/8") == {"keyframes": ("heun", "trailing", 8, 0.0)}
    whole = "+".join(map(str, PUBLISHED.values()))
    assert steps.settings_of("clip", whole) == PUBLISHED
    with pytest.raises(ValueError):
        steps.settings_of("clip", "euler/karras/10")


def test_the_plan_has_every_setting_once_and_can_all_be_run(pack):
    from comfy.samplers import SAMPLER_NAMES

    keys = steps.settings(steps.MEASUREMENTS)
    assert len(keys) == len(set(keys)) and f"keyframes {PUBLISHED['keyframes']}" in keys
    settings = [setting for key in keys for setting in steps.settings_of(*key.split(" ")).values()]
    assert {setting.sampler for setting in settings} <= {"published", *SAMPLER_NAMES}
    assert {setting.spacing for setting in settings} == {"leading", "trailing", "karras"}
    own = steps.settings(["keyframes"], samplers=["heun"], steps=[4, 8])
    assert "keyframes heun/karras/4" in own and "keyframes heun/karras/8" not in own
    assert steps.plan(own[:1], 2) == [(own[0], "0"), (own[0], "1")]


@pytest.mark.thorough
@torch.no_grad()
def test_the_published_settings_are_the_pipeline_s(judge):
    other = benchmark.Judge(MODELS)
    texts, image = other.pipe.encode_text("a red circle moving right"), benchmark.picture(benchmark.scene(0))
    torch.testing.assert_close(judge.keyframes(texts, image, 3), other.keyframes(texts, image, 3), atol=1e-3, rtol=0)
    latents = torch.rand(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    found, expected = (each.interpolate(texts, latents, 3) for each in (judge, other))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    drawn, wanted = (each.first_frame(texts, 3) for each in (judge, other))
    assert (benchmark.to_pixels(drawn) - benchmark.to_pixels(wanted)).abs().max() < 0.02


@pytest.mark.parametrize(
    "setting, calls",
    [
        ("published/leading/4", 4),
        ("euler/karras/4", 4),
        ("heun/karras/4", 7),  # the last step, to no noise, has one
        ("dpmpp_sde/karras/4", 7),
        ("euler/beta/4", 4),  # a schedule of the host
    ],
)
def test_calls_are_counted(judge, keyframes, setting, calls):
    keyframes(setting)
    assert judge.calls["keyframes"] == calls
    assert judge.cost("keyframes")["seconds"] > 0


def test_branches_one_by_one_are_one_call(judge, keyframes, monkeypatch):
    model = judge._unets["keyframe_unet"].model
    monkeypatch.setattr(model, "memory_required", lambda *shapes, **more: 1e18)  # the host then sends them singly
    keyframes("euler/karras/3")
    assert judge.calls["keyframes"] == 3


def test_what_a_cache_answers_is_no_call(judge, keyframes):
    whole = keyframes("published/leading/12")
    assert judge.calls["keyframes"] == 12
    some = keyframes("published/leading/12/0.9")
    assert judge.calls["keyframes"] < 10 and not torch.equal(whole, some)
    assert torch.equal(keyframes("published/leading/12"), whole), "the next run has no cache"


@pytest.mark.thorough
def test_two_samplers_of_the_host_are_others_by_another_name(keyframes):
    """So the study leaves them out."""
    for one, other in (("ddim", "euler"), ("ddpm", "euler_ancestral")):
        first = keyframes(f"{one}/karras/4")
        torch.testing.assert_close(first, keyframes(f"{other}/karras/4"), atol=1e-4, rtol=0)
        assert (first - keyframes("dpmpp_2m/karras/4")).abs().max() > 0.1


@pytest.mark.parametrize("sampler", [thorough("ddim"), thorough("euler_ancestral"), "dpmpp_sde", thorough("lcm")])
def test_a_seed_decides_and_the_global_state_stays(keyframes, sampler):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = keyframes(f"{sampler}/karras/3", seed=1)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    assert torch.equal(first, keyframes(f"{sampler}/karras/3", seed=1))
    assert (first - keyframes(f"{sampler}/karras/3", seed=2)).abs().max() > 0.05


@torch.no_grad()
def test_a_good_clip_is_told_from_a_bad_one(judge, monkeypatch):
    """The true clip, the same with noise in it, and nothing but noise, in the place of what is sampled."""
    index = 1
    drawn = world.draw(benchmark.scene(index), torch.arange(12.0))[0]
    true = judge.pipe.movq.encode(drawn).transpose(0, 1)[None]
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    judge.kept(("published keyframes", index), lambda: judge.pixels(true))
    judge.seconds["keyframes"] = judge.calls["keyframes"] = 0

    def measured(latents):
        monkeypatch.setattr(judge, "keyframes", lambda *_: latents)
        return steps.keyframes(judge, index)

    good, noisy, bad = measured(true), measured(true + 0.15 * noise), measured(noise)
    assert good["all"] and good["error"] < 0.5 and good["flicker"] == good["flicker_true"] < 0.5
    assert good["psnr"] == math.inf and "psnr_published" not in good
    assert noisy["all"] and noisy["flicker"] > 2 * good["flicker"] and 20 < noisy["psnr"] < 42
    assert not bad["all"] and bad["flicker"] > 10 and bad["psnr"] < 15
    still = measured(true[:, :, :1].expand(-1, -1, 12, -1, -1))
    assert still["shape"] and still["colour"] and not still["direction"] and not still["all"] and still["error"] > 3
    judge._kept.clear()


def test_a_picture_is_read(judge):
    with torch.inference_mode(), judge.using(steps.settings_of("first_frame", "published/leading/20")):
        good = steps.first_frame(judge, 0)
    with torch.inference_mode(), judge.using(steps.settings_of("first_frame", "published/leading/2")):
        bad = steps.first_frame(judge, 0)
    assert good["all"] and good["noise"] < 1 and good["calls"] == 20
    assert not bad["all"] and bad["calls"] == 2


@pytest.mark.thorough
def test_each_task_is_measured_with_its_own_setting(judge):
    tasks = [
        ("first_frame euler/karras/2", "0"),
        ("keyframes euler/leading/2", "1"),
        ("keyframes euler/leading/3", "0"),
    ]
    rows = list(steps.measure(judge, tasks))
    assert [row["calls"] for row in rows] == [2, 2, 3] and "noise" in rows[0] and "psnr_published" in rows[1]
    assert judge.settings == PUBLISHED


ROWS = [
    {"all": value, "shape": True, "flicker": flicker, "calls": 10.0, "psnr": 30.0}
    for value, flicker in ((True, 0.4), (True, 0.6), (True, 0.5), (False, 0.5))
]


def test_summaries_say_their_error():
    found = steps.summary(ROWS)
    assert found["all"] == (0.75, pytest.approx(math.sqrt(4 / 6 * 2 / 6 / 6)))
    assert found["flicker"] == pytest.approx((0.5, math.sqrt(0.02 / 3) / 2))
    assert 0 < found["shape"][1] < 0.2, "that all were right does not make it certain"


def test_table():
    results = {"keyframes euler/karras/10": dict(enumerate(ROWS)), "clip a+b+c": {"0": ROWS[0]}}
    heading, _, row = steps.table(results, "keyframes").splitlines()
    assert heading == (
        "| sampler / spacing / steps | clips | U-Net calls | shape | all | flicker of 255 | PSNR to the true clip, dB |"
    )
    assert row == "| euler/karras/10 | 4 | 10.0 | 100 % | 75 ± 19 % | 0.50 ± 0.04 | 30.0 ± 0.0 |"


def test_chart(tmp_path):
    """A line for every sampler at the common spacing and one for the published spacing; caches have none."""
    pytest.importorskip("matplotlib")
    results = {
        f"keyframes {name}/{spacing}/{count}{cache}": {"0": {"all": True, "flicker": 1.0, "psnr": 20.0, "calls": count}}
        for name, spacing, cache in (
            ("published", "leading", ""),
            ("euler", "karras", ""),
            ("euler", "trailing", ""),
            ("lcm", "karras", "/0.5"),
        )
        for count in (10, 5)
    }
    figure = steps.draw(results)
    matching = figure.axes[0]
    assert [line.get_label() for line in matching.lines] == ["published, leading", "euler"]
    assert matching.lines[1].get_xydata().tolist() == [[5, 100], [10, 100]], "in the order of the calls, in per cent"
    figure.savefig(tmp_path / "steps.png")


CLAIM = re.compile(r"(\d+) steps of the sampler (\w+) with (\w+) sigmas match .* as well as (\d+) steps of the default")
CLAIM_BETWEEN = re.compile(
    r"(\d+) steps of the sampler (\w+) place .* as well as (\d+) steps of the default, .* (\d) dB"
)


@pytest.fixture
def claimed(pack_nodes):
    """What a node's tooltip says of steps, as the groups of a pattern."""

    def find(node, pattern):
        inputs = pack_nodes[f"KandinskyVideo{node}"].GET_SCHEMA().inputs
        return pattern.search(next(each.tooltip for each in inputs if each.id == "steps")).groups()

    return find


@pytest.fixture
def measured(judge):
    """Summaries of a stage over twelve clips: of the settings as they are written, and of the published one."""

    def measure(stage, *settings):
        keys = [f"{stage} {text}" for text in (*settings, str(PUBLISHED[stage]))]
        return [steps.summary(list(steps.measure(judge, steps.plan([key], 12)))) for key in keys]

    return measure


def as_good(found, published, noise):
    """In what is shown to one clip of twelve, in flicker or noise to a tenth of 255, where it is known to 1 dB."""
    return (
        found["all"][0] >= published["all"][0] - 1 / 12
        and found[noise][0] <= published[noise][0] + 0.1
        and ("psnr" not in found or found["psnr"][0] >= published["psnr"][0] - 1)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, node, noise",
    [
        ("first_frame", "FirstFrame", "noise"),
        ("keyframes", "Keyframes", "flicker"),
    ],
)
def test_the_tooltip_is_right_about_fewer_steps(claimed, measured, stage, node, noise):
    count, sampler, spacing, published = claimed(node, CLAIM)
    assert int(published) == PUBLISHED[stage].steps and int(count) < int(published) / 2
    fewer, too_few, wanted = measured(stage, f"{sampler}/{spacing}/{count}", "dpmpp_2m/karras/5")
    assert wanted["all"][0] >= 11 / 12
    assert as_good(fewer, wanted, noise) and not as_good(too_few, wanted, noise)


@pytest.mark.slow
def test_the_tooltip_is_right_about_fewer_steps_between(claimed, measured):
    count, sampler, published, loss = claimed("Interpolate", CLAIM_BETWEEN)
    assert int(published) == PUBLISHED["interpolation"].steps and int(count) < int(published)
    fewer, too_few, wanted = measured("interpolation", f"{sampler}/trailing/{count}", f"{sampler}/trailing/2")
    assert wanted["psnr"][0] > wanted["psnr_faded"][0] + 3

    def holds(found):
        return found["error"][0] < wanted["error"][0] + 0.1 and found["psnr"][0] > wanted["psnr"][0] - int(loss)

    assert holds(fewer) and not holds(too_few)
