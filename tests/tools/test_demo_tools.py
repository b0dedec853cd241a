"""tools/demo.py: wrong options are refused before anything is set up, and every option reaches the workflow."""

import subprocess
import sys

import av
import numpy
import pytest
from PIL import Image

from tools import demo, host
from tools.comfy import graphs, render

KEPT = {"prompt": None, "negative": None, "motion": None, "seed": None, "steps": 10, "width": 192, "height": 128}
RATES = {"low": 0, "medium": 1, "high": 2}  # and how often frames are interpolated


@pytest.fixture(params=RATES)
def graph(request):
    return graphs.load(request.param)


def edited(graph, picture=None, **settings):
    return graphs.edit(graph, KEPT | settings, picture)


def values(graph, name, *class_types):
    return [node["inputs"].get(name) for node in graphs.nodes(graph, *class_types)]


def source(graph, node, name):
    return graph[node["inputs"][name][0]]


def sampler_texts(graph, name):
    return [source(graph, node, name)["inputs"]["text"] for node in graphs.nodes(graph, *graphs.SAMPLERS)]


# Wrong options


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--image", "no-such-file.jpg"], "--image: there is no file no-such-file.jpg."),
        (["--width", "100"], "--width: 100 is not a multiple of 64 between 64 and 2048."),
        (["--height", "0"], "--height: 0 is not a multiple of 64 between 64 and 2048."),
        (["--height", "4096"], "--height: 4096 is not a multiple of 64 between 64 and 2048."),
        (["--seed", "-1"], "--seed: -1 is not between 0 and 18446744073709551615."),
        (["--steps", "0"], "--steps: 0 is not between 1 and 1000."),
        (["--out", "clip.avi"], "--out: clip.avi does not end in .mp4, the only kind that the demo writes."),
        (["--out", "no-such-folder/clip.mp4"], "--out: there is no folder no-such-folder."),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
    ],
)
def test_a_wrong_option_is_one_sentence(arguments, sentence):
    # In a process of its own, isolated from installed packages: nothing may be needed or set up to say this.
    command = [sys.executable, "-I", "-S", str(host.ROOT / "tools/demo.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence + "\n")


def test_right_options_pass(tmp_path):
    options = ["--width", "64", "--height", "2048", "--seed", "0", "--out", str(tmp_path / "clip.MP4")]
    assert demo.find_fault(demo.arguments().parse_args(options)) is None


# Options in the workflow


def test_kept_settings_change_nothing_but_size_and_steps(graph):
    done = edited(graph)
    for name in ("motion", "seed", "text", "negative"):
        assert [node["inputs"].get(name) for node in done.values()] == [
            node["inputs"].get(name) for node in graph.values()
        ]
    assert done.keys() == graph.keys()


def test_editing_leaves_the_workflow_as_it_was(graph):
    before = str(graph)
    edited(graph, "picture.png", prompt="a", negative="b", motion="low", seed=3)
    assert str(graph) == before


def test_prompt(graph):
    assert set(sampler_texts(edited(graph, prompt="a fox"), "positive")) == {"a fox"}


def test_negative(graph):
    done = edited(graph, prompt="a fox", negative="rain")
    assert set(sampler_texts(done, "negative")) == {"rain"}
    assert set(sampler_texts(done, "positive")) == {"a fox"}
    for sampler in graphs.nodes(done, *graphs.SAMPLERS):
        positive, negative = source(done, sampler, "positive"), source(done, sampler, "negative")
        assert positive["inputs"] | {"text": "rain"} == negative["inputs"]


def test_motion_seed_and_steps(graph):
    done = edited(graph, motion="extreme", seed=77, steps=3)
    assert values(done, "motion", graphs.KEYFRAMES) == ["extreme"]
    assert set(values(done, "seed", *graphs.SAMPLERS)) == {77}
    assert values(done, "steps", graphs.FIRST_FRAME, graphs.KEYFRAMES) == [3, 3]
    assert values(done, "steps", graphs.INTERPOLATE) == values(graph, "steps", graphs.INTERPOLATE)


def test_size(graph):
    done = edited(graph, width=320, height=192)
    assert (values(done, "width", graphs.ENCODE_IMAGE), values(done, "height", graphs.ENCODE_IMAGE)) == ([320], [192])
    assert (values(done, "width", graphs.FIRST_FRAME), values(done, "height", graphs.FIRST_FRAME)) == ([640], [384])


def test_picture_takes_the_place_of_the_first_frame(graph):
    done = edited(graph, "photo.jpg", prompt="a fox")
    (encode,) = graphs.nodes(done, graphs.ENCODE_IMAGE)
    assert source(done, encode, "image")["inputs"] == {"image": "photo.jpg"}
    assert not graphs.nodes(done, graphs.FIRST_FRAME, "KandinskyVideoDecodeImage")
    assert values(done, "positive", graphs.KEYFRAMES) != [None]
    assert all(link[0] in done for node in done.values() for link in node["inputs"].values() if isinstance(link, list))


@pytest.mark.parametrize("rate", RATES)
def test_rate(rate):
    assert len(graphs.nodes(graphs.load(rate), graphs.INTERPOLATE)) == RATES[rate]


# What it shows


def state(value, maximum, name):
    return {"value": value, "max": maximum, "state": name, "real_node_id": "1"}


def test_progress_says_each_node_once(capsys):
    progress = render.Progress({"1": {"class_type": "A", "_meta": {"title": "Sample"}}, "2": {"class_type": "Save"}})
    progress("status", {})
    progress("progress_state", {"nodes": {"1": state(0, 5, "running")}})
    progress("progress_state", {"nodes": {"1": state(5, 5, "finished")}})
    both = {"1": state(5, 5, "finished"), "2": state(1, 1, "finished") | {"real_node_id": "2"}}
    progress("progress_state", {"nodes": both})
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["  Sample", "  Save"]


def test_bar():
    assert render.bar(3, 12, width=8) == "[##------] 3/12, "
    assert render.bar(0, 1) == ""


def test_describe(tmp_path):
    with av.open(str(tmp_path / "clip.mp4"), "w") as video:
        stream = video.add_stream("h264", rate=4, width=64, height=32)
        for value in range(6):
            frame = av.VideoFrame.from_ndarray(numpy.full((32, 64, 3), value, dtype=numpy.uint8), format="rgb24")
            video.mux(stream.encode(frame))
        video.mux(stream.encode(None))
    assert render.describe(tmp_path / "clip.mp4") == "6 frames of 64x32, 4.00 a second, 1.5 s"


def test_only_pictures_are_pictures(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    render.check_picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(host.HostError, match="bad.png is not a picture"):
        render.check_picture(tmp_path / "bad.png")
