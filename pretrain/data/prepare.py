"""Raw text to a folder of token shards, once: tokenizer, units of work, manifests, one rename.

A folder appears complete or not at all. Work is done in `<folder>.writing`, which outlives whatever stops it: the next
call goes on from there, with the units whose text, settings and tokenizer are still the same. One process at a time
prepares a folder; others wait and take what it made.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.run import RunConfig
from pretrain.data.execute import LOGS, count_workers, run_units
from pretrain.data.files import is_remote, tell_repeats
from pretrain.data.manifest import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    Files,
    check_text,
    find_text,
    fingerprint,
    recipe,
    write_manifests,
)
from pretrain.data.prepared import (
    PreparedData,
    PreparedSource,
    check_folder,
    given_tokenizer,
    is_prepared,
    open_prepared,
)
from pretrain.data.progress import Say, Watch, tell_units
from pretrain.data.published import require_published
from pretrain.data.sample import Unread, training_text
from pretrain.data.shards import ENDINGS, cannot_write
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokenizer_loss import SAMPLE_BYTES, require_lossless
from pretrain.data.tokenizer_training import train_tokenizer
from pretrain.data.unit_state import STATE
from pretrain.data.units import PLAN_NAME, TOKEN_CHUNKS, Plan, make_plan, stamp, write_plan
from pretrain.durable import rename, replace_file, sync
from pretrain.errors import DataError, TokenizerError
from pretrain.locks import exclusive
from pretrain.places import what_is

__all__ = ["Making", "PreparedData", "PreparedSource", "ensure_prepared", "finish", "making", "open_prepared"]
__all__ += ["training_text"]

_RECIPE_NAME = "tokenizer.recipe.json"


def ensure_prepared(
    config: RunConfig,
    *,
    run_root: Path,
    progress: Say | None = None,
    workers: int | None = None,
    compare: bool = True,
) -> PreparedData:
    """Opens the prepared data of a run, and makes it first where it does not exist.

    Safe to call from several processes at once and after one of them was killed. What is found is checked as
    `data.verify` says.

    Args:
        config: the run.
        run_root: `run.dir`; holds `prepared/<fingerprint>` where `data.prepared_dir` is null.
        progress: called with a sentence now and then.
        workers: processes that tokenise; None is one a core, and this process alone for little text.
        compare: refuse what is not as published (`pretrain.data.published`), once it is made; or leave that to the
            caller.

    Raises:
        ConfigError, DataError, TokenizerError: what is wrong with sources, text, tokenizer or the folder.
    """
    say = progress or (lambda message: None)
    given = given_tokenizer(config)
    with making(config, run_root=run_root, say=say, given=given) as made:
        if isinstance(made, Making):
            say(f"tokenising {', '.join(config.data.sources)}: {tell_units(made.plan.units)}")
            processes = count_workers(made.plan, asked=workers)
            watch = run_units(made.writing, made.plan, tokenizer=made.tokenizer, workers=processes, say=say)
            finish(made, watch, say=say)
            directory: Path | str = made.directory
        else:
            directory = made
            for doubt in check_text(config, directory=directory):
                say(doubt)
    check_folder(directory, full=config.data.verify == "full")
    if compare:
        require_published(config.data, directory=directory)
    return open_prepared(config, directory=directory, given=given)


@dataclass(frozen=True, slots=True)
class Making:
    """A folder in the making.

    Attributes:
        config: the run.
        directory: where it will be.
        writing: where it is until then.
        plan: its units.
        tokenizer: what tokenises.
    """

    config: RunConfig
    directory: Path
    writing: Path
    plan: Plan
    tokenizer: Tokenizer


@contextlib.contextmanager
def making(config: RunConfig, *, run_root: Path, say: Say, given: Tokenizer | None) -> Iterator[Making | Path | str]:
    """Begins a folder, or goes on with one, and keeps others out of it meanwhile.

    Args:
        config: the run.
        run_root: as of `ensure_prepared`.
        say: told what is done.
        given: the tokenizer of `tokenizer.path`.

    Yields:
        What to do; or the folder, where it is complete already.
    """
    named, files = config.data.prepared_dir, None
    if named is None:
        files = find_text(config.data)
        directory = run_root / "prepared" / fingerprint(config, files=files, tokenizer=given)
        # One for all fingerprints of a run: text that is edited while it is prepared leaves nothing behind.
        writing = directory.with_name("next.writing")
    elif is_remote(named):
        if not is_prepared(named):
            raise DataError(
                f"data.prepared_dir={named!r} is not there. Shards are made on a local or shared file system: prepare "
                "with data.prepared_dir set to a folder of one, copy it to this address, and set this one again."
            )
        yield named
        return
    else:
        directory = Path(named)
        writing = directory.parent / f"{directory.name}.writing"
        here = Path.cwd()
        if Path(os.path.abspath(directory)) in (here, *here.parents) and not is_prepared(directory):
            raise DataError(
                f"data.prepared_dir={named} is the working directory ({here}) or a folder above it; prepared data "
                "needs a folder of its own. Name one, as data.prepared_dir=tokens."
            )
    if is_prepared(directory) and not (directory / STATE).exists():
        yield directory
        return
    with contextlib.ExitStack() as held:
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            lock = writing.with_suffix(".lock")
            held.enter_context(
                exclusive(lock, on_wait=lambda: say(f"waiting for another process that makes {directory}"))
            )
            if is_prepared(directory):
                _clean(directory)
                made: Making | Path = directory
            else:
                files = files or find_text(config.data)
                made = _begin(config, files, directory=directory, writing=writing, given=given, say=say)
        except OSError as error:
            raise cannot_write(writing, error) from None
        yield made


def finish(made: Making, watch: Watch, *, say: Say) -> None:
    """Publishes a folder whose units are all done.

    Raises:
        DataError: a source lacks text, or the folder cannot be written.
    """
    try:
        manifest = write_manifests(made.writing, made.config, made.plan, watch.states, tokenizer=made.tokenizer)
        _publish(made, watch)
    except OSError as error:
        raise cannot_write(made.writing, error) from None
    tokens = sum(source["train"]["tokens"] for source in manifest["sources"].values())
    say(f"prepared {tokens:,} training tokens of {len(manifest['sources'])} sources in {made.directory}")


def _begin(
    config: RunConfig, files: Files, *, directory: Path, writing: Path, given: Tokenizer | None, say: Say
) -> Making:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DataError(
            f"data.prepared_dir={directory} is not a folder of prepared data: it {what_is(directory)}. Set "
            "data.prepared_dir to a folder that does not exist or is empty."
        )
    if writing.exists() and not (writing / STATE).is_dir() and (not writing.is_dir() or any(writing.iterdir())):
        raise DataError(
            f"data.prepared_dir={directory}: the data would be made in {writing}, but that {what_is(writing)}. Set "
            "data.prepared_dir to a folder of another name."
        )
    for repeat in tell_repeats(files):
        say(repeat)
    (writing / STATE).mkdir(parents=True, exist_ok=True)
    (writing / MANIFEST_NAME).unlink(missing_ok=True)  # of a call that was stopped while it published
    tokenizer = _tokenizer(config, files, writing=writing, given=given, say=say)
    plan = make_plan(config, files, tokenizer=tokenizer.fingerprint)
    write_plan(plan, writing / PLAN_NAME)
    return Making(config, directory, writing, plan, tokenizer)


def _tokenizer(config: RunConfig, files: Files, *, writing: Path, given: Tokenizer | None, say: Say) -> Tokenizer:
    """The given tokenizer, the one a call before this trained, or a new one; it loses nothing that is not accepted."""
    path, recipe_path = writing / TOKENIZER_NAME, writing / _RECIPE_NAME
    stamps = [[file.name, file.size, stamp(file)] for listed in files.values() for file in listed]
    keys = [config.data.text_key_of(source) for source in files]
    settings = [recipe(config, given), keys, config.data.holdout_fraction, stamps]
    wanted = json.dumps(settings, sort_keys=True)
    tokenizer = given
    if tokenizer is None and TOKEN_CHUNKS in files:
        raise TokenizerError(
            "data.token_chunks holds ids of a tokenizer, but tokenizer.path=null names none. Give the tokenizer.model "
            "they were made with."
        )
    if tokenizer is None and recipe_path.exists() and recipe_path.read_text(encoding="utf-8") == wanted:
        tokenizer = Tokenizer.load(path)
    if tokenizer is None:
        options = config.tokenizer
        say(f"training a tokenizer of {options.vocab_size} pieces")
        unread = Unread(config)
        text = training_text(config, files, on_reject=unread.add)
        tokenizer = train_tokenizer(
            text, path, vocab_size=options.vocab_size, preset=options.preset, unread=unread.sentence
        )
    tokenizer.save(path)
    replace_file(recipe_path, wanted)
    if TOKEN_CHUNKS not in files:
        sample = training_text(config, files, num_bytes=SAMPLE_BYTES, on_reject=Unread(config).add)
        require_lossless(tokenizer, sample, config.tokenizer.accept_loss)
    return tokenizer


def _publish(made: Making, watch: Watch) -> None:
    """Renames a complete folder into place; where another process was first, its folder stays."""
    wanted = {MANIFEST_NAME, TOKENIZER_NAME, *(f"{name}/{MANIFEST_NAME}" for name in made.config.data.sources)}
    wanted |= {f"{prefix}{ending}" for state in watch.states for prefix in state.files for ending in ENDINGS}
    # Shards of an earlier plan, which nothing refers to any more.
    for path in sorted(made.writing.rglob("*"), reverse=True):
        name = str(path.relative_to(made.writing))
        if name.split("/")[0] in (STATE, LOGS):
            continue
        if path.is_dir():
            with contextlib.suppress(OSError):
                path.rmdir()  # not empty: in use
        elif name not in wanted and name != PLAN_NAME and name != _RECIPE_NAME:
            path.unlink()
    for path in (*(p for p in made.writing.iterdir() if p.is_dir()), made.writing):
        sync(path)
    _rename(made.writing, made.directory)
    _clean(made.directory)


def _clean(directory: Path) -> None:
    """Removes what said how far the work was. Only after the rename: until then a kill may leave it to be needed."""
    for name in (STATE, LOGS):
        if (directory / name).exists():
            shutil.rmtree(directory / name, ignore_errors=True)
    for name in (PLAN_NAME, _RECIPE_NAME):
        (directory / name).unlink(missing_ok=True)


def _rename(writing: Path, directory: Path) -> None:
    try:
        rename(writing, directory)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not (directory / MANIFEST_NAME).exists():
            raise
        shutil.rmtree(writing, ignore_errors=True)
