"""What a folder of prepared data says of itself: which text, which tokenizer, which files, how many tokens.

The manifest is the last file written, so a folder that has one is complete. Here it is described, compared with
a configuration, and checked against the files; `prepare.py` makes and opens folders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.config.data import DataConfig
from pretrain.config.run import RunConfig
from pretrain.data.documents import BUNDLED_PREFIX, resolve_paths
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import ConfigError, DataError, TokenizerError

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.model"
FORMAT = "fineline-prepared-1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_CHUNK_BYTES = 1 << 22

Text = dict[str, list[dict[str, Any]]]
"""Per source its files in order: name, bytes, and xxh3 of the content."""


def find_text(data: DataConfig) -> dict[str, list[Path]]:
    """Files of every source, in the configuration's order.

    Raises:
        ConfigError: there are no sources, or a name that cannot be a file's.
        DataError: files that do not exist.
    """
    if not data.sources:
        raise ConfigError("data.sources is empty. Name at least one source, for example data=bundled.")
    for name in data.sources:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"data.sources.{name}: a source's name may hold letters, digits, '_', '-' and '.' only.")
    return {name: resolve_paths(s.paths, key=f"data.sources.{name}.paths") for name, s in data.sources.items()}


def describe_text(files: Mapping[str, list[Path]]) -> Text:
    """Name, size and digest of each file. Reads all of them, at the disk's speed."""
    return {
        name: [{"name": path.name, "bytes": path.stat().st_size, "xxh3": digest(path)} for path in paths]
        for name, paths in files.items()
    }


def fingerprint(config: RunConfig, *, text: Text, tokenizer: Tokenizer | None) -> str:
    """16 hex digits over everything that prepared tokens depend on: text, splits, tokenizer.

    File contents count, folders do not: a moved corpus keeps its fingerprint. Weights count only where a tokenizer
    is trained, because they decide what it is trained on.
    """
    import xxhash

    settings = dict(sorted(_settings(config).items()))
    recipe: dict[str, Any] = (
        {"given": tokenizer.fingerprint}
        if tokenizer
        else {
            "vocab_size": config.tokenizer.vocab_size,
            "training_bytes": config.tokenizer.training_bytes,
            "weights": [config.data.sources[name].weight for name in text],
        }
    )
    content = json.dumps([FORMAT, settings, recipe, list(text.items())], sort_keys=True)
    return xxhash.xxh3_64_hexdigest(content.encode())


def build_manifest(
    config: RunConfig, *, text: Text, tokenizer: Tokenizer, counts: Mapping[str, Any], directory: Path
) -> dict[str, Any]:
    """The manifest of a folder whose other files are complete."""
    files = sorted(path for path in directory.iterdir() if path.name != MANIFEST_NAME)
    return {
        "format": FORMAT,
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "settings": _settings(config),
        "text": text,
        "sources": {name: {split: c.as_dict() for split, c in splits.items()} for name, splits in counts.items()},
        "files": {path.name: {"bytes": path.stat().st_size, "xxh3": digest(path)} for path in files},
    }


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads a folder's manifest and checks that its files are there in full length.

    Raises:
        DataError: unreadable, another format, or a file is missing or has another size.
    """
    path = directory / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}). Delete {directory} to have it prepared anew.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise DataError(
            f"{path} has format {found!r}; this version reads {FORMAT!r}. Set data.prepared_dir to another folder, or "
            "null."
        )
    for name, expected in manifest["files"].items():
        file = directory / name
        size = file.stat().st_size if file.exists() else None
        if size != expected["bytes"]:
            found = "is missing" if size is None else f"ends at byte {size}"
            raise DataError(
                f"{file} {found}; its manifest says {expected['bytes']} bytes. Copy it again, or delete {directory} "
                "to have it prepared anew."
            )
    return manifest


def verify_digests(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Reads every file of a folder and compares it with the manifest.

    Raises:
        DataError: a file's content differs.
    """
    for name, expected in manifest["files"].items():
        found = digest(directory / name)
        if found != expected["xxh3"]:
            raise DataError(
                f"{directory / name} is damaged: its xxh3 is {found}, its manifest says {expected['xxh3']}. "
                f"Copy it again, or delete {directory} to have it prepared anew."
            )


def check_matches(manifest: Mapping[str, Any], config: RunConfig, *, directory: Path, given: Tokenizer | None) -> None:
    """Checks that a folder holds what a configuration asks for.

    Text is compared by name and size, and only where its files are at hand: prepared data may be used without them.

    Raises:
        TokenizerError: prepared with another tokenizer.
        DataError: other sources, splits or text.
    """
    here = f"The prepared data in {directory}"
    remedy = "Set data.prepared_dir to null or to a folder that does not exist, to prepare anew."
    tokens_of = manifest["tokenizer"]
    if given is not None and given.fingerprint != tokens_of["fingerprint"]:
        raise TokenizerError(
            f"{here} was made with tokenizer {tokens_of['fingerprint']}, but tokenizer.path={given.name!r} is "
            f"{given.fingerprint}. {remedy} Or set tokenizer.path={str(directory / TOKENIZER_NAME)!r}."
        )
    if config.tokenizer.vocab_size != tokens_of["vocab_size"]:
        raise TokenizerError(
            f"{here} was made with a tokenizer of {tokens_of['vocab_size']} pieces, but tokenizer.vocab_size="
            f"{config.tokenizer.vocab_size}. Set tokenizer.vocab_size={tokens_of['vocab_size']}. {remedy}"
        )
    for key, wanted in _settings(config).items():
        if manifest["settings"][key] != wanted:
            raise DataError(f"{here} was made with {key}={manifest['settings'][key]}, not {wanted}. {remedy}")
    for name, source in config.data.sources.items():
        if name not in manifest["sources"]:
            raise DataError(f"{here} has no source {name!r}; it has {', '.join(manifest['sources'])}. {remedy}")
        sizes = _sizes(source.paths, key=f"data.sources.{name}.paths")
        prepared = [(file["name"], file["bytes"]) for file in manifest["text"][name]]
        if sizes is not None and sizes != prepared:
            raise DataError(
                f"{here} was made from other text for source {name!r}: from {_listing(prepared)}, while "
                f"data.sources.{name}.paths is {_listing(sizes)}. {remedy}"
            )


def digest(path: Path) -> str:
    """xxh3 (128 bits) of a file, in hex."""
    import xxhash

    state = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def _settings(config: RunConfig) -> dict[str, Any]:
    return {
        "data.text_key": config.data.text_key,
        "data.holdout_fraction": config.data.holdout_fraction,
        "tokenizer.add_bos": config.tokenizer.add_bos,
        "tokenizer.add_eos": config.tokenizer.add_eos,
    }


def _sizes(patterns: list[str], *, key: str) -> list[tuple[str, int]] | None:
    """Names and sizes of the text's files, or None where they are not on this machine."""
    try:
        return [(path.name, path.stat().st_size) for path in resolve_paths(patterns, key=key)]
    except DataError:
        if any(pattern.startswith(BUNDLED_PREFIX) for pattern in patterns):
            raise
        return None


def _listing(files: list[tuple[str, int]]) -> str:
    shown = ", ".join(f"{name} ({size} bytes)" for name, size in files[:3])
    return shown + (f" and {len(files) - 3} more" if len(files) > 3 else "")
