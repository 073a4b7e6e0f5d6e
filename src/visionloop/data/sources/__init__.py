"""Where images come from: one file per source, opened by its name.

A source yields encoded bytes as they are; whether they are an image at all is judged in `cleaning`. What a source passes
over stands in its `skipped`, with the reason. docs/sources.md shows each source and how to add one.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

from visionloop.config import CollectParams, check_options
from visionloop.data.sources.base import Skipped, Source, SourceImage, SourceOptions
from visionloop.errors import ConfigError
from visionloop.paths import FEEDBACK

__all__ = ["Skipped", "Source", "SourceImage", "check_source", "open_source", "open_sources", "source_names"]

# Files of this package that are no source, and the one source that joins another instead of standing for itself.
_NO_SOURCE = {"base", "layout", "feedback"}


def source_names() -> list[str]:
    """The words that `collect.source` takes: the files of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NO_SOURCE)


def check_source(params: CollectParams) -> None:
    """Check `collect.source` and `collect.options` without looking at the data.

    Raises:
        ConfigError: there is no such source, or it takes no such option.
    """
    _options(_module(params.source), params)


def open_source(params: CollectParams) -> Source:
    """The source that the `collect` section names.

    Raises:
        ConfigError: there is no such source, or it takes no such option.
        DataError: its data is missing, empty, or not laid out as expected.
    """
    module = _module(params.source)
    options = _options(module, params)
    kinds: list[Any] = [
        kind
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if name.endswith("Source") and kind.__module__ == module.__name__
    ]
    assert len(kinds) == 1, f"{module.__name__} must have one class whose name ends in Source"
    source: Source = kinds[0](Path(params.path), options)
    return source


def open_sources(params: CollectParams) -> list[Source]:
    """The configured source and, where `collect.feedback` says so and there is any, the labelled live images."""
    sources = [open_source(params)]
    if params.feedback:
        from visionloop.data.sources.feedback import FeedbackSource

        feedback = FeedbackSource(FEEDBACK)
        sources += [feedback] if len(feedback) else []
    return sources


def _module(name: str) -> ModuleType:
    names = source_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known sources are {', '.join(names)}."
        raise ConfigError(f"collect.source: there is no source {name!r}; {hint}")
    return importlib.import_module(f"{__name__}.{name}")


def _options(module: ModuleType, params: CollectParams) -> SourceOptions:
    kind: type[SourceOptions] = module.Options
    return check_options(kind, params.options, "collect.options")
