"""A toy world of clips that can be drawn, described and read back: one simple shape that moves on a plain background.

Scenes are batches of numbers, so that a training loop draws fresh clips as fast as it needs them; `read` recovers
shape, colour, position and background from pixels, so that a model's clips can be judged by a program.
Pixels are float32 `[..., 3, H, W]` in [-1, 1]; lengths are in pixels of the 64 x 64 clip, x to the right, y down.
"""

from dataclasses import dataclass

import torch

SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 90, 230),
    "yellow": (245, 215, 50),
    "purple": (165, 60, 200),
    "cyan": (60, 210, 220),
}
BACKGROUNDS = {"black": (15, 15, 20), "white": (240, 240, 240), "grey": (128, 128, 128), "brown": (100, 60, 30)}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}

RADIUS = (8.0, 11.0)
# Pixels a keyframe at the four named motion scores; in between by the score's logarithm.
SPEEDS = {1: 0.5, 10: 1.2, 50: 2.1, 100: 3.0}
KEYFRAMES = 12
FRAMES_A_GAP = 4  # a gap between keyframes is four steps of the medium frame rate


@dataclass
class Scenes:
    """A batch of scenes. shape, colour, background, direction: indices `[b]`; centre `[b, 2]` at keyframe 0;
    radius `[b]`; speed `[b]`, pixels a keyframe."""

    shape: torch.Tensor
    colour: torch.Tensor
    background: torch.Tensor
    direction: torch.Tensor
    centre: torch.Tensor
    radius: torch.Tensor
    speed: torch.Tensor

    def __len__(self):
        return len(self.shape)

    def captions(self, template=0):
        """One sentence a scene, such as "a red circle moving right on a grey background"; see TEMPLATES."""
        names = [list(values) for values in (COLOURS, SHAPES, DIRECTIONS, BACKGROUNDS)]
        rows = zip(self.colour.tolist(), self.shape.tolist(), self.direction.tolist(), self.background.tolist())
        return [caption(*(name[i] for name, i in zip(names, row)), template=template) for row in rows]


# The first says everything; the others leave things open, so that a prompt may too. All captions of one template have
# the same number of words.
TEMPLATES = (
    "a {colour} {shape} {motion} on a {background} background",
    "a {colour} {shape} on a {background} background",
    "a {colour} {shape} {motion}",
    "a {colour} {shape}",
    "a {shape} {motion}",
    "{colour}",
    "a {background} background",
)


def caption(colour, shape, direction, background, template=0):
    motion = "standing still" if direction == "still" else f"moving {direction}"
    return TEMPLATES[template].format(colour=colour, shape=shape, motion=motion, background=background)


def speed(motion_score):
    """Pixels a keyframe for motion scores `[b]`, 1 to 100."""
    scores = torch.tensor([float(score) for score in SPEEDS]).log()
    values = torch.tensor(list(SPEEDS.values()))
    x = motion_score.float().clamp(1, 100).log()
    i = torch.bucketize(x, scores[1:-1])
    share = (x - scores[i]) / (scores[i + 1] - scores[i])
    return values[i] + share * (values[i + 1] - values[i])


# Every scene that can be named, as rows (shape, colour, background, direction). One in eight is never trained on, so
# that a model can be judged by prompts it has not met; each name, and each pair of names, still occurs in training.
COMBINATIONS = torch.cartesian_prod(*(torch.arange(len(names)) for names in (SHAPES, COLOURS, BACKGROUNDS, DIRECTIONS)))
UNSEEN = COMBINATIONS @ torch.tensor([2, 1, 3, 5]) % 8 == 0


def sample_scenes(count, motion_score, generator, unseen=False):
    """`count` random scenes, of those trained on or of the `unseen` ones; motion_score `[count]`."""

    def between(low, high):
        return low + (high - low) * torch.rand(count, generator=generator)

    rows = COMBINATIONS[UNSEEN == unseen]
    shape, colour, background, direction = rows[torch.randint(len(rows), (count,), generator=generator)].T
    radius = between(*RADIUS)
    step = torch.tensor(list(DIRECTIONS.values()), dtype=torch.float32)[direction]
    # A shape begins with room for its way at medium speed, whatever its own, so that a first frame tells nothing about
    # the motion score and little about the direction; a faster one may reach the edge. Across its way, and when still,
    # it may be anywhere.
    room = torch.stack([between(0.0, 1.0), between(0.0, 1.0)], dim=1)
    low = radius[:, None] + 2
    span = SIZE - 2 * low
    way = SPEEDS[10] * (KEYFRAMES - 1)
    along = low + room * (span - way)
    centre = torch.where(step > 0, along, torch.where(step < 0, SIZE - along, low + room * span))
    return Scenes(shape, colour, background, direction, centre, radius, speed(motion_score))


def positions(scenes, times):
    """Centres `[b, t, 2]` at `times` `[t]`, counted in keyframes; a shape stops at the picture's edge."""
    step = torch.tensor(list(DIRECTIONS.values()), dtype=torch.float32)[scenes.direction]
    path = scenes.centre[:, None] + times[None, :, None] * (step * scenes.speed[:, None])[:, None]
    low = (scenes.radius + 1)[:, None, None]
    return torch.maximum(torch.minimum(path, SIZE - low), low)


def draw(scenes, times, size=SIZE):
    """Clips `[b, t, 3, size, size]` at `times` (in keyframes)."""
    centres = positions(scenes, times)
    cover = coverage(scenes.shape[:, None], centres, scenes.radius[:, None], size)[:, :, None]
    return _palette(COLOURS)[scenes.colour][:, None, :, None, None] * cover + _palette(BACKGROUNDS)[scenes.background][
        :, None, :, None, None
    ] * (1 - cover)


def coverage(shape, centre, radius, size=SIZE):
    """The share of every pixel that a shape covers: shape, radius `[...]`, centre `[..., 2]` -> `[..., h, w]`."""
    scale = size / SIZE
    axis = torch.arange(size) + 0.5
    x = axis[None, :] - scale * centre[..., 0, None, None]
    y = axis[:, None] - scale * centre[..., 1, None, None]
    r = (scale * radius)[..., None, None]
    distances = torch.stack(torch.broadcast_tensors(*(outline(x, y, r) for outline in _OUTLINES)))
    index = shape.expand(distances.shape[1:-2])[None, ..., None, None].expand(1, *distances.shape[1:])
    return (0.5 - distances.gather(0, index)[0]).clamp(0, 1)


# Signed distances to the outlines, negative inside, of about the same area for the same radius.
_OUTLINES = (
    lambda x, y, r: (x**2 + y**2).sqrt() - r,
    lambda x, y, r: torch.maximum(x.abs(), y.abs()) - 0.88 * r,
    lambda x, y, r: torch.maximum(0.866 * x.abs() - 0.5 * y - 0.62 * r, y - 0.62 * r),
    lambda x, y, r: torch.minimum(
        torch.maximum(x.abs() - 1.05 * r, y.abs() - 0.4 * r), torch.maximum(y.abs() - 1.05 * r, x.abs() - 0.4 * r)
    ),
)


@dataclass
class Observation:
    """What `read` sees in frames `[n]`: indices of shape, colour, background; centre `[n, 2]`; found: there is one."""

    shape: torch.Tensor
    colour: torch.Tensor
    background: torch.Tensor
    centre: torch.Tensor
    found: torch.Tensor


def read(frames):
    """Reads frames `[n, 3, 64, 64]` back; `found` is False where nothing stands out from the background."""
    border = torch.cat([frames[:, :, 0], frames[:, :, -1], frames[:, :, :, 0], frames[:, :, :, -1]], dim=2)
    background = border.median(dim=2).values
    contrast = (frames - background[:, :, None, None]).norm(dim=1)
    peak = contrast.flatten(1).quantile(0.98, dim=1)
    # Faint noise over the whole background would outweigh the shape; the outline, at one half, stays where it is.
    cover = ((contrast / peak.clamp(min=1e-3)[:, None, None] - 0.5) / 0.6 + 0.5).clamp(0, 1)
    mass = cover.sum((1, 2)).clamp(min=1e-3)
    axis = torch.arange(SIZE) + 0.5
    centre = torch.stack([(cover * axis).sum((1, 2)) / mass, (cover * axis[:, None]).sum((1, 2)) / mass], dim=1)
    core = (cover > 0.8).float()
    colour = (frames * core[:, None]).sum((2, 3)) / core.sum((1, 2)).clamp(min=1)[:, None]
    return Observation(
        _nearest_shape(cover, centre, mass),
        torch.cdist(colour, _palette(COLOURS)).argmin(1),
        torch.cdist(background, _palette(BACKGROUNDS)).argmin(1),
        centre,
        (peak > 0.3) & (mass > 60) & (mass < SIZE * SIZE / 3),
    )


def _nearest_shape(cover, centre, mass):
    # Every shape is drawn with the area and centre of mass that were seen; the one that differs least is it.
    shapes = torch.arange(len(SHAPES))
    unit = coverage(shapes, torch.full((len(SHAPES), 2), SIZE / 2), torch.full((len(SHAPES),), 10.0))
    area = unit.sum((1, 2)) / 100
    axis = torch.arange(SIZE) + 0.5
    offset = torch.stack([(unit * axis).sum((1, 2)), (unit * axis[:, None]).sum((1, 2))], 1)
    offset = (offset / unit.sum((1, 2))[:, None] - SIZE / 2) / 10
    radius = (mass[:, None] / area).sqrt()
    drawn = coverage(shapes, centre[:, None] - offset * radius[..., None], radius)
    return (drawn - cover[:, None]).square().mean((2, 3)).argmin(1)


def read_direction(centres, least=2.5):
    """Index of the direction of tracks `[b, t, 2]`; still where the way from first to last is under `least` pixels."""
    way = centres[:, -1] - centres[:, 0]
    steps = torch.tensor(list(DIRECTIONS.values()), dtype=torch.float32)
    score = way @ steps.T
    score[:, list(DIRECTIONS).index("still")] = least
    return score.argmax(1)


def _palette(colours):
    return torch.tensor(list(colours.values()), dtype=torch.float32) / 127.5 - 1
