"""Assign every kept image to train, val or test; what an earlier run put in test stays there."""

from __future__ import annotations

from pipeline.stages import run_stage
from visionloop.config import SplitParams, load_section
from visionloop.data import splitting
from visionloop.files import write_json
from visionloop.paths import CLEAN, SPLIT, SPLIT_REPORT


def main() -> None:
    params = load_section(SplitParams)
    kept = splitting.read_kept(CLEAN)
    previous = splitting.read_ledger(SPLIT, kept)
    rows = splitting.assign(kept, params, previous)
    splitting.check(rows, kept, params, splitting.frozen_test(kept, previous))
    numbers = splitting.summary(rows, kept, params, previous)
    splitting.write_split(SPLIT, rows, params, previous)
    write_json(SPLIT_REPORT, numbers)

    for warning in numbers["warnings"]:
        print(f"warning: {warning}")
    print(f"train {numbers['train']:,}, val {numbers['val']:,}, test {numbers['test']:,} images, no leak -> {SPLIT}")
    if previous.redraws(params):
        print(
            "seed, shares or order have changed: train and val are drawn anew, the "
            f"{numbers['kept_in_test']:,} images that were test stay test; remove {SPLIT} for a wholly new split"
        )
    elif previous.splits:
        print(f"{numbers['kept_in_test']:,} images that were test stay test; new images filled the quotas")


if __name__ == "__main__":
    raise SystemExit(run_stage(main))
