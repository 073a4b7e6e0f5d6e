"""Stage `robustness`: what the selected model withstands, and whether that is within budget; exit code 2 when it is not.

Corruptions, moves and malformed bytes go through the exported graph, which is what is served; attacks need gradients and go
through the torch model, which `export` proved to answer alike.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch

from pipeline.stages import run_stage
from visionloop.attacks import fgsm_accuracies, pgd_accuracies
from visionloop.config import RobustnessParams, load_section
from visionloop.data.packing import load_sample, load_split
from visionloop.errors import BlockedError
from visionloop.evaluation import malformed
from visionloop.evaluation.budgets import OVER_BUDGET, judge
from visionloop.evaluation.metrics import csv_text
from visionloop.evaluation.robustness import (
    Curve,
    Images,
    NearestMean,
    Numbers,
    attacks_csv,
    choose,
    classes_csv,
    corruption_table,
    corruptions_csv,
    curves_csv,
    invariance_curves,
    only_numbers,
    summarize,
)
from visionloop.evaluation.robustness_pictures import attacks_png, corruptions_png, invariance_png, sheet_png
from visionloop.files import write_bytes, write_json, write_text
from visionloop.models import load_model
from visionloop.models.devices import choose_device
from visionloop.paths import EXPORTED, PACKED, ROBUSTNESS, ROBUSTNESS_REPORT, family_folder
from visionloop.runtime import load


def main() -> None:
    """Read models/exported, its torch model and the packed images; write reports/robustness.json and reports/robustness."""
    params = load_section(RobustnessParams)
    onnx_model, card = load(EXPORTED)
    test, train = load_split(PACKED, "test"), load_sample(PACKED)
    chosen = choose(test.labels, params.images, params.seed)
    images, targets = np.array(test.images[chosen]), np.array(test.labels[chosen])

    def answer(batch: Images) -> Numbers:
        return np.asarray(onnx_model.run_all(batch)[0].argmax(1))

    reference = NearestMean(train.images, train.labels, len(card.labels))
    table = corruption_table(answer, reference, images, targets, classes=len(card.labels), seed=params.seed)
    moves = invariance_curves(answer, images, targets, params)
    attacked = choose(targets, params.attack_images, params.seed)
    attacks = _attacks(card.family, images[attacked], targets[attacked], params)
    outcomes = malformed.run(card.preprocess, lambda pixels: card.labels[int(answer(pixels[None])[0])])

    numbers = {
        "images": len(targets),
        "attack_images": len(attacked),
        **summarize(table, [*moves, *attacks], card.labels),
        "malformed_cases": len(outcomes),
        "malformed_failures": sum(not outcome.passed for outcome in outcomes),
    }
    over = judge(only_numbers(numbers), params.budgets, "robustness")
    over += [f"{one.kind}: {one.outcome}, {one.reason or one.detail}" for one in outcomes if not one.passed]

    title = f"{card.family} ({card.architecture}), {len(targets)} test images"
    write_text(ROBUSTNESS / "corruptions.csv", corruptions_csv(table))
    write_text(ROBUSTNESS / "classes.csv", classes_csv(table, card.labels))
    write_text(ROBUSTNESS / "curves.csv", curves_csv([*moves, *attacks]))
    write_text(ROBUSTNESS / "attacks.csv", attacks_csv(*attacks))
    rows = [asdict(outcome) for outcome in outcomes]
    write_text(ROBUSTNESS / "malformed.csv", csv_text(tuple(rows[0]), (row.values() for row in rows)))
    write_bytes(ROBUSTNESS / "corruptions.png", corruptions_png(table, f"Accuracy in per cent, {title}"))
    write_bytes(ROBUSTNESS / "attacks.png", attacks_png(attacks, f"Under attack, {len(attacked)} images, {card.family}"))
    write_bytes(ROBUSTNESS / "invariance.png", invariance_png(moves, f"Moved, turned, resized: {title}"))
    example = f"A {card.labels[targets[0]]} under each corruption at severity 1, 3 and 5"
    write_bytes(ROBUSTNESS / "sheet.png", sheet_png(images[0], params.seed, example))
    write_json(ROBUSTNESS_REPORT, {**numbers, "passed": int(not over), OVER_BUDGET: over})

    print(
        f"{ROBUSTNESS_REPORT}: of {len(targets)} test images {table.clean:.2%} are answered rightly, under 15 corruptions "
        f"at 5 severities {numbers['corruption_accuracy']:.2%} (by the nearest class mean "
        f"{numbers['reference_corruption_accuracy']:.2%}); worst are {numbers['worst_corruption']} "
        f"({numbers['worst_corruption_accuracy']:.2%}) and the class {numbers['worst_class']} "
        f"({numbers['worst_class_accuracy']:.2%})"
    )
    left = (
        f"{accuracy:.2%} at {amount:g}" for amount, accuracy in zip(attacks[1].amounts, attacks[1].accuracies, strict=True)
    )
    print(
        f"PGD of {params.pgd_steps} steps leaves {', '.join(left)} levels; {len(outcomes)} malformed and extreme inputs, "
        f"{numbers['malformed_failures']} not as expected"
    )
    if over:  # after the report, which says how far
        raise BlockedError(
            f"Robustness is over budget: {'; '.join(over)}. Look at {ROBUSTNESS}, train for it (augment.automatic, "
            "train.adversarial), or change the budget with its reason."
        )


def _attacks(family: str, images: Images, targets: Numbers, params: RobustnessParams) -> list[Curve]:
    """FGSM and PGD against the torch model, each beginning with the accuracy without an attack."""
    device = choose_device("auto")
    model = load_model(family_folder(family))[0].to(device).eval()
    pixels, labels = torch.from_numpy(images).to(device), torch.from_numpy(targets).to(device)
    amounts = (0.0, *params.epsilons)
    fgsm = fgsm_accuracies(model, pixels, labels, epsilons=amounts, description="fgsm")
    pgd = pgd_accuracies(
        model, pixels, labels, epsilons=params.epsilons, steps=params.pgd_steps, seed=params.seed, description="pgd"
    )
    return [Curve("fgsm", "levels", amounts, tuple(fgsm)), Curve("pgd", "levels", amounts, (fgsm[0], *pgd))]


if __name__ == "__main__":
    raise SystemExit(run_stage(main))
