import numpy as np
import pytest

from probes.report.layout import Label, Panel, end_labels

PANEL = Panel(height_pixels=210)


def places(values: list[float]) -> list[float]:
    labels = [Label(f"task{n}", value, "#000000") for n, value in enumerate(values)]
    return [note["y"] for note in end_labels(labels, value_range=(0.0, 1.0), panel=PANEL)]


def test_labels_with_room_stay_at_their_curves() -> None:
    assert places([0.9, 0.1, 0.5]) == [0.1, 0.5, 0.9]


@pytest.mark.parametrize("seed", range(200))
def test_labels_never_touch_and_stay_inside_the_plot(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = list(random.uniform(0, 1, size=seed % 11) ** random.choice([1, 8]))
    found = places(values)
    gaps = [upper - lower for lower, upper in zip(found, found[1:], strict=False)]
    assert all(gap >= 16 / 210 - 1e-9 for gap in gaps)
    assert not found or (found[0] >= -1e-9 and found[-1] <= 1 + 1e-9)


def test_touching_labels_are_centred_on_their_curves() -> None:
    assert sum(places([0.5, 0.5, 0.5])) / 3 == pytest.approx(0.5)


def test_markup_in_a_name_is_shown_not_read() -> None:
    (note,) = end_labels([Label("<a href=x>&", 0.5, "#000000")], value_range=(0.0, 1.0), panel=PANEL)
    assert "&lt;a href=x&gt;&amp;" in note["text"]
