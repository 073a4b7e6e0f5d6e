"""May the new model replace the served one? Rules, each with its figures and its reason; one that says no blocks.

The two models answer the same test images, which neither has learnt from, and are compared by `comparison`. The test images
that stand since the served model was made ("frozen") and the newest ones are judged apart: wrong labels that came in with
new images make a model look better on the new images, and it shows on the frozen ones.

Does not cover: what traffic says of a model, and publishing it (stage `deploy`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from visionloop.config import GateParams
from visionloop.evaluation.comparison import (
    METRICS,
    ClassChange,
    Comparison,
    PairedAnswers,
    class_changes,
    compare_answers,
    counted,
    differences,
    images_needed,
    points,
    verdict,
)
from visionloop.promotion import Promotion

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Champion:
    """The model that is served, and how it did beside the new one."""

    version: int
    labels: tuple[str, ...]
    frozen: PairedAnswers  # the new model first; positions in the new model's labels; only classes that both know
    newest: PairedAnswers | None  # None: not asked for, or not known which
    learnt: int  # test images that the champion has learnt from, which are left out
    latency_ms: float


@dataclass(frozen=True)
class Evidence:
    """All that the rules look at."""

    labels: tuple[str, ...]  # of the new model
    right: Bools  # [N] its answers to all test images
    latency_ms: float
    champion: Champion | None
    no_champion: str = "No model is served yet"  # why there is none


@dataclass(frozen=True)
class Rule:
    """One rule's answer; `passed` is None where it could not be judged, which blocks nothing by itself."""

    name: str
    passed: bool | None
    reason: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What the gate says, and why."""

    passed: bool
    verdict: str
    rules: tuple[Rule, ...]
    forced: Promotion | None = None

    def report(self, challenger: str, champion: str, version: int) -> dict[str, Any]:
        """The content of `reports/gate.json`: flat numbers for DVC, sentences in lists; the two are sha256 of the models."""
        figures = {name: value for rule in self.rules for name, value in rule.figures.items()}
        return {
            "passed": int(self.passed),
            "forced": int(self.forced is not None),
            "champion_version": version,
            **{name: value if isinstance(value, int) else round(value, 4) for name, value in figures.items()},
            "verdict": [self.verdict],
            "rules": [{"rule": rule.name, "passed": rule.passed, "reason": rule.reason} for rule in self.rules],
            "challenger": [challenger],
            "champion": [champion] if champion else [],
        }


def judge(evidence: Evidence, params: GateParams, forced: Promotion | None = None) -> Decision:
    """Ask every rule. A person's decision about this model wins over all of them."""
    champion = evidence.champion
    rules = [_floor(evidence, params)]
    if champion:
        judged = [_frozen(champion, params), _newest(champion, params)]
        rules += [_labels(evidence.labels, champion, params), *judged, _classes(evidence.labels, champion, params)]
        if all(rule.passed is None for rule in judged) and set(evidence.labels) & set(champion.labels):
            rules.append(
                Rule(
                    "evidence",
                    False,
                    "The two models share no test images to be compared on, neither frozen nor newest ones; bring in more "
                    "labelled images.",
                )
            )
        rules.append(_latency(evidence, champion, params))
    against = [rule for rule in rules if rule.passed is False]
    if forced:
        said = f" The rules said: {' '.join(rule.reason for rule in against)}" if against else " No rule was against it."
        return Decision(
            True, f"{forced.who} publishes it on {forced.when}: {forced.why.rstrip('.')}.{said}", tuple(rules), forced
        )
    if against:
        stays = f"Version {champion.version} stays served. " if champion else ""
        return Decision(False, f"{stays}{' '.join(rule.reason for rule in against)}", tuple(rules))
    if champion is None:
        return Decision(
            True, f"{evidence.no_champion}, so there is nothing to compare with. {rules[0].reason}", tuple(rules)
        )
    return Decision(True, " ".join(rule.reason for rule in judged if rule.passed) or rules[1].reason, tuple(rules))


def _floor(evidence: Evidence, params: GateParams) -> Rule:
    right, count = int(evidence.right.sum()), len(evidence.right)
    accuracy = right / count
    low, high = binomtest(right, count).proportion_ci(params.confidence_level, method="wilson")
    passed = accuracy >= params.min_accuracy
    reason = (
        f"It answers {accuracy:.2%} of {counted(count, 'test image')} rightly ({params.confidence_level:.0%} interval "
        f"{low:.2%} to {high:.2%}); gate.min_accuracy asks for {params.min_accuracy:.2%}"
    )
    figures = {"test_images": count, "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
    return Rule("min_accuracy", passed, f"{reason}{'.' if passed else ', so train it better or lower that.'}", figures)


def _labels(labels: Sequence[str], champion: Champion, params: GateParams) -> Rule:
    removed = [label for label in champion.labels if label not in set(labels)]
    added = [label for label in labels if label not in set(champion.labels)]
    figures: dict[str, float] = {"classes_removed": len(removed), "classes_added": len(added)}
    news = f" {_capital(_named(added))} {'is' if len(added) == 1 else 'are'} new." if added else ""
    if removed and not params.allow_removed_classes:
        return Rule(
            "labels",
            False,
            f"It no longer knows {_named(removed)}, which version {champion.version} answers and users may count on; bring "
            "images of it back, or set gate.allow_removed_classes to true.",
            figures,
        )
    verb = "is" if len(removed) == 1 else "are"
    gone = (
        f"{_capital(_named(removed))} {verb} gone, which gate.allow_removed_classes allows."
        if removed
        else "No class is gone."
    )
    return Rule("labels", True, gone + news, figures)


def _frozen(champion: Champion, params: GateParams) -> Rule:
    answers = champion.frozen
    figures: dict[str, float] = {"frozen_images": len(answers), "images_learnt_by_champion": champion.learnt}
    if len(answers) == 0:
        return Rule("frozen", None, f"No test image of now was one when version {champion.version} was made.", figures)
    comparison = compare_answers(answers, params.confidence_level)
    figures |= _figures("frozen", answers, comparison)
    num_classes = 1 + int(max(answers.targets.max(), answers.first.max(), answers.second.max()))
    for one in differences(answers, num_classes, params.confidence_level):
        if one.metric != METRICS[0]:
            figures |= {
                f"{one.metric}_difference": one.difference,
                f"{one.metric}_difference_low": one.low,
                f"{one.metric}_difference_high": one.high,
            }
    reason = f"On the frozen test set it has {_accuracies(answers)} of version {champion.version}: "
    if params.require == "better":
        passed = comparison.low > 0
        reason += verdict(comparison)
        return Rule("frozen", passed, f"{reason}{'.' if passed else '; gate.require asks for a proved gain.'}", figures)
    return _no_worse("frozen", comparison, ("gate.max_drop", params.max_drop), reason, figures)


def _newest(champion: Champion, params: GateParams) -> Rule:
    answers = champion.newest
    if answers is None:
        why = (
            "gate.newest is none"
            if params.newest == "none"
            else f"version {champion.version} has no list of the images that it had"
        )
        return Rule("newest", None, f"The newest images are not judged: {why}.")
    figures: dict[str, float] = {"newest_images": len(answers)}
    what = {"unseen": f"test images that are newer than version {champion.version}", "feedback": "labelled live test images"}
    if len(answers) < params.min_newest_images:
        return Rule(
            "newest",
            None,
            f"The newest images are not judged: of the {what[params.newest]} there are {len(answers)}, and "
            f"gate.min_newest_images is {params.min_newest_images}.",
            figures,
        )
    comparison = compare_answers(answers, params.confidence_level)
    figures |= _figures("newest", answers, comparison)
    reason = f"On the {what[params.newest]} it has {_accuracies(answers)} of version {champion.version}: "
    return _no_worse("newest", comparison, ("gate.max_newest_drop", params.max_newest_drop), reason, figures)


def _no_worse(name: str, comparison: Comparison, limit: tuple[str, float], reason: str, figures: dict[str, float]) -> Rule:
    """The rule that a loss above a limit, a key and its value, must be ruled out by the whole interval."""
    key, margin = limit
    said = f"{reason}{verdict(comparison, margin)}"
    if comparison.low >= -margin:
        return Rule(name, True, f"{said}.", figures)
    if comparison.high < 0:
        return Rule(name, False, f"{said}; {key} allows a loss of {points(margin)}.", figures)
    cure = "more labelled images" if (images_needed(comparison, margin) or 0) > comparison.images else "a better model"
    return Rule(
        name, False, f"{said}; a loss above {points(margin)} ({key}) cannot be ruled out, which takes {cure}.", figures
    )


def _classes(labels: Sequence[str], champion: Champion, params: GateParams) -> Rule:
    """The worst class by recall; one that falls by chance must not block, so the test is corrected for all classes."""
    changes = class_changes(champion.frozen, labels)
    if not changes:
        return Rule("worst_class", None, "No class has a frozen test image.")
    worst = min(changes, key=lambda change: (change.difference, change.p_worse))
    figures = {
        "worst_class_difference": worst.difference,
        "worst_class_p": min(1.0, worst.p_worse * len(changes)),
        "worst_class_images": worst.images,
    }
    fallen = [one for one in changes if _fell(one, len(changes), params)]
    if fallen:
        return Rule("worst_class", False, f"{_fall(fallen, champion.version)} gate.max_class_drop allows a loss of "
                    f"{points(params.max_class_drop)}.", figures)  # fmt: skip
    if worst.difference >= 0:
        return Rule("worst_class", True, "No class is recalled less often.", figures)
    chance = "" if worst.difference >= -params.max_class_drop else ", which chance explains"
    return Rule(
        "worst_class",
        True,
        f"The worst change of a class is that of '{worst.label}': {worst.second:.1%} to {worst.first:.1%} of "
        f"{counted(worst.images, 'image')}{chance}.",
        figures,
    )


def _fell(change: ClassChange, classes: int, params: GateParams) -> bool:
    # Bonferroni: any of the classes may be the one that falls.
    return change.difference < -params.max_class_drop and change.p_worse * classes < 1 - params.confidence_level


def _fall(fallen: Sequence[ClassChange], version: int) -> str:
    return " ".join(
        f"Class '{one.label}' falls by {points(-one.difference)} against version {version}: {one.lost} of "
        f"{counted(one.images, 'image')} lost and {one.gained} gained (p = {one.p_worse:.2g})."
        for one in fallen
    )


def _latency(evidence: Evidence, champion: Champion, params: GateParams) -> Rule:
    ratio = evidence.latency_ms / champion.latency_ms
    figures = {"latency_ms": evidence.latency_ms, "champion_latency_ms": champion.latency_ms, "latency_ratio": ratio}
    reason = (
        f"One image takes {evidence.latency_ms:.3g} ms, {ratio:.2f} times the {champion.latency_ms:.3g} ms of version "
        f"{champion.version}; gate.max_latency_ratio is {params.max_latency_ratio:g}"
    )
    passed = ratio <= params.max_latency_ratio
    return Rule("latency", passed, f"{reason}{'.' if passed else ', so train a smaller network or raise that.'}", figures)


def _figures(slice_name: str, answers: PairedAnswers, comparison: Comparison) -> dict[str, float]:
    return {
        f"{slice_name}_accuracy": float((answers.first == answers.targets).mean()),
        f"{slice_name}_champion_accuracy": float((answers.second == answers.targets).mean()),
        f"{slice_name}_difference": comparison.difference,
        f"{slice_name}_difference_low": comparison.low,
        f"{slice_name}_difference_high": comparison.high,
        f"{slice_name}_mcnemar_p": comparison.p_value,
    }


def _accuracies(answers: PairedAnswers) -> str:
    first, second = (float((one == answers.targets).mean()) for one in (answers.first, answers.second))
    return f"{first:.2%} right against the {second:.2%}"


def _named(labels: Sequence[str]) -> str:
    shown = ", ".join(f"'{label}'" for label in labels[:5])
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return f"the class{'' if len(labels) == 1 else 'es'} {shown}{more}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
