"""The whole report of a run: its result in words, its main figures, and all sections in the order of the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from visionloop.paths import (
    DEPLOY_REPORT,
    GATE_REPORT,
    QUANTIZE_REPORT,
    ROBUSTNESS_REPORT,
    SELECT_REPORT,
    SHIPPED,
    evaluate_report,
)
from visionloop.report import data_sections, model_sections, release_sections
from visionloop.report.blocks import Block, Missing, Report, Section, Tiles, figure
from visionloop.report.files import RunFiles, earlier_words, of_earlier_run
from visionloop.report.model_sections import FAMILIES, shown
from visionloop.report.release_sections import Origin

Built = TypeVar("Built")


def tell(files: RunFiles, origin: Origin, model_name: str) -> Report:
    """Everything that is known of the run whose files are given; what is missing is told, never refused."""
    builders: list[tuple[str, str, Callable[[], list[Block]]]] = [
        ("data", "Data", lambda: data_sections.data(files)),
        ("splits", "Splits", lambda: data_sections.splits(files)),
        ("augmentation", "Augmentation", lambda: data_sections.augmentation(files)),
        ("training", "Training", lambda: model_sections.training(files)),
        ("metrics", "Metrics", lambda: model_sections.metrics(files)),
        ("confusion", "Confusion", lambda: model_sections.confusion(files)),
        ("calibration", "Calibration and unknowns", lambda: model_sections.calibration(files)),
        ("mistakes", "Mistakes", lambda: model_sections.mistakes(files)),
        ("explanation", "Explanation", lambda: model_sections.explanation(files)),
        ("slices", "Slices", lambda: model_sections.slices(files)),
        ("robustness", "Robustness", lambda: release_sections.robustness(files)),
        ("compression", "Speed and size", lambda: release_sections.compression(files)),
        ("parity", "Parity", lambda: release_sections.parity(files)),
        ("gate", "Gate", lambda: release_sections.gate(files)),
        ("deployment", "Deployment", lambda: release_sections.deployment(files)),
        ("lineage", "Lineage", lambda: release_sections.lineage(files, origin)),
    ]
    sections = [Section(name, title, shown(guarded(build, _missing))) for name, title, build in builders]
    return Report(
        title=model_name,
        sentences=guarded(lambda: sentences(files, origin.lock), lambda sentence: [sentence]),
        tiles=guarded(lambda: Tiles(_tiles(files, origin.lock)), lambda _: Tiles([])),
        warnings=guarded(lambda: _warnings(files, origin), lambda sentence: [sentence]),
        sections=sections,
    )


def guarded(build: Callable[[], Built], otherwise: Callable[[str], Built]) -> Built:
    """What `build` makes, or, where the files have a form that it does not know, what the sentence about it makes."""
    try:
        return build()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"[:160]
        return otherwise(f"Its files are of another form than is known here ({what}); rebuild them with `dvc repro`.")


def _missing(sentence: str) -> list[Block]:
    return [Missing(sentence)]


def _warnings(files: RunFiles, origin: Origin) -> list[str]:
    return [*earlier_words(of_earlier_run(origin.lock, files.md5s)), *release_sections.warnings(files, origin)]


def sentences(files: RunFiles, lock: Mapping[str, Any]) -> list[str]:
    """The result in words; what `dvc.lock` shows to be of an earlier run is no result of this one."""
    select, quantize, deploy, robust, gate = _of_this_run(
        files, lock, SELECT_REPORT, QUANTIZE_REPORT, DEPLOY_REPORT, ROBUSTNESS_REPORT, GATE_REPORT
    )
    family = str(select.get("selected", ""))
    if family not in FAMILIES:
        return ["No model is selected yet: the run is not finished, and this page shows what there is."]
    metrics = files.json(evaluate_report(family) / "metrics.json")
    said = [f"The {FAMILIES[family]} is the selected model."]
    if "accuracy" in metrics:
        images, wrong = metrics.get("images", 0), metrics.get("mistakes", 0)
        level = files.json(evaluate_report(family) / "detail.json").get("confidence_level")
        sure = f"{100 * level:g} % interval" if level else "interval"
        ends = " to ".join(figure("accuracy", metrics.get(f"accuracy_{end}")) for end in ("low", "high"))
        said = [
            f"The {FAMILIES[family]} answers {images - wrong:,} of {images:,} test images rightly: "
            f"{figure('accuracy', metrics['accuracy'])}, {sure} {ends}."
        ]
    if quantize.get("shipped"):
        said.append(
            f"It is shipped as {str(quantize['shipped']).upper()}, whose test accuracy is "
            f"{figure('accuracy', quantize.get('test_accuracy'))}."
        )
    if "passed" in robust:
        said.append("It is within the budgets of robustness." if robust["passed"] else "It is over a budget of robustness.")
    if "passed" in gate:
        let = "A person lets it pass over the gate." if gate.get("forced") else "The gate lets it pass."
        said.append(let if gate["passed"] else "The gate blocks it.")
    if deploy.get("version"):
        said.append(f"It is version {deploy['version']} of the endpoint.")
    return said


def _of_this_run(files: RunFiles, lock: Mapping[str, Any], *paths: Path) -> list[dict[str, Any]]:
    """The objects in JSON files; an empty one for each that is of an earlier run."""
    found = [files.json(path) for path in paths]
    stages = lock.get("stages") or {}
    earlier = {out["path"] for name in of_earlier_run(lock, files.md5s) for out in stages[name].get("outs") or []}
    return [{} if str(path) in earlier else one for path, one in zip(paths, found, strict=True)]


def _tiles(files: RunFiles, lock: Mapping[str, Any]) -> list[tuple[str, str]]:
    select, quantize, deploy = _of_this_run(files, lock, SELECT_REPORT, QUANTIZE_REPORT, DEPLOY_REPORT)
    family, form = str(select.get("selected", "")), str(quantize.get("shipped", ""))
    metrics = files.json(evaluate_report(family) / "metrics.json") if family in FAMILIES else {}
    card = files.json(SHIPPED / "card.json") if form else {}
    tiles = []
    if metrics:
        ends = " to ".join(figure("accuracy", metrics.get(f"accuracy_{end}")).removesuffix(" %") for end in ("low", "high"))
        tiles.append((figure("accuracy", metrics.get("accuracy")), f"test accuracy, interval {ends} %"))
        tiles.append((figure("", metrics.get("macro_f1")), "macro F1"))
    if card:
        tiles.append(
            (FAMILIES.get(str(card.get("family")), "?"), f"{card.get('architecture')}, {card.get('parameters'):,} weights")
        )
    if form:
        tiles.append((form.upper(), f"{figure('', quantize.get(f'{form}_megabytes'))} MB on disk"))
        speed = quantize.get(f"{form}_latency_ms_batch_1")
        tiles.append((f"{figure('', speed)} ms", "for one image, one thread, median"))
    if deploy:
        tiles.append((f"version {deploy.get('version')}", "of the endpoint"))
    return tiles
