"""Stage `tune`: trials of many settings of one family's training, judged on val, and a page about them.

It stands in experiments/dvc.yaml and runs when it is asked for. A study that was interrupted goes on where it was.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pipeline.stages import run_stage, spin_briefly
from visionloop.config import (
    AugmentParams,
    ExportParams,
    PreprocessParams,
    SelectParams,
    TrainParams,
    TuneParams,
    load_section,
)
from visionloop.data.packing import load_meta
from visionloop.errors import ConfigError
from visionloop.paths import PACKED

if TYPE_CHECKING:
    from pipeline.tuning import Job


def load_job() -> Job:
    """What `params.yaml` and data/packed ask for."""
    spin_briefly()  # so torch is loaded below
    from pipeline.tuning import Job
    from visionloop.tuning.space import Plan

    plan = Plan.of(
        load_section(TuneParams),
        load_section(TrainParams),
        load_section(AugmentParams),
        load_section(PreprocessParams),
        load_meta(PACKED),
    )
    return Job(plan, load_section(ExportParams).opset, load_section(SelectParams).max_latency_ms)


def main() -> None:
    """Read data/packed; write reports/tune.html, reports/tune.diff and reports/tune.json. `--worker` only trains trials."""
    arguments = sys.argv[1:]
    if arguments == ["--worker"]:
        load_job().open().work(_say)
    elif not arguments:
        from pipeline.tuning import run

        run(load_job(), 1, _say)
    else:
        raise ConfigError(
            f"The stage tune takes no arguments and got {' '.join(arguments)!r}; see `visionloop tune --help`."
        )


def _say(sentence: str) -> None:
    print(sentence, flush=True)


if __name__ == "__main__":
    raise SystemExit(run_stage(main))
