"""Every command prints on a terminal that cannot show every character."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import pretrain
from pretrain.data.__main__ import COMMANDS as DATA_COMMANDS
from pretrain.data.__main__ import main as data
from pretrain.terminal import accept_every_character
from probes.__main__ import COMMANDS as PROBE_COMMANDS
from probes.__main__ import main as probes
from tests.support.curve_family import SIZES, STEPS, family, write_csv

CHECKOUT = Path(pretrain.__file__).parents[1]
SOURCES = sorted(path for room in ("pretrain", "probes") for path in (CHECKOUT / room).rglob("*.py"))


def entry_points() -> list[str]:
    """Modules that `python -m` can run, by what their source says: a new one cannot be forgotten here."""
    found = []
    for path in SOURCES:
        if '\nif __name__ == "__main__":' in path.read_text("utf-8"):
            parts = path.relative_to(CHECKOUT).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__main__" else parts))
    return found


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, encoding: str):
    """Standard output and error that know one encoding only; yields a function for what was written to the output."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        patch.setattr(sys, "stderr", errors)
        yield lambda: output.buffer.getvalue()


def test_every_main_module_is_an_entry_point() -> None:
    mains = [path for path in SOURCES if path.name == "__main__.py"]
    assert {".".join(path.relative_to(CHECKOUT).parts[:-1]) for path in mains} <= set(entry_points())


@pytest.mark.parametrize("module", entry_points())
def test_help_of_every_entry_point_is_shown_in_ascii(module: str, tmp_path: Path) -> None:
    variables = {"PYTHONPATH": str(CHECKOUT), "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=tmp_path,
        env={**os.environ, **variables},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode("ascii").strip() and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("main", "name"), [*((data, name) for name in DATA_COMMANDS), *((probes, name) for name in PROBE_COMMANDS)]
)
def test_help_of_every_command_is_shown_in_ascii(
    main: Callable[[Sequence[str]], int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(monkeypatch, "ascii") as written, pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0 and written().startswith(b"usage: python -m ")


def test_what_commands_find_is_shown_in_ascii(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    curves = family(sizes=SIZES[:3], seed=1, steps=STEPS[-12:])
    path = write_csv(curves, tmp_path / "curves.csv")
    with terminal(monkeypatch, "ascii") as written:
        assert probes(["trust", str(path)]) == 0
    assert b"curves trusted" in written()


def test_our_own_characters_are_spelt_and_those_of_names_are_written_as_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, "ascii") as written:
        accept_every_character()
        print("2 × 3 … données")
    assert written() == b"2 x 3 ... donn\\xe9es\n"
    with terminal(monkeypatch, "ascii") as written:
        accept_every_character()
        print("données … données".encode().decode("ascii", "surrogateescape"))  # typed where the locale is C
    assert written() == "données … données\n".encode()
    with terminal(monkeypatch, "latin-1") as written:
        accept_every_character()
        print("2 × 3 … données")
    assert written() == "2 × 3 ... données\n".encode("latin-1")
    with terminal(monkeypatch, "utf-8") as written:
        accept_every_character()
        print("2 × 3 …", os.fsdecode(b"broken\xff"))  # a file's name need not be UTF-8
    assert written() == "2 × 3 … broken\\udcff\n".encode()


def _is_text_in_the_locale(call: ast.Call) -> bool:
    """Whether a call reads or writes text without saying in which encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    keywords = {keyword.arg for keyword in call.keywords}
    texts = [argument.value for argument in call.args if _is_text(argument)]
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute) and "encoding" not in keywords and "utf-8" not in texts
    if name in ("open", "fdopen"):
        modes = [text for text in texts if text and set(text) <= set("rwxab+t")]
        named = isinstance(call.func, ast.Name) or modes or not (call.args or call.keywords)
        return bool(named) and "encoding" not in keywords and not any("b" in mode for mode in modes)
    return "encoding" not in keywords and bool(keywords & {"text", "universal_newlines"}) and name in ("run", "Popen")


_OPENS_NO_TEXT = {"self.open()", "shard.open()", "target.open()"}


def test_no_file_is_read_or_written_in_the_encoding_of_the_locale() -> None:
    """A run directory that was written where the locale is Latin-1 must be readable where it is UTF-8."""
    found = [
        f"{path.relative_to(CHECKOUT)}:{node.lineno}: {ast.unparse(node)}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and _is_text_in_the_locale(node) and ast.unparse(node) not in _OPENS_NO_TEXT
    ]
    assert not found


def test_a_reader_that_stops_early_ends_a_command_without_a_traceback() -> None:
    """As `python -m probes --help | head -1` does, once the pipe is full or closed."""
    command = [sys.executable, "-m", "probes", "trust", "published:olmo-ladder"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr as errors:
        said = errors.read().decode()
    assert process.wait() == 141
    assert "Traceback" not in said and "BrokenPipe" not in said
