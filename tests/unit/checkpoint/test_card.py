"""Model cards, read by the hub's own parser."""

import pytest
from huggingface_hub import ModelCard

from pretrain import __version__
from pretrain.checkpoint.card import card_text, complete_card, origin_text, read_scores
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.parity import Parity
from pretrain.config.run import RunConfig, RunSection, TrainSection
from pretrain.errors import CheckpointError
from tests.unit.checkpoint.live import make_spec
from tests.unit.checkpoint.ranks import make_meta
from tests.unit.checkpoint.released_run import score


@pytest.fixture
def folder(tmp_path):
    """A release with a card and nothing else."""
    meta = make_meta(40, spec=make_spec())
    meta.run_state["source_tokens"] = {"books": 30_000, "web | news": 10_000}
    manifest = Manifest(step=40, kinds=("param",), meta=meta, tensors={}, files=(), chunks=())
    config = RunConfig(run=RunSection(name="mine"), train=TrainSection(steps=100, global_batch_size=4))
    text = card_text(
        "ckpt_003",
        make_spec(),
        sequence_length=64,
        dtype="bfloat16",
        tokenizer_mismatch=None,
        parity=Parity(0.0123, 0.5, 64, "bf16"),
        origin=origin_text(manifest, config, chunk_ends=(20, 40, 60)),
    )
    (tmp_path / "ckpt_003").mkdir()
    (tmp_path / "ckpt_003/README.md").write_text(text)
    return tmp_path / "ckpt_003"


def _text(folder):
    return (folder / "README.md").read_text()


def _write(run, *lines):
    (run / "probes.jsonl").write_text("".join(lines))
    return read_scores(run)


def test_a_card_says_where_the_weights_come_from(folder):
    text = _text(folder)
    data = ModelCard(text).data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "text-generation"
    for row in ("| step | 40 |", "| tokens | 40_000 |", "| samples | 400 |", "| tokens of books | 30_000 |"):
        assert row in text
    for row in (
        "| tokens of web \\| news | 10_000 |",
        "| configuration hash | c0ffee |",
        "| identity hash | same-run |",
    ):
        assert row in text
    for row in ("| tokenizer | abc |", "| engine | none |", "| tokens per step | 8_192 |", "| peak learning rate | "):
        assert row in text
    assert "| chunks of data completed | 2 |" in text and f"| exported by | Fineline {__version__} |" in text
    assert "(bf16 compute) on 64 positions: 0.012 nats" in text and "No scores yet." in text
    assert "license" not in data and "No licence is stated" in text


def test_scores_come_into_table_and_model_index_and_replace_what_was_there(folder, tmp_path):
    first = _write(tmp_path, score(40, 0.5), score(39, 0.1), score(40, 0.4, metric="margin"))
    assert complete_card(folder, first[40])
    (result,) = ModelCard(_text(folder)).data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("arc", "acc", 0.5)
    assert "margin" not in _text(folder) and "0.1000" not in _text(folder)
    assert not complete_card(folder, first[40]), "nothing new"
    second = _write(tmp_path, score(40, 0.5), score(40, 0.75), score(40, 0.6, task="mean"), score(40, 0.3, task="piqa"))
    assert complete_card(folder, second[40])
    results = {result.dataset_name: result.metric_value for result in ModelCard(_text(folder)).data.eval_results}
    assert results == {"arc": 0.75, "piqa": 0.3}
    text = _text(folder)
    assert text.count("model-index:") == 1 and text.count("## Scores") == 1 and "| mean of knowledge | acc |" in text
    assert not complete_card(folder, ()) and _text(folder) == text, "no scores leave what the card says"


def test_what_somebody_adds_to_a_card_stays(folder, tmp_path):
    path = folder / "README.md"
    path.write_text(_text(folder).replace("tags:", "license: apache-2.0\ntags:") + "\nBeware of \\1 and of dogs.\n")
    assert complete_card(folder, _write(tmp_path, score(40, 0.5))[40], loaded_from='"me/x", revision="a"')
    text = _text(folder)
    assert ModelCard(text).data.license == "apache-2.0" and text.endswith("Beware of \\1 and of dogs.\n")
    assert 'AutoTokenizer.from_pretrained("me/x", revision="a")' in text and '"PATH"' not in text


def test_a_card_without_marks_is_left_alone(folder, tmp_path):
    (folder / "README.md").write_text("Mine.\n")
    assert not complete_card(folder, _write(tmp_path, score(40, 0.5))[40], loaded_from='"me/x"')
    (folder / "README.md").unlink()
    with pytest.raises(CheckpointError, match=r"README\.md was not completed"):
        complete_card(folder, ())


def test_a_record_is_read_as_far_as_it_is_whole(tmp_path):
    assert read_scores(tmp_path) == {}
    lines = ["not json\n", "[1]\n", '{"step": 40}\n', score(40, 0.5), score(41, 0.5)[:-2]]
    assert {step: len(rows) for step, rows in _write(tmp_path, *lines).items()} == {40: 1}
