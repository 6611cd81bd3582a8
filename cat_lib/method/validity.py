"""What a generator's questions are like, and whether it is worth going on with: both by what a run itself knows."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from cat_lib.method.estimators.consistency import Posed

FEW = 0.25  # share of answers with a question, of questions that differ or are well posed: with less it is given up
_KINDS = {
    "unreadable": ("cut", "unreadable", "several"),
    "refused": ("addressed", "foreign"),
    "heldout": ("held out", "a worked example"),
}


def validity(posed: Sequence[Posed]) -> dict[str, float]:
    """Shares and means of one draw; formulas in docs/metrics.md. A share of nothing is left out."""
    questions = [p for p in posed if p.question is not None]
    asked = [p for p in questions if p.asked]
    means: dict[str, Sequence[float]] = {
        f"posed_{kind}": [p.why in whys for p in posed] for kind, whys in _KINDS.items()
    } | {
        "posed_question": [p.question is not None for p in posed],
        "posed_copy": [p.copy for p in questions],
        "posed_diversity": [1 / (p.share * len(posed)) for p in questions],  # their sum is the number of clusters
        "posed_agreement": [p.of_valid for p in asked],
        "posed_distance": [abs(p.of_valid - (1 - p.a_ori)) for p in asked],
        "posed_ill": [p.ill_posed for p in asked],
        "posed_unanswerable": [p.level == "unanswerable" for p in questions],
    }
    return {name: fmean(values) for name, values in means.items() if values}


def stop(posed: Sequence[Posed]) -> str:
    """Why a generator is not worth going on with; empty: it is."""
    known = {"posed_copy": 0.0, "posed_agreement": 0.0, "posed_ill": 1.0} | validity(posed)
    if (share := known["posed_question"]) < FEW:
        return f"{share:.0%} of its answers hold a question that may be trained on"
    if (differ := 1 - known["posed_copy"]) < FEW:
        return f"{differ:.0%} of its questions differ from their seeds and from each other"
    if 1 - known["posed_ill"] < FEW:
        return f"on {known['posed_ill']:.0%} of its questions no two answers of the solver agree"
    return "the solver always agrees with itself on its questions" if known["posed_agreement"] == 1 else ""
