import contextlib
import io
import os
import pty
import re
import threading
from pathlib import Path

from pretrain.config.track import ConsoleConfig
from pretrain.track.console import ConsoleSink
from tests.support.synthetic_run import run_info

TRAINING = {"train/loss": 3.41234, "train/learning_rate": 3e-4, "perf/tokens_per_second": 21_480.0, "perf/mfu": 0.412}


def run_through(sink: ConsoleSink, directory: Path) -> None:
    sink.open(run_info(directory, total_steps=40))
    for step in range(1, 41):
        sink.log(TRAINING, step=step, tokens=step * 16_384)
        if step == 20:
            sink.log(
                {
                    "probe-knowledge/arc/acc": 0.3,
                    "probe-knowledge/obqa/acc": 0.2,
                    "probe-knowledge/arc/gold_bpb": 1.5,
                    "probe-language/blimp/acc": 0.7,
                    "probe-language/mean/acc": 0.6,
                    "probe-language/mean/num_items": 400.0,
                },
                step=step,
                tokens=step * 16_384,
            )
            sink.event("resume", {"reason": "bad\x1b[31m\rtext", "seconds": 1.23456}, step=step)
    sink.close()


def test_a_file_gets_plain_lines_without_control_characters(tmp_path: Path) -> None:
    stream = io.StringIO()
    run_through(ConsoleSink(ConsoleConfig(every="10 steps"), stream), tmp_path)
    text = stream.getvalue()
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text) is None
    lines = text.splitlines()
    assert [line.split()[1] for line in lines if "loss" in line] == ["1/40", "10/40", "20/40", "30/40", "40/40"]
    assert lines[1].startswith("step 10/40  loss 3.4123  lr 3.00e-04  21.5k tokens/s  mfu 41.2%") and "left" in lines[1]
    assert "step 20  probes  knowledge acc 0.250 bpb 1.500   language acc 0.600" in lines
    assert all(len(line) < 120 for line in lines)


def test_lines_can_be_spaced_by_tokens(tmp_path: Path) -> None:
    stream = io.StringIO()
    run_through(ConsoleSink(ConsoleConfig(every=f"{16_384 * 20} tokens"), stream), tmp_path)
    assert [line.split()[1] for line in stream.getvalue().splitlines() if "loss" in line] == ["1/40", "20/40", "40/40"]


def test_validation_is_shown_whenever_there_is_one(tmp_path: Path) -> None:
    stream = io.StringIO()
    sink = ConsoleSink(ConsoleConfig(), stream)
    sink.open(run_info(tmp_path))
    sink.log({"validation/web/loss": 10.5, "validation/web/bits_per_byte": 3.6}, step=0, tokens=0)
    assert stream.getvalue() == "step 0  validation  web 10.5000 (3.600 bits/byte)\n"


def test_nan_loss_is_shown_not_raised(tmp_path: Path) -> None:
    stream = io.StringIO()
    sink = ConsoleSink(ConsoleConfig(), stream)
    sink.open(run_info(tmp_path))
    sink.log({"train/loss": float("nan"), "perf/tokens_per_second": float("inf")}, step=1, tokens=1)
    assert "loss nan" in stream.getvalue()


def _read_to_the_end(reader: int, read: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # a terminal whose other side is closed
        while piece := os.read(reader, 1 << 16):
            read.append(piece)


def test_a_terminal_gets_a_bar_with_lines_above_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "110")
    reader, writer = pty.openpty()
    read: list[bytes] = []
    thread = threading.Thread(target=_read_to_the_end, args=(reader, read))
    thread.start()
    with os.fdopen(writer, "w") as stream:
        run_through(ConsoleSink(ConsoleConfig(), stream), tmp_path)
    thread.join()
    os.close(reader)
    text = b"".join(read).decode()
    assert "40/40" in text and "loss 3.4123" in text and "\x1b[" in text
    assert "step 20  probes  knowledge acc 0.250" in text
    assert "\x1b[31m\rtext" not in text
