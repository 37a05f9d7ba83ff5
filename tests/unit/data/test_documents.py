"""Reading JSONL, and what is said of files that cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from pretrain.data import files, lines
from pretrain.data.documents import read_documents, resolve_paths
from pretrain.errors import DataError

ROWS = [
    {"text": f"document {i} \u2028 数据\r\n", "meta": {"split": "validation" if i % 3 == 0 else "train"}}
    for i in range(500)
]
RAW = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()


def write(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".zst":
        content = zstandard.ZstdCompressor().compress(content)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst"])
@pytest.mark.parametrize("chunk_bytes", [7, 1 << 20])
def test_every_packing_gives_the_same_documents(
    name: str, chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_CHUNK_BYTES", chunk_bytes)
    path = write(tmp_path / name, RAW + b"\n\n")
    found = list(read_documents([path]))
    assert [(d.text, d.split, d.file, d.line) for d in found] == [
        (row["text"], row["meta"]["split"], str(path), i) for i, row in enumerate(ROWS, start=1)
    ]


def test_zst_and_gz_files_of_several_frames_are_read_to_the_end(tmp_path: Path) -> None:
    half = RAW.index(b"\n", len(RAW) // 2) + 1
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "t.jsonl.zst").write_bytes(pack(RAW[:half]) + pack(RAW[half:]))
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(RAW[:half]) + gzip.compress(RAW[half:]))
    for name in ("t.jsonl.zst", "t.jsonl.gz"):
        assert len(list(read_documents([tmp_path / name]))) == len(ROWS)


def test_a_document_without_mark_has_no_split_and_another_field_can_hold_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", b'{"content": "a", "meta": "x"}\n{"content": ""}')
    assert [(d.text, d.split) for d in read_documents([path], text_key="content")] == [("a", None)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "x"', "not JSON"),
        (b'{"text": "\xff"}', "not UTF-8: byte 0xff at offset 10"),
        (b'{"body": "x"}', "no field 'text'; it has 'body'"),
        (b'{"text": 3}', "holds int, not a string"),
        (b'["x"]', "a JSON list"),
        (b'{"text": "\\ud800"}', "lone surrogate at character 0"),
        (b'{"text": "x", "meta": {"split": "valid"}}', "meta.split='valid'; allowed are 'train', 'validation'"),
        (b"[" * 100_000, "nested too deeply|not JSON"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(line: bytes, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl.zst", b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n')
    with pytest.raises(DataError, match=rf"t\.jsonl\.zst, line 3.*({reason})"):
        list(read_documents([path]))


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.jsonl.zst"])
def test_a_torn_or_damaged_file_is_never_taken_for_a_short_one(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, RAW)
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) // 2, 8):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=name):
            list(read_documents([path]))
    path.write_bytes(whole[: len(whole) // 2] + b"\x00" * 8 + whole[len(whole) // 2 + 8 :])
    with pytest.raises(DataError, match=name):
        list(read_documents([path]))
    path.write_bytes(b"this is not packed")
    with pytest.raises(DataError, match=f"{name}, line 0: damaged"):
        list(read_documents([path]))


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl.gz", b"\n \n")
    with pytest.raises(DataError, match="holds no documents"):
        list(read_documents([path]))


def test_globs_are_sorted_and_no_file_is_listed_twice(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.jsonl"):
        write(tmp_path / name, RAW)
    found = resolve_paths([str(tmp_path / "c.jsonl"), str(tmp_path / "*.jsonl")], key="k")
    assert [path.name for path in found] == ["c.jsonl", "a.jsonl", "b.jsonl"]


def test_bundled_names_are_resolved_and_unknown_ones_list_what_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BUNDLED_DIR", tmp_path)
    path = write(tmp_path / "web.jsonl.zst", RAW)
    assert resolve_paths(["bundled:web"], key="k") == [path]
    with pytest.raises(DataError, match="k lists 'bundled:wib'.*Bundled text: web"):
        resolve_paths(["bundled:wib"], key="k")


def test_paths_that_lead_nowhere_name_key_and_pattern(tmp_path: Path) -> None:
    for pattern, reason in (
        (f"{tmp_path}/*.nope", "matches no file"),
        (f"{tmp_path}/x", "not exist"),
        (str(tmp_path), "folder"),
    ):
        with pytest.raises(DataError, match=f"data.sources.a.paths.*{reason}"):
            resolve_paths([pattern], key="data.sources.a.paths")
    with pytest.raises(DataError, match=r"data\.sources\.a\.paths is empty"):
        resolve_paths([], key="data.sources.a.paths")
