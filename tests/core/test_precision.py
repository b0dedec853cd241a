"""Computing in 16 bits gives nearly the same clip."""

import pytest
import torch

from evaluation import precision
from kv_core.pipeline import FILE_STEMS
from tools.host import ROOT

MODELS = ROOT / "models"
SHORT = {"fps": "low", "steps": (4, 4, 2)}


@pytest.fixture(scope="module")
def exact():
    return precision.clip(MODELS, torch.float32, **SHORT)


@pytest.mark.parametrize("dtype, least", [(torch.float16, 50), (torch.bfloat16, 36)])
def test_every_part_in_16_bits(exact, dtype, least):
    assert least < precision.decibels(precision.clip(MODELS, dict.fromkeys(FILE_STEMS, dtype), **SHORT), exact) < 90
