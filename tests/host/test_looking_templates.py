"""The templates for experiments with interpolation, models and looking: each shows, in numbers, what its note says.

They run on the server as they are, but that the latents are saved too.
"""

import pytest
import torch

from evaluation import benchmark
from kv_core.pictures import sheets as looking
from tests.support.helpers import latents, picture, saved
from tests.support.workflow_runs import LOOKING, pixels_of
from tests.support.workflow_runs import saved as files
from tools.authoring import templates
from training import world

# In fewer steps, test_workflows.py runs each of them.
pytestmark = pytest.mark.thorough
LIMIT = 600  # seconds, after which it hangs
RED, CIRCLE = list(world.COLOURS).index("red"), list(world.SHAPES).index("circle")
BLUE, SQUARE = list(world.COLOURS).index("blue"), list(world.SHAPES).index("square")
RIGHT, DOWN = (list(world.DIRECTIONS).index(name) for name in ("right", "down"))


class Ran:
    """What a template gave: frames of its video, its pictures and texts by node id, and latents that were saved."""

    def __init__(self, server, run):
        self.run = run
        videos = files(server, run, ".mp4")
        self.video = pixels_of(videos[0]) if videos else None
        self.pictures = {
            id: [picture(server.client.download(file)) for file in shown["images"]]
            for id, shown in run.outputs.items()
            if "images" in shown and shown["images"][0]["filename"].endswith(".png")
        }
        self.texts = {id: shown["text"][0] for id, shown in run.outputs.items() if "text" in shown}
        self.latents = {id.removesuffix(".file"): samples for id, samples in latents(server, run).items()}


@pytest.fixture(scope="module")
def ran(server):
    """Call with a template's name and the ids of latents to save; runs it once, within the limit."""
    done = {}

    def run(name, *ids):
        if name not in done:
            graph = templates.api_graph(name)
            for id in ids:
                graph |= saved(id)
            result = server.client.run(graph, timeout=LIMIT)
            assert result.status == "success", result.error
            done[name] = Ran(server, result)
        return done[name]

    return run


def cells(sheet, count, columns, side=64):
    """The frames `[count, 3, side, side]` in [-1, 1] of a contact sheet, without their numbers."""
    step, found = side + looking.GAP, []
    for index in range(count):
        y, x = (looking.GAP + place * step for place in divmod(index, columns))
        frame = sheet[y : y + side, x : x + side].clone()
        frame[:18, :22] = frame[0, -1]  # as the rest of the background
        found.append(2 * frame.movedim(-1, 0) - 1)
    return torch.stack(found)


def rows_of(report):
    """{frame: [mean, largest, PSNR]} of a difference's table."""
    return {line.split()[0]: [float(part) for part in line.split()[1:4]] for line in report.splitlines()[1:]}


def shows(seen, colour, shape):
    return ((seen.colour == colour) & (seen.shape == shape)).float().mean().item()


def test_interpolate_video(ran):
    video = ran("interpolate-video").video
    assert video.shape == (49, 3, 64, 64)
    x, y = world.read(video).centre.T
    # The square's left edge, and half its side; each gap is 16 frames.
    wanted = [torch.linspace(a, b, 17)[:16] for a, b in ((12, 15), (15, 21), (21, 24))]
    error = (x - torch.cat([*wanted, torch.tensor([24.0])]) - 9).abs()
    print(f"position error: mean {error.mean():.2f}, most {error.max():.2f} pixels; steps {x.diff()}")
    assert error[::16].max() < 0.75, "the given frames come back"
    assert error.max() < 1.5 and (y - 32).abs().max() < 1 and x.diff().abs().max() < 1.5


def test_cross_fade(ran):
    result = ran("cross-fade", "video", "faded")
    assert result.video.shape == (9, 3, 64, 128)
    table = rows_of(result.texts["numbers"])
    given, new = [table[str(i)] for i in (0, 4, 8)], [table[str(i)] for i in range(9) if i % 4]
    assert all(row[2] == float("inf") for row in given) and all(15 < row[2] < 60 for row in new)
    video, faded = result.latents["video"], result.latents["faded"]
    torch.testing.assert_close(faded[:, :, 2], (video[:, :, 0] + video[:, :, 4]) / 2)
    heat = result.pictures["heat"]
    assert len(heat) == 9 and heat[4].max() == 0 and max(one.max() for one in heat) == 1
    centre = [world.read(result.video[:, :, :, part]).centre[:, 0] for part in (slice(64), slice(64, 128))]
    assert all((one.diff() > 0.5).all() for one in centre), "the square moves to the right on both sides"


def test_two_projections(ran):
    video = ran("two-projections").video
    base, other = (world.read(video[:, :, :, part]) for part in (slice(64), slice(64, 128)))
    share = shows(base, RED, CIRCLE), shows(other, RED, CIRCLE)
    print(f"frames with a red circle: base {share[0]:.0%}, interpolation {share[1]:.0%}")
    assert share[0] > 0.9 and share[1] < 0.25


def test_merged_unets(ran):
    result = ran("merged-unets")
    blend, second = (rows_of(result.texts[f"numbers_{name}"])["all"] for name in ("blend", "second"))
    print(f"mean distance from the first U-Net: blend {blend[0]:.4f}, second {second[0]:.4f}")
    assert 0.3 < blend[0] / second[0] < 0.7
    seen = world.read(cells(result.pictures["show_sheet"][0], 12, 6))
    assert shows(seen, RED, CIRCLE) > 0.9


def test_blocks_off(ran):
    sheets = ran("blocks-off").pictures
    names = ("", "_time", "_pooling", "_attention")
    seen = {name: world.read(cells(sheets[f"show{name}"][0], 12, 6)) for name in names}
    step = {name: one.centre.diff(dim=0).norm(dim=1).median().item() for name, one in seen.items()}
    share = {name: shows(one, RED, CIRCLE) for name, one in seen.items()}
    print(f"median step in pixels {step}; share of red circles {share}")
    assert step[""] < 3 < 8 < step["_time"]
    assert share[""] > 0.9 > 0.5 > share["_pooling"]
    assert share["_attention"] > 0.9 and step["_attention"] < 0.75 * step[""]


def test_first_frame_from_another_model(ran):
    video = ran("first-frame-from-another-model").video
    assert len(video) == 45
    seen = world.read(video)
    # 180 + 72 and 80 + 72 of 512 pixels.
    assert (seen.centre[0] - torch.tensor([252, 152]) / 8).norm() < 1.5
    assert shows(seen, BLUE, SQUARE) > 0.9 and world.read_direction(seen.centre[None]).item() == DOWN


def test_motion_grid(ran):
    result = ran("motion-grid", "start")
    left, top = motion_grid_margins()
    frames = result.video[:, :, top:, left:]
    speeds, departed = [], []
    for row in range(3):
        clips = [frames[:, :, 66 * row : 66 * row + 64, 66 * column : 66 * column + 64] for column in range(4)]
        centres = [world.read(clip).centre for clip in clips]
        speeds.append([((c[benchmark.EARLY] - c[0]).norm() / benchmark.EARLY).item() for c in centres])
        departed.append(benchmark.psnr(clips[1][0], frames[0, :, :64, 66:130]).item())
    print(f"pixels a keyframe: {speeds}; PSNR of first frames against those without noise: {departed}")
    assert all(row == sorted(row) for row in speeds[:2])
    assert departed[0] > departed[1] > departed[2] + 5 and departed[2] < 22


def motion_grid_margins():
    cell = torch.zeros(3, 4, 64, 64, 3)
    titles = [f"noise {level}" for level in (0, 200, 900)], [f"motion {score}" for score in (1, 10, 50, 100)]
    height, width, _ = looking.table_sheet(cell, *titles).shape
    return width - 4 * 66 - looking.GAP, height - 3 * 66 - looking.GAP


def test_attention_maps(ran):
    sheets = ran("attention-maps").pictures
    words = "a red circle moving right on a grey background end".split()
    rows = {name: word_rows(sheets[f"show_{name}"][0], len(words)) for name in ("placing", "finishing")}
    maps = rows["finishing"]
    inside, outside = maps["inside"], maps["outside"]
    brightness = {word: (inside[i] - outside[i]).item() for i, word in enumerate(words)}
    print(f"brightness in the circle less around it: {brightness}")
    assert brightness["background"] < -0.1 and brightness["grey"] < -0.1 and brightness["right"] > 0.05


def word_rows(sheet, words):
    """Brightness of every word's row, in the circle of the frames above and away from it."""
    step, frames = 64 + looking.GAP, 12
    left, top = sheet.shape[1] - frames * step - looking.GAP, sheet.shape[0] - (words + 1) * step - looking.GAP
    grid = sheet[top:, left:][: (words + 1) * step, : frames * step]
    grid = grid.unflatten(0, (words + 1, step)).unflatten(2, (frames, step))[:, :64, :, :64]
    grid = grid.permute(0, 2, 4, 1, 3)
    centre = world.read(2 * grid[0] - 1).centre.T[:, :, None, None]
    axis = torch.arange(64) + 0.5
    distance = (axis - centre[0]).square() + (axis[:, None] - centre[1]).square()
    bright = grid[1:].mean(2)
    return {"inside": bright[:, distance < 64].mean(1), "outside": bright[:, distance > 576].mean(1)}


def test_look_inside(ran):
    result = ran("look-inside", "keyframes", "other_keyframes")
    decoded = cells(result.pictures["show_sheet"][0], 12, 6)
    assert shows(world.read(decoded), RED, CIRCLE) > 0.9
    rough = cells(result.pictures["show_rough"][0], 45, 12)
    squares = rough[:, :, 32:].unflatten(2, (4, 8)).unflatten(4, (8, 8))  # below the numbers
    assert (squares - squares.mean((3, 5), keepdim=True)).abs().max() < 0.01
    table = rows_of(result.texts["numbers"])
    apart = (result.latents["keyframes"] - result.latents["other_keyframes"]).abs()
    assert len(table) == 13 and table["all"][0] == pytest.approx(apart.mean().item(), abs=1e-4)
    assert table["0"][0] < table["11"][0], "the first frame is given, the last one free"


def test_each_has_a_test():
    tested = {name.removeprefix("test_").replace("_", "-") for name in globals() if name.startswith("test_")}
    assert tested >= LOOKING
