"""The published recipes: what follows from their configurations is what was published of them."""

from __future__ import annotations

import functools
from fractions import Fraction

import pytest

from pretrain.checkpoint.calendar import Calendar, save_steps
from pretrain.config.checks import check
from pretrain.config.load import compose, config_folder
from pretrain.config.run import RunConfig
from pretrain.engine.build import check_capabilities
from pretrain.model.spec import ModelSpec
from pretrain.naming import checkpoint_name
from pretrain.schedule import learning_rate
from pretrain.units import Duration

RECIPES = {
    # experiment: its nano, parameters, tokens a step, steps, saves
    "amber_7b": ("amber_nano", 6_738_415_616, 4_587_520, 274_320, 360),
    "amber_7b_fineline": ("amber_fineline_nano", 6_738_415_616, 4_194_304, 299_880, 299),
    "openllama_3b_v1": ("openllama_3b_v1_nano", 3_426_473_600, 4_194_304, 250_000, 100),
    "openllama_7b_v1": ("openllama_nano", 6_738_415_616, 4_194_304, 250_000, 100),
    "openllama_13b_v1": ("openllama_13b_v1_nano", 13_015_864_320, 2_097_152, 500_000, 100),
    "openllama_3b_v2": ("openllama_3b_v2_nano", 3_426_473_600, 4_194_304, 250_000, 100),
    "openllama_7b_v2": ("openllama_7b_v2_nano", 6_738_415_616, 4_194_304, 250_000, 100),
    "openllama_7b_fineline": ("openllama_fineline_nano", 6_738_415_616, 4_194_304, 500_000, 500),
    "k2_65b": ("k2_nano", 65_285_660_672, 4_177_920, 338_760, 360),
}
# Half a cosine from 3e-4 to 3e-5 after 2,000 steps from 0, computed with 40 digits.
AMBER_RATES = {
    **{0: 0.0, 1: 1.5e-7, 2: 3.0e-7, 761: 0.00011415, 762: 0.0001143, 1000: 0.00015, 1999: 0.00029985, 2000: 0.0003},
    **{2001: 0.000299999999991017, 5000: 0.000299919156780468, 10000: 0.000299425465478458, 38100: 0.00028846088077244},
    **{68580: 0.000262096927860463, 100000: 0.000222529803123099, 137160: 0.000166557379556487, 138160: 0.000165},
    **{200000: 7.66537369268378e-5, 250000: 3.52786255194514e-5, 274318: 3.00000000359339e-5},
    274319: 3.00000000089835e-5,
}
OPENLLAMA_RATES = {
    **{0: 0.0, 1: 1.5e-7, 100: 1.5e-5, 1000: 0.00015, 1999: 0.00029985, 2000: 0.0003, 2001: 0.000299999999989168},
    **{2500: 0.000299997292062021, 10000: 0.000299307358657906, 24000: 0.000294791258551649},
    **{50000: 0.000275803064562982, 62500: 0.000262255952177138, 100000: 0.000208664128265147},
    **{125000: 0.000166710095424611, 126000: 0.000165, 150000: 0.000124585978398597, 200000: 5.61861844337093e-5},
    **{225000: 3.67134747889529e-5, 249998: 3.00000000433272e-5, 249999: 3.00000000108318e-5},
}


@functools.cache
def recipe(name: str) -> RunConfig:
    return compose([f"experiment={name}"])


def calendar_of(name: str) -> Calendar:
    config = recipe(name)
    ends = range(762, config.total_steps + 1, 762) if name == "amber_7b" else ()
    return save_steps(config, chunk_ends=ends)


def name_at(name: str, step: int) -> str:
    config = recipe(name)
    tokens = config.batch_sizes.tokens(step)
    template, index = config.checkpoint.export_name, calendar_of(name).index(step)
    return checkpoint_name(template, run=config.run.name, step=step, tokens=tokens, index=index)


def test_every_experiment_but_the_demo_is_a_recipe_or_its_nano() -> None:
    found = {path.stem for path in (config_folder() / "experiment").glob("*.yaml")}
    assert found == {"demo", "amber_160m_h200", *RECIPES, *(nano for nano, *_ in RECIPES.values())}


def test_the_showcase_for_one_gpu_is_ambers_recipe_at_160m() -> None:
    config, amber = recipe("amber_160m_h200"), recipe("amber_7b")
    check(config, 1, files=False)
    assert check_capabilities(config, world_size=1) == []
    assert ModelSpec.from_config(config.model, config.tokenizer.vocab_size).num_parameters == 162_417_408
    assert (config.batch_sizes.full_step_tokens, config.total_tokens) == (262_144, 157_286_400)
    assert config.optimizer == amber.optimizer and config.train.loss == amber.train.loss
    assert config.schedule.kind == amber.schedule.kind and config.train.sequence_length == amber.train.sequence_length
    ratio = config.schedule.min_learning_rate / config.schedule.learning_rate
    assert ratio == pytest.approx(amber.schedule.min_learning_rate / amber.schedule.learning_rate)


@pytest.mark.parametrize("name", RECIPES)
def test_sizes_tokens_and_steps_are_the_published_ones(name: str) -> None:
    _, parameters, tokens_per_step, steps, saves = RECIPES[name]
    config = recipe(name)
    world_size = config.cluster.nodes * config.cluster.processes_per_node
    check(config, world_size, files=False)
    assert check_capabilities(config, world_size=world_size) == []
    assert ModelSpec.from_config(config.model, config.tokenizer.vocab_size).num_parameters == parameters
    assert (config.batch_sizes.full_step_tokens, config.total_steps) == (tokens_per_step, steps)
    regular = [step for step in calendar_of(name).steps() if calendar_of(name).index(step) is not None]
    assert len(regular) == saves
    optimizer = config.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay, optimizer.grad_clip) == (0.9, 0.95, 0.1, 1.0)


@pytest.mark.parametrize(
    ("name", "rates"), [("amber_7b", AMBER_RATES), ("openllama_7b_v1", OPENLLAMA_RATES)], ids=["amber", "openllama"]
)
def test_the_learning_rate_at_twenty_steps(name: str, rates: dict[int, float]) -> None:
    config = recipe(name)
    sizes, total = config.batch_sizes, config.total_tokens
    found = {s: learning_rate(config.schedule, sizes.tokens(s), total_tokens=total, batch_sizes=sizes) for s in rates}
    assert len(rates) == 20 and found == pytest.approx(rates, rel=1e-14, abs=0)


def test_ambers_chunks() -> None:
    """LLM360/amber-train main.py: TRAIN_EXAMPLES_PER_CHUNK, N_CHUNKS, and the sum that its README states."""
    config, examples = recipe("amber_7b"), 1_706_976
    steps, dropped = divmod(examples, config.train.global_batch_size)
    assert (steps, dropped, 360 * steps) == (762, 96, config.total_steps)
    assert round(examples * 360 * 2049 / 1e9, 2) == 1259.13
    assert config.total_tokens == 1_258_448_486_400
    calendar = calendar_of("amber_7b")
    assert calendar.steps() == [0, *range(762, 274_321, 762)]
    assert [name_at("amber_7b", step) for step in (762, 1524, 274_320)] == ["ckpt_000", "ckpt_001", "ckpt_359"]
    assert config.data.token_chunks and config.data.order == "chunked"
    assert (config.optimizer.decay, config.run.seed) == ("all", 11_111 + 0 + 1)


def test_the_papers_reproductions_save_on_thousands_and_are_named_by_billions() -> None:
    assert all(step % 1000 == 0 for step in calendar_of("amber_7b_fineline").steps()[:-1])
    assert name_at("amber_7b_fineline", 10_000) == "Amber-Reproduce-41.94B"
    assert name_at("amber_7b_fineline", 262_000) == "Amber-Reproduce-1098.91B"
    assert name_at("openllama_7b_fineline", 52_000) == "OpenLLaMA-Reproduce-218.1B"
    assert name_at("openllama_7b_fineline", 461_000) == "OpenLLaMA-Reproduce-1933.57B"


def test_openllama_is_the_recipe_of_easylm() -> None:
    for name in ("openllama_3b_v1", "openllama_7b_v1", "openllama_13b_v1", "openllama_3b_v2", "openllama_7b_v2"):
        config = recipe(name)
        assert config.total_tokens == 1_048_576_000_000 and config.train.loss == "sequences"
        assert config.tokenizer.add_bos and config.tokenizer.add_eos
        assert config.probe.suite == "openllama" and config.checkpoint.export == "all"
    assert recipe("openllama_13b_v1").schedule.learning_rate == 1.5e-4
    assert name_at("openllama_7b_v1", 250_000) == "openllama_7b_v1_step_250000"


def test_k2_is_the_recipe_of_its_megatron_script() -> None:
    config = recipe("k2_65b")
    assert config.total_tokens == 1_415_312_179_200 and config.total_steps == 360 * 941
    assert (config.parallel.tensor, config.parallel.pipeline, config.parallel.sequence) == (8, 4, True)
    assert (config.schedule.learning_rate, config.schedule.min_learning_rate) == (1.5e-4, 1.5e-5)
    assert config.optimizer.decay == "matrices" and config.model.init_depth_scaled and config.run.seed == 22238
    assert name_at("k2_65b", 338_760) == "ckpt_359"


@pytest.mark.parametrize("name", RECIPES)
def test_a_nano_keeps_the_ratios_of_its_recipe(name: str) -> None:
    big, small = recipe(name), recipe(RECIPES[name][0])
    for config in (big, small):
        ratio = Fraction(config.model.ffn_hidden_size, config.model.hidden_size)
        assert ratio == Fraction(big.model.ffn_hidden_size, big.model.hidden_size)
        rates = config.schedule
        assert rates.min_learning_rate == pytest.approx(rates.learning_rate / 10, rel=1e-12)
    assert small.model.num_layers == big.model.num_layers // 8
    assert small.model.num_attention_heads == big.model.num_attention_heads // 8
    share = Duration.parse(big.schedule.warmup).count / big.total_steps
    assert Duration.parse(small.schedule.warmup).count == max(round(share * small.total_steps), 1)
    assert small.optimizer == big.optimizer and small.run.seed == big.run.seed
    assert small.schedule.kind == big.schedule.kind and small.train.loss == big.train.loss
    assert (small.model.init_std, small.model.init_depth_scaled) == (big.model.init_std, big.model.init_depth_scaled)
    assert small.model.norm_epsilon == big.model.norm_epsilon and small.engine.name == big.engine.name
    for key in ("add_bos", "add_eos", "preset", "accept_loss"):
        assert getattr(small.tokenizer, key) == getattr(big.tokenizer, key)
    assert small.checkpoint.export == "all" and small.checkpoint.export_dtype == "bfloat16"
    assert small.total_tokens < 2_000_000


def test_siblings_of_one_family_keep_their_ratios_to_each_other() -> None:
    seven, thirteen = recipe("openllama_nano"), recipe("openllama_13b_v1_nano")
    assert thirteen.train.global_batch_size * 2 == seven.train.global_batch_size
    assert thirteen.schedule.learning_rate * 2 == seven.schedule.learning_rate
    assert thirteen.total_tokens == seven.total_tokens
