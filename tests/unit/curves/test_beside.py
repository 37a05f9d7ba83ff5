import numpy as np

from probes.__main__ import main
from probes.curves.draw.beside import draw_beside
from probes.dynamics.beside_original import put_beside
from probes.dynamics.load import load_curves
from probes.dynamics.originals import find_original
from tests.support.figures import lines_of


def test_a_run_beside_its_original_is_drawn_with_the_band(tmp_path):
    table = load_curves(["published:amber"])
    (run,) = table.runs
    found = put_beside(table, run, find_original("amber"))
    figure = draw_beside([found])
    assert len(figure.axes) == len(found.tasks)
    for panel, task in zip(figure.axes, found.tasks, strict=True):
        original, own = lines_of(panel)
        np.testing.assert_array_equal(original[1], task.original_K)
        np.testing.assert_array_equal(own, np.stack([task.tokens_K, task.value_K]))
        band = panel.collections[0].get_paths()[0].vertices
        ends = np.stack([task.tokens_K, task.original_K + task.half_K], axis=1)
        assert all(np.isclose(band, end).all(axis=1).any() for end in ends)
    output = tmp_path / "beside.png"
    assert main(["compare", "published:amber", "--original", "amber", "--output", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
