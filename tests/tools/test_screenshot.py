"""The pictures of the templates: what a graph made, in rows above it."""

import pytest
from PIL import Image

from tools.authoring import screenshot

GRAPH = Image.new("RGB", (1000, 500), "navy")


def pictures(count, size):
    return [Image.new("RGB", size, (255, i, 0)) for i in range(count)]


@pytest.mark.parametrize("count, size, rows", [(4, (64, 64), [4]), (4, (128, 64), [2, 2]), (1, (64, 64), [1])])
def test_as_many_rows_as_fill_the_room(count, size, rows):
    card = screenshot.above(pictures(count, size), GRAPH)
    reds = [[card.getpixel((x, y)) for x in range(card.width)] for y in range(card.height - GRAPH.height)]
    shown = list(dict.fromkeys(tuple(dict.fromkeys(p for p in line if p[0] == 255)) for line in reds))
    assert [len(row) for row in shown if row] == rows
    assert [p for row in shown for p in row] == [(255, i, 0) for i in range(count)], "in order"
    assert 0.2 * card.width < card.height - GRAPH.height < 0.6 * card.width
    assert card.crop((0, card.height - GRAPH.height, *card.size)).tobytes() == GRAPH.tobytes()


@pytest.mark.parametrize("items, some", [(range(3), [0, 1, 2]), (range(12), [0, 3, 7, 11]), (range(5), [0, 1, 2, 4])])
def test_some_from_the_first_to_the_last(items, some):
    assert screenshot.some_of(list(items)) == some
