"""The sections of a report about what is released: robustness, compression, parity, gate, deployment, and the lineage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from visionloop.paths import (
    DEPLOY_REPORT,
    EXPORTED,
    GATE_REPORT,
    PARITY_PAGE,
    PARITY_REPORT,
    QUANTIZE_REPORT,
    REFERENCE_REPORT,
    ROBUSTNESS,
    ROBUSTNESS_REPORT,
    SHIPPED,
    VARIANTS,
    family_folder,
)
from visionloop.report.blocks import Block, Details, Missing, Table, Text, Tiles, figure, words
from visionloop.report.data_sections import drawing, missing
from visionloop.report.files import RunFiles, not_as_locked
from visionloop.report.model_sections import FAMILIES, csv_table, generic

FORMS = {"torch": "torch, eager", "fp32": "ONNX FP32", "int8": "ONNX INT8"}


@dataclass(frozen=True)
class Origin:
    """Where a run comes from, beyond its files: what the machine says when the report is made."""

    lock: Mapping[str, Any]  # dvc.lock
    commit: str  # of git; "" where it is not known
    changed: bool  # some file of the project is not as that commit has it
    versions: Mapping[str, str]  # of the libraries that are installed


def robustness(files: RunFiles) -> list[Block]:
    """What spoilt, moved and attacked images do to the selected model."""
    found = files.json(ROBUSTNESS_REPORT)
    if not found:
        return [missing(ROBUSTNESS_REPORT, "robustness")]
    over = _sentences(found, "over_budget")
    verdict = "It is over budget, so nothing after it runs:" if over else "It is within its budgets."
    blocks: list[Block] = [Text(verdict), *(Text(sentence) for sentence in over)]
    numbers = {name: value for name, value in found.items() if name not in ("passed", "over_budget")}
    blocks += generic(numbers, "The selected model on spoilt, moved and attacked test images")
    for file, title in (
        ("corruptions.png", "Accuracy under each corruption"),
        ("sheet.png", "An image under each corruption"),
        ("attacks.png", "Accuracy under attack"),
        ("invariance.png", "Moved, turned and resized"),
    ):
        blocks.append(drawing(files, ROBUSTNESS / file, title, "robustness"))
    blocks += csv_table(files, ROBUSTNESS / "malformed.csv", "Malformed bytes and extreme images", wordy=True)
    return blocks


def compression(files: RunFiles) -> list[Block]:
    """Every form of the selected model by speed, size, memory and accuracy, and which one is shipped."""
    report, rows = files.json(QUANTIZE_REPORT), files.rows(VARIANTS)
    if not report:
        return [missing(QUANTIZE_REPORT, "quantize")]
    blocks: list[Block] = [Text(sentence) for sentence in _sentences(report)]
    if rows:
        sizes: dict[str, list[str]] = {}
        for row in rows:
            name = row["form"]
            is_shipped = row["shipped"] == "1"
            prefix = "" if is_shipped and f"{name}_val_accuracy" not in report else f"{'fp32' if name == 'torch' else name}_"
            sizes[name] = [
                FORMS.get(name, name), f"{float(row['megabytes']):,.2f}",
                *(f"{float(row[size]):,.1f}" for size in ("memory_mb", "process_mb")),
                *(figure("accuracy", report.get(f"{prefix}{side}_accuracy")) for side in ("val", "test")),
                "shipped" if is_shipped else "",
            ]  # fmt: skip
        note = (
            "Memory: how much a fresh process grows at its peak while it loads the form and answers batches of 32; beside "
            "it the whole process with its libraries. The accuracy of torch is that of ONNX FP32, which is proved equal."
        )
        heads = ("form", "MB on disk", "MB of memory", "MB of the process", "val accuracy", "test accuracy", "")
        blocks.append(Table("Size, memory and accuracy", heads, list(sizes.values()), (note,)))
        speeds = [
            [f"{FORMS.get(row['form'], row['form'])}, batch {row['batch_size']}",
             *(f"{float(row[name]):.3f}" for name in ("p50_ms", "p95_ms", "p99_ms")),
             f"{float(row['images_per_second']):,.0f}", f"{int(row['calls']):,}"]
            for row in rows
        ]  # fmt: skip
        machine = " ".join(str(one) for one in report.get("machine") or ["an unnamed machine"])
        note = f"Milliseconds of a call, call by call in turn, on {machine}."
        columns = ("form and batch size", "p50 ms", "p95 ms", "p99 ms", "images/s", "calls")
        blocks.append(Table("Speed", columns, speeds, (note,)))
    else:
        blocks += [
            missing(VARIANTS, "quantize"),
            *generic(report, "Forms of the model", skip=("shipped", "reason", "machine")),
        ]
    return blocks


def parity(files: RunFiles) -> list[Block]:
    """How far the forms of the model are apart on the same images, from torch to the server."""
    found, quantize = files.json(PARITY_REPORT), files.json(QUANTIZE_REPORT)
    if not found:
        return [missing(PARITY_REPORT, "parity")]
    over = _sentences(found, "over_budget")
    verdict = "It is beyond a tolerance, so nothing is published:" if over else "All pairs are within their tolerances."
    images = (
        f"{figure('', found.get('held_out_images'))} held-out images as they came and {figure('', found.get('odd_files'))} "
        f"odd files made of them. {PARITY_PAGE} shows each pair beside its limits, each kind of file, and the images that "
        "forms name differently."
    )
    blocks: list[Block] = [Text(verdict), *(Text(sentence) for sentence in over), Text(images)]
    forms = (found.get("forms") or [{}])[0]
    rows = [
        [" and ".join(forms.get(name) or [words(name)]), figure("agreement", pair.get("agreement")),
         _tiny(pair.get("max_logit_distance")), _tiny(pair.get("mean_logit_distance"))]
        for name, pair in (found.get("pairs") or {}).items()
    ]  # fmt: skip
    columns = ("forms", "same first class", "largest distance", "mean distance")
    notes = (
        "Distances of logits; where files are sent, of the logarithms of probabilities.",
        *_sentences(found, "decoder_sentence"),
        *([f"INT8, shipped or not, answers {figure('agreement', quantize['int8_agreement'])} of the val and test images as "
           "FP32 does."] if "int8_agreement" in quantize else []),
    )  # fmt: skip
    return [*blocks, Table("The same images, the same answers", columns, rows, notes, wordy=True)]


def gate(files: RunFiles) -> list[Block]:
    """Whether the new model may replace the served one, and why."""
    found = files.json(GATE_REPORT)
    if not found:
        return [missing(GATE_REPORT, "gate")]
    blocks: list[Block] = [Text(sentence) for sentence in _sentences(found, "verdict")]
    said = {True: "passed", False: "blocks", None: "cannot be judged"}
    rules = [[words(str(one["rule"])), said[one["passed"]], str(one["reason"])] for one in found.get("rules") or []]
    blocks += [Table("The rules", ("rule", "verdict", "reason"), rules, wordy=True)] if rules else []
    return [*blocks, *generic(found, "Its figures", skip=("rules", "passed", "forced", "champion_version"))]


def deployment(files: RunFiles) -> list[Block]:
    """What was published, and the reference that live traffic is compared with."""
    deploy, reference, trial = (files.json(path) for path in (DEPLOY_REPORT, REFERENCE_REPORT, PARITY_REPORT))
    blocks: list[Block] = []
    if deploy:
        new = "published by this run" if deploy.get("new_version") else "this model already, nothing new was published"
        blocks.append(Text(f"Version {figure('', deploy.get('version'))} of the model repository is {new}."))
        blocks.append(
            Tiles(
                [
                    (f"{figure('', trial.get('http_p50_ms'))} ms", "an image over HTTP, median"),
                    (f"{figure('', trial.get('grpc_p50_ms'))} ms", "an image over gRPC, median"),
                    (f"{figure('', trial.get('server_start_seconds'))} s", "to start the server"),
                ]
            )
        )
    else:
        blocks.append(missing(DEPLOY_REPORT, "deploy"))
    if reference:
        blocks.append(
            Text(
                f"The drift reference has {figure('', reference.get('rows'))} held-out images, which the published model "
                f"answers with an accuracy of {figure('accuracy', reference.get('accuracy'))} and a mean confidence of "
                f"{figure('', reference.get('mean_confidence'))}."
            )
        )
    else:
        blocks.append(missing(REFERENCE_REPORT, "reference"))
    return blocks


def lineage(files: RunFiles, origin: Origin) -> list[Block]:
    """Data version, code version, params, the stages with their hashes, and library versions."""
    cards = {str(path): files.json(path / "card.json") for path in (SHIPPED, EXPORTED, *map(family_folder, FAMILIES))}
    blocks: list[Block] = []
    if origin.commit:
        changed = ", with changes that it does not have" if origin.changed else ""
        blocks.append(Text(f"Code: commit {origin.commit}{changed}."))
    else:
        blocks.append(Missing("The commit of the code is not known: no git repository was found."))
    rows = []
    for place, card in cards.items():
        if card:
            made = ", ".join(f"{name} {value}" for name, value in (card.get("lineage") or {}).items() if name != "data")
            hashes = ", ".join(f"{name} {str(value)[:12]}" for name, value in (card.get("files") or {}).items())
            rows.append([place, str((card.get("lineage") or {}).get("data", "unknown"))[:12], hashes, made])
    if rows:
        columns = ("model", "data version", "files, sha256", "made with")
        blocks.append(
            Table("Models", columns, rows, ("The data version is the sha256 of images, sides and settings.",), True)
        )
    stages = origin.lock.get("stages") or {}
    if stages:
        table = [
            [name, ", ".join(f"{out.get('path')} {str(out.get('md5', 'unknown'))[:8]}" for out in stage.get("outs") or []),
             str(sum(1 for dep in stage.get("deps") or [] if str(dep.get("path")).endswith(".py")))]
            for name, stage in stages.items()
            if name != "report"
        ]  # fmt: skip
        note = "From dvc.lock; md5 as DVC computes it."
        heads = ("stage", "outputs", "source files it depends on")
        blocks.append(Table("Stages", heads, table, (note,), wordy=True))
        params: dict[str, Any] = {}
        for stage in stages.values():
            for key, value in ((stage.get("params") or {}).get("params.yaml") or {}).items():
                _put(params, str(key), value)
        blocks.append(
            Details("Params, as the stages used them", yaml.safe_dump(params, sort_keys=False, allow_unicode=True))
        )
    else:
        blocks.append(Missing("Hashes and params of the stages are not known: there is no dvc.lock. `dvc repro` writes it."))
    if origin.versions:
        rows = [[name, version] for name, version in origin.versions.items()]
        note = "Installed where this report was made."
        blocks.append(Table("Libraries", ("library", "version"), rows, (note,), wordy=True))
    return blocks


def warnings(files: RunFiles, origin: Origin) -> list[str]:
    """What makes the report doubtful: damaged files, and files that are not of the run that `dvc.lock` tells of."""
    others = not_as_locked(origin.lock, files.md5s)
    said = list(files.damaged)
    if others:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        said.append(
            f"Not of the run in dvc.lock, since their content differs: {shown}. A stage was run by hand, or is under way; "
            "`dvc repro` brings all in line."
        )
    return said


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Put a value under its dotted key; dvc.lock has `train.cnn` beside `train.epochs`, and whole sections."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def _tiny(value: object) -> str:
    return f"{value:.1e}" if isinstance(value, int | float) else "unknown"


def _sentences(report: Mapping[str, Any], key: str = "reason") -> list[str]:
    found = report.get(key)
    return [found] if isinstance(found, str) else [str(one) for one in found or []]
