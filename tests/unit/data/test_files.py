"""Which files patterns stand for, local and behind fsspec, and what is said of those that lead nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from pretrain.data import files
from pretrain.data.documents import Document, Piece, read_piece
from pretrain.data.files import digest, find_files, open_file
from pretrain.errors import DataError

LINE = b'{"text": "x"}\n'


def names(*patterns: Path | str) -> list[str]:
    return [file.name for file in find_files([str(pattern) for pattern in patterns], key="k")]


def refusal(*patterns: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        names(*patterns)
    return str(caught.value)


def texts(*patterns: Path | str) -> list[str]:
    items = [
        item
        for file in find_files([str(pattern) for pattern in patterns], key="k")
        for item in read_piece(Piece(file), text_key="text", max_line_bytes=1 << 20)
    ]
    assert all(isinstance(item, Document) for item in items), items
    return [item.text for item in items]


def test_globs_are_sorted_and_no_file_is_listed_twice(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.jsonl"):
        (tmp_path / name).write_bytes(LINE)
    assert names(tmp_path / "c.jsonl", tmp_path / "*.jsonl") == ["c.jsonl", "a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("name", "form", "is_seekable"),
    [
        ("a.jsonl", "jsonl", True),
        ("a.JSON", "jsonl", True),
        ("a.ndjson", "jsonl", True),
        ("a.v1.jsonl.gz", "jsonl", False),
        ("a.json.zst", "jsonl", False),
        ("a.txt", "text", False),
        ("a.txt.gz", "text", False),
        ("a.parquet", "parquet", False),
        ("a.arrow", "arrow", False),
    ],
)
def test_the_ending_says_the_format(name: str, form: str, is_seekable: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(LINE)
    (file,) = find_files([str(tmp_path / name)], key="k")
    assert (file.format, file.size, file.is_seekable_lines, file.rows) == (form, len(LINE), is_seekable, None)


@pytest.mark.parametrize("name", ["a.csv", "a", "a.jsonl.xz", "a.gz", "a.parquet.gz"])
def test_an_unknown_ending_is_refused_with_the_list(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(LINE)
    assert f"{name}, whose ending says no known format. Known: .arrow, .json, .json.gz" in refusal(tmp_path / name)


def test_bundled_names_are_resolved_and_unknown_ones_list_what_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BUNDLED_DIR", tmp_path)
    (tmp_path / "web.jsonl.zst").write_bytes(LINE)
    assert names("bundled:web") == ["web.jsonl.zst"]
    assert "k lists 'bundled:wib', which is not shipped. Bundled text: web." in refusal("bundled:wib")


def test_paths_that_lead_nowhere_name_key_and_pattern(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for pattern, reason in (
        (f"{tmp_path}/*.nope", "matches no file"),
        (f"{tmp_path}/x.jsonl", "does not exist"),
        (f"{tmp_path}/fold*", "matches folders only"),
        (f"{tmp_path}/folder", "a folder without files of a known ending"),
    ):
        assert f"k lists {pattern!r}" in refusal(pattern) and reason in refusal(pattern)
    with pytest.raises(DataError, match="k is empty"):
        find_files([], key="k")


def test_fsspec_addresses_are_found_measured_digested_and_read_in_pieces() -> None:
    fs = fsspec.filesystem("memory")
    content = b"".join(b'{"text": "%d"}\n' % i for i in range(50))
    for name in ("b", "a"):
        fs.pipe(f"/bucket/deep/{name}.jsonl", content)
    fs.pipe("/bucket/deep/c.txt", b"whole")
    a, b = find_files(["memory://bucket/**/*.jsonl"], key="k")
    assert (a.name, b.name, a.size, a.is_seekable_lines) == ("a.jsonl", "b.jsonl", len(content), True)
    assert digest(a.path) == xxhash.xxh3_128_hexdigest(content)
    with open_file(a.path) as stream:
        assert stream.read() == content
    pieces = [Piece(a, 0, 100), Piece(a, 100, 300), Piece(a, 300)]
    items = [item for piece in pieces for item in read_piece(piece, text_key="text", max_line_bytes=100)]
    assert [item.text for item in items] == [str(i) for i in range(50)]
    assert texts("memory://bucket/deep/c.txt") == ["whole"]
    assert "matches no file" in refusal("memory://bucket/*.parquet")
    assert "cannot be read" in refusal("memory://bucket/none.jsonl")
    assert "is a folder. List its files" in refusal("memory://bucket/deep")


def test_a_protocol_whose_package_is_missing_says_how_to_install_it() -> None:
    with pytest.raises(ImportError):
        fsspec.filesystem("gs")
    assert "k lists 'gs://bucket/a.jsonl', but nothing here reads gs://" in refusal("gs://bucket/a.jsonl")
    assert "pip install gcsfs" in refusal("gs://bucket/a.jsonl")
    assert "Correct the address" in refusal("nosuch://bucket/a.jsonl")


def test_a_saved_data_set_is_read_in_its_order(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "other": i} for i in range(40)]
    saved = datasets.Dataset.from_list(rows).shuffle(seed=1)
    saved.save_to_disk(tmp_path / "shuffled", num_shards=3)
    assert texts(tmp_path / "shuffled") == datasets.load_from_disk(str(tmp_path / "shuffled"))["text"][:]
    assert texts(tmp_path / "shuffled") == saved["text"][:]
    assert len(names(tmp_path / "shuffled")) == 3


def test_a_saved_data_set_with_an_index_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}]).save_to_disk(tmp_path / "d")
    state = json.loads((tmp_path / "d" / "state.json").read_text())
    (tmp_path / "d" / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "i.arrow"}]}))
    assert "flatten_indices()" in refusal(tmp_path / "d")
    (tmp_path / "d" / "state.json").write_text(json.dumps(state))
    (tmp_path / "d" / state["_data_files"][0]["filename"]).unlink()
    assert f"but its {state['_data_files'][0]['filename']} is missing" in refusal(tmp_path / "d")
    (tmp_path / "d" / "state.json").write_text("{")
    assert "state.json cannot be read" in refusal(tmp_path / "d")


def test_of_a_saved_dict_the_training_split_is_read(tmp_path: Path) -> None:
    parts = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    assert texts(tmp_path / "both") == ["train"]
    datasets.DatasetDict({"test": parts["test"]}).save_to_disk(tmp_path / "test-only")
    assert f"Give the folder of one of its splits: {tmp_path}/test-only/test." in refusal(tmp_path / "test-only")


def write_parquet(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": list(rows)}), path)


def test_of_a_hub_snapshot_the_training_files_are_read(tmp_path: Path) -> None:
    root = tmp_path / "snapshot"
    write_parquet(root / "data" / "train-00001-of-00002.parquet", "b")
    write_parquet(root / "data" / "train-00000-of-00002.parquet", "a")
    write_parquet(root / "data" / "validation-00000-of-00001.parquet", "v")
    write_parquet(root / ".cache" / "train.parquet", "hidden")
    (root / "dataset_infos.json").write_text("{}")
    (root / "README.md").write_text("a data set")
    assert texts(root) == ["a", "b"] == datasets.load_dataset(str(root), split="train")["text"][:]


def test_a_folder_whose_files_name_no_split_is_read_whole_and_unclear_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for name in ("trainer.jsonl", "b.jsonl", "a.jsonl"):
        (tmp_path / "plain" / name).write_bytes(LINE)
    assert names(tmp_path / "plain") == ["a.jsonl", "b.jsonl", "trainer.jsonl"]
    (tmp_path / "plain" / "test.jsonl").write_bytes(LINE)
    assert "1 of 4 .jsonl files are named by a split (test)" in refusal(tmp_path / "plain")
    write_parquet(tmp_path / "plain" / "x.parquet", "a")
    assert f"several formats. Give one as a glob: 4 .jsonl files: '{tmp_path}/plain/**/*.jsonl'" in refusal(
        tmp_path / "plain"
    )
