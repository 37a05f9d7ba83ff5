"""Figures as files: PNG and SVG that open elsewhere, the same bytes each time."""

from __future__ import annotations

import io
import xml.etree.ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from pretrain.errors import ProbeError
from probes import curves
from probes.__main__ import main
from tests.support.curve_family import SIZES, STEPS, family, run_of, write_csv

RUN = run_of(SIZES[3])


@pytest.fixture(scope="module")
def table():
    return family(sizes=SIZES[:4], steps=STEPS[1::2]).until(RUN, 93_000 * 2e6)


@pytest.fixture(scope="module")
def found(table):
    return curves.predict(table, metric="ce_loss")


def test_a_png_is_an_image_that_is_not_blank(found, tmp_path: Path):
    found.write(tmp_path / "new" / "predicted.png")
    content = (tmp_path / "new" / "predicted.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(io.BytesIO(content))
    assert 500 < pixels.shape[1] < 4000 and 300 < pixels.shape[0] < 6000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 10


def test_an_svg_is_xml_and_the_same_bytes_each_time(found, tmp_path: Path):
    found.write(tmp_path / "one.svg")
    found.write(tmp_path / "two.svg")
    content = (tmp_path / "one.svg").read_bytes()
    assert xml.etree.ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
    assert content == (tmp_path / "two.svg").read_bytes() and b"<dc:date>" not in content


def test_figures_are_drawn_in_threads_without_a_trace_in_the_settings_of_others(found):
    before = dict(matplotlib.rcParams)
    from probes.curves.draw.canvas import as_svg

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: as_svg(found.plot()), range(4)))) == 1
    assert dict(matplotlib.rcParams) == before


def test_a_notebook_shows_the_figure_without_pyplot(found):
    assert found.plot()._repr_png_().startswith(b"\x89PNG")


def test_the_ending_chooses_and_another_one_is_refused_with_those_there_are(table, tmp_path: Path, capsys):
    path = write_csv(table, tmp_path / "scores.csv")
    for name in ("p.svg", "p.png", "p.csv"):
        assert main(["predict", str(path), "--metric", "ce_loss", "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "p.csv").read_text().startswith("run,task,metric")
    xml.etree.ElementTree.parse(tmp_path / "p.svg")
    capsys.readouterr()
    assert main(["predict", str(path), "--metric", "ce_loss", "--output", str(tmp_path / "p.pdf")]) == 1
    assert "ends in .csv, .parquet, .json, .png or .svg." in capsys.readouterr().err


def test_a_figure_that_cannot_be_written_leaves_what_was_there(found, tmp_path: Path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ProbeError, match="cannot be written"):
        found.write(tmp_path / "file" / "p.png")
    assert (tmp_path / "file").read_text() == "kept"
