"""Overlap of text with evaluation items: against brute force over datatrove's n-grams, planted, and in real text."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from datatrove.utils.text import TextNormConfig, ngrams, simplify_text

from pretrain.data.__main__ import main
from pretrain.data.decontaminate import Settings, read_items, report_of, scan
from pretrain.data.files import find_files
from pretrain.data.ngrams import MOST_ITEMS, WHOLE_WORDS, Item, NgramIndex, words_of
from pretrain.errors import DataError

WORDS = [f"{a}{b}{c}" for a in ("ka", "lo", "mi") for b in ("ra", "ste", "tü", "von") for c in ("x", "zy", "ns", "")]


def sentence(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def plain_words(text: str) -> list[str]:
    return simplify_text(text, TextNormConfig(norm_numbers=False)).split()


def test_words_are_those_of_datatrove_in_spaced_scripts(texts: list[str]) -> None:
    spaced = [text for text in texts if "模型" not in text and "🙂" not in text]
    assert len(spaced) > 50
    for text in (*spaced, "Größe_naïve don't 3.14 «Façade» e\u0301\t\r\n\x0cEND", "ПРИВЕТ, мир! Ελλάδα; 1,000"):
        assert [word.decode() for word in words_of(text)] == plain_words(text)


def test_each_character_is_a_word_where_none_are_written() -> None:
    assert [word.decode() for word in words_of("模型 GPT-4 训练。")] == ["模", "型", "gpt", "4", "训", "练"]


@pytest.mark.parametrize("num_words", [5, 13, 20])
def test_overlaps_are_those_of_brute_force(num_words: int) -> None:
    rng = random.Random(num_words)
    items = [Item("t", str(i), tuple(sentence(rng, rng.choice((3, 9, 12, 40))) for _ in range(3))) for i in range(60)]
    index = NgramIndex(items, num_words=num_words)
    # Brute force: every n-gram of every text, shorter texts whole, and of every two texts in a row.
    least = min(WHOLE_WORDS, num_words)
    grams: dict[tuple[str, ...], set[int]] = {}
    for number, item in enumerate(items):
        texts = [plain_words(text) for text in item.texts]
        edge = num_words - 1
        pairs = [(a, b) for i, a in enumerate(texts) for b in texts[i + 1 :]]
        seams = [a[-edge:] + mark + b[:edge] for a, b in pairs for mark in ([], ["a"], ["answer"])]
        for words in (*texts, *seams):
            size = min(num_words, len(words))
            for gram in ngrams(words, size) if size >= least else ():
                if len(set(gram)) > size / 2:
                    grams.setdefault(tuple(gram), set()).add(number)
    grams = {gram: owners for gram, owners in grams.items() if len(owners) <= MOST_ITEMS}
    assert any(len(gram) < num_words for gram in grams) or num_words == 5
    num_found = 0
    for _ in range(200):
        item = rng.choice(items)
        planted = " ".join(item.texts).split()
        cut = rng.randrange(len(planted))
        text = f"{sentence(rng, 30)} {' '.join(planted[cut : cut + rng.choice((4, 12, 13, 30))])}, {sentence(rng, 10)}."
        words = plain_words(text)
        expected = {
            owner
            for size in {len(gram) for gram in grams}
            for gram in ngrams(words, size)
            for owner in grams.get(tuple(gram), ())
        }
        found = index.overlaps(text)
        assert {overlap.item for overlap in found} == expected
        assert all(f" {overlap.excerpt} " in f" {' '.join(words)} " for overlap in found)
        assert all(len(overlap.excerpt.split()) == overlap.num_words for overlap in found)
        num_found += len(expected)
    assert num_found > 20


def test_phrases_of_many_items_and_rows_of_one_word_do_not_count() -> None:
    rng = random.Random(1)
    phrase = sentence(rng, 15)
    many = [Item("t", str(i), (f"{phrase} {sentence(rng, 20)}",)) for i in range(MOST_ITEMS + 1)]
    assert NgramIndex(many, num_words=13).overlaps(phrase) == []
    assert len(NgramIndex(many[:-1], num_words=13).overlaps(phrase)) == MOST_ITEMS
    zeros = NgramIndex([Item("t", "0", ("0 " * 40,))], num_words=13)
    assert zeros.overlaps("0 " * 60) == []
    assert NgramIndex([], num_words=13).overlaps(phrase) == []


def test_the_longest_run_is_told_and_short_items_are_named() -> None:
    rng = random.Random(2)
    words = sentence(rng, 60).split()
    index = NgramIndex([Item("t", "0", (" ".join(words),)), Item("t", "1", ("too short to say",))], num_words=13)
    text = " ".join([*words[:20], "between", *words[20:50]])
    (overlap,) = index.overlaps(text)
    assert (overlap.num_words, overlap.excerpt) == (30, " ".join(plain_words(" ".join(words[20:50]))))
    assert index.too_short == {1}


@pytest.fixture
def planted(tmp_path: Path, write_jsonl: Callable[..., Path]) -> dict[str, Any]:
    """Two items, and a corpus in three packings of which four documents hold one of them."""
    rng = random.Random(3)
    question, answer, passage = sentence(rng, 9), sentence(rng, 9), sentence(rng, 50)
    items = [
        {"id": "q-1", "task": "quiz", "question": question, "choices": [sentence(rng, 8), answer], "gold": 1},
        {"context": passage, "question": "is it so", "label": 1},
    ]
    write_jsonl(tmp_path / "own.jsonl", items)
    clean = [sentence(rng, 80) for _ in range(20)]
    bad = [f"Q: {question}?\n\nA: {answer}", f"see: {passage.upper()}"]
    rows = [clean[0], bad[0], *clean[1:9], bad[1], clean[9]]
    lines = "".join(json.dumps({"text": row, "n": i}, ensure_ascii=False) + "\n" for i, row in enumerate(rows))
    lines += "not json\n"
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_text(lines, encoding="utf-8")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    (folder / "bad.txt").write_text(f"a file with\n{bad[1]}")
    (folder / "good.txt").write_text(clean[12])
    kept = [line + "\n" for i, line in enumerate(lines.splitlines()) if i not in (1, 10)]
    return {"folder": folder, "items": tmp_path / "own.jsonl", "kept": "".join(kept).encode(), "clean": clean[12]}


def test_planted_overlaps_are_reported_by_task_source_and_place(planted: dict[str, Any]) -> None:
    index = NgramIndex(read_items(planted["items"]), num_words=13)
    files = {name: find_files([f"{planted['folder']}/{name}*"], key="k") for name in ("a", "b", "bad")}
    files["b"] = [file for file in files["b"] if file.name.startswith("b.")]
    settings = Settings(dict.fromkeys(files, "text"), 1 << 20)
    report = report_of(scan(files, index, settings=settings), index)
    assert report["tasks"] == {
        "quiz": {"items": 1, "too_short": 0, "overlapping": 1, "longest_words": 19},
        "own": {"items": 1, "too_short": 0, "overlapping": 1, "longest_words": 50},
    }
    size = len(gzip.decompress((planted["folder"] / "b.jsonl.gz").read_bytes())) - 13  # without its newlines
    counts = {
        "documents": 12, "rejected": 1, "bytes_read": size, "rejected_bytes": 8, "overlapping": 2, "dropped": 0
    }  # fmt: skip
    assert report["sources"] == {
        "a": counts,
        "b": counts,
        "bad": {
            "documents": 1, "rejected": 0, "bytes_read": (planted["folder"] / "bad.txt").stat().st_size,
            "rejected_bytes": 0, "overlapping": 1, "dropped": 0,
        },
    }  # fmt: skip
    assert [(o["source"], o["line"], o["task"], o["item"]) for o in report["overlaps"]] == [
        ("a", 2, "quiz", "q-1"),
        ("a", 11, "own", "2"),
        ("b", 2, "quiz", "q-1"),
        ("b", 11, "own", "2"),
        ("bad", 1, "own", "2"),
    ]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_corpus_is_written_without_its_overlaps(
    processes: str, planted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clean"
    command = ["decontaminate", f"{planted['folder']}/*", "--items", str(planted["items"])]
    more = ["--drop", "--out", str(out), "--json", str(tmp_path / "r" / "report.json"), "--processes", processes]
    assert main([*command, *more]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "good.txt"]
    assert (out / "a.jsonl").read_bytes() == planted["kept"]
    assert gzip.decompress((out / "b.jsonl.gz").read_bytes()) == planted["kept"]
    with zstandard.open(out / "c.jsonl.zst", "rb") as stream:
        assert stream.read() == planted["kept"]
    assert (out / "good.txt").read_text() == planted["clean"]
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    counts = {"documents": 38, "rejected": 3, "rejected_bytes": 24, "overlapping": 7, "dropped": 7}
    assert {key: report["sources"]["files"][key] for key in counts} == counts
    shown = capsys.readouterr().out
    assert "quiz                             1            1 100.00%" in shown
    assert f"q-1 and {planted['folder']}/a.jsonl, line 2: 19 words" in shown
    assert main([*command[:1], f"{out}/*", *command[2:], "--json", str(tmp_path / "again.json")]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["overlaps"] == []


def test_what_cannot_be_dropped_from_or_compared_with_is_refused(
    planted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, items = f"{planted['folder']}/*.jsonl", str(planted["items"])
    mine = tmp_path / "mine" / "a.jsonl"
    mine.parent.mkdir()
    mine.write_text("mine")
    for arguments, code, reason in (
        ([corpus], 2, "Give --suite, --tasks or --items"),
        ([corpus, "--items", items, "--drop"], 2, "--drop needs --out"),
        ([corpus, "--items", items, "--ngram", "2"], 2, "--ngram=2: it is at least 5"),
        ([corpus, "--items", items, "--drop", "--out", str(planted["folder"])], 1, "is the folder of"),
        ([corpus, "--items", str(tmp_path / "none.jsonl")], 1, "--items lists"),
        ([corpus, "--suite", "none"], 1, "none"),
        ([corpus, "--items", items, "--drop", "--out", str(mine.parent)], 1, "holds a.jsonl already"),
    ):
        assert main(["decontaminate", *arguments]) == code, arguments
        assert reason in capsys.readouterr().err
    assert mine.read_text() == "mine"
    (tmp_path / "list.jsonl").write_text('{"question": "a"}\n[1]\n')
    with pytest.raises(DataError, match=r"list\.jsonl, line 2: a JSON list, not an object"):
        read_items(tmp_path / "list.jsonl")


def test_a_torn_file_stops_and_leaves_no_copy(planted: dict[str, Any], tmp_path: Path) -> None:
    path = planted["folder"] / "c.jsonl.zst"
    path.write_bytes(path.read_bytes()[:-20])
    index = NgramIndex(read_items(planted["items"]), num_words=13)
    settings = Settings({"c": "text"}, 1 << 20, tmp_path / "out")
    with pytest.raises(DataError, match=r"c\.jsonl\.zst: damaged"):
        scan({"c": find_files([str(path)], key="k")}, index, settings=settings)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_real_overlaps_of_a_corpus_with_boolq_and_piqa_are_found(tmp_path: Path) -> None:
    from tests.support.eval_data import eval_source, missing_reason, write_eval_data

    corpus = Path(os.environ.get("FINELINE_CORPUS") or Path(__file__).parents[4] / "shared" / "data" / "corpus")
    if eval_source() is None:
        pytest.skip(missing_reason())
    if not (corpus / "qa.jsonl.zst").is_file():
        pytest.skip("FINELINE_CORPUS names no folder with qa.jsonl.zst, books.jsonl.zst and wikipedia.jsonl.zst")
    write_eval_data(tmp_path / "evals")
    paths = [str(corpus / f"{name}.jsonl.zst") for name in ("qa", "books", "wikipedia")]
    tasks = ["--tasks", "boolq,piqa", "--data-dir", str(tmp_path / "evals"), "--processes", "2"]
    assert (
        main(["decontaminate", *paths, *tasks, "--json", str(tmp_path / "r.json"), "--drop", "--out", str(tmp_path)])
        == 0
    )
    report = json.loads((tmp_path / "r.json").read_text())
    longest = {(o["task"], Path(o["file"]).name): o for o in sorted(report["overlaps"], key=lambda o: o["num_words"])}
    # Read and judged by hand: BoolQ's passage quotes the Sixth Amendment, PIQA's fudge is in its training set, too.
    sixth = longest["boolq", "books.jsonl.zst"]
    assert sixth["excerpt"].startswith("in all criminal prosecutions the accused shall enjoy the right to a speedy")
    assert sixth["num_words"] == 54
    assert longest["piqa", "qa.jsonl.zst"]["num_words"] == 69
    found = {task: counts["overlapping"] for task, counts in report["tasks"].items()}
    assert found["boolq"] == 6
    assert found["piqa"] == 45
    assert report["sources"]["files"]["dropped"] == report["sources"]["files"]["overlapping"] == 105
    index = NgramIndex([Item("t", "0", (sixth["excerpt"],))], num_words=13)
    copies = find_files([str(tmp_path / "books.jsonl.zst")], key="k")
    assert scan({"books": copies}, index, settings=Settings({"books": "text"}, 1 << 25))["books"].found == []
