"""How much of a source may give no document before preparation stops: by lines, by bytes, and by files.

Lines alone do not say what is lost: one line can hold nearly all bytes of a file. Files that break off are counted by
themselves, because nobody can say how much they would have held.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from pretrain.data.records import DAMAGE
from pretrain.data.unit_state import UnitState, sum_rejected
from pretrain.data.units import TOKEN_CHUNKS, Plan
from pretrain.errors import DataError

_LINES_TO_JUDGE = 10_000
_BYTES_TO_JUDGE = 1 << 30
_FEW_REJECTS = 20
_CLEAR_EXCESS = 10
_MOST_SHOWN = 5


def check_limits(plan: Plan, source: str, states: Iterable[UnitState], *, is_complete: bool) -> None:
    """Stops where too much of a source is unusable.

    At its end the shares are exact. Before, text that is bad here may still be outweighed by good text elsewhere, so it
    must be clear: of 10,000 lines (or 1 GiB) or more, ten times the share (or half way from the share to all of it).

    Args:
        plan: holds the limits.
        source: a source, or `TOKEN_CHUNKS`.
        states: states of its units.
        is_complete: they are all done.

    Raises:
        DataError: names the first or largest lines, counts by reason, and the key that allows them.
    """
    listed = list(states)
    lines, unusable = sum(state.lines for state in listed), sum(state.num_unusable for state in listed)
    bytes_read, rejected_bytes = sum(s.bytes_read for s in listed), sum(s.rejected_bytes for s in listed)
    num_damaged = len({file for state in listed for file in state.damaged})
    named = [entry for state in listed for entry in state.named]
    over: dict[str, tuple[float, float]] = {}  # by key: the limit, and what it is compared with
    can_judge = lines >= _LINES_TO_JUDGE and unusable > _FEW_REJECTS
    if _is_excess(unusable, lines, plan.max_rejected_share, is_complete=is_complete, can_judge=can_judge):
        over["data.max_rejected_share"] = plan.max_rejected_share, unusable / lines
    can_judge, share = bytes_read >= _BYTES_TO_JUDGE, plan.max_rejected_bytes_share
    if _is_excess(rejected_bytes, bytes_read, share, is_complete=is_complete, can_judge=can_judge):
        over["data.max_rejected_bytes_share"] = share, rejected_bytes / bytes_read
        named = sorted((s.largest for s in listed if s.largest), key=lambda entry: -entry["bytes"])[:2] + named
    if num_damaged > plan.max_damaged_files:
        what, limits, remedy = damage(num_damaged, limit=plan.max_damaged_files)
        named.sort(key=lambda entry: entry["reason"] not in DAMAGE)
    elif over:
        so_far = "" if is_complete else " so far"
        what = (
            f"{unusable} of {lines} lines{so_far} are unusable ({unusable / lines:.2%}), with "
            f"{rejected_bytes:,} of {bytes_read:,} bytes ({rejected_bytes / max(1, bytes_read):.2%})"
        )
        limits = " and ".join(f"{key}={limit}" for key, (limit, _) in over.items())
        limits += " allow" if len(over) > 1 else " allows"
        needed = " and ".join(f"{key} to {_rounded_up(share)} or more" for key, (_, share) in over.items())
        remedy = f"Mend the text, or set {needed} to leave such lines out."
    else:
        return
    counts = ", ".join(f"{reason} {count}" for reason, count in sum_rejected(listed).items())
    name = f"data.{source}" if source == TOKEN_CHUNKS else f"data.sources.{source}"
    raise DataError(
        f"{name}: {what}, more than {limits}. By reason: {counts}.\n{_shown(named)}\n{remedy} What is done is "
        "kept: the same command goes on from there."
    )


def damage(num_files: int, *, limit: int) -> tuple[str, str, str]:
    """What is wrong, which limit allows less, and what to do where too many files cannot be read."""
    what = f"{num_files} file{'s' if num_files > 1 else ''} cannot be read to the end"
    remedy = "Mend it or list the text without it, or raise data.max_damaged_files to lose what follows."
    return what, f"data.max_damaged_files={limit} allows", remedy


def _is_excess(bad: int, whole: int, share: float, *, is_complete: bool, can_judge: bool) -> bool:
    if not bad:
        return False
    if is_complete or share == 0:  # where nothing is allowed, nothing that follows can make it right
        return bad / whole > share
    return can_judge and bad / whole > min(_CLEAR_EXCESS * share, (1 + share) / 2)


def _rounded_up(share: float) -> str:
    """A share with two digits that is not below it."""
    step = 10.0 ** (math.floor(math.log10(share)) - 1)
    return f"{min(1.0, math.ceil(share / step) * step):.2g}"


def _shown(named: Sequence[dict[str, Any]]) -> str:
    lines = dict.fromkeys(f"  {entry['file']}, {entry['place']}: {entry['detail']}" for entry in named)
    return "\n".join(list(lines)[:_MOST_SHOWN])
