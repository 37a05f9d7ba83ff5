import pytest

from pretrain.naming import billions, checkpoint_name, template_problems

TOKENS_PER_STEP = 4_194_304
AMBER = {10: "41.94", 12: "50.33", 21: "88.08", 191: "801.11", 215: "901.78", 238: "998.24", 262: "1098.91"}
OPENLLAMA = {
    24: "100.66",
    28: "117.44",
    52: "218.1",
    76: "318.77",
    104: "436.21",
    180: "754.97",
    244: "1023.41",
    256: "1073.74",
    360: "1509.95",
    461: "1933.57",
}
"""Thousands of steps and the names on the hub, m-a-p/{Amber,OpenLLaMA}-Reproduce-{X}B: all that are known."""


@pytest.mark.parametrize(
    ("run", "thousands", "name"),
    [(run, k, name) for run, known in (("Amber", AMBER), ("OpenLLaMA", OPENLLAMA)) for k, name in known.items()],
)
def test_the_17_known_releases_have_their_published_names(run, thousands, name):
    step = 1000 * thousands
    named = checkpoint_name(
        "{run}-{billions}B", run=f"{run}-Reproduce", step=step, tokens=step * TOKENS_PER_STEP, index=thousands - 1
    )
    assert named == f"{run}-Reproduce-{name}B"


def test_billions_lose_one_zero_as_the_published_218_1_did():
    assert [billions(n * 10**7) for n in (0, 21810, 10000, 5)] == ["0.0", "218.1", "100.0", "0.05"]


def test_a_save_without_index_has_a_name_of_its_own():
    facts = {"run": "amber", "tokens": 0, "step": 0}
    assert checkpoint_name("ckpt_{index:03d}", **facts, index=None) == "step_00000000"
    assert checkpoint_name("ckpt_{index:03d}", **facts, index=7) == "ckpt_007"
    assert checkpoint_name("{run}_{step}", **facts, index=None) == "amber_0"


@pytest.mark.parametrize(
    ("key", "template", "said"),
    [
        ("checkpoint.export_name", "fixed", "the same name"),
        ("checkpoint.export_name", "{run}", "the same name"),
        ("checkpoint.export_name", "{stepp}", "has the field 'stepp'"),
        ("checkpoint.export_name", "a/{step}", "cannot name a folder"),
        ("checkpoint.export_name", "{step", "is no template"),
        ("checkpoint.export_name", "{step:q}", "is no template"),
        ("checkpoint.export_name", "{}", "has the field ''"),
        ("checkpoint.export_name", "{run.x}", "has the field 'run.x'"),
        ("checkpoint.hub_repository", "a/b/{step}", "cannot name a repository"),
        ("checkpoint.hub_repository", "me/ckpt_{index}", "have no index"),
    ],
)
def test_templates_that_cannot_name_anything_are_refused(key, template, said):
    (problem,) = template_problems(key, template)
    assert said in problem and key in problem


@pytest.mark.parametrize("template", ["me/Amber", "me/Amber-{billions}B", "Amber_{step:06d}"])
def test_repositories_may_be_shared_or_have_fields(template):
    assert list(template_problems("checkpoint.hub_repository", template)) == []
