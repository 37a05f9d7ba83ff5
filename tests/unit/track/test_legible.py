import pytest

from pretrain.track.legible import legible_count, legible_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (192, "3m12s"),
        (3599.7, "1h00m"),
        (18_240, "5h04m"),
        (198_000, "2d07h"),
    ],
)
def test_times_are_shown_in_their_two_largest_units(seconds: float, text: str) -> None:
    assert legible_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(950, "950"), (999.6, "1.00k"), (12_345, "12.3k"), (4_587_520, "4.59M"), (123e9, "123B"), (1.21e12, "1.21T")],
)
def test_counts_are_shown_in_three_digits(count: float, text: str) -> None:
    assert legible_count(count) == text
