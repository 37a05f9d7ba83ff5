"""As much of a Hugging Face hub as its own client needs to push models to: repositories, branches, commits, LFS.

A real HTTP server on the loopback interface, for the real client. It keeps files in memory, checks what is uploaded
against size and sha256, and answers a request with an error of one's choice where a test wants one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"
USER = "me"
_SMALL = 4096
"""Bytes from which on a file is stored as a large one; anything that is called safetensors is."""
_REPO = r"([\w.-]+/[\w.=+,@-]+)"


@dataclass
class Commit:
    title: str
    files: dict[str, bytes]

    @property
    def oid(self) -> str:
        names = "".join(f"{name}:{hashlib.sha1(data).hexdigest()}" for name, data in sorted(self.files.items()))
        return hashlib.sha1(f"{self.title}\n{names}".encode()).hexdigest()


@dataclass
class Repository:
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def files(self, branch: str) -> dict[str, bytes]:
        """What a branch has, without what the hub itself puts there."""
        return {name: data for name, data in self.branches[branch][-1].files.items() if name != ".gitattributes"}


class HubServer:
    """A hub for one test; `repositories` is what it has, `requests` what it was asked, as `POST /api/…`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.writable = True
        self.fail: Callable[[str], int | None] = lambda request: None
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def sent(self, pattern: str) -> list[str]:
        """The requests that match a pattern."""
        return [request for request in self.requests if re.search(pattern, request)]

    @contextlib.contextmanager
    def running(self) -> Iterator[HubServer]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request, sent = f"{self.command} {path}", self._body()
        self.hub.requests.append(request)
        try:
            status = self.hub.fail(request)
            if status is not None:
                raise _Refused(status, "The server was told to fail")
            self._reply(200, self._route(path, sent))
        except _Refused as error:
            body = {"error": str(error), "errors": [{"message": str(error)}]}
            self._reply(error.status, body, {"X-Error-Code": error.code, "X-Error-Message": str(error)})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _reply(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _route(self, path: str, body: bytes) -> Any:
        if match := re.fullmatch(r"/lfs/(.+)/([0-9a-f]{64})", path):
            return self._store(match[1], match[2], body)  # signed addresses carry no token
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/validate-yaml":
            return self._validated(json.loads(body)["content"])
        if not is_known:
            raise _Refused(401, "Invalid credentials in Authorization header")
        if path == "/api/whoami-v2":
            return {"name": USER, "type": "user"}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(f"/{_REPO}.git/info/lfs/objects/batch", path):
            return self._batch(match[1], json.loads(body))
        routes: dict[str, Callable[..., Any]] = {
            "tree": self._tree,
            "commits": self._commits,
            "branch": self._branch,
            "preupload": self._preupload,
            "commit": self._commit,
        }
        if match := re.fullmatch(f"/api/models/{_REPO}/(tree|commits|branch|preupload|commit)/(.+)", path):
            return routes[match[2]](self._repository(match[1]), match[3], body, match[1])
        raise _Refused(404, f"this hub does not know {path}")

    def _repository(self, name: str) -> Repository:
        if name not in self.hub.repositories:
            raise _Refused(404, "Repository not found", "RepoNotFound")
        return self.hub.repositories[name]

    def _head(self, repository: Repository, branch: str) -> Commit:
        if branch not in repository.branches:
            raise _Refused(404, "Invalid rev id", "RevisionNotFound")
        return repository.branches[branch][-1]

    def _may_write(self) -> None:
        if not self.hub.writable:
            raise _Refused(403, "You don't have the rights to write here")

    def _create(self, wanted: dict[str, Any]) -> Any:
        self._may_write()
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        if name in self.hub.repositories:
            raise _Refused(409, "You already created this model repo")
        first = Commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.repositories[name] = Repository(wanted.get("visibility") == "private", {"main": [first]})
        return {"url": f"{self.hub.address}/{name}"}

    def _tree(self, repository: Repository, branch: str, *_: Any) -> Any:
        return [_entry(name, data) for name, data in sorted(self._head(repository, branch).files.items())]

    def _commits(self, repository: Repository, branch: str, *_: Any) -> Any:
        self._head(repository, branch)
        date = "2026-01-01T00:00:00.000Z"
        commits = reversed(repository.branches[branch])
        return [{"id": c.oid, "authors": [], "date": date, "title": c.title, "message": ""} for c in commits]

    def _branch(self, repository: Repository, branch: str, body: bytes, _: str) -> Any:
        self._may_write()
        if branch in repository.branches:
            raise _Refused(409, "Reference already exists")
        start = json.loads(body).get("startingPoint", repository.branches["main"][-1].oid)
        history = repository.branches["main"]
        at = [commit.oid for commit in history].index(start)
        repository.branches[branch] = history[: at + 1]
        return {}

    def _preupload(self, repository: Repository, branch: str, body: bytes, _: str) -> Any:
        self._may_write()
        self._head(repository, branch)
        files = json.loads(body)["files"]
        return {
            "files": [
                {"path": f["path"], "uploadMode": "lfs" if _is_large(f["path"], f["size"]) else "regular"}
                | {"shouldIgnore": False}
                for f in files
            ]
        }

    def _batch(self, name: str, wanted: dict[str, Any]) -> Any:
        stored, objects = self._repository(name).objects, []
        for entry in wanted["objects"]:
            href = f"{self.hub.address}/lfs/{name}/{entry['oid']}"
            actions = {} if entry["oid"] in stored else {"actions": {"upload": {"href": href}}}
            objects.append({"oid": entry["oid"], "size": entry["size"], **actions})
        return {"transfer": "basic", "objects": objects}

    def _store(self, name: str, oid: str, body: bytes) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "the object is not what its name says")
        self._repository(name).objects[oid] = body
        return {}

    def _commit(self, repository: Repository, branch: str, body: bytes, name: str) -> Any:
        self._may_write()
        files, title = dict(self._head(repository, branch).files), ""
        for item in map(json.loads, body.splitlines()):
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                data = repository.objects.get(value["oid"])
                if data is None or len(data) != value["size"]:
                    raise _Refused(400, f"{value['path']} was not uploaded")
                files[value["path"]] = data
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise _Refused(400, f"unknown operation {item['key']}")
        commit = Commit(title, files)
        repository.branches[branch] = [*repository.branches[branch], commit]
        return {"commitUrl": f"{self.hub.address}/{name}/commit/{commit.oid}", "commitOid": commit.oid}

    def _validated(self, content: str) -> Any:
        import yaml

        try:
            values = yaml.safe_load(content.split("---\n")[1])
        except (yaml.YAMLError, IndexError) as error:
            raise _Refused(400, str(error).partition("\n")[0]) from error
        return {"errors": [], "warnings": [] if isinstance(values, dict) else [{"message": "no metadata"}]}


def _is_large(name: str, size: int) -> bool:
    return size > _SMALL or name.endswith(".safetensors")


def _entry(name: str, data: bytes) -> dict[str, Any]:
    if not _is_large(name, len(data)):
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return {"type": "file", "path": name, "size": len(data), "oid": oid}
    sha256 = hashlib.sha256(data).hexdigest()
    lfs = {"oid": sha256, "size": len(data), "pointerSize": 130}
    return {
        "type": "file",
        "path": name,
        "size": len(data),
        "oid": hashlib.sha1(sha256.encode()).hexdigest(),
        "lfs": lfs,
    }
