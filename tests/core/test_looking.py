"""Sheets, heat maps and differences in numbers, and cross-fading."""

import pytest
import torch

from kv_core.networks.text_encoder import Tokenizer, load_tokenizer
from kv_core.pictures import sheets as looking
from kv_core.sampling.frames import cross_fade
from tools.host import ROOT

PAPER = looking.PAPER / 255


def colours(*values, size=64):
    """One frame a value, all of it that grey."""
    return torch.tensor(values)[:, None, None, None].expand(-1, size, size, 3)


def test_heat():
    values = torch.tensor([[0.0, 1 / 3, 0.5, 2 / 3, 1.0]])
    expected = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 0.5, 0], [1, 1, 0], [1, 1, 1]])
    torch.testing.assert_close(looking.heat(values)[0], expected)


def test_a_contact_sheet_holds_the_frames_in_order():
    frames = colours(0.2, 0.4, 0.6, 0.8, 1.0)
    sheet = looking.contact_sheet(frames, 3, numbers=False)
    step = 64 + looking.GAP
    assert sheet.shape == (2 * step + looking.GAP, 3 * step + looking.GAP, 3)
    for index, frame in enumerate(frames):
        y, x = (looking.GAP + step * place for place in divmod(index, 3))
        torch.testing.assert_close(sheet[y : y + 64, x : x + 64], frame)
    assert (sheet[-step:, -step:] - PAPER).abs().max() < 1e-6, "the last place is empty"


def test_numbers_are_drawn_into_the_corner_of_each_frame():
    plain, numbered = (looking.contact_sheet(colours(0.5, 0.5), 2, numbers) for numbers in (False, True))
    changed = (plain != numbered).any(-1)
    first, second = changed[:, :66], changed[:, 66:132]
    assert first.any() and second.any() and not torch.equal(first, second)
    assert not changed[24:].any(), "the frames themselves stay"


def test_a_table_has_titles():
    cells = torch.stack([colours(0.2, 0.4, size=32), colours(0.6, 0.8, size=32)])
    sheet = looking.table_sheet(cells, ["first", "the second row"], ["a", "b"])
    height, width, _ = sheet.shape
    assert height % 2 == width % 2 == 0
    step = 32 + looking.GAP
    top, left = height - 2 * step - looking.GAP, width - 2 * step - looking.GAP
    for row in range(2):
        for column in range(2):
            y, x = top + row * step, left + column * step
            torch.testing.assert_close(sheet[y : y + 32, x : x + 32], cells[row, column])
    for titles in (sheet[:top, left:], sheet[top : top + step, :left], sheet[top + step :, :left]):
        assert titles.max() > 0.9
    assert (sheet[:top, :left] - PAPER).abs().max() < 1e-6


def test_differences():
    a = torch.zeros(1, 4, 3, 2, 2)
    b = a.clone()
    b[:, :, 1] = 0.2
    b[0, 3, 2, 1, 0] = -0.8
    maps, means, largest, psnr = looking.differences(a, b)
    torch.testing.assert_close(maps[1], torch.full((2, 2), 0.2))
    torch.testing.assert_close(maps[2], torch.tensor([[0, 0], [0.2, 0]]))
    torch.testing.assert_close(means, torch.tensor([0, 0.2, 0.05]))
    torch.testing.assert_close(largest, torch.tensor([0, 0.2, 0.8]))
    torch.testing.assert_close(psnr, torch.tensor([float("inf"), 20, 20]))  # mean squares 0.04 both, of 4


def test_cross_fade():
    frames = torch.tensor([0.0, 1.0, -1.0]).reshape(1, 1, 3, 1, 1).expand(1, 4, 3, 2, 2)
    faded = cross_fade(frames)
    assert faded.shape == (1, 4, 9, 2, 2)
    assert faded[0, 2, :, 1, 0].tolist() == [0, 0.25, 0.5, 0.75, 1, 0.5, 0, -0.5, -1]
    assert torch.equal(faded[:, :, ::4], frames)


def test_words_of_whole_tokens():
    tokenizer = load_tokenizer(ROOT / "models/text_encoders/kv-tiny/flan-ul2")
    assert tokenizer.words("A red circle") == [("a", 1), ("red", 1), ("circle", 1), ("</s>", 1)]
    assert tokenizer.words("") == [("</s>", 1)]
    long = tokenizer.words("circle " * 200)
    assert len(long) == 128 and long[-1] == ("</s>", 1), "only what is read"


@pytest.mark.parametrize(
    "pieces, words",
    [
        (["▁a", "▁life", "guard", "▁", "pool", "</s>"], [("a", 1), ("lifeguard", 2), ("pool", 2), ("</s>", 1)]),
        (["▁cat", ".", "</s>"], [("cat.", 2), ("</s>", 1)]),
    ],
)
def test_words_of_pieces(pieces, words):
    class Pieces:
        def __call__(self, text, verbose):
            return {"input_ids": list(range(len(pieces)))}

        def convert_ids_to_tokens(self, ids):
            return [pieces[id] for id in ids]

    assert Tokenizer(Pieces()).words("") == words
