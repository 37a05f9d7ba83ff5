import runpy
import sys
import warnings

import pytest

from pretrain.checkpoint.__main__ import main
from pretrain.config.model import ModelConfig
from pretrain.model.names import megatron_shapes
from pretrain.model.spec import ModelSpec
from tests.unit.checkpoint.ranks import make_meta, random_state, save, save_random, scattered


def _run(*arguments):
    return main([str(argument) for argument in arguments])


def test_list_shows_every_checkpoint_and_fails_on_damage(tmp_path, capsys):
    save_random(tmp_path, 1)
    path = save_random(tmp_path, 2000)
    assert _run("list", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["step", "tokens", "holds"] and "2_000_000" in lines[2] and len(lines) == 3
    (path / "param_00000.safetensors").unlink()
    assert _run("list", tmp_path) == 1
    shown = capsys.readouterr()
    assert "DAMAGED" in shown.out and "param_00000.safetensors: No such file" in shown.err


def test_verify_reads_every_byte(tmp_path, capsys):
    save_random(tmp_path, 1)
    path = save_random(tmp_path, 2)
    assert _run("verify", tmp_path) == 0 and _run("verify", path) == 0
    shard = path / "exp_avg_00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x00")
    capsys.readouterr()
    assert _run("verify", tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("ok, every byte as written") and "exp_avg_00001.safetensors" in lines[1]


def test_inspect_shows_position_model_and_tensors(tmp_path, capsys):
    assert _run("inspect", save_random(tmp_path, 7)) == 0
    text = capsys.readouterr().out
    assert "run.tokens" in text and "7_000" in text and "12 x 10" in text and "model.hidden_size" in text


def test_export_writes_a_folder(tmp_path, tokenizer_model, capsys):
    config = ModelConfig(num_layers=1, hidden_size=8, ffn_hidden_size=8, num_attention_heads=2)
    spec = ModelSpec.from_config(config, 500)
    chunks = scattered(random_state(megatron_shapes(spec)), 2, 0)
    (path, _) = save(tmp_path / "run", 1, chunks, meta=make_meta(spec=spec))
    assert _run("export", path, tmp_path / "out", "--tokenizer", tokenizer_model, "--dtype", "bfloat16") == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert _run("export", path, tmp_path / "out", "--tokenizer", tmp_path / "none") == 1
    assert "none cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["list", "verify", "inspect"])
def test_a_folder_without_checkpoints_is_explained_without_a_traceback(tmp_path, command, capsys):
    assert _run(command, tmp_path) == 1
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("command", ["list", "verify", "inspect", "release"])
def test_a_file_in_place_of_a_folder_is_explained_without_a_traceback(tmp_path, command, capsys):
    (tmp_path / "file").write_text("")
    assert _run(command, tmp_path / "file") in (1, 2)
    assert f"{tmp_path}/file" in capsys.readouterr().err


def test_an_export_does_not_replace_a_file(tmp_path, tokenizer_model, capsys):
    config = ModelConfig(num_layers=1, hidden_size=8, ffn_hidden_size=8, num_attention_heads=2)
    spec = ModelSpec.from_config(config, 500)
    (path, _) = save(
        tmp_path / "run", 1, scattered(random_state(megatron_shapes(spec)), 2, 0), meta=make_meta(spec=spec)
    )
    (tmp_path / "out").write_text("mine")
    assert _run("export", path, tmp_path / "out", "--tokenizer", tokenizer_model) == 1
    assert "Not a directory" in capsys.readouterr().err and (tmp_path / "out").read_text() == "mine"


def test_the_module_runs_as_a_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["checkpoint", "verify", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as left, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # runpy notes that the module was imported before
        runpy.run_module("pretrain.checkpoint", run_name="__main__")
    assert left.value.code == 1 and "holds none" in capsys.readouterr().err
