"""The gate where a run uses it: the hook asks the live model, the background thread exports, failures are events."""

from types import SimpleNamespace

import pytest
import torch

from pretrain.checkpoint.blocks import Block, cut
from pretrain.checkpoint.calendar import save_steps
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.publish import Publisher
from pretrain.checkpoint.release import Releases
from pretrain.config.run import RunConfig, TrainSection
from pretrain.data.manifest import TOKENIZER_NAME
from pretrain.engine.base import TokenLogProbs
from pretrain.errors import CheckpointError
from pretrain.hooks.checkpoint import CheckpointHook
from pretrain.hooks.release import ReleaseHook
from pretrain.model.names import megatron_shapes, megatron_tensor
from pretrain.state import RunState
from pretrain.train import _after_publication
from tests.support.hub_server import TOKEN, HubServer
from tests.unit.checkpoint.live import Live, make_model, make_spec
from tests.unit.checkpoint.ranks import make_meta
from tests.unit.checkpoint.released_run import score


class _Engine(Live):
    """A live model whose weights are transformers'; `off` is added to what it says."""

    off = 0.0

    def score(self, rows):
        scored = super().score(rows)
        return TokenLogProbs(scored.log_prob_P + self.off, scored.is_greedy_P)

    def sharded_state(self):
        weights, spec = self.model.state_dict(), make_spec()
        chunks = []
        for key, shape in megatron_shapes(spec).items():
            whole = megatron_tensor(key, weights.__getitem__, spec)
            chunks += cut([Block(key, shape, (0,) * len(shape), shape)], 0, {"param": whole.reshape(-1)})
        return SimpleNamespace(chunks=lambda: chunks, optimizer_step=lambda: 3)


@pytest.fixture
def run(tmp_path, tokenizer_model):
    """A run of three steps that exports at every save, with a hook to save it."""
    (tmp_path / TOKENIZER_NAME).write_bytes(tokenizer_model.read_bytes())
    config = RunConfig()
    config.train = TrainSection(steps=3)
    config.checkpoint.export, config.precision.compute = "all", "fp32"
    parts = SimpleNamespace(config=config, directory=tmp_path, data=SimpleNamespace(directory=tmp_path))
    calendar = save_steps(config)
    releases = ReleaseHook(Releases(tmp_path, config, calendar, tmp_path / "export"))
    publisher = Publisher(
        tmp_path / "checkpoints",
        rank=0,
        world_size=1,
        barrier=lambda: None,
        background=True,
        kinds=("param",),
        on_published=_after_publication(parts, calendar, releases),
    )
    events = []
    return SimpleNamespace(
        hook=CheckpointHook(publisher, make_meta(spec=make_spec())),
        releases=releases,
        config=config,
        events=events,
        directory=tmp_path,
        engine=_Engine(make_model(make_spec())),
        state=RunState(seed=7),
        info=SimpleNamespace(resume_step=-1),
        job=SimpleNamespace(maximum=lambda value: value, rank=0),
        tracker=SimpleNamespace(
            commit=lambda durable: None, event=lambda kind, **fields: events.append((kind, fields.get("cause", "")))
        ),
        checkpoint=tmp_path / "checkpoints",
    )


def _save(run, step):
    run.state.step = step
    run.hook.on_save(run)
    run.releases.on_save(run)


def _names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_every_checkpoint_records_the_live_model_and_every_export_agrees_with_it(run):
    for step in (1, 3):
        _save(run, step)
    run.hook.on_end(run)
    assert [kind for kind, _ in run.events] == ["save", "save"]
    assert _names(run.directory / "export") == ["step_00000001", "step_00000003"]
    for step in (1, 3):
        reference = Manifest.read(run.directory / f"checkpoints/step_{step:08d}").meta.reference
        assert reference is not None and reference.compute == "fp32"
        assert "(fp32 compute) on 64 positions" in (run.directory / f"export/step_{step:08d}/README.md").read_text()


def test_tf32_is_recorded_as_what_the_live_model_computed_in(run):
    run.config.precision.tf32 = True
    _save(run, 1)
    run.hook.on_end(run)
    assert Manifest.read(run.directory / "checkpoints/step_00000001").meta.reference.compute == "tf32"


def test_a_refused_export_is_an_event_and_training_and_saving_go_on(run):
    run.engine.off = 1e-3
    _save(run, 1)
    run.engine.off = 0.0
    _save(run, 2)
    run.engine.off = float("nan")
    _save(run, 3)
    with pytest.raises(CheckpointError, match="nan nats off"):
        run.hook.on_end(run)
    kinds = [kind for kind, _ in run.events]
    assert kinds == ["save", "save_failed", "save", "save", "save_failed"]
    assert "step_00000001 was not exported" in run.events[1][1] and "0.001 nats off" in run.events[1][1]
    assert [name for name in _names(run.directory / "checkpoints") if name != "latest"] == [
        f"step_{step:08d}" for step in (1, 2, 3)
    ], "the checkpoints themselves are published"
    assert _names(run.directory / "export") == ["step_00000002"]


def test_the_configured_tolerance_counts(run):
    run.engine.off, run.config.checkpoint.export_tolerance = 1e-3, 2e-3
    _save(run, 1)
    run.hook.on_end(run)
    assert _names(run.directory / "export") == ["step_00000001"]


def test_old_optimizer_state_is_dropped_though_exports_are_refused(run, monkeypatch):
    kept = []
    monkeypatch.setattr("pretrain.train.retain", lambda root, keep, always: kept.append(keep))
    run.engine.off, run.config.checkpoint.keep = 1.0, 1
    _save(run, 1)
    with pytest.raises(CheckpointError):
        run.hook.on_end(run)
    assert kept == [1]


def test_asking_the_live_model_changes_nothing_of_it(run):
    before = {name: value.clone() for name, value in run.engine.model.state_dict().items()}
    _save(run, 1)
    run.hook.on_end(run)
    assert all(torch.equal(before[name], value) for name, value in run.engine.model.state_dict().items())


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with HubServer().running() as running:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


def test_what_a_hub_refuses_is_an_event_and_is_pushed_at_the_next_save(run, server):
    run.config.checkpoint.hub_repository = "me/{run}"
    for step, status in ((1, 403), (2, None), (3, 403)):
        server.fail = lambda request, status=status: status if "/commit/" in request else None
        _save(run, step)
        run.hook.on_end(run)  # until it is published: the second save pushes the first, too
        pushed = {name for name in server.repositories["me/run"].branches if server.repositories["me/run"].files(name)}
        assert pushed == {1: set(), 2: {"step_00000001", "step_00000002"}, 3: {"step_00000001", "step_00000002"}}[step]
    server.fail = lambda request: None
    run.releases.on_end(run)
    kinds = [kind for kind, _ in run.events]
    assert kinds == ["save", "save", "release_failed", "save", "release_failed"]
    assert "me/run" in run.events[2][1] and "checkpoint release RUN" in run.events[2][1]
    repository = server.repositories["me/run"]
    for step in (1, 2, 3):
        name = f"step_{step:08d}"
        assert repository.files(name) == {p.name: p.read_bytes() for p in (run.directory / "export" / name).iterdir()}
    assert repository.files("main") == repository.files("step_00000003")


def test_cards_get_their_scores_at_the_next_save_and_at_the_end(run):
    def card(step):
        return (run.directory / f"export/step_{step:08d}/README.md").read_text()

    _save(run, 1)
    run.hook.on_end(run)
    (run.directory / "probes.jsonl").write_text(score(1, 0.25))
    assert "0.2500" not in card(1)
    _save(run, 2)
    run.hook.on_end(run)
    assert "0.2500" in card(1)
    (run.directory / "probes.jsonl").write_text(score(1, 0.25) + score(2, 0.75) + score(1, 0.5, task="late"))
    run.releases.on_end(run)
    assert "0.7500" in card(2) and "| late | acc | 5 | 0.5000 |" in card(1)


def test_exports_have_the_number_format_and_the_name_that_the_run_gives_them(run):
    run.config.checkpoint.export_dtype, run.config.checkpoint.export_name = "bfloat16", "{run}-{tokens}"
    _save(run, 3)
    run.hook.on_end(run)
    (name,) = _names(run.directory / "export")
    assert name == "run-0"  # the state of this test's run has no tokens
    assert '"dtype": "bfloat16"' in (run.directory / "export" / name / "config.json").read_text().replace("torch_", "")


def test_an_export_that_a_killed_process_did_not_come_to_is_made_by_the_next(run):
    run.config.checkpoint.export = "none"
    for step in (1, 2):
        _save(run, step)
    run.hook.on_end(run)
    run.config.checkpoint.export, run.info.resume_step = "all", 2
    run.checkpoint = run.directory / "checkpoints/step_00000002"
    run.releases.on_start(run)
    _save(run, 3)
    run.hook.on_end(run)
    run.releases.on_end(run)
    assert _names(run.directory / "export") == ["step_00000002", "step_00000003"], "not what was never asked for"
    assert {kind for kind, _ in run.events} == {"save"}
