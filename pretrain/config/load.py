"""From a command line to one `RunConfig`, and from a `RunConfig` to text, hashes and differences.

Hydra's compose API does the work; it writes nothing and changes no directory. Every error of composition leaves as
a `ConfigError` that names all wrong overrides. No torch: all of this answers on a login node.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pretrain
from pretrain.config.nearest import did_you_mean
from pretrain.config.overrides import expand, group_options, judge, schema_fields
from pretrain.config.run import RunConfig
from pretrain.config.written import count_lengths, expand_paths
from pretrain.errors import ConfigError
from pretrain.locate import expand_path

ROOT_NAME = "pretrain"
"""Name of the root file, `configs/pretrain.yaml`."""


def config_folder() -> Path:
    """The folder of shipped configuration: beside the package, in a checkout and when installed."""
    folder = Path(pretrain.__file__).resolve().parents[1] / "configs"
    if not (folder / f"{ROOT_NAME}.yaml").is_file():
        raise ConfigError(f"{folder / ROOT_NAME}.yaml is missing: install fineline again.")
    return folder


def compose(overrides: Sequence[str] = (), *, config_dir: str | Path | None = None) -> RunConfig:
    """Composes `configs/` and overrides into a configuration; deterministic, reads YAML files only.

    Args:
        overrides: as on the command line: `experiment=demo`, `train.steps=10`, `track=[jsonl]`.
        config_dir: a further folder of groups (`experiment/mine.yaml`, …), looked up beside the shipped ones.

    Returns:
        The resolved configuration. It is complete in types and names but not yet judged: see `checks.check`.

    Raises:
        ConfigError: overrides that do not parse, name nothing, or have the wrong type; all of them at once.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from pretrain.config.store import register

    folders = search_folders(config_dir)
    problems = judge(overrides, options=group_options(folders))
    if problems:
        raise ConfigError(problems)
    register()
    try:
        with initialize_config_dir(str(folders[-1]), version_base="1.3"):
            composed = hydra_compose(ROOT_NAME, [*_search_path(folders), *expand(overrides)])
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from error
    assert isinstance(config, RunConfig), f"pretrain.yaml must start from the schema, composed {type(config)}"
    expand_paths(config)
    count_lengths(config)
    return config


def search_folders(config_dir: str | Path | None) -> list[Path]:
    """Folders that hold configuration groups, the user's first.

    Raises:
        ConfigError: `config_dir` is not a folder.
    """
    shipped = config_folder()
    if config_dir is None:
        return [shipped]
    folder = Path(expand_path(str(config_dir), key="--config-dir")).resolve()
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder.")
    return [folder, shipped]


def hydra_arguments(overrides: Sequence[str], *, config_dir: str | Path | None = None) -> list[str]:
    """The overrides as Hydra itself must get them, for the questions that are left to it (`--help`, `--info`)."""
    return [*_search_path(search_folders(config_dir)), *expand(overrides)]


def _search_path(folders: Sequence[Path]) -> list[str]:
    quoted = ",".join(f"'file://{folder}'" for folder in folders[:-1])
    return [f"hydra.searchpath=[{quoted}]"] if quoted else []


_NO_LIST = re.compile(r"Invalid value assigned: \S+ is not a ListConfig, list or tuple\.")


def _explain(error: Exception) -> str:
    """Hydra's message without its search paths, with OmegaConf's reason and the nearest key."""
    text = str(error).split("Config search path:")[0].strip()
    reason = error.__cause__ if error.__cause__ is not None and str(error.__cause__) not in text else None
    if reason is not None:
        text = f"{text}: {str(reason).strip()}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    kept = [line for line in lines if not line.startswith(("full_key:", "reference_type", "object_type", "To append"))]
    message = _NO_LIST.sub("The value must be a list; write one value as [VALUE].", " ".join(kept))
    if key:
        message += f" (at {key}).{did_you_mean(key, schema_fields()) if key not in schema_fields() else ''}"
    return message


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON values: dictionaries, lists, numbers, strings, None."""
    return dataclasses.asdict(config)


def from_plain(values: Mapping[str, Any]) -> RunConfig:
    """The inverse of `to_plain`; keys that are missing take their defaults.

    Raises:
        ConfigError: a key that this version does not know, or a value of the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), dict(values)))
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error
    assert isinstance(config, RunConfig), "merging into the schema keeps its type"
    count_lengths(config)
    return config


def to_yaml(config: RunConfig) -> str:
    """The configuration as YAML, in the order of the schema; what `config.yaml` of a run directory holds."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


class BrokenConfigError(ConfigError):
    """A `config.yaml` that is empty or cut off, as a machine that died may leave it.

    Attributes:
        what: file and state, the beginning of a sentence.
    """

    def __init__(self, path: str | Path, state: str) -> None:
        self.what = f"{path} {state}"
        super().__init__(
            f"{self.what}: the machine or its disk probably failed while the file was written. Start the run again "
            "with the command that made it, which writes the file anew, or put a copy of the file back."
        )


def load_yaml(path: str | Path) -> RunConfig:
    """Reads the `config.yaml` of a run directory.

    Raises:
        BrokenConfigError: the file is empty, cut off, or not YAML.
        ConfigError: the file is missing or does not fit the schema.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        content = Path(path).read_bytes()
        text = content.decode("utf-8")
        if not text.strip("\0 \t\r\n"):
            raise BrokenConfigError(path, f"is empty ({len(content)} bytes)")
        values = OmegaConf.to_container(OmegaConf.create(text))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, YAMLError) as error:  # OmegaConf's errors among them
        raise BrokenConfigError(path, f"is not YAML ({len(content)} bytes; {' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not the keys of a configuration.")
    plain = {str(key): value for key, value in values.items()}
    if text.endswith("\n"):
        return from_plain(plain)
    # What `to_yaml` writes ends its last line. A file without that end is whole only if it has every key.
    lacking = next(_keys_without(plain, to_plain(RunConfig())), None)
    try:
        if lacking is None:
            return from_plain(plain)
        what = f"without {lacking}"
    except ConfigError as error:
        what = str(error)
    raise BrokenConfigError(path, f"stops in the middle of a line ({len(content)} bytes; {what})")


def _keys_without(given: Mapping[str, Any], whole: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in whole.items():
        if key not in given:
            yield prefix + key
        elif isinstance(value, dict) and isinstance(given[key], dict):
            yield from _keys_without(given[key], value, f"{prefix}{key}.")


def config_hash(config: RunConfig) -> str:
    """16 hex digits over the whole resolved configuration; the same on every machine and Python version.

    `train.accept_new_length` is left out: it is of one start, and the recorded configuration does not keep it.
    """
    plain = to_plain(config)
    del plain["train"]["accept_new_length"]
    return _digest(plain)


_DATA_IDENTITY = ("token_chunks", "order", "num_chunks", "document_mask", "holdout_fraction")


def identity(config: RunConfig) -> dict[str, Any]:
    """What defines the trajectory of training, up to floating-point order.

    Layout, micro batch, engine, probes, views, calendar of saves and length of the run may differ between two parts
    of one run; nothing of this may. Shares of sources and ranges to skip may, where the user accepts it: they are part
    of the run's state, see `pretrain.data.run_order`.
    """
    plain = to_plain(config)
    data = plain["data"]
    return {
        "model": plain["model"],
        "data": {
            **{key: data[key] for key in _DATA_IDENTITY},
            "sources": {
                name: {key: source[key] for key in ("paths", "aliases")} | {"text_key": config.data.text_key_of(name)}
                for name, source in data["sources"].items()
            },
            # Read one after the other, sources stand in the order in which they are listed.
            "listed": list(data["sources"]) if data["order"] == "sequential" else None,
        },
        "tokenizer": plain["tokenizer"],
        "optimizer": plain["optimizer"],
        "schedule": plain["schedule"],
        "precision": {"compute": plain["precision"]["compute"]},
        "train": {key: plain["train"][key] for key in ("global_batch_size", "batch_ramp", "sequence_length", "loss")},
        "checkpoint": {key: plain["checkpoint"][key] for key in ("start_from", "start_step")},
        "run": {"seed": plain["run"]["seed"]},
    }


def identity_hash(config: RunConfig) -> str:
    """16 hex digits over `identity`."""
    return _digest(identity(config))


def data_changes(old: RunConfig, new: RunConfig) -> list[str]:
    """Where two configurations differ in what may change on the way of a run, one line each, as `difference`."""
    before, after = (
        {
            "skip": config.data.skip,
            "sources": {
                name: {"weight": source.weight, "tokens": source.tokens, "epochs": source.epochs}
                for name, source in config.data.sources.items()
            },
        }
        for config in (old, new)
    )
    return _compare(_flatten(before, "data."), _flatten(after, "data."))


def changed_settings(old: RunConfig, new: RunConfig) -> list[str]:
    """Every key in which two configurations differ, one line each, as `difference`; acceptances are left out."""
    before, after = (_flatten(to_plain(config)) for config in (old, new))
    for values in (before, after):
        for key in ("train.accept_new_length", "data.accept_changes"):
            del values[key]
    return _compare(before, after)


def difference(old: RunConfig, new: RunConfig) -> list[str]:
    """Where two identities differ, one line each: `model.hidden_size: 192, now 256`. Empty: the run may continue."""
    return _compare(_flatten(identity(old)), _flatten(identity(new)))


def _compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}: {_show(before, key)}, now {_show(after, key)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, _ABSENT) != after.get(key, _ABSENT)
    ]


_ABSENT = object()


def _show(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "absent"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
