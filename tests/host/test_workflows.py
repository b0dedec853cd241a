"""The workflows: every graph runs to its end and saves what it should; the editor's templates are built from them."""

import io
import json
from itertools import combinations

import pytest
from PIL import Image

from tests.support.families import thorough
from tests.support.workflow_runs import LOOKING, VIDEOS, check_video, graphs_of, named, pixels_of, quick, saved
from tools.authoring import subgraphs, templates
from tools.comfy.server import PACK
from training import world

NAMES = templates.names()

PICTURES = {"first-frame-only": (1, 128, 128), "keyframes-only": (12, 64, 64)}

SETTINGS = {
    "KandinskyVideoFirstFrame": {"width": 128, "height": 128, "steps": 50, "guidance": 5.0},
    "KandinskyVideoKeyframes": {
        "frames": 12,
        "noise_augmentation": 20,
        "text_guidance": 5.0,
        "image_guidance": 3.0,
        "steps": 50,
    },
    "KandinskyVideoInterpolate": {"skip_frames": "auto", "guidance": 0.5, "steps": 10},
    "KandinskyVideoEncodeImage": {"width": 64, "height": 64},
}


@pytest.fixture(scope="module")
def object_info(server):
    return server.client.object_info()


@pytest.mark.parametrize("name", VIDEOS)
def test_video(server, run_graph, name):
    run = run_graph(quick(templates.api_graph(name)))
    [video] = saved(server, run, ".mp4")
    check_video(video, *VIDEOS[name])


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(server, run_graph, name):
    frames, width, height = PICTURES[name]
    run = run_graph(quick(templates.api_graph(name)))
    pictures = saved(server, run, ".png")
    assert len(pictures) == frames
    assert {Image.open(io.BytesIO(picture)).size for picture in pictures} == {(width, height)}


@pytest.mark.parametrize("name", sorted(LOOKING))
def test_looking(server, run_graph, name):
    """What the pictures and videos show, test_looking_templates.py says."""
    assert saved(server, run_graph(quick(templates.api_graph(name))), (".mp4", ".png"))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["text-to-video-medium", "image-to-video"])
def test_a_clip_shows_its_prompt(server, run_graph, name):
    graph = templates.api_graph(name)
    run = run_graph(graph, timeout=900)
    assert {10, 50} <= {most for pairs in run.progress().values() for _, most in pairs}
    [video] = saved(server, run, ".mp4")
    check_video(video, *VIDEOS[name])
    seen = world.read(pixels_of(video))
    assert seen.found.all()
    direction = world.read_direction(seen.centre[None]).item()
    found = [getattr(seen, kind).mode().values.item() for kind in ("colour", "shape", "background")]
    assert [*found[:2], direction, found[2]] == named(graph["prompt"]["inputs"]["text"])


def test_every_workflow_is_expected():
    assert set(NAMES) == VIDEOS.keys() | PICTURES.keys() | LOOKING


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_the_published_ones(name):
    for node in templates.api_graph(name).values():
        expected = SETTINGS.get(node["class_type"], {})
        assert {setting: node["inputs"][setting] for setting in expected} == expected


def test_the_server_offers_the_templates(server):
    assert sorted(server.client.get("/api/workflow_templates")[PACK]) == NAMES
    for name in NAMES:
        assert server.client.get(f"/api/workflow_templates/{PACK}/{name}.json") == template(name)
        thumbnail = server.client.request(f"/api/workflow_templates/{PACK}/{name}.jpg")
        assert thumbnail == templates.path(name).with_suffix(".jpg").read_bytes()


def template(name):
    return json.loads(templates.path(name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_template_is_up_to_date(object_info, name):
    built = templates.to_text(templates.build(name, object_info))
    written = templates.path(name).read_text(encoding="utf-8")
    assert written == built, "run `python tools/authoring/templates.py`"


@pytest.mark.parametrize("name", NAMES)
def test_template_fits_the_nodes(object_info, name):
    for node in (node for graph in graphs_of(template(name)) for node in graph["nodes"]):
        if node["type"] == "MarkdownNote" or node["type"] in subgraph_ids(name):  # the editor's own
            continue
        sections = object_info[node["type"]]["input"]
        known = sections.get("required", {}) | sections.get("optional", {})
        values = iter(node["widgets_values"])
        for slot in node["inputs"]:
            if "widget" in slot:
                _, options = templates.spec_of(known.get(slot["name"], ["dynamic"]))
                check_value(next(values), known.get(slot["name"]))
                if options.get("control_after_generate"):
                    assert next(values) in ("fixed", "randomize")
                if options.get("image_upload"):
                    assert next(values) == "image"
        assert list(values) == []


def subgraph_ids(name):
    return {graph["id"] for graph in graphs_of(template(name))[1:]}


def check_value(value, spec):
    if spec is None:  # brought by the choice in a dynamic list
        return
    kind, options = templates.spec_of(spec)
    choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
    names = [choice["key"] if isinstance(choice, dict) else choice for choice in choices]
    types = {"INT": int, "FLOAT": float, "BOOLEAN": bool}
    assert value in names if names else isinstance(value, types.get(kind, str))


@pytest.mark.parametrize("name", NAMES)
def test_template_links_meet_at_both_ends(name):
    workflow = template(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, output, target, slot, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == number
        assert {"*", *kind.split(",")} & set(nodes[target]["inputs"][slot]["type"].split(","))
    assert workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == len(workflow["links"])
    for graph in graphs_of(workflow)[1:]:
        check_subgraph(graph, next(node for node in workflow["nodes"] if node["type"] == graph["id"]))


def check_subgraph(graph, single):
    """Its links meet at both ends, also those to what the one node shows."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    for link in graph["links"]:
        if link["origin_id"] == subgraphs.ENTRY:
            assert link["id"] in graph["inputs"][link["origin_slot"]]["linkIds"]
        else:
            assert link["id"] in nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
        if link["target_id"] == subgraphs.EXIT:
            assert link["id"] in graph["outputs"][link["target_slot"]]["linkIds"]
        else:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
    given = {slot["link"] for node in nodes.values() for slot in node["inputs"]} - {None}
    assert given <= {link["id"] for link in graph["links"]}
    shown = [(slot["name"], slot["type"]) for slot in single["inputs"]]
    assert shown == [(slot["name"], slot["type"]) for slot in graph["inputs"]]
    assert [name for name, _ in shown] == ["image", "prompt", "fps", "motion", "seed"]


def test_the_blueprint_is_the_templates_subgraph(server):
    """And the server offers it to the editor."""
    blueprint = json.loads(subgraphs.BLUEPRINT.read_text(encoding="utf-8"))
    built = subgraphs.blueprint(template(subgraphs.TEMPLATE))
    assert blueprint == built, "run `python tools/authoring/templates.py`"
    offered = [entry for entry in server.client.get("/global_subgraphs").values() if entry["name"] == subgraphs.NAME]
    assert [entry["info"]["node_pack"] for entry in offered] == [f"custom_nodes.{PACK}"]


@pytest.mark.parametrize("fps, frames", [("low", 12), thorough("high", 177)])
def test_only_the_chosen_frame_rate_is_computed(server, run_graph, fps, frames):
    graph = quick(templates.api_graph(subgraphs.TEMPLATE))
    graph["rate"]["inputs"]["fps"] = fps
    graph["first_frame"]["inputs"]["seed"] = frames  # nothing of an earlier run
    run = run_graph(graph)
    [video] = saved(server, run, ".mp4")
    check_video(video, frames, 64, 64)
    assert {"video", "smooth_video"} & ran(run) == ({"video", "smooth_video"} if fps == "high" else set())


def test_with_a_picture_no_first_frame_is_drawn(server, run_graph):
    graph = quick(templates.api_graph(subgraphs.TEMPLATE))
    graph["first_frame"]["inputs"]["seed"] = 99  # nothing of an earlier run
    graph["rate"]["inputs"]["fps"] = "low"
    graph["keyframes"]["inputs"]["steps"] = 12
    graph["choice"]["inputs"]["picture"] = ["yours", 0]
    clips = []
    for colour in (0x000000, 0xFFFFFF):
        inputs = {"width": 64, "height": 64, "batch_size": 1, "color": colour}
        run = run_graph({**graph, "yours": {"class_type": "EmptyImage", "inputs": inputs}})
        assert not {"first_frame", "picture"} & ran(run)
        clips.append(pixels_of(saved(server, run, ".mp4")[0]))
    assert (clips[0] - clips[1]).abs().mean() > 0.05, "the clip begins with the picture"


def ran(run):
    return {data["node"] for kind, data in run.events if kind == "executing"}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overlaps(name):
    workflow = template(name)
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    with_title = [(x, y - templates.TITLE, width, height + templates.TITLE) for x, y, width, height in boxes]
    for items in (with_title, [group["bounding"] for group in workflow["groups"]]):
        for (x, y, width, height), (left, top, wide, high) in combinations(items, 2):
            assert x >= left + wide or left >= x + width or y >= top + high or top >= y + height


@pytest.mark.parametrize("name", NAMES)
def test_thumbnail(name):
    path = templates.path(name).with_suffix(".jpg")
    assert path.stat().st_size <= 150_000
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert picture.width == 1200
        picture.load()


def test_no_thumbnail_is_left_over():
    assert sorted(path.stem for path in templates.WORKFLOWS.glob("*.jpg")) == NAMES
    assert sorted(path.stem for path in templates.WORKFLOWS.glob("*.json")) == NAMES
