"""One table of curves from everything that holds scores: run directories, lm-eval's results, CSV, Parquet, published.

Which reader a path is for, what is known of runs besides, and names that clash. The readers are files of their own.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from pretrain.config.nearest import nearest
from pretrain.errors import ProbeError
from pretrain.locate import run_of
from probes.dynamics import published, published_gadre, published_recipes
from probes.dynamics.compressed import COMPRESSED, plain_name
from probes.dynamics.match_shots import match_shots
from probes.dynamics.read_lm_eval import read_lm_eval
from probes.dynamics.read_run import METRICS_FILE, RunCurves, is_run_directory, read_run_curves
from probes.dynamics.read_table import TABLES, is_list, is_table
from probes.dynamics.table import CurveTable, RunFacts
from probes.dynamics.tidy import family_in, read_tidy, size_in
from probes.dynamics.told_chance import with_chance
from probes.dynamics.valid_scores import refuse_impossible_shares
from probes.store import PROBES_FILE

PUBLISHED: Mapping[str, Callable[[], list[CurveTable]]] = {
    "published:pythia": lambda: [published.pythia(deduped=False, num_fewshot=shots) for shots in (0, 5)],
    "published:pythia-deduped": lambda: [published.pythia(deduped=True, num_fewshot=shots) for shots in (0, 5)],
    "published:pythia-interventions": lambda: [published.pythia_interventions()],
    "published:pythia-batch-sizes": lambda: [published.pythia_batch_sizes()],
    "published:olmo-ladder": lambda: [published.olmo_ladder()],
    "published:gadre": lambda: [published_gadre.gadre()],
    "published:amber": lambda: [published_recipes.amber()],
    "published:openllama": lambda: [published_recipes.openllama()],
    "published:openllama-first-preview": lambda: [published_recipes.openllama_first_preview()],
    "published:finals": lambda: [published_recipes.finals()],
}
"""Curves that come with the package, by the name a command line gives them."""

_THREADS = 2
"""Directories read at a time: Arrow parses without Python's lock, but more than two wait for it most of the time."""
_RUNS_COLUMNS = ("run", "parameters", "total_tokens", "tokens_per_step", "family")


@dataclass(frozen=True, slots=True)
class RunsFile:
    """What a file of `--runs` tells.

    Attributes:
        facts: by the run's name; what the file does not say is None or empty.
        tokens_per_step: of the runs the file says it of.
        source: names the file in messages.
    """

    facts: dict[str, RunFacts]
    tokens_per_step: dict[str, float]
    source: str = "runs"

    def unused(self, runs: Iterable[str]) -> list[str]:
        """The sentence that says which lines name none of these runs, with the nearest run that has no line."""
        read = list(runs)
        without_line = [name for name in read if name not in self.facts]
        named = []
        for name in self.facts:
            if name not in read:
                near = nearest(name, without_line, count=1)
                named.append(f"{name} (did you mean {near[0]}?)" if near else name)
        if not named:
            return []
        which, are = ("1 line names", "is") if len(named) == 1 else (f"{len(named)} lines name", "are")
        return [f"{self.source}: {which} no run that is read here and {are} not used: {_listed(named)}."]


def load_curves(
    paths: Sequence[str | Path],
    *,
    tokens_per_step: float | None = None,
    facts: Mapping[str, RunFacts] | None = None,
    tokens_per_step_of: Mapping[str, float] | None = None,
    chance: Mapping[str, float] | None = None,
) -> CurveTable:
    """Reads and merges.

    Args:
        paths: run directories; folders of lm-eval's result files; CSV (plain, .gz, .xz, .zst) or Parquet files of one
            row per score; names of `PUBLISHED`. One given twice counts once.
        tokens_per_step: of runs whose records name steps only.
        facts: by the run's name, stronger than what records say; None and empty fields say nothing.
        tokens_per_step_of: the same of single runs, stronger than `tokens_per_step`.
        chance: scores of guessing by task, or by how the names of tasks begin; stronger than what records say.

    Returns:
        All runs and curves. Directories of one run name have the directory's name appended.

    Raises:
        ProbeError: a path is none of these or cannot be read, or run names clash.
    """
    directories: list[Path] = []
    tables: list[tuple[str, CurveTable]] = []
    told_of = tokens_per_step_of or {}

    def length(run: str) -> float | None:
        return told_of.get(run, tokens_per_step)

    for text in dict.fromkeys(map(str, paths)):
        path = _run_or(Path(text))
        if text in PUBLISHED:
            tables += [(text, table) for table in PUBLISHED[text]()]
        elif path.is_dir() and is_run_directory(path):
            if path.resolve() not in [known.resolve() for known in directories]:
                directories.append(path)
        elif path.is_dir():
            _refuse_folder_of_runs(path)
            tables.append((text, read_lm_eval(path, tokens_per_step=length, facts=facts)))
        elif path.is_file() and plain_name(path.name).endswith(".json") and not is_list(path):
            tables.append((text, read_lm_eval(path, tokens_per_step=length, facts=facts)))
        elif path.is_file() and (is_table(path.name) or plain_name(path.name).endswith(".json")):
            tables.append((text, read_tidy(path, facts=facts, tokens_per_step=length)))
        else:
            raise ProbeError(_unknown(text, exists=path.exists()))
    with ThreadPoolExecutor(_THREADS) as pool:
        runs = _told_apart(list(zip(directories, pool.map(read_run_curves, directories), strict=True)))
    tables = [(str(directory), CurveTable([run.facts], run.curves)) for directory, run in runs] + tables
    whole = refuse_impossible_shares(_with_facts(_merged(tables), facts or {}))
    return with_chance(match_shots(whole) if len(tables) > 1 else whole, chance or {})


def _run_or(path: Path) -> Path:
    """The run directory that a path is, lies in as a checkpoint, or holds the record of; else the path."""
    owner = path.parent if path.name in (PROBES_FILE, METRICS_FILE) else run_of(path)
    return owner if is_run_directory(owner) else path


def read_runs_file(path: Path) -> RunsFile:
    """Reads a CSV with the column run and any of parameters, total_tokens, tokens_per_step and family.

    Raises:
        ProbeError: it cannot be read, has other columns, names a run twice, or text where numbers belong.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ProbeError(f"--runs {path} cannot be read as a CSV file: {error}") from error
    columns = list(rows[0]) if rows else []
    strange = [str(name) for name in columns if name not in _RUNS_COLUMNS]
    if "run" not in columns or strange:
        what = f"has the unknown column(s) {', '.join(strange)}" if strange else "lacks the column run"
        raise ProbeError(f"--runs {path} {what}. Allowed: {', '.join(_RUNS_COLUMNS)}; run is needed.")
    twice = [name for name, count in Counter(row["run"] for row in rows).items() if count > 1]
    if twice:
        raise ProbeError(f"--runs {path} names {twice[0]} twice. Keep one line a run.")
    facts, lengths = {}, {}
    for number, row in enumerate(rows, start=2):
        values = {name: _number(row.get(name), path, number, name) for name in _RUNS_COLUMNS[1:4]}
        facts[row["run"]] = RunFacts(
            name=row["run"],
            family=row.get("family") or "",
            parameters=values["parameters"],
            total_tokens=values["total_tokens"],
        )
        if values["tokens_per_step"] is not None:
            lengths[row["run"]] = values["tokens_per_step"]
    return RunsFile(facts, lengths, f"--runs {path}")


def _number(text: str | None, path: Path, line: int, column: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ProbeError(
            f"--runs {path}, line {line}: {column}={text} is not a number above 0. Write 1.4e9 or 1400000000."
        )
    return value


def _told_apart(runs: Sequence[tuple[Path, RunCurves]]) -> list[tuple[Path, RunCurves]]:
    """Runs of one name get their directory's name appended."""
    counts = Counter(run.facts.name for _, run in runs)
    return [
        (path, run if counts[run.facts.name] == 1 else run.named(f"{run.facts.name} [{path.resolve().name}]"))
        for path, run in runs
    ]


def _merged(tables: Sequence[tuple[str, CurveTable]]) -> CurveTable:
    """One table; published sets of one name are parts of the same runs, others are not."""
    origin: dict[str, str] = {}
    for source, table in tables:
        for name in table.runs:
            if origin.setdefault(name, source) != source:
                raise ProbeError(
                    f"The run {name} is in {origin[name]} and in {source}. Names must differ: rename it in the column "
                    f"run of a table, rename the directory of a run, or leave one of the two out."
                )
    facts: dict[str, RunFacts] = {}
    for _, table in tables:
        facts |= {name: told for name, told in table.runs.items() if name not in facts}
    notes = [note for _, table in tables for note in table.notes]
    return CurveTable(facts.values(), [curve for _, table in tables for curve in table], notes=notes)


def _with_facts(table: CurveTable, told: Mapping[str, RunFacts]) -> CurveTable:
    """Fills in what is told of runs, and size and family from the name where nobody tells them."""
    for name, facts in table.runs.items():
        known = told.get(name, RunFacts(name=name))
        table.runs[name] = replace(
            facts,
            family=known.family or facts.family or family_in(name),
            parameters=known.parameters or facts.parameters or size_in(name),
            total_tokens=known.total_tokens or facts.total_tokens,
            flops_per_token=known.flops_per_token or facts.flops_per_token,
        )
    return table


def _refuse_folder_of_runs(path: Path) -> None:
    inside = sorted(child.name for child in path.iterdir() if child.is_dir() and is_run_directory(child))
    if inside:
        paths = " ".join(str(path / name) for name in inside[:3])
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        raise ProbeError(f"{path} holds runs: {_listed(inside)}. Give them, not the folder: {paths}{more}.")


def _unknown(text: str, *, exists: bool) -> str:
    what = "is no folder and no table of scores" if exists else "does not exist"
    if not exists and "*" in text:
        what = "is a pattern that matches nothing here"
    if text.startswith("published:"):
        return f"{text} is not among the published curves: {', '.join(PUBLISHED)}."
    return (
        f"{text} {what}. Give a run directory, a folder of lm-eval's results, a table of scores "
        f"({', '.join(TABLES)}, plain or with {', '.join(COMPRESSED)}), or one of {', '.join(PUBLISHED)}."
    )


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:5]) + (f" and {len(every) - 5} more" if len(every) > 5 else "")
