"""The report of a training, and its figures."""

import sys

import numpy
import pytest
from PIL import Image

from evaluation import chart, report
from training import train

CURVES = "50,0.5\n100,0.2\n100,0.25\n150,0.1\n"


def test_a_curve_is_read(tmp_path):
    (tmp_path / "movq.csv").write_text(CURVES)
    assert report.read_curve(tmp_path / "movq.csv") == [(50, 0.5), (100, 0.25), (150, 0.1)]


def test_a_panel_a_curve(tmp_path):
    pytest.importorskip("matplotlib")
    curves = {"movq": [(50, 0.5), (150, 0.1)], "text": [(50, 0.9), (100, 0.01)], "keyframes": [(50, 1.0), (100, 0.5)]}
    figure = report.plot(curves)
    assert [axis.get_title() for axis in figure.axes] == list(curves)
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[50, 0.9], [100, 0.01]]
    figure.savefig(tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width > 1000


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit, match="^Charts are drawn with matplotlib: run `python -m pip install matplotlib`"):
        chart.panels(1, 1)


def test_without_curves_there_is_no_report(tmp_path):
    with pytest.raises(SystemExit, match="holds no curves: run `python -m training.train` first"):
        report.main(["--work", str(tmp_path), "--out", str(tmp_path)])


def test_a_sheet_shows_the_keyframes_of_every_clip():
    clips = [[Image.new("RGB", (64, 64), (100 + i, start, 0)) for i in range(45)] for start in (0, 50)]
    sheet = numpy.asarray(report.contact_sheet(clips, ["one", "two"])).reshape(-1, 3)
    shown = {tuple(colour) for colour in numpy.unique(sheet, axis=0).tolist()}
    assert {(100 + i, start, 0) for i in range(0, 45, 4) for start in (0, 50)} <= shown and (101, 0, 0) not in shown


def test_a_clip_as_gif(tmp_path):
    report.save_gif([Image.new("RGB", (64, 64), (i, 0, 0)) for i in range(45)], tmp_path / "clip.gif")
    with Image.open(tmp_path / "clip.gif") as gif:
        assert gif.n_frames == 45 and gif.size == (192, 192)


@pytest.mark.thorough
def test_a_failing_stage_ends_the_training(tmp_path):
    options = train.parse(["--work", str(tmp_path)])
    with pytest.raises(SystemExit, match="goes on from"):
        train.run(["video_movq"], options)  # there is no MoVQ to begin with
