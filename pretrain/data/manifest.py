"""What a folder of prepared data says of itself: which text, which tokenizer, which files, how many tokens.

    manifest.json   tokenizer.model   SOURCE/manifest.json   SOURCE/00000.train.bin   SOURCE/00000.train.idx   …

The folder's manifest is the last file written, so a folder that has one is complete. Here manifests are made from the
states of units, read, and compared with a configuration. Paths of this machine are not written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pretrain.config.data import DataConfig
from pretrain.config.run import RunConfig
from pretrain.data.files import InputFile, digest, find_files, is_remote, open_file
from pretrain.data.records import spelt_out
from pretrain.data.shards import describe_file
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.unit_state import ShardCounts, UnitState, sum_rejected
from pretrain.data.units import TOKEN_CHUNKS, Plan, Unit, stamp
from pretrain.durable import replace_file
from pretrain.errors import ConfigError, DataError, TokenizerError
from pretrain.places import what_is

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.model"
FORMAT = "fineline-prepared-2"
DIGESTED_BYTES = 1 << 30
"""Text up to this size is known by its content, larger text by names, sizes and times of change."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TEXT_KEY = "data.text_key"
_RESERVED = ("state", "logs", TOKENIZER_NAME, MANIFEST_NAME)
_MOST_NAMED = 10

Files = dict[str, list[InputFile]]


def find_text(data: DataConfig) -> Files:
    """Files of every source, in the configuration's order; those of `data.token_chunks` under that name.

    Raises:
        ConfigError: there are no sources, or a name that cannot be a folder's.
        DataError: files that do not exist.
    """
    if not data.sources:
        raise ConfigError("data.sources is empty. Name at least one source, for example data=bundled.")
    for name in data.sources:
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise ConfigError(
                f"data.sources.{name}: a source's name may hold letters, digits, '_', '-' and '.' only, and not be one "
                f"of {', '.join(_RESERVED)}."
            )
    if data.token_chunks:
        return {TOKEN_CHUNKS: find_files(data.token_chunks, key="data.token_chunks", token_ids=True)}
    return {name: find_files(s.paths, key=f"data.sources.{name}.paths") for name, s in data.sources.items()}


def fingerprint(config: RunConfig, *, files: Files, tokenizer: Tokenizer | None) -> str:
    """16 hex digits over everything that prepared tokens depend on: text, splits, tokenizer.

    Of up to `DIGESTED_BYTES` the content counts: a corpus that was moved or copied keeps its fingerprint. To read more
    than that before anything is done would take minutes to hours at each start. There names, sizes and times of change
    count: an edit in place is noticed, because it changes the time; a copy that does not keep times is prepared anew.
    Weights count only where a tokenizer is trained, because they decide what it is trained on.
    """
    import xxhash

    settings = dict(sorted(settings_of(config).items()))
    content = json.dumps([FORMAT, settings, recipe(config, tokenizer), _identity(files)], sort_keys=True)
    return xxhash.xxh3_64_hexdigest(content.encode())


def recipe(config: RunConfig, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What decides the tokenizer, beside the text."""
    if tokenizer is not None:
        return {"given": tokenizer.fingerprint}
    return {
        "vocab_size": config.tokenizer.vocab_size,
        "training_bytes": config.tokenizer.training_bytes,
        "preset": config.tokenizer.preset,
        "weights": [source.weight for source in config.data.sources.values()],
    }


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Settings that tokens depend on, by key; one entry for all sources where they have the same text key."""
    data = config.data
    settings: dict[str, Any] = {
        "data.holdout_fraction": data.holdout_fraction,
        "data.max_line_bytes": data.max_line_bytes,
        "tokenizer.add_bos": config.tokenizer.add_bos,
        "tokenizer.add_eos": config.tokenizer.add_eos,
    }
    if data.token_chunks:
        settings["train.sequence_length"] = config.train.sequence_length
        settings |= {f"data.sources.{name}.aliases": s.aliases for name, s in data.sources.items() if s.aliases}
    keys = {f"data.sources.{name}.text_key": data.text_key_of(name) for name in data.sources}
    return settings | ({_TEXT_KEY: next(iter(keys.values()))} if len(set(keys.values())) == 1 else keys)


def _of_each(settings: Mapping[str, Any], sources: Iterable[str]) -> dict[str, Any]:
    """Settings with entries of these sources only, and those of each."""
    each = {key: value for key, value in settings.items() if key != _TEXT_KEY and not key.startswith("data.sources.")}
    for name in sources:
        text_key, aliases = f"data.sources.{name}.text_key", f"data.sources.{name}.aliases"
        each |= {text_key: settings.get(text_key, settings.get(_TEXT_KEY)), aliases: settings.get(aliases, [])}
    return each


def write_manifests(
    directory: Path, config: RunConfig, plan: Plan, states: Sequence[UnitState], *, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Writes the manifest of each source and then that of the folder, whose units are all done.

    Raises:
        DataError: a source has no text, or none to train on or to validate with.
    """
    sources: dict[str, Any] = {}
    for name in config.data.sources:
        units = plan.of(TOKEN_CHUNKS if config.data.token_chunks else name)
        source = _describe_source(name, units, [states[unit.number] for unit in units], tokenizer=tokenizer)
        _check_counts(name, source, config)
        (directory / name).mkdir(exist_ok=True)
        path = directory / name / MANIFEST_NAME
        replace_file(path, json.dumps(source, indent=1) + "\n")
        kept = {key: source[key] for key in ("train", "validation", "rejected", "rejected_bytes", "bytes_read")}
        sources[name] = kept | {"manifest": describe_file(path)}
    manifest = {
        "format": FORMAT,
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "settings": settings_of(config),
        "sources": sources,
        "files": {TOKENIZER_NAME: describe_file(directory / TOKENIZER_NAME)},
    }
    replace_file(directory / MANIFEST_NAME, json.dumps(manifest, indent=1) + "\n")
    return manifest


def read_manifest(directory: Path | str) -> dict[str, Any]:
    """Reads a folder's manifest.

    Raises:
        DataError: unreadable, or of another format.
    """
    return _read(f"{directory}/{MANIFEST_NAME}", directory)


def read_source_manifest(directory: Path | str, name: str) -> dict[str, Any]:
    """Reads the manifest of one source.

    Raises:
        DataError: as `read_manifest`.
    """
    return _read(f"{directory}/{name}/{MANIFEST_NAME}", directory)


def tell_rejected(name: str, source: Mapping[str, Any]) -> str:
    """What of a source gave no document, for people.

    Args:
        name: of the source.
        source: as the folder's manifest has it; one that was written before bytes were counted has none.
    """
    listed = spelt_out(source["rejected"])
    if source.get("bytes_read"):
        share = source["rejected_bytes"] / source["bytes_read"]
        listed += f"; {source['rejected_bytes']:,} of {source['bytes_read']:,} bytes ({share:.2%})"
    return f"{listed}; the first are named in {name}/{MANIFEST_NAME}"


def check_matches(
    manifest: Mapping[str, Any], config: RunConfig, *, directory: Path | str, given: Tokenizer | None
) -> None:
    """Checks that a folder holds what a configuration asks for, its text left aside.

    Raises:
        TokenizerError: prepared with another tokenizer.
        DataError: other sources or settings.
    """
    here, tokens_of = f"The prepared data in {directory}", manifest["tokenizer"]
    if given is not None and given.fingerprint != tokens_of["fingerprint"]:
        raise TokenizerError(
            f"{here} was made with tokenizer {tokens_of['fingerprint']}, but tokenizer.path={given.name!r} is "
            f"{given.fingerprint}. {_REMEDY} Or set tokenizer.path={f'{directory}/{TOKENIZER_NAME}'!r}."
        )
    if config.tokenizer.vocab_size != tokens_of["vocab_size"]:
        raise TokenizerError(
            f"{here} was made with a tokenizer of {tokens_of['vocab_size']} pieces, but tokenizer.vocab_size="
            f"{config.tokenizer.vocab_size}. Set tokenizer.vocab_size={tokens_of['vocab_size']}. {_REMEDY}"
        )
    for name in config.data.sources:
        if name not in manifest["sources"]:
            raise DataError(f"{here} has no source {name!r}; it has {', '.join(manifest['sources'])}. {_REMEDY}")
    found = _of_each(manifest["settings"], config.data.sources)
    for key, wanted in _of_each(settings_of(config), config.data.sources).items():
        if found.get(key) != wanted:
            raise DataError(f"{here} was made with {key}={found.get(key)}, not {wanted}. {_REMEDY}")


def check_text(config: RunConfig, *, directory: Path | str) -> list[str]:
    """Checks that a folder was made from the text a configuration lists, where that is at hand.

    Names and sizes must be the same. A file whose time of change is another is compared by content, up to
    `DIGESTED_BYTES` of such files; beyond that a terabyte that was merely copied would be read at every start.

    Returns:
        What was not compared, a sentence each: text that is not at hand, and files that were not read again.

    Raises:
        DataError: made from other text.
    """
    budget, unsure = DIGESTED_BYTES, []
    try:
        files = find_text(config.data)
    except DataError as error:
        if any(pattern.startswith("bundled:") for source in config.data.sources.values() for pattern in source.paths):
            raise
        return [f"{directory} was not compared with the text it was made from: {error}"]
    for source, listed in files.items():
        key = f"data.{source}" if source == TOKEN_CHUNKS else f"data.sources.{source}.paths"
        first = next(iter(config.data.sources)) if source == TOKEN_CHUNKS else source
        inputs = read_source_manifest(directory, first)["inputs"]
        firsts = [entry for entry in inputs if not entry.get("start")]  # one a file
        prepared = [(entry["name"], entry["bytes"]) for entry in firsts]
        found = [(file.name, file.size) for file in listed]
        changed = f"The prepared data in {directory} was made from other text for source {source!r}"
        if found != prepared:
            raise DataError(f"{changed}: from {_listing(prepared)}, while {key} is {_listing(found)}. {_REMEDY}")
        for file, entry in zip(listed, firsts, strict=True):
            if entry["stamp"] == stamp(file):
                continue
            if budget < file.size or entry.get("stop") is not None or not entry["xxh3"]:
                unsure.append(
                    f"{source}: some text has another time of change than when {directory} was made from it, and was "
                    "not read again to compare; names and sizes are the same"
                )
                break
            budget -= file.size
            if digest(file.path) != entry["xxh3"]:
                raise DataError(f"{changed}: {file.path} was changed since. {_REMEDY}")
    return unsure


_REMEDY = "Set data.prepared_dir to null or to a folder that does not exist, to prepare anew."


def _describe_source(
    name: str, units: Sequence[Unit], states: Sequence[UnitState], *, tokenizer: Tokenizer
) -> dict[str, Any]:
    """The manifest of a source; see `pretrain.data.prepare` for what its splits are."""
    shards: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "heldout": []}
    chunk_rows = []
    for unit, state in zip(units, states, strict=True):
        for kind, listed in shards.items():
            prefix = f"{name}/{unit.shard:05d}.{kind}"
            if prefix in state.files:
                listed.append({"shard": prefix.split("/")[1], **asdict(state.shards[prefix]), **state.files[prefix]})
        counts = state.shards.get(f"{name}/{unit.shard:05d}.train")
        chunk_rows.append(counts.documents if counts else 0)
    # Marked documents are the validation split, and what was held out by hash is trained on, after all other text.
    if shards["validation"]:
        shards["train"] += shards["heldout"]
    else:
        shards["validation"] = shards["heldout"]
    del shards["heldout"]
    totals = {split: _total(listed) for split, listed in shards.items()}
    is_chunks = bool(units) and units[0].source == TOKEN_CHUNKS
    return {
        "format": FORMAT,
        "source": name,
        "tokenizer": tokenizer.fingerprint,
        **asdict(_sum(totals.values())),
        **{split: asdict(total) for split, total in totals.items()},
        "lines": sum(state.lines for state in states),
        "bytes_read": sum(state.bytes_read for state in states),
        "rejected": sum_rejected(states),
        "rejected_bytes": sum(state.rejected_bytes for state in states),
        "first_rejected": [entry for state in states for entry in state.named][:_MOST_NAMED],
        "chunk_rows": chunk_rows if is_chunks else None,
        "inputs": [entry for unit, state in zip(units, states, strict=True) for entry in _inputs(unit, state)],
        "shards": shards,
    }


def _inputs(unit: Unit, state: UnitState) -> list[dict[str, Any]]:
    entries = []
    for piece, found, mark in zip(unit.pieces, state.digests, unit.stamps, strict=True):
        entry: dict[str, Any] = {"name": piece.file.name, "bytes": piece.file.size, "stamp": mark, "xxh3": found}
        if piece.start or piece.stop is not None:
            entry |= {"start": piece.start, "stop": piece.stop}
        entries.append(entry)
    return entries


def _total(shards: Sequence[Mapping[str, Any]]) -> ShardCounts:
    return _sum(ShardCounts(s["documents"], s["tokens"], s["bytes"], s["characters"]) for s in shards)


def _sum(counts: Any) -> ShardCounts:
    total = ShardCounts()
    for one in counts:
        total.add(one)
    return total


def _check_counts(name: str, source: Mapping[str, Any], config: RunConfig) -> None:
    total, data = source["documents"], config.data
    if total == 0:
        raise DataError(
            f"data.sources.{name} has no text: every document is empty or rejected. Remove the source or give it text."
        )
    if source["train"]["documents"] == 0 and data.sources[name].weight > 0:
        raise DataError(
            f"data.sources.{name} has weight {data.sources[name].weight} but no training text: all {total} documents "
            "are validation. Set its weight to 0, or give it training text."
        )
    # A fraction of 0 asks for no validation, and rows that come tokenised have none.
    if source["validation"]["documents"] == 0 and data.holdout_fraction > 0 and not data.token_chunks:
        enough = min(0.5, max(2 * data.holdout_fraction, 5 / total))
        raise DataError(
            f"data.sources.{name} has no validation text: none of its {total} documents is marked meta.split = "
            f"'validation', and data.holdout_fraction={data.holdout_fraction} held out none. Mark some, set "
            f"data.holdout_fraction to about {enough:.2g}, or to 0 to do without."
        )


def _identity(files: Files) -> list[Any]:
    is_small = sum(file.size for listed in files.values() for file in listed) <= DIGESTED_BYTES
    try:
        return [
            [name, [[file.name, file.size, digest(file.path) if is_small else stamp(file)] for file in listed]]
            for name, listed in files.items()
        ]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror or error}.") from None


def _read(path: str, directory: Path | str) -> dict[str, Any]:
    try:
        with open_file(path) as stream:
            manifest = json.loads(stream.read().decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{_what_else(directory)} {_NAME_ANOTHER}") from None
    except OSError as error:
        raise DataError(f"{_what_else(directory)} {path} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}), so {directory} is not whole. {MEND}") from None
    if isinstance(manifest, dict) and manifest.get("format") == FORMAT:
        return manifest
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if not str(found).startswith(FORMAT.rstrip("0123456789")):
        raise DataError(f"{_what_else(directory)} {_NAME_ANOTHER}")
    raise DataError(f"{path} has format {found!r}, but this version reads {FORMAT!r}. {MEND}")


MEND = "Copy the folder again, or prepare the text anew: set data.prepared_dir to a folder that does not exist."
_NAME_ANOTHER = "Name a folder that `python -m pretrain.data prepare` made (data.prepared_dir)."


def _what_else(directory: Path | str) -> str:
    """Says that a folder holds no prepared data, and what it is instead."""
    if is_remote(str(directory)):
        return f"{directory} is not an address of prepared data."
    return f"{directory} is not a folder of prepared data: it {what_is(Path(directory))}."


def _listing(files: Sequence[tuple[str, int]]) -> str:
    shown = ", ".join(f"{name} ({size} bytes)" for name, size in files[:3])
    return shown + (f" and {len(files) - 3} more" if len(files) > 3 else "")
