"""Which direction of a metric is better: words, records, claims; and what a wrong rule would do."""

from __future__ import annotations

import re
from itertools import permutations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlflow_track.record import metric
from mlflow_track.record.metric import (
    MODES,
    Claim,
    Directions,
    direction_of_name,
    judge,
    required_direction,
    words_of,
)

MIN = """
    loss Loss/train valLoss train_loss_epoch loss2 l1loss MSELoss val/window_loss val/previous_loss
    val/accumulated_error errors wordErrorRate error_rate perplexity ppl nll log_loss cross_entropy
    crossEntropy negative_log_likelihood bits_per_byte bpb rmse mae mape brier_score hamming_loss
    wer fid regret dice_loss accuracy_loss reward/loss false_positive_rate p99_latency_ms
"""
MAX = """
    accuracy val_acc_epoch acc1 valAcc top5_acc acc_norm F1 macroF1 f1Score FBetaScore ROC_AUC
    rocAUC r2 r2_score mAP map_50 mAP50 mIoU meanIoU bleu BLEU4 rouge1 rougeLsum meteor recall@5
    hits@10 pass@1 win_rate winRate exact_match PearsonCorrCoef matthews_correlation dice_coef ndcg
    MeanReciprocalRank psnr SSIM reward_mean ep_rew_mean episode_return eval_samples_per_second
    tokens_per_second explained_variance log_likelihood elbo true_positive_rate
"""
UNKNOWN = """
    temperature lr train/lr learning_rate grad_norm epoch win window accumulated kl entropy
    loss_scale loss_weight kl_coef reward_std score_threshold reward_penalty neg_mean_squared_error
    neg_log_loss -loss 1-accuracy rewards/rejected time_to_accuracy eval_runtime éloss lossé
"""
CASES = [
    *[(name, "min") for name in MIN.split()],
    *[(name, "max") for name in MAX.split()],
    *[(name, None) for name in UNKNOWN.split()],
]


@pytest.mark.parametrize(("name", "direction"), CASES)
def test_direction_of_name_reads_whole_words(name: str, direction: str | None) -> None:
    assert direction_of_name(name) == direction


SEPARATORS = st.sampled_from(["_", "/", ".", " ", "-", "@", ":", "__"])
LETTERS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)
KNOWN = sorted(metric._UP | metric._DOWN)
WORDS = st.sampled_from(KNOWN) | LETTERS


def styled(word: str, style: str) -> str:
    return {"lower": word, "upper": word.upper(), "title": word.title()}[style]


STYLES = st.sampled_from(["lower", "upper", "title"])


@given(
    st.sampled_from(["loss", "error", "perplexity"]),
    st.lists(WORDS, max_size=3),
    st.lists(WORDS, max_size=3),
    SEPARATORS,
    STYLES,
)
def test_direction_of_name_never_maximises_a_loss_an_error_or_a_perplexity(
    word: str, before: list[str], after: list[str], separator: str, style: str
) -> None:
    name = separator.join([*before, styled(word, style), *after])
    assert direction_of_name(name) != "max"
    camel = "".join(map(str.title, [*before, word, *after]))
    assert direction_of_name(camel[0].lower() + camel[1:]) != "max"


@given(st.sampled_from(KNOWN), st.text("bcdfghjkqvwxyz", max_size=3), LETTERS, STYLES)
def test_direction_of_name_matches_no_word_inside_another(
    word: str, before: str, after: str, style: str
) -> None:
    for longer in (before + word + after, after + word + before):
        assume(longer not in KNOWN)
        # A digit ends a word, so that what stands behind one may be a word again.
        assume(not {*words_of(longer), *re.findall(r"[a-z]+\d*", longer)} & {*KNOWN})
        assert direction_of_name(styled(longer, style)) is None


def test_the_properties_find_a_rule_that_looks_inside_of_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control."""

    def inside(name: str) -> str | None:
        return "max" if any(word in name.lower() for word in (*metric._UP, "win")) else None

    monkeypatch.setitem(globals(), "direction_of_name", inside)
    for test in (
        test_direction_of_name_never_maximises_a_loss_an_error_or_a_perplexity,
        test_direction_of_name_matches_no_word_inside_another,
    ):
        with pytest.raises(AssertionError):
            test()
    assert inside("val/window_loss") == "max"


NAMES = st.sampled_from([name for name, _ in CASES]) | st.text(max_size=30)
RECORDED = st.lists(st.sampled_from(MODES) | st.none(), max_size=3)


@given(NAMES, RECORDED, st.sampled_from(["min", "max"]))
def test_judge_takes_an_explicit_mode_whatever_else_is_said(name, recorded, mode) -> None:
    assert judge(name, mode, recorded) == (mode, "")


@given(NAMES, st.sampled_from(MODES))
def test_judge_takes_what_was_recorded_before_the_name(name, mode) -> None:
    verdict = judge(name, None, [None, mode, mode])
    assert verdict.direction == (None if mode == "none" else mode)
    assert bool(verdict.why) == (mode == "none")


@given(NAMES)
def test_judge_knows_no_direction_where_runs_disagree(name) -> None:
    for one, other in permutations(MODES, 2):
        direction, why = judge(name, None, [one, None, other])
        assert direction is None and "disagree" in why and one in why and other in why


def test_required_direction_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"Keep .*'temperature'.*mode='min' or mode='max'.*define"):
        required_direction("Keep", "temperature")


def directions(recorded: dict[str, str] | None = None) -> tuple[Directions, dict, list[str]]:
    written: dict[str, str] = {}
    said: list[str] = []
    return Directions(recorded or {}, written.update, said.append), written, said


KEEP, SAVE = Claim("Keep", "t", None), Claim("OnImprovement", "t", "max")


@pytest.mark.parametrize("claims", list(permutations([KEEP, SAVE])))
def test_directions_give_a_policy_the_mode_of_another_in_either_order(claims) -> None:
    found, written, _ = directions()
    assert found.settle("checkpoints", claims) == {"t": "max"} == written


def test_directions_refuse_a_contradiction_by_name_and_record_nothing() -> None:
    found, written, _ = directions()
    with pytest.raises(ValueError, match=r"Keep\('t', mode='min'\).*OnImprovement\('t', mode='max"):
        found.settle("checkpoints", [SAVE, Claim("Keep", "t", "min")])
    assert written == {}
    found.settle("checkpoints", [Claim("Keep", "val/loss", None)])
    with pytest.raises(
        ValueError, match=r"define_metric\('val/loss', mode='max'\) contradicts Keep"
    ):
        found.settle("define", [Claim("define_metric", "val/loss", "max")])
    with pytest.raises(ValueError, match="contradicts"):
        found.settle("define", [Claim("define_metric", "val/loss", "none")])
    # The plan that takes the place of another is free of it.
    found.settle("checkpoints", [])
    assert found.settle("define", [Claim("define_metric", "val/loss", "max")]) == written


def test_directions_of_earlier_attempts_beat_the_name_and_give_way_with_a_word() -> None:
    found, written, said = directions({"acc": "min", "t": "max"})
    assert found.settle("checkpoints", [Claim("Keep", "acc", None)]) == {"acc": "min"}
    assert written == {} and said == []
    assert found.settle("define", [Claim("define_metric", "t", "min")]) == {"t": "min"} == written
    assert said == ["the direction of t changes from 'max' to 'min'"]


def test_directions_refuse_a_policy_on_a_metric_without_a_best() -> None:
    found, *_ = directions()
    found.settle("define", [Claim("define_metric", "acc", "none")])
    with pytest.raises(ValueError, match="mode='none'"):
        found.settle("checkpoints", [Claim("Keep", "acc", None)])
