"""Files that are not what their name says, and what stands before the text: byte order marks, packings, encodings."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import shlex
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.data import SourceConfig
from pretrain.config.run import RunConfig
from pretrain.data.__main__ import main
from pretrain.data.decontaminate import read_items
from pretrain.data.documents import Document, Rejected, read_piece
from pretrain.data.files import InputFile, find_files
from pretrain.data.kinds import HEAD_BYTES, wrong_content, wrong_packing
from pretrain.data.prepare import ensure_prepared
from pretrain.data.records import Piece
from pretrain.errors import DataError

MARK = b"\xef\xbb\xbf"
TEXTS = [f"document {i} 数据" for i in range(60)]
RAW = b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in TEXTS)
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def read(path: Path, *, piece: Piece | None = None) -> list[Document | Rejected]:
    (file,) = find_files([str(path)], key="k")
    return list(read_piece(piece or Piece(file), text_key="text", max_line_bytes=1 << 20))  # type: ignore[arg-type]


def refusal(path: Path) -> str:
    (item,) = read(path)
    assert isinstance(item, Rejected) and item.is_damage and item.reason == "wrong_kind" and item.line == 0
    return item.detail


@pytest.mark.parametrize("packing", PACK)
def test_a_byte_order_mark_at_the_start_of_a_file_is_no_text(packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(PACK[packing](MARK + RAW))
    assert [item.text for item in read(path)] == TEXTS
    path = tmp_path / f"b.txt{packing}"
    path.write_bytes(PACK[packing](MARK + b"text \xef\xbb\xbf here"))
    assert [item.text for item in read(path)] == ["text \ufeff here"]
    path.write_bytes(PACK[packing](MARK))
    assert [item.reason for item in read(path)] == ["empty"]


def test_a_mark_changes_no_position_in_its_file(tmp_path: Path) -> None:
    raw = MARK + b'{"text": "a"}\nbad\n\n{"text": "b"}\n'
    path = tmp_path / "a.jsonl"
    path.write_bytes(raw)
    whole = read(path)
    assert [(item.line, getattr(item, "byte", None)) for item in whole] == [(1, None), (2, 17), (4, None)]
    (file,) = find_files([str(path)], key="k")
    for cuts in itertools.combinations(range(1, len(raw)), 2):
        bounds = [0, *cuts]
        pieces = [Piece(file, *pair) for pair in itertools.zip_longest(bounds, bounds[1:])]
        items = [item for piece in pieces for item in read(path, piece=piece)]
        assert [getattr(i, "text", getattr(i, "byte", 0)) for i in items] == ["a", 17, "b"], cuts


def test_a_mark_is_in_no_token_wherever_work_is_cut(config: RunConfig, tmp_path: Path, make_texts: Callable) -> None:
    lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in make_texts(60, seed=5))
    for name, mark in (("plain", b""), ("marked", MARK)):
        (tmp_path / f"{name}.jsonl").write_bytes(mark + lines)
        (tmp_path / f"{name}.txt").write_bytes(mark + b"A text file of some words.")
    found = {}
    for name in ("plain", "marked"):
        paths = [str(tmp_path / f"{name}.jsonl"), str(tmp_path / f"{name}.txt")]
        config.data.sources = {"s": SourceConfig(paths=paths)}
        config.data.shard_bytes = 5000
        prepared = ensure_prepared(config, run_root=tmp_path / name)
        source = prepared.manifest["sources"]["s"]
        assert source["rejected"] == {}
        found[name] = (source["train"], source["validation"])
        stream = prepared.sources["s"].train
        assert "\ufeff" not in prepared.tokenizer.decode(stream.window(0, stream.num_tokens))
    assert found["marked"] == found["plain"]


@pytest.mark.parametrize("name", ["a.jsonl.GZ", "a.JSONL.gz", "A.JSONL.ZST", "a.jsonl.Zst", "a.TXT", "a.txt.GZ"])
def test_an_ending_in_capitals_is_the_same_ending(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    is_text = ".txt" in name.lower()
    path.write_bytes(PACK[path.suffix.lower() if path.suffix.lower() in PACK else ""](b"words" if is_text else RAW))
    (file,) = find_files([str(path)], key="k")
    assert not file.is_seekable_lines
    assert [item.text for item in read(path)] == (["words"] if is_text else TEXTS)


def zip_of(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.jsonl", content)
    return stream.getvalue()


def tar_of(content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo("a.jsonl")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def parquet_of(content: bytes) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": [content.decode()]}), stream)
    return stream.getvalue()


def arrow_of(content: bytes) -> bytes:
    stream = io.BytesIO()
    table = pa.table({"text": [content.decode()]})
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


KINDS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "Zstandard": zstandard.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zip": zip_of,
    "tar": tar_of,
    "Parquet": parquet_of,
    "Arrow": arrow_of,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", [".jsonl", ".txt"])
def test_a_file_whose_name_hides_what_it_is_is_refused_with_its_kind(kind: str, ending: str, tmp_path: Path) -> None:
    content = KINDS[kind](RAW)
    path = tmp_path / f"a{ending}"
    path.write_bytes(content)
    assert f"it is {kind}, which" in refusal(path)
    for packing, outer in ((".gz", "gzip"), (".zst", "Zstandard")):
        path = tmp_path / f"a{ending}{packing}"
        path.write_bytes(PACK[packing](content))
        assert f"it is {kind} inside {outer}" in refusal(path)
        if kind != outer:
            path.write_bytes(content)
            assert f"it is {kind}, although its name ends in {packing}" in refusal(path)
    path.write_bytes(RAW)
    assert "it does not begin as Zstandard does, although its name ends in .zst" in refusal(path)


def test_a_zst_file_that_begins_with_a_frame_to_be_skipped_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x51\x2a\x4d\x18\x03\0\0\0abc" + zstandard.compress(RAW))
    assert len(read(tmp_path / "a.jsonl.zst")) == len(TEXTS)


ENCODINGS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("packing", PACK)
def test_text_in_another_encoding_is_named_and_the_remedy_works(encoding: str, packing: str, tmp_path: Path) -> None:
    path = tmp_path / "it's" / f"a.jsonl{packing}"
    path.parent.mkdir()
    path.write_bytes(PACK[packing](RAW.decode().encode(encoding)))
    detail = refusal(path)
    named = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    assert f"it is text in {named}, not in UTF-8" in detail
    command = detail.split("list the new file: ")[1].split(". Nothing of it")[0]
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
    assert [item.text for item in read(tmp_path / "utf8-a.jsonl")] == TEXTS


def test_gzip_inside_gzip_is_unpacked_by_the_command_that_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.compress(RAW)))
    command = refusal(path).split("list the new file: ")[1].split(". Nothing of it")[0]
    assert command == f"gzip -dc {shlex.quote(str(path))} > unpacked-a.jsonl.gz"
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
    assert len(read(tmp_path / "unpacked-a.jsonl.gz")) == len(TEXTS)


def test_every_part_of_a_large_file_of_another_encoding_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(RAW.decode().encode("utf-16"))
    (file,) = find_files([str(path)], key="k")
    for start in (0, 500, 1501):
        (item,) = read(path, piece=Piece(file, start, start + 400))
        assert "it is text in UTF-16" in item.detail


def test_a_pointer_of_git_lfs_is_not_taken_for_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert "a pointer of Git LFS" in refusal(tmp_path / "a.txt") and "git lfs pull" in refusal(tmp_path / "a.txt")


def test_what_is_named_like_a_table_and_is_none_is_named_for_what_it_is(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    kinds = {
        "gzip": "it is gzip",
        "zip": "it is zip",
        "Parquet": "Rename it to end in .parquet",
        "Arrow": "to end in .arrow",
    }
    for ending in (".parquet", ".arrow"):
        path = tmp_path / f"a{ending}"
        for content, reason in (
            *((KINDS[kind](RAW), said) for kind, said in kinds.items() if not said.endswith(ending)),
            (pointer, "a pointer of Git LFS"),
            (RAW, "it is JSON"),
        ):
            path.write_bytes(content)
            assert reason in refusal(path)
        path.write_bytes(KINDS["Parquet" if ending == ".parquet" else "Arrow"](RAW)[:-9])
        (item,) = read(path)
        assert item.reason == "damaged"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=HEAD_BYTES).map(lambda text: text.replace("\0", "").encode()))
def test_no_text_in_utf_8_is_taken_for_something_else(head: bytes) -> None:
    assert wrong_content(head[:HEAD_BYTES], "a.txt") is None
    for path, packed in (("a.txt.gz", gzip.compress(head)), ("a.txt.zst", zstandard.compress(head))):
        assert wrong_packing(packed, path) is None
        assert all(wrong_packing(packed[:cut], path) is None for cut in range(4)), "what was torn is damaged"


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_preparation_names_the_file_and_what_it_is(has_tokenizer: bool, config: RunConfig, tmp_path: Path) -> None:
    config.data.sources = {"code": config.data.sources["code"]}
    (tmp_path / "code.jsonl").write_bytes(RAW.decode().encode("utf-16"))
    config.tokenizer.path = config.tokenizer.path if has_tokenizer else None
    said = r"(?s)1 file cannot be read to the end.*code\.jsonl, its beginning: it is text in UTF-16"
    with pytest.raises(DataError, match=said):
        ensure_prepared(config, run_root=tmp_path / "run")


def test_items_with_a_mark_are_read_and_a_copy_without_documents_keeps_its_packing(
    tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    (tmp_path / "items.jsonl.GZ").write_bytes(gzip.compress(MARK + b'{"question": "a", "id": "first"}\n'))
    assert [item.id for item in read_items(tmp_path / "items.jsonl.GZ")] == ["first"]
    (tmp_path / "t.jsonl.GZ").write_bytes(gzip.compress(MARK + RAW))
    command = ["decontaminate", str(tmp_path / "t.jsonl.GZ"), "--items", str(tmp_path / "items.jsonl.GZ")]
    assert main([*command, "--drop", "--out", str(tmp_path / "out")]) == 0
    assert gzip.decompress((tmp_path / "out" / "t.jsonl.GZ").read_bytes()) == RAW


def test_an_empty_file_is_no_kind(tmp_path: Path) -> None:
    for name, form in (("a.jsonl", "jsonl"), ("a.txt", "text")):
        (tmp_path / name).write_bytes(b"")
        items = list(
            read_piece(Piece(InputFile(str(tmp_path / name), form, 0, None, False)), text_key="text", max_line_bytes=9)
        )
        assert [item.reason for item in items] == ([] if form == "jsonl" else ["empty"])
