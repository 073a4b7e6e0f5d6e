"""The search space as Optuna sees it, and everything that is checked before the first trial.

What `params.yaml` alone tells is refused by `visionloop.config`. Does not cover: how trials run (`study.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from visionloop.charts import number
from visionloop.config import (
    AugmentParams,
    PreprocessParams,
    Scalar,
    SpaceEntry,
    TrainParams,
    TuneParams,
    is_whole,
    refuse_space,
    refuse_together,
    tuned,
)
from visionloop.data.packing import PackedMeta
from visionloop.data.policy import AugmentPolicy
from visionloop.errors import ConfigError
from visionloop.models.table import check_buildable
from visionloop.training.loop import fingerprint
from visionloop.training.resizing import check_settings

Values = dict[str, Any]  # a tuned key: its value, one of `config.Scalar`

# Networks of a grid that are built on trial; building one without weights takes some 20 ms.
_MAX_BUILDS = 200


@dataclass(frozen=True)
class Plan:
    """What a study searches, from which settings, on which data."""

    tune: TuneParams
    train: TrainParams
    augment: AugmentParams
    meta: PackedMeta

    @classmethod
    def of(
        cls, tune: TuneParams, train: TrainParams, augment: AugmentParams, preprocess: PreprocessParams, meta: PackedMeta
    ) -> Plan:
        """The plan of these sections of `params.yaml`, with `tune.epochs` put in.

        Raises:
            ConfigError: the packed data were made of other settings.
        """
        if meta.preprocess != preprocess.spec or meta.policy != AugmentPolicy.from_params(augment):
            raise ConfigError(
                "data/packed was made with other settings of preprocess or augment than params.yaml has; run "
                "`dvc repro augment`, so that trials see what a training will see."
            )
        if augment.store != "packed":
            raise ConfigError(f"tune trains on data/packed and augment.store is {augment.store}; set it to packed.")
        refuse_space(tune, train, augment)
        if tune.epochs is not None:
            train, augment = tuned(train, augment, tune.family, {"train.epochs": tune.epochs})
        return cls(tune, train, augment, meta)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's form of the space, in the order of its keys."""
        return {key: _distribution(entry, self._whole(key, entry)) for key, entry in self.tune.space.items()}

    @property
    def points(self) -> int | None:
        """How many combinations there are; None where there is no end of them."""
        listed = [entry.values(self._whole(key, entry)) for key, entry in self.tune.space.items()]
        return None if any(values is None for values in listed) else math.prod(len(values or ()) for values in listed)

    def grid(self) -> list[Values]:
        """Every combination once, in an order that `tune.seed` gives, so that a run cut short has seen a bit of all."""
        listed = {key: entry.values(self._whole(key, entry)) or () for key, entry in self.tune.space.items()}
        points = [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]
        order = np.random.default_rng(self.tune.seed).permutation(len(points))
        return [points[index] for index in order]

    def settings(self, values: Mapping[str, Scalar]) -> tuple[TrainParams, PackedMeta]:
        """What a trial with these values trains with.

        Raises:
            ConfigError: their combination is not allowed.
        """
        train, augment = tuned(self.train, self.augment, self.tune.family, values)
        refuse_together(train, augment, self.tune.family)
        return train, self._meta_of(augment)

    def _meta_of(self, augment: AugmentParams) -> PackedMeta:
        return self.meta.model_copy(update={"policy": AugmentPolicy.from_params(augment)})

    def current(self) -> Values | None:
        """The values that `params.yaml` has now, or None where one of them is not in the space."""
        found = self._present()
        is_inside = all(key in found and _contains(one, found[key]) for key, one in self.distributions.items())
        return found if is_inside else None

    def changes(self, values: Mapping[str, Scalar]) -> Values:
        """Those of `values` that `params.yaml` does not have now."""
        present = self._present()
        return {
            key: value for key, value in values.items() if key not in present or not same({key: value}, {key: present[key]})
        }

    def _present(self) -> Values:
        """What `params.yaml` has for the tuned keys, but for options that it leaves to the architecture."""
        train, family, found = self.train.of(self.tune.family), self.train.family(self.tune.family), Values()
        for key in self.tune.space:
            section, *parts = key.split(".")
            if section == "augment":
                found[key] = getattr(self.augment, parts[0])
            elif parts[0] != self.tune.family:
                found[key] = getattr(train, parts[0])
            elif parts[1] != "options":
                found[key] = getattr(family, parts[1])
            elif parts[2] in family.options:
                found[key] = family.options[parts[2]]
        return found

    @property
    def name(self) -> str:
        """The study's name: the same for the same data, space and fixed settings, and for nothing else.

        Sampler, pruner and their seed are not in it: a study goes on with others, and its trials stay true.
        """
        first = {key: entry.extremes[0] for key, entry in self.tune.space.items()}
        train, augment = tuned(self.train, self.augment, self.tune.family, first)  # which may never be a trial
        value = {
            "fixed": fingerprint(self.tune.family, self._meta_of(augment), train),
            "space": {key: entry.model_dump(mode="json") for key, entry in self.tune.space.items()},
            "objectives": self.tune.objectives,
        }
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        return f"{self.tune.family}-{digest[:16]}"

    def check(self) -> None:
        """Try what can be tried without training: every combination of a grid, every network of a value.

        Raises:
            ConfigError: naming the key and the value, or the combination.
        """
        base = self.current() or {key: entry.extremes[0] for key, entry in self.tune.space.items()}
        prefix = f"train.{self.tune.family}."
        networks = {
            key: entry.extremes
            for key, entry in self.tune.space.items()
            if key.startswith((f"{prefix}options.", f"{prefix}architecture"))
        }
        for key, values in networks.items():
            # A value that does not fit beside the present ones may fit beside others of the space.
            others = {name: listed for name, listed in networks.items() if name != key}
            beside = [dict(zip(others, point, strict=True)) for point in itertools.product(*others.values())]
            for value in values:
                self._try_any([{key: value}, *({**rest, key: value} for rest in beside[:_MAX_BUILDS])])
        points = self.grid() if self.tune.sampler == "grid" else [base]
        seen: set[str] = set()
        for point in points:
            if self.tune.sampler == "grid":
                train, _ = self.settings(point)
            else:  # the lowest values may not go together, and may never be drawn together
                train, _ = tuned(self.train, self.augment, self.tune.family, point)
            network = str({key: point[key] for key in networks})
            if network not in seen and len(seen) < _MAX_BUILDS:
                seen.add(network)
                self._try(train, {key: point[key] for key in networks})

    def _try_any(self, attempts: list[Values]) -> None:
        """Refuse if none of the attempts can be built, with the sentence of the first."""
        first: ConfigError | None = None
        for values in attempts:
            try:
                return self._try(self.settings(values)[0], values)
            except ConfigError as error:
                first = first or error
        assert first is not None
        raise first

    def _try(self, train: TrainParams, values: Values) -> None:
        family, size = train.family(self.tune.family), self.meta.preprocess
        try:
            check_buildable(family.architecture, (size.height, size.width), family.options)
            check_settings(family, (size.height, size.width), train.of(self.tune.family))
        except ConfigError as error:
            raise ConfigError(f"tune.space{', ' if values else ''}{shown(values)}: {error}") from None

    def values(self, suggested: Mapping[str, Any]) -> Values:
        """What a trial trains with: Optuna's numbers as a person would write them, since they may go into `params.yaml`.

        Steps lose the noise of binary fractions; free numbers keep four digits, within their range.
        """
        return {key: _rounded(self.tune.space[key], value) for key, value in suggested.items()}

    def _whole(self, key: str, entry: SpaceEntry) -> bool:
        return is_whole(self.tune.family, key, entry)


def shown(values: Mapping[str, Scalar]) -> str:
    """Values for a sentence, by the last part of their keys.

    >>> shown({"train.cnn.learning_rate": 0.00123456, "train.loss": "focal"})
    'learning_rate 0.001235, loss focal'
    """
    return ", ".join(f"{key.rpartition('.')[2]} {number(value)}" for key, value in values.items())


def same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two trials have the same values; true and 1 are not the same choice."""
    return first.keys() == second.keys() and all(
        first[key] == second[key] and isinstance(first[key], bool) == isinstance(second[key], bool) for key in first
    )


def _rounded(entry: SpaceEntry, value: Any) -> Any:
    if entry.choices is not None or not isinstance(value, float):
        return value
    assert entry.low is not None and entry.high is not None
    if value.is_integer() and all(isinstance(part, int) for part in (entry.low, entry.high, entry.step)):
        return int(value)  # steps of whole numbers, of a key that takes fractions too
    return min(max(float(f"{value:.{4 if entry.step is None else 12}g}"), float(entry.low)), float(entry.high))


def _distribution(entry: SpaceEntry, whole: bool) -> BaseDistribution:
    if entry.choices is not None:
        return CategoricalDistribution(entry.choices)
    assert entry.low is not None and entry.high is not None
    if whole:
        step = int(entry.step) if entry.step is not None else 1
        return IntDistribution(int(entry.low), int(entry.high), log=entry.log, step=step)
    return FloatDistribution(float(entry.low), float(entry.high), log=entry.log, step=entry.step)


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return any(same({"": value}, {"": choice}) for choice in distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if isinstance(value, bool) or not isinstance(value, int | float) or not distribution.low <= value <= distribution.high:
        return False
    if isinstance(distribution, IntDistribution) and not isinstance(value, int):
        return False
    if distribution.step is None:
        return True
    steps = (value - distribution.low) / distribution.step
    return abs(steps - round(steps)) < 1e-9 * max(1.0, steps)
