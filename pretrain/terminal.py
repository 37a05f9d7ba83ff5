"""What is printed where the terminal, or the file that output goes to, cannot show every character.

Python ends a program that prints a character which the encoding of its output lacks, for example "…" where the locale
is Latin-1 or `PYTHONIOENCODING=ascii` is set. Every entry point of Fineline calls `accept_every_character` first.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import sys

_ASCII = {
    "…": "...",
    "–": "-",
    "—": "-",
    "−": "-",
    "·": "*",
    "×": "x",
    "±": "+-",
    "²": "^2",
    "½": "1/2",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "“": '"',
    "”": '"',
    "α": "alpha",
    "β": "beta",
    "τ": "tau",
    "ρ": "rho",
    "Δ": "delta ",
    "Σ": "sum ",
    "√": "sqrt ",
}
_HANDLER = "fineline.ascii"

READER_HAS_GONE = 141
"""Exit code of a program whose output nobody reads any more, as shells know it: 128 + SIGPIPE."""


def accept_every_character() -> None:
    r"""Lets standard output and standard error replace what they cannot show, instead of ending the program.

    Characters of our own texts are spelt in ASCII ("..." for "…"). Every other character, such as those in the names
    of a user's files, is written as its code (`\xe9`), so that two different names never look the same. Bytes that the
    user typed and the locale could not read are shown as they were typed.
    """
    codecs.register_error(_HANDLER, _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not where a test or a notebook has put a stream of its own
            stream.reconfigure(errors=_HANDLER)


def reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as behind `| head`.

    If so, what is left to print goes nowhere: Python would otherwise fail once more when it flushes the stream at exit.
    """
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(happened & select.POLLERR for _, happened in poll.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return True


def _spell(error: UnicodeError) -> tuple[bytes, int]:
    """A handler of encoding errors, as `codecs.register_error` takes it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    as_given = not error.encoding.lower().startswith("utf")
    characters = error.object[error.start : error.end]
    return b"".join(_bytes_of(one, as_given=as_given) for one in characters), error.end


def _bytes_of(character: str, *, as_given: bool) -> bytes:
    if as_given and "\udc80" <= character <= "\udcff":  # a byte of the command line that the locale could not decode
        return character.encode("ascii", "surrogateescape")
    return _ASCII.get(character, character).encode("ascii", "backslashreplace")
