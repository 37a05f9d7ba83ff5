import numpy as np
import pytest

from pretrain.errors import ProbeError
from probes.dynamics.fit_law import FitRefused
from probes.dynamics.law_points import place
from probes.dynamics.laws import FLOPS_LAW, GADRE
from probes.dynamics.link import EXPONENTIAL
from probes.dynamics.published import ladder_reference_fit, olmo_ladder
from probes.dynamics.table import CurveTable, RunFacts, Series, make_curve
from probes.dynamics.two_step import fit_two_step

RUNS = [f"{size}-{length}xC" for size in ("190M", "370M", "760M", "1B") for length in (1, 2, 5, 10)]
TARGETS = {"7B-4T": 6_887_575_552.0, "13B-5T": 13_202_396_160.0}
DEGENERATE = {"winogrande_val", "csqa_val", "boolq_val"}


def ladder_fit(task, **settings):
    own = [series for series in olmo_ladder().series() if series.task.startswith(task)]
    loss, score = (next(one for one in own if (one.metric == "bpb") == is_loss) for is_loss in (True, False))
    return fit_two_step(olmo_ladder(), loss=loss, score=score, runs=RUNS, **settings)


@pytest.mark.parametrize("task", ladder_reference_fit())
def test_chained_scores_of_the_ladder_are_reproduced_and_the_degenerate_refused(task):
    fit, reference = ladder_fit(task, draws=0), ladder_reference_fit()[task]
    for name, size in TARGETS.items():
        at = place(size, reference[name]["d"])
        assert fit.score(at) == pytest.approx(reference[name]["acc_pred_chained"], abs=0.001)
        if task in DEGENERATE:
            with pytest.raises(FitRefused, match="E is at its bound"):
                fit.predict(at)
        else:
            assert fit.predict(at).value == fit.score(at)
    assert bool(fit.refused) == (task in DEGENERATE)


def test_an_interval_of_the_7b_s_score_holds_what_came():
    reference = ladder_reference_fit()["hellaswag_val"]["7B-4T"]
    found = ladder_fit("hellaswag_val", draws=40).predict(place(TARGETS["7B-4T"], reference["d"]))
    assert found.low < reference["acc_true"] < found.high
    assert 0.02 < found.high - found.low < 0.2


def test_another_law_and_loss_and_link_may_be_chained():
    at = place(TARGETS["7B-4T"], ladder_reference_fit()["hellaswag_val"]["7B-4T"]["d"])
    assert ladder_fit("hellaswag_val", draws=0, law=FLOPS_LAW).predict(at).value == pytest.approx(0.81, abs=0.03)
    c4, score = Series("c4_en-validation", "ce_loss"), Series("hellaswag_val_rc_5shot", "len_norm")
    gadre = fit_two_step(olmo_ladder(), loss=c4, score=score, runs=RUNS, law=GADRE, link=EXPONENTIAL, draws=0)
    # Its link has no upper end and runs ahead beyond the runs; among them the two agree.
    among = place(1e9, 1e11)
    assert gadre.predict(among).value == pytest.approx(ladder_fit("hellaswag_val", draws=0).score(among), abs=0.03)


def test_a_score_beyond_one_is_refused():
    at = place(TARGETS["7B-4T"], ladder_reference_fit()["hellaswag_val"]["7B-4T"]["d"])
    fit = ladder_fit("hellaswag_val", draws=0, law=GADRE, link=EXPONENTIAL)
    with pytest.raises(FitRefused, match="a score of 1.021, beyond 0 or 1"):
        fit.predict(at)


def test_a_score_that_does_not_follow_its_loss_is_refused_though_the_loss_is_not():
    rng, curves, facts = np.random.default_rng(0), [], []
    for size in (1e8, 3e8, 1e9):
        for ratio in (20, 60, 200):
            run, tokens = f"{size:g}-{ratio}", np.linspace(0.1, 1, 20) * size * ratio
            facts.append(RunFacts(name=run, parameters=size, total_tokens=size * ratio))
            loss = 400 / size**0.35 + 400 / tokens**0.28 + 0.6
            for metric, values in (("bpb", loss), ("acc", 0.5 + rng.normal(0, 0.01, 20))):
                nothing = np.full(20, np.nan)
                curves.append(
                    make_curve(tokens, tokens, values, nothing, run=run, series=Series("task", metric), domain="x")
                )
    fit = fit_two_step(CurveTable(facts, curves), loss=Series("task", "bpb"), score=Series("task", "acc"), draws=0)
    assert fit.step1.refused is None
    with pytest.raises(FitRefused, match="hardly follows the loss"):
        fit.predict(place(2e9, 1e11))


def test_places_far_away_are_refused():
    with pytest.raises(FitRefused, match="more than 30 times outside"):
        ladder_fit("piqa_val", draws=0).predict(place(1e12, 1e13))


def test_a_table_without_both_curves_says_so():
    with pytest.raises(ProbeError, match="needs both of the same checkpoints"):
        fit_two_step(olmo_ladder(), loss=Series("unknown", "bpb"), score=Series("unknown", "acc"))
