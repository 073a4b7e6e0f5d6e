"""`visionloop promote`: what the gate says of the shipped model, and a person's decision over its head.

Does not cover: publishing itself, which `deploy` does in the next run.
"""

from __future__ import annotations

from pipeline import repro
from pipeline.feedback import default_who
from visionloop.card import load_card
from visionloop.errors import BlockedError, ConfigError, DataError
from visionloop.paths import GATE_REPORT, MODEL_ONNX, PROMOTIONS, SHIPPED
from visionloop.promotion import add_promotion, promotion_of, read_promotions, read_report


def said() -> list[str]:
    """What the gate says of the model in models/shipped.

    Raises:
        BlockedError: it says no.
        DataError: it did not judge this model yet.
    """
    report = read_report(GATE_REPORT)
    model = load_card(SHIPPED).files[MODEL_ONNX]
    if report is None or report.challenger != model:
        raise DataError(f"The gate did not judge the model in {SHIPPED} yet; run `visionloop run` or `dvc repro`.")
    if not report.passed:
        raise BlockedError(
            f"Blocked: {report.verdict} `visionloop promote --force --reason '...'` publishes it all the same."
        )
    return [f"Passed: {report.verdict}"]


def force(reason: str, who: str | None) -> list[str]:
    """Write down that the shipped model is to be published whatever the gate says, and say what follows.

    Raises:
        ConfigError: there is no reason.
        PipelineError: the pipeline runs.
    """
    if not reason.strip():
        raise ConfigError("--force needs --reason '...': whoever reads the report later has to know why.")
    with repro.locked():
        model = load_card(SHIPPED).files[MODEL_ONNX]
        if standing := promotion_of(read_promotions(PROMOTIONS), model):
            return [f"{standing.who} decided so on {standing.when} already: {standing.why}. {_NEXT}"]
        new = add_promotion(PROMOTIONS, model, who or default_who(), reason)
    return [f"{PROMOTIONS}: {new.who} publishes the model {model[:12]}…: {new.why}. Keep the file in git.", _NEXT]


_NEXT = "The next `visionloop run` or `dvc repro` publishes it; the gate's report says so and keeps what the rules say."
