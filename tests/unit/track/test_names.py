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
    ],
)
def test_every_name_has_a_meaning(name: str, unit: str) -> None:
    found = names.meaning(name)
    assert found is not None and found.unit == unit and found.description


def test_every_constant_is_in_the_table() -> None:
    constants = [value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)]
    assert len(constants) >= 11
    assert all(constant in names.MEANINGS for constant in constants)
    assert names.meaning("something/else") is None
