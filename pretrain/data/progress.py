"""How far preparation is, from the states of its units: bytes, rate, time left.

Reads the small state files alone, so it serves any executor on any machine that sees the folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pretrain.data.limits import check_limits
from pretrain.data.unit_state import UnitState, read_state
from pretrain.data.units import Plan, Unit, piece_bytes

Say = Callable[[str], None]

_SECONDS_BETWEEN_LINES = 5.0
_USUAL_PACKING = 3.0


class Watch:
    """Follows the units of a plan and says how they come on.

    Attributes:
        states: state of each unit, as last read.
    """

    def __init__(self, writing: Path, plan: Plan, *, say: Say) -> None:
        self._writing, self._plan, self._say = writing, plan, say
        self.states: list[UnitState] = []
        self._is_final = [False] * len(plan.units)
        self._judged: set[str] = set()
        self.read()
        self._began = self._told = time.monotonic()
        self._text_then = sum(state.text_bytes for state in self.states)
        self._stored_then = self._stored_done()
        self._total = sum(unit.stored_bytes for unit in plan.units)

    @property
    def is_done(self) -> bool:
        """Whether all units are done."""
        return all(state.is_done for state in self.states)

    def read(self) -> None:
        """Reads the states of units that were not done when last looked at.

        Raises:
            DataError: too much of a source is unusable.
        """
        if not self.states:
            self.states = [UnitState(unit.key) for unit in self._plan.units]
        for unit in self._plan.units:
            if not self._is_final[unit.number]:
                state = self.states[unit.number] = read_state(self._writing, unit)
                self._is_final[unit.number] = state.is_done
        for source in dict.fromkeys(unit.source for unit in self._plan.units):
            if source not in self._judged:
                states = [self.states[unit.number] for unit in self._plan.of(source)]
                is_complete = all(state.is_done for state in states)
                check_limits(self._plan, source, states, is_complete=is_complete)
                if is_complete:
                    self._judged.add(source)

    def tell(self, *, now: bool = False) -> None:
        """Says how far it is, if the last line is some seconds old."""
        clock = time.monotonic()
        if not now and clock - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = clock
        self.read()
        seconds = clock - self._began
        text = sum(state.text_bytes for state in self.states)
        stored = self._stored_done()
        rate = (stored - self._stored_then) / seconds if seconds else 0.0
        left = _duration((self._total - stored) / rate) + " left" if rate > 0 else "time left not known yet"
        unusable = sum(state.num_unusable for state in self.states)
        lost = sum(state.rejected_bytes for state in self.states)
        self._say(
            f"{_size(stored)} of {_size(self._total)} ({stored / max(1, self._total):.1%}), "
            f"{(text - self._text_then) / seconds / 1e6 if seconds else 0.0:.1f} MB/s of text, {left}; "
            f"{sum(state.is_done for state in self.states)} of {len(self.states)} units done, {unusable} lines rejected"
            + (f" ({_size(lost)})" if unusable else "")
        )

    def _stored_done(self) -> int:
        """Bytes of input dealt with. Within a packed file they follow from how well others were packed."""
        pairs = list(zip(self._plan.units, self.states, strict=True))
        done = sum(sum(map(piece_bytes, unit.pieces[: state.piece])) for unit, state in pairs)
        text = sum(state.text_bytes - state.piece_text_bytes for _, state in pairs)
        packing = text / done if done and text else _USUAL_PACKING
        return done + sum(_begun_bytes(unit, state, packing=packing) for unit, state in pairs)


def tell_units(units: Sequence[Unit]) -> str:
    """A word on what there is to do."""
    stored = sum(unit.stored_bytes for unit in units)
    return f"{_size(stored)} in {len(units)} unit{'s' if len(units) != 1 else ''} of work"


def _begun_bytes(unit: Unit, state: UnitState, *, packing: float) -> int:
    if state.piece >= len(unit.pieces):
        return 0
    piece = unit.pieces[state.piece]
    return min(piece_bytes(piece), int(state.piece_text_bytes / (1.0 if piece.file.is_seekable_lines else packing)))


def _size(num_bytes: int) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
