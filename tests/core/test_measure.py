"""The benchmark measures every stage, and its table shows what it measured."""

import pytest
import torch

from tests.support.families import quick_cases
from tools import bench, measure


@pytest.mark.parametrize("stage", quick_cases("text", "encode-image", of=bench.STAGES))
def test_every_stage_is_measured(stage):
    with torch.inference_mode():
        result = measure.measure(stage, "small", 128, 128, "cpu", None, 2, False)
    assert len(result["times"]) == 2 and min(result["times"]) <= result["warm"] <= max(result["times"])
    assert result["tflop"] > 0 and result["rate"] == pytest.approx(result["tflop"] / result["warm"])
    assert result["peak"] > 0 and result["host"] > result["peak"] and result["dtype"] == "float32"
    assert 0.85 < result["estimate"] < 1.15
    row = bench.table([result]).splitlines()[2]
    assert row.startswith(f"| {stage} | ") and f"{result['warm']:.3g}" in row


def test_peak_memory_counts_what_is_alive_at_once():
    def run():
        a = torch.ones(1000)
        del a
        b = torch.ones(500)
        return b + 1

    peak, reserved = measure.peak_memory(run, "cpu")
    assert peak == 4000 and reserved is None


def test_views_of_weights_take_no_memory():
    weight = torch.ones(1000, 10)
    with torch.inference_mode():
        peak, _ = measure.peak_memory(lambda: weight.t()[0, :5] + 1, "cpu")
    assert peak == 20
