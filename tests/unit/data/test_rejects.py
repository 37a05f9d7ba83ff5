"""Unusable text: counted, named, and too much when it is more than the limit, no sooner and no later."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from pretrain.config.data import SourceConfig
from pretrain.config.run import RunConfig
from pretrain.data.__main__ import main
from pretrain.data.limits import check_limits
from pretrain.data.manifest import tell_rejected
from pretrain.data.prepare import ensure_prepared
from pretrain.data.prepared import check_folder
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.unit_state import UnitState
from pretrain.data.units import Plan
from pretrain.errors import DataError

BAD = [
    b'{"text": "\xff"}',
    b"{",
    b'{"other": 1}',
    b'{"text": 5}',
    b'{"text": "a\\u0000"}',
    b'{"text": "\\ud800"}',
    b"\0\0",
]


def source_manifest(config: RunConfig, tmp_path: Path, name: str) -> dict[str, Any]:
    prepared = ensure_prepared(config, run_root=tmp_path / "run")
    return json.loads((Path(prepared.directory) / name / "manifest.json").read_text())


def only_code(config: RunConfig, lines: list[bytes], tmp_path: Path) -> None:
    config.data.sources = {"code": config.data.sources["code"]}
    (tmp_path / "code.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


def good(texts: list[str]) -> list[bytes]:
    return [json.dumps({"text": text}).encode() for text in texts]


@pytest.mark.parametrize("is_cut", [False, True])
def test_rejected_lines_are_counted_by_reason_and_the_first_are_named(
    is_cut: bool, config: RunConfig, tmp_path: Path, make_texts: Callable
) -> None:
    lines = good(make_texts(100, seed=2))
    lines[40:40] = [*BAD, b'{"text": ""}', b"", b'{"text": "' + b"x" * 5000 + b'"}']
    only_code(config, lines, tmp_path)
    config.data.max_line_bytes, config.data.max_rejected_share = 4000, 0.1
    config.data.max_rejected_bytes_share = 0.2
    config.data.shard_bytes = 12_000 if is_cut else 10**9
    manifest = source_manifest(config, tmp_path, "code")
    assert manifest["documents"] == 100 and manifest["lines"] == 109
    assert manifest["rejected"] == {
        "empty": 1, "invalid_json": 1, "invalid_utf8": 1, "lone_surrogate": 1, "missing_text": 1, "not_text": 1,
        "nul_byte": 2, "too_long": 1,
    }  # fmt: skip
    named = manifest["first_rejected"]
    assert [entry["reason"] for entry in named][:3] == ["invalid_utf8", "invalid_json", "missing_text"]
    assert {entry["file"] for entry in named} == {"code.jsonl"}
    sizes = [len(line) for line in (*BAD, b'{"text": "' + b"x" * 5000 + b'"}')]
    assert sorted(entry["bytes"] for entry in named) == sorted(sizes)
    assert (manifest["rejected_bytes"], manifest["bytes_read"]) == (sum(sizes), sum(len(line) for line in lines))
    if not is_cut:
        assert [entry["place"] for entry in named] == [f"line {n}" for n in (*range(41, 48), 50)]
    else:  # lines before a piece are not counted, so the place is a byte
        offsets = np.cumsum([0, *(len(line) + 1 for line in lines)])
        placed = [entry["place"] for entry in named if entry["place"].startswith("byte")]
        assert placed and set(placed) <= {f"byte {offset}" for offset in offsets}


def test_the_share_of_a_source_is_exact_at_its_end(config: RunConfig, tmp_path: Path, make_texts: Callable) -> None:
    only_code(config, [*good(make_texts(96, seed=2)), *BAD[:4]], tmp_path)
    config.data.max_rejected_share = 0.0399
    with pytest.raises(DataError) as caught:
        ensure_prepared(config, run_root=tmp_path / "run")
    message = str(caught.value)
    assert re.search(r"sources\.code: 4 of 100 lines are unusable \(4\.00%\).*max_rejected_share=0\.0399", message)
    assert "invalid_json 1, invalid_utf8 1, missing_text 1, not_text 1" in message
    assert "code.jsonl, line 97: not UTF-8" in message and "set data.max_rejected_share to 0.04 or more" in message
    config.data.max_rejected_share = 0.04
    assert source_manifest(config, tmp_path, "code")["documents"] == 96


def make_plan(share: float, damaged: int = 0, byte_share: float = 1.0) -> Plan:
    return Plan(
        units=(), text_keys={"s": "text"}, aliases={}, max_line_bytes=1, holdout_fraction=0, add_bos=False,
        add_eos=True, row_tokens=0, sources=("s",), max_rejected_share=share,
        max_rejected_bytes_share=byte_share, max_damaged_files=damaged,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("share", "lines", "unusable", "stops"),
    [
        (0.001, 9_999, 9_999, False),  # too early to say
        (0.001, 10_000, 100, False),  # ten times the share, and other text may be better
        (0.001, 10_000, 101, True),
        (0.5, 10_000, 7_500, False),
        (0.5, 10_000, 7_501, True),
        (1.0, 10_000, 10_000, False),
        (0.0, 1, 1, True),  # nothing that follows can make it right
    ],
)
def test_before_its_end_a_source_is_stopped_only_where_it_is_clear(
    share: float, lines: int, unusable: int, stops: bool
) -> None:
    states = [UnitState("k", lines=lines, rejected={"invalid_json": unusable, "empty": 7})]
    if stops:
        with pytest.raises(DataError, match=f"{unusable} of {lines} lines so far"):
            check_limits(make_plan(share), "s", states, is_complete=False)
    else:
        check_limits(make_plan(share), "s", states, is_complete=False)


@pytest.mark.parametrize(
    ("share", "bytes_read", "rejected_bytes", "is_complete", "stops"),
    [
        (0.01, 1000, 10, True, False),
        (0.01, 1000, 11, True, True),
        (0.29, 100, 29, True, False),  # a decimal, not the nearest binary fraction
        (0.01, (1 << 30) - 1, (1 << 30) - 1, False, False),  # too early to say
        (0.01, 10 << 30, 1 << 30, False, False),  # ten times the share, and other text may be better
        (0.01, 10 << 30, (1 << 30) + 1, False, True),
        (0.0, 10, 1, False, True),
        (1.0, 10, 10, True, False),
    ],
)
def test_bytes_have_a_limit_of_their_own(
    share: float, bytes_read: int, rejected_bytes: int, is_complete: bool, stops: bool
) -> None:
    states = [UnitState("k", lines=10, bytes_read=bytes_read, rejected_bytes=rejected_bytes, rejected={"too_long": 1})]
    so_far = "" if is_complete else " so far"
    if stops:
        with pytest.raises(
            DataError,
            match=rf"1 of 10 lines{so_far} are unusable .* {rejected_bytes:,} of {bytes_read:,} bytes .*_bytes",
        ):
            check_limits(make_plan(1.0, byte_share=share), "s", states, is_complete=is_complete)
    else:
        check_limits(make_plan(1.0, byte_share=share), "s", states, is_complete=is_complete)


@pytest.mark.parametrize("is_text", [False, True])
def test_one_line_with_most_of_the_bytes_stops_and_is_named(
    is_text: bool, config: RunConfig, tmp_path: Path, make_texts: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    # Twenty small rejects before it, so that it is not among the first; in all few enough for the limit on lines.
    long = b'{"text": "' + b"x" * 2_000_000 + b'"}'
    only_code(
        config, [*good(make_texts(200, seed=2)), *(b"{" for _ in range(20)), *([] if is_text else [long])], tmp_path
    )
    if is_text:
        (tmp_path / "long.txt").write_bytes(long)
        config.data.sources["code"].paths.append(str(tmp_path / "long.txt"))
    config.data.max_line_bytes, config.data.max_rejected_share = 1_000_000, 0.1
    with pytest.raises(DataError) as caught:
        ensure_prepared(config, run_root=tmp_path / "run")
    message = str(caught.value)
    assert re.search(
        r"21 of 221 lines are unusable \(9\.50%\), with 2,000,0\d\d of 2,\d{3},\d{3} bytes \(9\d\.\d\d%\), more",
        message,
    )
    assert "max_rejected_bytes_share=0.1 allows. By reason: invalid_json 20, too_long 1." in message
    place = "long.txt, line 1" if is_text else "code.jsonl, line 221"
    assert f"\n  {place}: a {'text file' if is_text else 'line'}" in message
    needed = re.search(r"set data\.max_rejected_bytes_share to (\S+) or more", message)
    assert needed is not None
    config.data.max_rejected_share = 0.001
    with pytest.raises(DataError, match="max_rejected_share to 0.096 or more and data.max_rejected_bytes_share to"):
        ensure_prepared(config, run_root=tmp_path / "run")
    config.data.max_rejected_share, config.data.max_rejected_bytes_share = 0.096, float(needed[1])
    config.data.prepared_dir = str(tmp_path / "tokens")
    ensure_prepared(config, run_root=tmp_path / "run")
    assert main(["check", str(tmp_path / "tokens")]) == 0
    assert re.search(
        r"code: rejected .*20 invalid_json \(.*\), 1 too_long \(.*\); 2,000,0\d\d of 2,.* bytes",
        capsys.readouterr().out,
    )


def test_a_folder_that_was_prepared_before_bytes_were_counted_is_still_read(config: RunConfig, tmp_path: Path) -> None:
    config.data.prepared_dir = str(tmp_path / "tokens")
    prepared = ensure_prepared(config, run_root=tmp_path)
    before = {
        k: v for k, v in prepared.manifest["sources"]["code"].items() if k not in ("bytes_read", "rejected_bytes")
    }
    assert (
        tell_rejected("code", before | {"rejected": {"empty": 2}})
        == "2 empty (no text); the first are named in code/manifest.json"
    )
    state = {"key": "k", "lines": 3, "shards": {}}
    assert UnitState(**state).bytes_read == 0


def test_a_file_that_breaks_off_is_named_and_may_be_allowed(
    config: RunConfig, tmp_path: Path, make_texts: Callable
) -> None:
    import zstandard

    lines = good(make_texts(400, seed=2))
    config.data.sources = {"code": SourceConfig(paths=[str(tmp_path / "c-*.zst")])}
    for number in range(3):
        packed = zstandard.ZstdCompressor().compress(b"".join(line + b"\n" for line in lines))
        (tmp_path / f"c-{number}.jsonl.zst").write_bytes(packed if number != 1 else packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"(?s)1 file cannot be read to the end.*max_damaged_files=0.*c-1\.jsonl\.zst"):
        ensure_prepared(config, run_root=tmp_path / "run")
    config.data.max_damaged_files = 1
    manifest = source_manifest(config, tmp_path, "code")
    assert 800 <= manifest["documents"] < 1200 and manifest["rejected"] == {"damaged": 1}
    assert [entry["xxh3"] is None for entry in manifest["inputs"]] == [False, True, False]


@pytest.fixture
def chunks(config: RunConfig, tmp_path: Path, tokenizer: Tokenizer) -> tuple[RunConfig, list[list[dict[str, Any]]]]:
    """Three chunk files of rows of two sources, in Amber's form."""
    rng = np.random.default_rng(3)
    rows = [
        [
            {
                "token_ids": rng.integers(0, tokenizer.vocab_size, 33).tolist(),
                "source": ("arxiv", "c4")[int(rng.integers(2))],
            }
            for _ in range(20)
        ]
        for _ in range(3)
    ]
    for number, chunk in enumerate(rows):
        text = "".join(json.dumps(row) + "\n" for row in chunk)
        (tmp_path / f"train_{number:03d}.jsonl").write_text(text)
    config.data.token_chunks = [str(tmp_path / "train_*.jsonl")]
    config.data.sources = {"arxiv": SourceConfig(), "c4": SourceConfig()}
    config.data.order, config.data.holdout_fraction = "chunked", 0.0
    return config, rows


def test_rows_that_come_tokenised_are_kept_as_they_are_chunk_by_chunk(
    chunks: tuple[RunConfig, list[list[dict[str, Any]]]], tmp_path: Path
) -> None:
    config, rows = chunks
    prepared = ensure_prepared(config, run_root=tmp_path / "run")
    for name, source in prepared.sources.items():
        of_chunk = [[row["token_ids"] for row in chunk if row["source"] == name] for chunk in rows]
        assert source.chunk_rows == tuple(map(len, of_chunk))
        wanted = [token for chunk in of_chunk for row in chunk for token in row]
        assert source.train.window(0, source.train.num_tokens).tolist() == wanted
        assert len(source.validation_tokens) == 0
        for number, chunk in enumerate(of_chunk):
            dataset = IndexedDataset(str(Path(prepared.directory) / name / f"{number:05d}.train"))
            assert [dataset[i].tolist() for i in range(len(dataset))] == chunk
    check_folder(prepared.directory, full=True)


def test_rows_of_no_source_of_another_length_or_vocabulary_are_rejected(
    chunks: tuple[RunConfig, list[list[dict[str, Any]]]], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    config, rows = chunks
    whole = rows[1][0]["token_ids"]
    bad = [
        {"token_ids": whole, "source": "books"},
        {"token_ids": whole[1:], "source": "c4"},
        {"token_ids": [*whole[1:], tokenizer.vocab_size], "source": "c4"},
        {"token_ids": [*whole[1:], -1], "source": "c4"},
    ]
    with (tmp_path / "train_001.jsonl").open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in bad)
    with pytest.raises(
        DataError, match=r"(?s)data\.token_chunks: 4 of 64 lines.*train_001\.jsonl, line 21: its source 'books'"
    ):
        ensure_prepared(config, run_root=tmp_path / "run")
    config.data.max_rejected_share = 0.1
    manifest = source_manifest(config, tmp_path, "c4")
    assert manifest["rejected"] == {"bad_token_id": 2, "unknown_source": 1, "wrong_length": 1}


def test_check_names_the_offset_of_an_id_outside_the_vocabulary(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.data.prepared_dir = str(tmp_path / "tokens")
    ensure_prepared(config, run_root=tmp_path)
    assert main(["check", str(tmp_path / "tokens")]) == 0
    assert "every digest and every token id is right" in capsys.readouterr().out
    path = tmp_path / "tokens" / "code" / "00000.train.bin"
    content = bytearray(path.read_bytes())
    content[20:22] = (60_000).to_bytes(2, "little")
    path.write_bytes(content)
    ensure_prepared(config, run_root=tmp_path)  # sizes and headers are right
    config.data.verify = "full"
    with pytest.raises(
        DataError, match=r"00000\.train\.bin, offset 20: token id 60000 is outside the vocabulary of 700"
    ):
        ensure_prepared(config, run_root=tmp_path)
    assert main(["check", str(tmp_path / "tokens")]) == 1
    index = path.with_suffix(".idx")
    index.write_bytes(b"X" + index.read_bytes()[1:])
    config.data.verify = "header"
    with pytest.raises(DataError, match=r"00000\.train\.idx is not an index of Megatron's format: offset 0"):
        ensure_prepared(config, run_root=tmp_path)


def test_an_edit_in_place_is_not_taken_for_the_prepared_text(config: RunConfig, tmp_path: Path) -> None:
    config.data.prepared_dir = str(tmp_path / "tokens")
    ensure_prepared(config, run_root=tmp_path)
    path = tmp_path / "code.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole)  # written again as it was
    ensure_prepared(config, run_root=tmp_path)
    path.write_bytes(whole.replace(b"Rivers", b"Streams"[:6], 1))
    with pytest.raises(DataError, match=r"other text for source 'code'.*code\.jsonl was changed since"):
        ensure_prepared(config, run_root=tmp_path)


def test_commands_that_read_a_sample_say_what_gave_no_document_and_stop_at_a_file_they_cannot_read(
    config: RunConfig, tmp_path: Path, make_texts: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    long = b'{"other": "' + b"x" * 5000 + b'"}'
    only_code(config, [*BAD[:3], *good(make_texts(60, seed=2)), long, b'{"text": ""}'], tmp_path)
    code, model = str(tmp_path / "code.jsonl"), str(tmp_path / "given.model")
    train = ["train_tokenizer", "--vocab-size", "700", "--out"]
    size = sum(map(len, [*BAD[:3], long]))
    said = f"4 lines of the sample gave no document ({size:,} bytes). The largest is {code}, line 64"
    assert main([*train, str(tmp_path / "a.model"), code]) == 0
    assert said in capsys.readouterr().err
    assert main(["check_tokenizer", model, code]) == 0
    assert said in capsys.readouterr().err
    for command in (["check_tokenizer", model], [*train, str(tmp_path / "b.model")]):
        assert main([*command, code, "--text-key", "body"]) == 1
        error = capsys.readouterr().err
        assert "No document was read" in error or "there is no training text" in error
        assert (
            "65 lines of the sample gave no document" in error and "no field 'body'; it has 'text'" not in error[:200]
        )
    (tmp_path / "wide.jsonl").write_bytes('{"text": "a"}\n'.encode("utf-16"))
    for command in ([*train, str(tmp_path / "b.model")], ["check_tokenizer", model]):
        assert main([*command, code, str(tmp_path / "wide.jsonl")]) == 1
        assert f"{tmp_path}/wide.jsonl, its beginning: it is text in UTF-16" in capsys.readouterr().err
    assert not (tmp_path / "b.model").exists()
