import pytest

from pretrain.track import names


def test_probe_names_group_by_domain_and_are_parsed_back() -> None:
    name = names.probe_name("common sense", "blimp/agreement", "acc")
    assert name.split("/")[0] == "probe-common sense"
    assert names.parse_probe_name(name) == names.ProbeName("common sense", "blimp/agreement", "acc")
    assert names.parse_probe_name("train/loss") is None


def test_validation_names_are_parsed_back() -> None:
    assert names.parse_validation_name(names.validation_loss("a/b")) == ("a/b", "loss")
    assert names.parse_validation_name(names.validation_bits_per_byte("web")) == ("web", "bits_per_byte")
    assert names.parse_validation_name("validation/web/other") is None


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        (names.TRAIN_LOSS, "nats/token"),
        (names.validation_bits_per_byte("web"), "bits/byte"),
        (names.source_tokens("stories"), "tokens"),
        (names.probe_name("knowledge", "arc", "acc"), ""),
        (names.DYNAMICS_OUTPUT_ENTROPY, "nats"),
        (names.dynamics("grad_norm", layer=3, group="attention_qkv"), ""),
        (names.dynamics("second_moment_norm", group="embedding"), ""),
        (names.dynamics("activation_rms", layer=3), ""),
    ],
)
def test_every_name_has_a_meaning(name: str, unit: str) -> None:
    found = names.meaning(name)
    assert found is not None and found.unit == unit and found.description


def test_names_of_layers_sort_by_layer() -> None:
    assert names.dynamics("grad_norm", layer=3, group="mlp_in") == "dynamics/layer_003/mlp_in/grad_norm"
    assert names.dynamics("weight_norm", group="embedding") == "dynamics/embedding/weight_norm"
    sorts = [names.dynamics("activation_rms", layer=layer) for layer in range(120)]
    assert sorts == sorted(sorts)


def test_every_constant_is_in_the_table() -> None:
    constants = [value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)]
    assert len(constants) >= 11
    assert all(constant in names.MEANINGS for constant in constants)
    assert names.meaning("something/else") is None
