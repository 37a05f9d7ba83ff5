"""Releases on a Hugging Face hub; the one importer of `huggingface_hub`, which is loaded when something is pushed.

A push is one commit, of the files that differ from what the revision has. Until it is accepted the revision is as it
was, and a push of what is there is none. Tokens come from the environment (HF_TOKEN) or the login of `hf auth`, the
address from HF_ENDPOINT, and are written nowhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.digests import CARD_NAME, DIGESTS_NAME, published_files, read_digests, sha256_of
from pretrain.errors import CheckpointError

MAIN = "main"
# Files of ours that would be taken instead of what is pushed, or beside it: other shards, another tokenizer.
_OURS = re.compile(r"model.*\.safetensors|model\.safetensors\.index\.json|tokenizer\.json")
_OFFLINE_ASKED = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
"""As the process was started: within a run the loader of tasks sets the variable, so that lm-eval fetches nothing."""
_AGAIN = "Nothing is lost: `python -m pretrain.checkpoint release RUN` goes on from here."


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did.

    Attributes:
        repository: of the hub.
        revision: branch in it.
        num_files: files that were new or different; 0 where the revision had all of it.
    """

    repository: str
    revision: str
    num_files: int


class Hub:
    """A hub that releases are pushed to. Nothing is asked of it before the first push."""

    def __init__(self, endpoint: str | None = None) -> None:
        """Takes the address.

        Args:
            endpoint: of the hub; None goes by HF_ENDPOINT as it is at each push, or huggingface.co.
        """
        self._given = endpoint

    def push(self, folder: Path, repository: str, *, revision: str, message: str, public: bool = False) -> Pushed:
        """Makes a revision have the files of a folder.

        Args:
            folder: a release.
            repository: `name` or `owner/name`; made if it is not there.
            revision: branch; made if it is not there, without a model in it.
            message: first line of the commit.
            public: whether a repository that has to be made is public.

        Raises:
            CheckpointError: the hub cannot be reached or refuses, or a file that it lacks is damaged. The revision
                is as it was.
        """
        digests = read_digests(folder)
        # The client would take the variable as it was when it was imported.
        endpoint = self._given or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        with _explained(f"{repository} at {endpoint}"), _online():
            from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
            from huggingface_hub.utils import disable_progress_bars

            if not sys.stderr.isatty():
                disable_progress_bars()
            api = HfApi(endpoint=endpoint, library_name="fineline")
            repository = self._with_owner(api, repository)
            remote = self._remote_files(api, repository, revision, public=public)
            files = published_files(folder)
            missing = [path for path in files if not _is_same(path, remote.get(path.name), digests)]
            stale = sorted(name for name in remote.keys() - {path.name for path in files} if _OURS.fullmatch(name))
            _refuse_damaged(folder, missing, digests)
            if not missing and not stale:
                return Pushed(repository, revision, 0)
            operations = [CommitOperationAdd(path.name, path) for path in missing]
            deletions = [CommitOperationDelete(name) for name in stale]
            api.create_commit(repository, [*operations, *deletions], commit_message=message, revision=revision)
        return Pushed(repository, revision, len(missing) + len(stale))

    def _with_owner(self, api: Any, repository: str) -> str:
        return repository if "/" in repository else f"{api.whoami()['name']}/{repository}"

    def _remote_files(self, api: Any, repository: str, revision: str, *, public: bool) -> dict[str, Any]:
        """Files of the revision by name; repository and revision are there when this returns."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            return {file.path: file for file in api.list_repo_tree(repository, revision=revision)}
        except RevisionNotFoundError:
            pass
        except RepositoryNotFoundError:
            api.create_repo(repository, private=not public, exist_ok=True)
        if revision != MAIN:
            # From the first commit: a branch of `main` would give another step's weights until this one's have come.
            first = api.list_repo_commits(repository)[-1].commit_id
            api.create_branch(repository, branch=revision, revision=first, exist_ok=True)
        return {file.path: file for file in api.list_repo_tree(repository, revision=revision)}


def _is_same(path: Path, remote: Any, digests: dict[str, str]) -> bool:
    """Whether the hub has the file: by sha256 where it is a large file, else by git's own digest."""
    if remote is None or getattr(remote, "size", None) != path.stat().st_size:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == (digests.get(path.name) or sha256_of(path)))
    data = path.read_bytes()
    return bool(remote.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest())


def _refuse_damaged(folder: Path, missing: list[Path], digests: dict[str, str]) -> None:
    """Looks at what would be sent, and that nothing of the release has gone."""
    for path in [*missing, *(folder / name for name in digests if not (folder / name).exists())]:
        if path.name in (CARD_NAME, DIGESTS_NAME):
            continue
        if path.name not in digests or not path.exists() or sha256_of(path) != digests[path.name]:
            raise CheckpointError(
                f"{path} is not what was written (its digest is not that of {DIGESTS_NAME}), so it is not pushed. "
                f"Move the folder away and release it again."
            )


@contextlib.contextmanager
def _online() -> Iterator[None]:
    """Lets the client reach the hub though this process is offline for everything else, unless the user said so."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = _OFFLINE_ASKED
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of the client as `CheckpointError`, with a remedy."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, HfHubHTTPError):
            cause = cause.__cause__
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        text = str(cause or error).strip().splitlines()
        said = f"{type(cause or error).__name__}: {text[0] if text else 'no message'}"
        raise CheckpointError(f"{what} was not pushed to: {said} {_remedy(status, error)} {_AGAIN}") from error


def _remedy(status: int | None, error: Exception) -> str:
    if status == 401:
        return "The hub does not know the token, or there is none: set HF_TOKEN, or log in with `hf auth login`."
    if status in (402, 403):
        return "The token may not write there: use one with write access, or another checkpoint.hub_repository."
    if status == 404:
        return "The hub does not show it to this token: check checkpoint.hub_repository and HF_TOKEN."
    if status is not None:
        return "The hub refused: see its message, or try later."
    if type(error).__name__ == "LocalTokenNotFoundError":
        return "There is no token: set HF_TOKEN, or log in with `hf auth login`."
    if isinstance(error, ValueError):
        return "The request is not as the hub wants it: check checkpoint.hub_repository."
    return "The hub cannot be reached: check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
