"""What to do about a window: wait, alert or retrain, with the reason in words and numbers.

The rule (levels as in the docstring of `decide`) separates *changed* from *harmful*: image statistics alone flag a harmless
change of brightness, so a statistical alarm calls a person and only a loss of accuracy, or an alarm that stays and shows in
the model's own outputs, starts a retraining. Does not cover: cool-down and the number of retrainings, which whoever acts on
the decision keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

from monitoring.window import is_closed_id
from visionloop.config import MonitorParams
from visionloop.records import Decision, DriftResult, SignalDrift

# Signals that come from the model, where a change of the images that it does not care about hardly shows.
MODEL_GROUPS = ("probability", "confidence", "embedding")
LASTING_WINDOWS = 3  # an alarm is lasting when it sounds in 2 of the last 3 windows
LASTING_ALARMS = 2


def decide(result: DriftResult, history: Sequence[DriftResult], params: MonitorParams) -> Decision:
    """Judge a tested window; `history` holds results of earlier windows, in any order, of any version.

    In this order:
    - insufficient: fewer than `min_rows` images were answered or refused. Wait; that is not "no drift".
    - health: values that a healthy server cannot log, or too many refused images. Alert; never retrain on such data.
    - insufficient again: the window is not closed, so nothing was tested.
    - harm: drift, and either the estimated accuracy is `max_accuracy_drop` or more under the reference and its 95 % interval
      excludes the reference, or 1 of the 2 closed windows before drifted too, each time in the model's own signals. Retrain.
      (A low estimate without drift is said and waited on: chance alone gives one in about 1 of 80 windows of 500, measured,
      and `alpha` is meant to be the rate of false alarms.)
    - drift: any signal under its threshold. Alert.
    - none: wait.

    >>> decide(result, [], params).action
    'wait'
    """
    window = result.window
    few = not result.signals and window.rows + window.rejected < params.min_rows
    if result.health and not few:
        return Decision("alert", _health_reason(result), window.window_id, "health")
    if not result.signals:
        reason = (
            f"Window {window.window_id} has {window.rows} answered images; it closes at {params.window_rows}, and can be "
            f"judged early from {params.min_rows} on. This is not a finding of no drift."
        )
        return Decision("wait", reason, window.window_id, "insufficient")
    drifted = [signal for signal in result.signals if signal.drifted]
    lost = _accuracy_lost(result, params)
    if drifted and lost:
        return Decision("retrain", f"{_accuracy(result)} {_signals(result, drifted)}", window.window_id, "harm")
    lasting = _lasting(result, history)
    if len(lasting) >= LASTING_ALARMS:
        reason = (
            f"The model's own signals drifted in {len(lasting)} of the last {LASTING_WINDOWS} windows "
            f"({', '.join(lasting)}). {_signals(result, drifted)} {_accuracy(result)}"
        )
        return Decision("retrain", reason, window.window_id, "harm")
    if drifted:
        return Decision("alert", f"{_signals(result, drifted)} {_accuracy(result)}", window.window_id, "drift")
    chance = " That is low, but without any drift it is most likely chance; feedback labels would tell." if lost else ""
    return Decision("wait", f"{_signals(result, drifted)} {_accuracy(result)}{chance}", window.window_id, "none")


def _accuracy_lost(result: DriftResult, params: MonitorParams) -> bool:
    if result.estimated_accuracy is None or result.reference_accuracy is None or result.estimated_interval is None:
        return False
    drop = result.reference_accuracy - result.estimated_accuracy
    return drop >= params.max_accuracy_drop and result.estimated_interval[1] < result.reference_accuracy


def _lasting(result: DriftResult, history: Sequence[DriftResult]) -> list[str]:
    """Ids of the windows with an alarm in the model's signals, this one and the two before; empty when this one has none."""
    if not _model_drifted(result):
        return []
    version = result.window.model_version
    earlier = {
        past.window.window_id: past
        for past in history
        if past.window.model_version == version
        and past.window.window_id != result.window.window_id
        and past.window.end <= result.window.end
        and is_closed_id(past.window.window_id, version)
    }
    last = sorted(earlier.values(), key=lambda past: past.window.end)[-(LASTING_WINDOWS - 1) :]
    return [past.window.window_id for past in (*last, result) if _model_drifted(past)]


def _model_drifted(result: DriftResult) -> bool:
    return any(signal.drifted and signal.group in MODEL_GROUPS for signal in result.signals)


def _health_reason(result: DriftResult) -> str:
    drifted = sum(signal.drifted for signal in result.signals)
    more = f" (and {len(result.health) - 3} more)" if len(result.health) > 3 else ""
    tail = (
        f" {drifted} of {len(result.signals)} signals differ too, but such data say nothing of the world." if drifted else ""
    )
    return " ".join(result.health[:3]) + more + tail


def _signals(result: DriftResult, drifted: Sequence[SignalDrift]) -> str:
    total = len(result.signals)
    if drifted:
        strongest = sorted(drifted, key=lambda signal: signal.p_value)[:3]
        named = ", ".join(f"{signal.signal} p={signal.p_value:.1e}" for signal in strongest)
        more = f" and {len(drifted) - 3} more" if len(drifted) > len(strongest) else ""
        verb = "differs" if len(drifted) == 1 else "differ"
        return f"{len(drifted)} of {total} signals {verb} from the reference at p < {result.threshold:.1e}: {named}{more}."
    smallest = min(result.signals, key=lambda signal: signal.p_value)
    return (
        f"None of {total} signals differs from the reference (smallest p is {smallest.p_value:.2g}, of {smallest.signal}; "
        f"the threshold is {result.threshold:.1e})."
    )


def _accuracy(result: DriftResult) -> str:
    if result.estimated_accuracy is None or result.reference_accuracy is None or result.estimated_interval is None:
        return "The accuracy cannot be estimated, because the reference has no true labels."
    low, high = result.estimated_interval
    return (
        f"Estimated accuracy {result.estimated_accuracy:.1%} (95 % interval {max(low, 0):.1%} to {min(high, 1):.1%}), "
        f"reference {result.reference_accuracy:.1%}."
    )
