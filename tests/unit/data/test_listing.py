"""No file is left out in silence and none is read twice: links, closed folders, circles, and names of one file."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from pretrain.config.data import SourceConfig
from pretrain.config.run import RunConfig
from pretrain.data.__main__ import main
from pretrain.data.files import find_files, tell_repeats
from pretrain.data.listing import expand
from pretrain.data.prepare import ensure_prepared
from pretrain.errors import DataError

LINE = b'{"text": "x"}\n'
NOBODY = 65534


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(LINE)


def names(*patterns: Path | str) -> list[str]:
    return [file.name for file in find_files([str(pattern) for pattern in patterns], key="k")]


def refusal(*patterns: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        names(*patterns)
    return str(caught.value)


@pytest.mark.parametrize("pattern", ["", "/*.jsonl", "/**/*.jsonl", "/**", "/3.jsonl"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_link_without_its_target_is_named_however_it_was_found(scheme: str, pattern: str, tmp_path: Path) -> None:
    put(*(tmp_path / "d" / f"{i}.jsonl" for i in range(3)))
    (tmp_path / "d" / "3.jsonl").symlink_to("gone.jsonl")
    assert f"k: {tmp_path}/d/3.jsonl is a link to gone.jsonl, which does not exist" in refusal(
        f"{scheme}{tmp_path}/d{pattern}"
    )


def test_links_to_folders_that_are_gone_or_to_themselves_are_named(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x" / "1.jsonl")
    (tmp_path / "b").symlink_to(tmp_path / "gone")
    for pattern in ("*/x/*.jsonl", "*/*/1.jsonl", "**/1.jsonl", "b/*.jsonl", "b/1.jsonl"):
        assert f"{tmp_path}/b is a link to {tmp_path}/gone, which does not exist" in refusal(tmp_path / pattern)
    (tmp_path / "b").unlink()
    (tmp_path / "a" / "loop.jsonl").symlink_to("loop.jsonl")
    assert "a/loop.jsonl is a link to loop.jsonl, which leads back to the link" in refusal(tmp_path / "a")


def test_nothing_is_prepared_where_a_link_has_no_target(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prose-3.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"data\.sources\.prose\.paths: .*prose-3\.jsonl is a link"):
        ensure_prepared(config, run_root=tmp_path / "run")
    assert not list(tmp_path.glob("run/**/*.bin"))
    (tmp_path / "t").mkdir()
    for command in (
        ["train_tokenizer", "--vocab-size", "300", "--out", str(tmp_path / "t" / "t.model"), f"{tmp_path}/*.jsonl"],
        ["check_tokenizer", str(tmp_path / "given.model"), f"{tmp_path}/*.jsonl"],
        ["decontaminate", f"{tmp_path}/*.jsonl", "--items", str(tmp_path / "code.jsonl")],
        ["decontaminate", str(tmp_path / "code.jsonl"), "--items", f"{tmp_path}/*.jsonl"],
    ):
        assert main(command) == 1
        assert "prose-3.jsonl is a link to gone.jsonl" in capsys.readouterr().err


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """For whom permissions count: root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(NOBODY)
    except OSError:
        pytest.skip("root may not become another user here")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, which pytest's are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for path in folder.rglob("*"):
            if not path.is_symlink() and path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize("pattern", ["", "/**/*.jsonl", "/*/*.jsonl", "/inner/a.jsonl", "/inner", "/**"])
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_that_this_user_may_not_read_is_named(mode: int, pattern: str, open_folder: Path) -> None:
    put(open_folder / "inner" / "a.jsonl", open_folder / "b.jsonl")
    assert names(f"{open_folder}/**/*.jsonl") == ["b.jsonl", "a.jsonl"]
    (open_folder / "inner").chmod(mode)
    for scheme in ("", "file://"):
        with ordinary_user():
            assert f"{open_folder}/inner" in refusal(f"{scheme}{open_folder}{pattern}")
    with ordinary_user():
        assert names(f"{open_folder}/*.jsonl") == ["b.jsonl"], "what the pattern does not enter may be closed"


class Mounted(LocalFileSystem):
    """This machine's files under a protocol that is not known to be local."""

    protocol = "mounted"


def test_a_remote_folder_that_may_not_be_read_or_a_remote_link_without_target_is_named(open_folder: Path) -> None:
    fsspec.register_implementation("mounted", Mounted, clobber=True)
    put(open_folder / "x" / "inner" / "a.jsonl", open_folder / "b.jsonl")
    assert names(f"mounted://{open_folder}/**/*.jsonl") == ["b.jsonl", "a.jsonl"]
    (open_folder / "link.jsonl").symlink_to("b.jsonl")
    assert names(f"mounted://{open_folder}/*.jsonl") == ["b.jsonl", "link.jsonl"]
    (open_folder / "x" / "inner").chmod(0o000)
    with ordinary_user():
        for pattern in ("**/*.jsonl", "*/*/*.jsonl", "x/**/*.jsonl"):
            assert f"{open_folder}/x/inner" in refusal(f"mounted://{open_folder}/{pattern}")
        assert names(f"mounted://{open_folder}/*.jsonl") == ["b.jsonl", "link.jsonl"]
    (open_folder / "x" / "gone.jsonl").symlink_to("nothing")
    assert "gone.jsonl" in refusal(f"mounted://{open_folder}/x/*.jsonl")
    assert "matches no file" in refusal(f"mounted://{open_folder}/none/*.jsonl")


def test_every_link_below_a_file_address_is_followed_and_its_file_read_once(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "far.jsonl", tmp_path / "links" / "real.jsonl")
    (tmp_path / "links" / "link.jsonl").symlink_to("real.jsonl")
    (tmp_path / "links" / "other.jsonl").symlink_to("../elsewhere/far.jsonl")
    for scheme in ("file://", "local://", ""):
        found = find_files([f"{scheme}{tmp_path}/links/*.jsonl"], key="k")
        assert [file.name for file in found] == ["link.jsonl", "other.jsonl"]
        assert [len(file.other_names) for file in found] == [1, 0]
        (said,) = tell_repeats({"s": found})
        assert said.startswith("s: these names stand for one file, which is read once: ")
        assert "links/link.jsonl and" in said and said.endswith("links/real.jsonl")


def test_every_spelling_of_a_file_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "d" / "a.jsonl")
    (tmp_path / "linked").symlink_to("d")
    monkeypatch.chdir(tmp_path / "d")
    spellings = [
        "a.jsonl", "./a.jsonl", f"{tmp_path}/d/a.jsonl", "../d/a.jsonl", f"{tmp_path}/linked/a.jsonl", "../*/a.jsonl",
        f"file://{tmp_path}/d/a.jsonl", f"local://{tmp_path}/d/*.jsonl", "file://a.jsonl", f"{tmp_path}//d//a.jsonl",
        f"{tmp_path}/linked", "..",
    ]  # fmt: skip
    for other in spellings:
        (file,) = find_files(["a.jsonl", other], key="k")
        assert file.path == "a.jsonl", other
    (file,) = find_files(spellings, key="k")
    (file,) = find_files(spellings, key="k", token_ids=True)
    copy = tmp_path / "d" / "b.jsonl"
    copy.hardlink_to(tmp_path / "d" / "a.jsonl")
    assert names("*.jsonl") == ["a.jsonl", "b.jsonl"], "a copy is a file of its own"


def test_a_file_of_several_names_is_prepared_once_and_one_of_two_sources_is_said(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.data.sources = {"once": SourceConfig(paths=[str(tmp_path / "code.jsonl")])}
    once = ensure_prepared(config, run_root=tmp_path / "once").manifest["sources"]["once"]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "link.jsonl").symlink_to("../code.jsonl")
    paths = [str(tmp_path / "code.jsonl"), str(tmp_path / "more"), f"{tmp_path}/more/../code.jsonl"]
    config.data.sources = {"once": SourceConfig(paths=paths), "again": SourceConfig(paths=paths[:1])}
    said: list[str] = []
    prepared = ensure_prepared(config, run_root=tmp_path / "run", progress=said.append)
    for source in ("once", "again"):
        assert prepared.manifest["sources"][source]["train"] == once["train"]
    one_file = f"{paths[0]} and {paths[1]}/link.jsonl and {paths[2]}"
    assert said[0] == f"once: these names stand for one file, which is read once: {one_file}"
    assert said[1] == f"once and again have the same files, whose text is read for each of them: {paths[0]}"
    assert main(["train_tokenizer", "--vocab-size", "700", "--out", str(tmp_path / "t.model"), *paths]) == 0
    assert capsys.readouterr().err.count("stand for one file, which is read once") == 1


def test_workers_read_a_path_through_a_link_and_up_again_as_it_was_found(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "far" / "inner").mkdir(parents=True)
    shutil.copy(tmp_path / "code.jsonl", tmp_path / "far" / "text.jsonl")
    (tmp_path / "link").symlink_to("far/inner")
    monkeypatch.chdir(tmp_path)
    config.data.sources = {"code": SourceConfig(paths=["link/../text.jsonl"])}
    config.data.shard_bytes = 10_000
    prepared = ensure_prepared(config, run_root=tmp_path / "run", workers=2)
    assert prepared.manifest["sources"]["code"]["train"]["documents"] > 100


def test_text_that_is_not_at_hand_is_said(config: RunConfig, tmp_path: Path) -> None:
    config.data.prepared_dir = str(tmp_path / "tokens")
    ensure_prepared(config, run_root=tmp_path)
    (tmp_path / "prose-3.jsonl").symlink_to("gone.jsonl")
    said: list[str] = []
    ensure_prepared(config, run_root=tmp_path, progress=said.append)
    assert len(said) == 1 and "tokens was not compared with the text it was made from: data.sources.prose" in said[0]
    assert "prose-3.jsonl is a link to gone.jsonl" in said[0]


def test_a_link_to_a_folder_above_is_entered_once(tmp_path: Path) -> None:
    put(tmp_path / "a" / "b" / "1.jsonl", tmp_path / "a" / "2.jsonl", tmp_path / "z" / "3.jsonl")
    (tmp_path / "a" / "b" / "up").symlink_to("..")
    (tmp_path / "a" / "aside").symlink_to(tmp_path / "z")
    (tmp_path / "z" / "back").symlink_to(tmp_path / "a")
    for pattern in (tmp_path, f"{tmp_path}/**/*.jsonl", f"{tmp_path}/**"):
        found = find_files([str(pattern)], key="k")
        assert [file.path.removeprefix(f"{tmp_path}/") for file in found] == ["a/2.jsonl", "a/b/1.jsonl", "z/3.jsonl"]
        assert list(tell_repeats({"s": found})) == []
    assert names(f"{tmp_path}/a/**/*.jsonl") == ["2.jsonl", "3.jsonl", "1.jsonl"], "a link that leads out is followed"


def test_globs_match_what_pythons_own_match_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"  # not `tmp_path` itself, whose neighbours are other tests' folders and links
    files = ("a.jsonl", "b.txt", "[c].jsonl", "x/a.jsonl", "x/y/a.jsonl", "x/y/z/d.jsonl", ".h.jsonl", "x/.hid/e.jsonl")
    put(*(here / name for name in files))
    monkeypatch.chdir(here)
    patterns = (
        "*", "**", "**/*", "*.jsonl", "**/*.jsonl", "x/**", "x/**/a.jsonl", "**/y/*", "*/a.jsonl", "*/*/*.jsonl",
        "?.txt", "[ab].*", "[!a]*", "[[]c].jsonl", ".*", "**/.*", "x/.*/*", "./*.jsonl", "../*/x/*", "a.jsonl", "none",
        "none/*", "a.jsonl/*", "**/**/d.jsonl", "x/**/**", f"{here}/*", f"{here}/**/*.jsonl", "x/*/a*",
        "x*/**/z/*",
    )  # fmt: skip
    for pattern in patterns:
        wanted = {os.path.normpath(path) for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
        found = expand(pattern, key="k")
        assert {os.path.normpath(path) for path in found if os.path.isfile(path)} == wanted, pattern
        assert len(set(found)) == len(found)
    assert expand("*/", key="k") == ["x"] and expand("", key="k") == []


def test_what_is_neither_a_file_nor_a_folder_or_a_folder_named_like_a_file_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for pattern in ("", "/*.jsonl", "/pipe.jsonl", "/**"):
        assert "pipe.jsonl is neither a file nor a folder" in refusal(f"{tmp_path}{pattern}")
    (tmp_path / "pipe.jsonl").unlink()
    put(tmp_path / "part.jsonl" / "0.jsonl")
    assert f"matches {tmp_path}/part.jsonl, a folder that is named like a file" in refusal(f"{tmp_path}/*.jsonl")
    assert names(f"{tmp_path}/**/*.jsonl") == ["a.jsonl", "0.jsonl"]


def test_a_folder_is_read_with_capitals_and_refused_with_packings_that_are_not_read(
    tmp_path: Path, make_texts: Callable
) -> None:
    put(tmp_path / "a.jsonl", tmp_path / "B.JSONL")
    assert names(tmp_path) == ["B.JSONL", "a.jsonl"]
    put(tmp_path / "c.jsonl.xz")
    assert f"{tmp_path}/c.jsonl.xz is packed in a way that is not read here" in refusal(tmp_path)
