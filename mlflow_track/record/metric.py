"""The one rule for a metric's direction: whether its smallest value is the best, or its largest.

An explicit mode decides; else the recorded one (`define_metric` and the policies); else whole
words of the metric's name; else the direction is unknown, and no value is the best.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, cast

Direction = Literal["min", "max"]
DIRECTIONS: tuple[Direction, ...] = ("min", "max")
# What `define_metric` takes: of "none" no value is better than another.
MODES = (*DIRECTIONS, "none")

_UNITS = "batches epochs examples frames images items iterations requests samples sequences steps"
# Several words that are one: they say another thing than each of them does.
_PHRASES_OF = {
    "nll": "neg log likelihood, negative log likelihood",
    "nelbo": "neg elbo, negative elbo",
    "loglikelihood": "log likelihood",
    "logloss": "log loss",
    "crossentropy": "cross entropy",
    "bpb": "bits per byte",
    "bpc": "bits per char, bits per character",
    "bpd": "bits per dim",
    "bpt": "bits per token",
    "editdistance": "edit distance",
    "eer": "equal error rate",
    "failures": "failure rate",
    "fpr": "false alarm rate, false positive, false positives",
    "fnr": "false negative, false negatives, miss rate",
    # Times where less is better; other times mean too many different things.
    "latency": "latency ms, latency seconds, latency time",
    "tnr": "true negative",
    "tpr": "true positive",
    "reward": "average return, episode return, episodic return, mean return",
    "kappa": "cohen kappa, cohens kappa, quadratic kappa",
    "corrcoef": "corr coef, correlation coefficient",
    "dcg": "cumulative gain",
    "dice": "dice coef, dice coefficient",
    "exactmatch": "exact match",
    "explainedvariance": "explained variance",
    "fbeta": "f beta",
    "hits": "hit rate, hit ratio",
    "passat": "pass at, pass rate",
    "mrr": "reciprocal rank",
    "winrate": "win rate, win ratio",
    "throughput": ", ".join(
        f"{unit} per {second}"
        for unit in (*_UNITS.split(), "it", "tokens", "words")
        for second in ("second", "sec", "s")
    ),
}
# In this order: "neg log likelihood" before "log likelihood".
_PHRASES = {phrase: w for w, phrases in _PHRASES_OF.items() for phrase in phrases.split(", ")}
# With one of these a name is about a setting, a spread or a time, or its sign is turned round.
_ANOTHER_QUANTITY = frozenset(
    "anomaly budget coef coeff coefficient count duration grad gradient gradients limit lr ms neg "
    "inverse minus negated negative outlier penalty rejected risk runtime scale scaler scaling "
    "seconds std stddev stdev target temperature threshold time toxicity var variance weight "
    "weights".split()
)
_DOWN = frozenset(
    "bce bpb bpc bpd bpt brier ce cer cost costs crossentropy deviance ece editdistance eer err "
    "error errors failures fid fnr fpr hamming hausdorff hinge latency levenshtein logloss loss "
    "losses lpips mae mape mase mlogloss mpjpe mse msle nelbo nll nlls nrmse perplexities "
    "perplexity ppl pplx regret rmse rmsle smape wer wmape xent".split()
)
_UP = frozenset(
    "acc accuracies accuracy ap ap50 ap75 aucpr auc aupr auprc auroc bertscore bleu bleurt chrf "
    "cider comet dcg dice elbo elo exactmatch explainedvariance f1 fbeta fps hits iou jaccard "
    "kappa kendall kendalltau loglikelihood map map50 map75 matthews mcc meaniou meteor mfu miou "
    "mrr ndcg passat pearson pearsonr precision psnr r2 recall rew reward rewards rocauc rouge "
    "sacrebleu score scores spearman spearmanr specificity ssim success throughput tnr tpr winrate"
    "".split()
)
_SEPARATORS = re.compile(r"[\W_]+")
# "-loss" and "1-accuracy".
_TURNED_ROUND = re.compile(r"(?:^|/) *(?:1 *)?-")
_PIECES = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+")


class Verdict(NamedTuple):
    """The better direction of a metric.

    Attributes:
        direction: None where no value is the best.
        why: Why there is no direction; empty where there is one.
    """

    direction: Direction | None
    why: str = ""


def judge(name: str, mode: str | None = None, recorded: Iterable[str | None] = ()) -> Verdict:
    """Decide which direction of the metric `name` is better.

    Args:
        mode: "min" or "max", where the caller says it.
        recorded: The recorded mode of each run; None for one that recorded nothing.
    """
    if mode is not None:
        return Verdict(cast("Direction", mode))
    said = sorted({word for word in recorded if word is not None})
    if len(said) > 1:
        return Verdict(None, f"the runs disagree: {' and '.join(map(repr, said))} are recorded")
    if said:
        if said[0] in DIRECTIONS:
            return Verdict(said[0])
        return Verdict(None, "recorded with mode='none'")
    direction = direction_of_name(name)
    return Verdict(direction, "" if direction else "direction unknown")


def required_direction(
    who: str, metric: str, mode: str | None = None, recorded: Iterable[str | None] = ()
) -> Direction:
    """The direction of a metric that `who` compares.

    Raises:
        ValueError: It is not known; the message says what to do.
    """
    verdict = judge(metric, mode, recorded)
    if verdict.direction is None:
        raise ValueError(
            f"{who} cannot tell whether less or more of the metric {metric!r} is better "
            f"({verdict.why}); give mode='min' or mode='max', or call "
            f"run.define_metric({metric!r}, mode=…)"
        )
    return verdict.direction


def words_of(name: str) -> list[str]:
    """The words of a metric's name in lower case: split at signs, digits and camelCase."""
    return [piece.rstrip("0123456789") or piece for piece in _pieces(name)]


@lru_cache(maxsize=4096)
def direction_of_name(name: str) -> Direction | None:
    """The direction that whole words of the name tell; None where they do not."""
    pieces = _pieces(name.replace("@", " at "))
    plain = f" {' '.join(piece.rstrip('0123456789') or piece for piece in pieces)} "
    for phrase, word in _PHRASES.items():
        plain = plain.replace(f" {phrase} ", f" {word} ")
    words = set(plain.split())
    if words & _ANOTHER_QUANTITY or _TURNED_ROUND.search(name):
        return None
    # Such as "f1", "r2" and "mAP", which are one word.
    words |= {*pieces, *(chunk.lower() for chunk in _SEPARATORS.split(name))}
    if words & _DOWN:
        return "min"
    return "max" if words & _UP else None


def _pieces(name: str) -> list[str]:
    """The words of a name, each with the digits that follow it."""
    chunks = [chunk for chunk in _SEPARATORS.split(name) if chunk]
    # Only in ASCII is it known where camelCase begins a word.
    split = ([*_PIECES.findall(c)] if c.isascii() else [c] for c in chunks)
    return [piece.lower() for piece in itertools.chain.from_iterable(split)]


# --- recorded by a run ---


class Claim(NamedTuple):
    """The direction of a metric as `define_metric` or a policy gives it.

    Attributes:
        who: "define_metric", or the policy's name.
        mode: "min", "max", for `define_metric` also "none"; None leaves it to the rule.
    """

    who: str
    metric: str
    mode: str | None

    def __str__(self) -> str:
        return f"{self.who}({self.metric!r}, mode={self.mode!r})"


class Directions:
    """The directions of metrics in one attempt of a run, free of contradictions.

    Args:
        earlier: The modes of earlier attempts, by metric.
        write: Takes what changed, for run.json.
        announce: Takes one line of text for the log.
    """

    def __init__(
        self,
        earlier: Mapping[str, str],
        write: Callable[[Mapping[str, str]], None],
        announce: Callable[[str], None],
    ) -> None:
        self._earlier, self._write, self._announce = earlier, write, announce
        self._recorded: dict[str, str] = {}
        self._claims: dict[str, tuple[Claim, ...]] = {}

    def settle(self, place: str, claims: Sequence[Claim]) -> dict[str, str]:
        """Decide the mode of every metric that `claims` name, and record it.

        Args:
            place: The origin of the claims: they replace earlier ones of the same origin.
            claims: The claim of `define_metric`, or those of all policies given together.

        Raises:
            ValueError: Two claims contradict each other, or a direction is unknown.
        """
        others = [c for p, given in self._claims.items() if p != place for c in given]
        modes = {}
        for claim in claims:
            said = [c for c in (*others, *claims) if c.metric == claim.metric and c.mode]
            for one, other in itertools.pairwise(said):
                if one.mode != other.mode:
                    raise ValueError(f"{other} contradicts {one}; give both the same mode")
            before = self._mode_before(claim.metric)
            mode = said[0].mode if said else None
            if mode is None or (mode == "none" and claim.mode is None):
                mode = required_direction(claim.who, claim.metric, None, [mode or before])
            modes[claim.metric] = mode
        changed = {metric: m for metric, m in modes.items() if self._mode_before(metric) != m}
        if changed:
            self._write(changed)
        for metric, mode in changed.items():
            before = self._mode_before(metric)
            if before is not None:
                self._announce(f"the direction of {metric} changes from {before!r} to {mode!r}")
        self._recorded |= changed
        self._claims[place] = tuple(c._replace(mode=modes[c.metric]) for c in claims)
        return modes

    def _mode_before(self, metric: str) -> str | None:
        return self._recorded.get(metric) or self._earlier.get(metric)
