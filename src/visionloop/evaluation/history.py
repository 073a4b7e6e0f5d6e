"""The epochs of a training, as DVCLive left them: one file per metric with the columns `step` and the metric's name."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from visionloop.errors import ArtifactError

# Metric -> (epochs, values).
History = Mapping[str, tuple[list[int], list[float]]]


def read_history(folder: Path) -> History:
    """Every metric that was logged, by name.

    Raises:
        ArtifactError: there is none, or a file is no such table.
    """
    history = {}
    for path in sorted(folder.glob("*.tsv")):
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
            history[path.stem] = ([int(row["step"]) for row in rows], [float(row[path.stem]) for row in rows])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is no table of epochs ({error}); run `dvc repro train` again.") from error
    if not history:
        raise ArtifactError(f"{folder} holds no epoch of a training; run `dvc repro train`.")
    return history
