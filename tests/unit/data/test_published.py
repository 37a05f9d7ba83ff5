"""Every data recipe, from small samples in the publishers' own file formats to shards, and the published counts.

Samples are made of the text that is shipped, below `data/` under the names that the publishers gave their files, so the
paths of `configs/data` are the ones that run. Counts are compared with SentencePiece's own over the same text.
"""

from __future__ import annotations

import copy
import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
import zstandard

from pretrain.config.checks import check
from pretrain.config.data import SourceConfig
from pretrain.config.load import compose, difference
from pretrain.config.run import RunConfig
from pretrain.data.__main__ import main
from pretrain.data.documents import Document, read_piece
from pretrain.data.files import find_files
from pretrain.data.manifest import find_text
from pretrain.data.prepare import ensure_prepared
from pretrain.data.published import Counts, problems, table
from pretrain.data.records import Piece
from pretrain.data.sample import training_text
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import ConfigError, DataError

SEQUENCE_LENGTH = 32
NUM_CHUNKS = 2


def corpus(name: str, count: int) -> list[str]:
    """The beginnings of documents that are shipped."""
    (file,) = find_files([f"bundled:{name}"], key="test")
    items = islice(read_piece(Piece(file), text_key="text", max_line_bytes=1 << 25), count)
    return [item.text[:400] for item in items if isinstance(item, Document)]


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_redpajama(root: Path) -> dict[str, list[str]]:
    """A file of each subset, two of those that have many, with the fields each of them has."""
    base = root / "data" / "redpajama"
    texts = {
        "common_crawl": corpus("web", 40),
        "c4": corpus("web", 60)[40:],
        "github": corpus("code", 20),
        "book": corpus("books", 20),
        "arxiv": corpus("manuals", 20),
        "wikipedia": corpus("encyclopedia", 20),
        "stackexchange": corpus("qa", 20),
    }
    half = {name: (found[: len(found) // 2], found[len(found) // 2 :]) for name, found in texts.items()}
    for dump, part in zip(("2019-30", "2023-06"), half["common_crawl"], strict=True):
        rows = [{"text": t, "pred_label": "__label__cc", "pred_label_prob": 0.9, "source": f"cc/{dump}"} for t in part]
        write_lines(base / "common_crawl" / dump / "en_head_0000.json.gz.dedup.classifier.jsonl.zst", rows)
    for number, part in enumerate(half["c4"]):
        meta = {"timestamp": "2019-04-25T12:57:54Z", "url": "http://a", "language": "en", "source": "c4"}
        write_lines(base / f"c4/c4-train.{number:05d}-of-01024.jsonl", [{"text": t, "meta": meta} for t in part])
    code = {"content_hash": "0a", "timestamp": "", "source": "github", "line_count": 9, "avg_line_length": 20.5}
    (github, more) = half["github"]
    write_lines(base / "github" / f"filtered_{'0a' * 16}.sampled.jsonl", [{"text": t, "meta": code} for t in github])
    # The published sample of RedPajama has `meta` as a string.
    write_lines(base / "github" / f"filtered_{'0b' * 16}.sampled.jsonl", [{"text": t, "meta": str(code)} for t in more])
    book = {"short_book_title": "A", "publication_date": 1850, "url": "http://b"}
    write_lines(base / "book/book.jsonl", [{"meta": book, "text": t} for t in texts["book"]])
    for number, part in enumerate(half["arxiv"]):
        meta = {
            "timestamp": None,
            "yymm": "1905",
            "arxiv_id": "1905.1",
            "language": "en",
            "url": "u",
            "source": "arxiv",
        }
        write_lines(base / f"arxiv/arxiv_{number:08x}-7ee8-42e6.jsonl", [{"text": t, "meta": meta} for t in part])
    wiki = {"title": "T", "url": "http://w", "language": "en", "timestamp": "20230320"}
    write_lines(base / "wikipedia/wiki.jsonl", [{"text": t, "meta": json.dumps(wiki)} for t in texts["wikipedia"]])
    stack = {"language": "en", "url": "http://s", "timestamp": "2023-03-29", "source": "stackexchange"}
    rows = [{"text": t, "meta": {**stack, "question_score": "2"}} for t in texts["stackexchange"]]
    write_lines(base / "stackexchange/stackexchange.jsonl", rows)
    return texts


def write_refinedweb(root: Path) -> list[str]:
    texts = corpus("web", 100)[60:]
    for number, part in enumerate((texts[:20], texts[20:])):
        empty = pa.array([[] for _ in part], type=pa.list_(pa.list_(pa.string())))
        about = {"url": ["http://a"] * len(part), "timestamp": pa.array([0] * len(part), type=pa.timestamp("ns"))}
        more = {"dump": ["CC-MAIN-2013-20"] * len(part), "segment": ["136870"] * len(part), "image_urls": empty}
        name = f"train-{number:05d}-of-05534-b8fc5348cbe605a5.parquet"
        write_parquet(root / "data/falcon-refinedweb/data" / name, {"content": part, **about, **more})
    return texts


def write_starcoder(root: Path) -> list[str]:
    """Folders of languages, whose files share their names, and one of issues, which has other columns."""
    texts = corpus("code", 60)[20:]
    python = [f"<reponame>a/b<filename>c.py<gh_stars>1-10\n{text}" for text in texts[:20]]
    stars = {"max_stars_repo_path": ["c.py"] * 20, "max_stars_repo_name": ["a/b"] * 20, "max_stars_count": [3] * 20}
    path = root / "data/starcoderdata/python/train-00000-of-00001.parquet"
    write_parquet(path, {**stars, "id": [str(i) for i in range(20)], "content": python})
    path = root / "data/starcoderdata/github-issues-filtered-structured/train-00000-of-00001.parquet"
    write_parquet(path, {"repo": ["a/b"] * 20, "issue_id": list(range(20)), "content": texts[20:]})
    return [*python, *texts[20:]]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """The folder that holds `data/`, and the documents of each source."""
    root = tmp_path_factory.mktemp("published")
    texts = write_redpajama(root) | {"refinedweb": write_refinedweb(root), "starcoder": write_starcoder(root)}
    return root, texts


Prepare = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    samples: tuple[Path, dict[str, list[str]]],
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Prepare]:
    """Runs a command of `python -m pretrain.data` where `data/` is; returns its exit code, output and error."""
    monkeypatch.chdir(samples[0])
    tokenizer.save(tmp_path / "given.model")
    given = [f"tokenizer.path={tmp_path}/given.model", f"tokenizer.vocab_size={tokenizer.vocab_size}"]
    run = [f"run.dir={tmp_path}/runs", f"data.prepared_dir={tmp_path}/tokens"]
    train = [f"train.sequence_length={SEQUENCE_LENGTH}", "train.global_batch_size=4", "train.micro_batch_size=1"]

    def run_command(name: str, *overrides: str) -> tuple[int, str, str]:
        code = main([name, *given, *run, *train, *overrides])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield run_command


def num_tokens(tokenizer: Tokenizer, texts: Iterable[str], *, more: int) -> int:
    """Tokens by SentencePiece itself, and so many more a document."""
    oracle = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    return sum(len(oracle.encode(text)) + more for text in texts)


def row_of(output: str, source: str) -> list[str]:
    """What the table says of a source, after its name."""
    (line,) = [line for line in output.splitlines() if re.match(rf"{source} .* \d\.\d{{4}}$|{source} .* –$", line)]
    return line.split()[1:]


@pytest.mark.parametrize("recipe", ["amber", "redpajama_v1", "openllama_v2"])
def test_text_in_the_published_formats_is_prepared_and_its_tokens_are_compared(
    recipe: str, command: Prepare, samples: tuple[Path, dict[str, list[str]]], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    texts = samples[1]
    is_amber = recipe == "amber"
    overrides = [f"data={recipe}", "data.holdout_fraction=0.2"]
    overrides += ["data.num_chunks=2"] if is_amber else ["tokenizer=openllama_v2"]
    config = compose([*overrides, "train.steps=2500"])
    check(config)
    # OpenLLaMA's documents have a token more: BOS.
    wanted = {n: num_tokens(tokenizer, texts[n], more=1 if is_amber else 2) for n in config.data.sources}
    for name, source in config.data.sources.items():
        assert source.expected_tokens is not None
        source.expected_tokens = wanted[name]
        overrides.append(f"data.sources.{name}.expected_tokens={wanted[name]}")
        if source.expected_files is not None:
            source.expected_files = len(find_files(source.paths, key="test"))
            overrides.append(f"data.sources.{name}.expected_files={source.expected_files}")

    code, output, error = command("prepare", *overrides, "data.expected_tolerance=0")
    assert (code, error) == (0, "")
    for name, tokens in wanted.items():
        assert row_of(output, name)[-4:] == [f"{len(texts[name]):,}", f"{tokens:,}", f"{tokens:,}", "1.0000"]

    off = [*overrides, f"data.sources.arxiv.expected_tokens={round(wanted['arxiv'] / 0.96)}"]
    for name in ("prepare", "check") if is_amber else ("prepare",):
        code, output, error = command(name, *off, "data.expected_tolerance=0.03")
        assert code == 1 and row_of(output, "arxiv")[-1] == "0.9600"
        assert re.search(r"data\.sources\.arxiv: [\d,]+ tokens, 0\.9600 of [\d,]+ that are published", error)
        assert "data.sources.arxiv.expected_tokens=null" in error and "wikipedia" not in error
    assert command("check", *off, "data.expected_tolerance=0.05")[0] == 0


def test_a_run_does_not_start_on_other_counts_than_are_published(config: RunConfig) -> None:
    root = Path(config.run.dir)
    prepared = ensure_prepared(config, run_root=root)
    tokens = prepared.manifest["sources"]["prose"]["train"]["tokens"]
    tokens += prepared.manifest["sources"]["prose"]["validation"]["tokens"]
    source = config.data.sources["prose"]
    source.expected_tokens, config.data.expected_tolerance = tokens, 0
    assert ensure_prepared(config, run_root=root).directory == prepared.directory
    source.expected_tokens = 2 * tokens
    told = r"prose: [\d,]+ tokens, 0\.5000 of.*\n.*files did not arrive.*or widen data\.expected_tolerance"
    with pytest.raises(DataError, match=told):
        ensure_prepared(config, run_root=root)
    config.data.expected_tolerance = 0.5
    assert ensure_prepared(config, run_root=root).directory == prepared.directory


def write_chunks(root: Path, *, samples: int, name: str) -> list[int]:
    """Chunks as LLM360/AmberDatasets has them: sources one after the other. Returns the tokens of the seven."""
    sources = ["arxiv", "book", "c4", name, "stackexchange", "starcoderdata", "wikipedia"]
    rows = [sources[i * len(sources) // samples] for i in range(samples)]
    for chunk in range(NUM_CHUNKS):
        ids = [[(chunk + row + i) % 500 for i in range(SEQUENCE_LENGTH + 1)] for row in range(samples)]
        path = root / "data/AmberDatasets/train" / f"train_{chunk:03d}.jsonl"
        write_lines(path, ({"token_ids": i, "source": s} for i, s in zip(ids, rows, strict=True)))
    return [NUM_CHUNKS * rows.count(source) * (SEQUENCE_LENGTH + 1) for source in sources]


def test_ambers_chunks_are_compared_by_tokens_and_exactly_by_samples(
    command: Prepare, samples: tuple[Path, dict[str, list[str]]]
) -> None:
    wanted = write_chunks(samples[0], samples=21, name="refined-web")
    names = ["arxiv", "book", "c4", "refinedweb", "stackexchange", "starcoder", "wikipedia"]
    given = ["data=amber_chunks", f"data.expected_chunks={NUM_CHUNKS}", "data.expected_chunk_samples=21"]
    given += [f"data.sources.{n}.expected_tokens={tokens}" for n, tokens in zip(names, wanted, strict=True)]
    code, output, error = command("prepare", *given, "data.expected_tolerance=0")
    assert (code, error) == (0, "")
    assert "2 chunks of 21 samples" in output
    assert row_of(output, "refinedweb") == ["2", "6", f"{wanted[3]:,}", f"{wanted[3]:,}", "1.0000"]
    assert row_of(output, "starcoder")[-1] == row_of(output, "all")[-1] == "1.0000"
    assert command("check", *given)[0] == 0
    code, _, error = command("prepare", *given, "data.expected_chunk_samples=22", "data.expected_chunks=360")
    assert code == 1
    assert "data.token_chunks are 2, 360 are published. To accept: data.expected_chunks=null" in error
    assert "22 samples each as published, but chunk 0 has 21, chunk 1 has 21. To accept: data.expected_chunk_s" in error


def test_rows_of_an_unknown_name_stop_preparation_with_the_remedy(
    command: Prepare, samples: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    write_chunks(samples[0], samples=21, name="web")
    code, _, error = command("prepare", "data=amber_chunks", "tokenizer.path=null")
    assert code == 1 and "tokenizer.path=null names none. Give the tokenizer.model they were made with" in error
    code, _, error = command("prepare", "data=amber_chunks")
    assert code == 1
    assert "source 'web' is not one of data.sources" in error and "data.sources.NAME.aliases=[web]" in error
    assert not (tmp_path / "tokens").exists()
    accepted = ["data=amber_chunks", "data.expected_tolerance=null"]
    assert command("prepare", *accepted, "data.sources.refinedweb.aliases=[web]")[0] == 0
    code, _, error = command("check", *accepted)
    assert code == 1 and "was made with data.sources.refinedweb.aliases=['web'], not " in error


def test_a_file_that_is_missing_is_named_though_its_tokens_are_few(
    command: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["data=files", "data.sources.c4.paths=[data/redpajama/c4/*.jsonl]", "data.holdout_fraction=0.2"]
    code, output, error = command("prepare", *given, "data.sources.c4.expected_files=1024")
    assert code == 1 and row_of(output, "c4")[:3] == ["2", "of", "1,024"]
    assert "data.sources.c4: 2 files, 1,024 are published. To accept: data.sources.c4.expected_files=null" in error
    code, output, _ = command("prepare", *given)
    assert code == 0 and "published" not in output, "nothing is published, nothing is compared"
    tokens = json.loads((tmp_path / "tokens/c4/manifest.json").read_text())["tokens"]
    assert main(["check", str(tmp_path / "tokens")]) == 0
    assert row_of(capsys.readouterr().out, "c4") == ["2", "20", f"{tokens:,}", "–", "–"]


def test_every_source_is_read_by_its_own_key_and_another_key_is_other_data(
    config: RunConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    contents = corpus("qa", 20)
    write_lines(tmp_path / "own.jsonl", [{"text": "decoy", "content": text} for text in contents])
    (tmp_path / "plain.jsonl.gz").write_bytes(gzip.compress(b'{"text": "plain text"}\n{"text": "more of it"}\n'))
    config.data.sources = {
        "own": SourceConfig(paths=[str(tmp_path / "own.jsonl")], text_key="content"),
        "plain": SourceConfig(paths=[str(tmp_path / "plain.jsonl.gz")]),
    }
    config.data.holdout_fraction = 0.0
    assert set(training_text(config, find_text(config.data))) == {*contents, "plain text", "more of it"}
    prepared = ensure_prepared(config, run_root=tmp_path / "runs")
    tokens = {name: source["train"]["tokens"] for name, source in prepared.manifest["sources"].items()}
    plain = ["plain text", "more of it"]
    assert tokens == {n: num_tokens(tokenizer, t, more=1) for n, t in (("own", contents), ("plain", plain))}

    same = copy.deepcopy(config)  # the same keys, written in other places
    same.data.text_key, same.data.sources["own"].text_key = "content", None
    same.data.sources["plain"].text_key = "text"
    assert difference(config, same) == []
    assert ensure_prepared(same, run_root=tmp_path / "runs").directory == prepared.directory

    other = copy.deepcopy(config)
    other.data.sources["own"].text_key = None
    assert difference(config, other) == ['data.sources.own.text_key: "content", now "text"']
    assert ensure_prepared(other, run_root=tmp_path / "runs").directory != prepared.directory
    other.data.prepared_dir = str(prepared.directory)
    with pytest.raises(DataError, match=r"was made with data\.sources\.own\.text_key=content, not text"):
        ensure_prepared(other, run_root=tmp_path / "runs")


def test_expectations_that_make_no_sense_are_all_named() -> None:
    config = compose(["data=bundled", "data.expected_chunks=0", "data.expected_tolerance=2", "data.order=mixture"])
    config.data.sources["web"].expected_tokens = -1
    config.data.sources["qa"].aliases = ["faq"]
    with pytest.raises(ConfigError) as caught:
        check(config)
    message = "\n".join(caught.value.problems)
    assert "data.expected_chunks=0 is compared with data.token_chunks, which lists none" in message
    assert "data.expected_chunks=0 must be at least 1; null compares nothing" in message
    assert "data.sources.web.expected_tokens=-1 must be at least 1" in message
    assert "data.expected_tolerance=2.0 must be at least 0 and below 1 (" in message
    assert "data.sources.qa.aliases=['faq'] are names in rows of data.token_chunks" in message


def test_ambers_published_counts_agree_with_each_other() -> None:
    """Tokens of the parts, to two decimals of a billion, and samples x chunks x 2,049 are the same total."""
    data = compose(["data=amber_chunks"]).data
    parts = {name: source.expected_tokens for name, source in data.sources.items()}
    assert data.expected_chunks is not None and data.expected_chunk_samples is not None
    samples = data.expected_chunks * data.expected_chunk_samples
    total = sum(tokens or 0 for tokens in parts.values())
    assert abs(samples * 2049 - total) <= len(parts) * 0.005e9
    assert parts == {name: source.expected_tokens for name, source in compose(["data=amber"]).data.sources.items()}
    counts = Counts(
        dict.fromkeys(parts, 360), dict.fromkeys(parts, 1), {name: tokens or 0 for name, tokens in parts.items()},
        [data.expected_chunk_samples] * data.expected_chunks,
    )  # fmt: skip
    assert list(problems(counts, data)) == []
    assert list(table(counts, data))[-2].split()[-3:] == ["1,259,110,000,000", "1,259,110,000,000", "1.0000"]
