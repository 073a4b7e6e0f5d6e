"""The learning-rate finder: on losses whose limit is known, on a small training, and what it refuses."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.training import worlds
from visionloop.errors import ConfigError, TrainingError
from visionloop.models import build
from visionloop.training.finder import RateSweep, find_rate, picture, suggest


def sweep(**changes: object) -> RateSweep:
    limits = {name: changes.pop(name) for name in ("lowest", "highest", "steps") if name in changes}
    return find_rate("cnn", worlds.split(96, 0), worlds.meta(), worlds.params(**changes), **{"steps": 60, **limits})  # type: ignore[arg-type]


@pytest.mark.parametrize("curvature", [0.5, 50.0])
def test_on_a_parabola_it_stays_below_the_rate_that_diverges(curvature: float) -> None:
    """Gradient descent on curvature / 2 * x ** 2 diverges above 2 / curvature, and is fastest at 1 / curvature."""
    rates = np.geomspace(1e-6, 10, 150)
    x, losses = 1.0, []
    for rate in rates:
        losses.append(curvature / 2 * x**2)
        x -= rate * curvature * x
        if losses[-1] > 4 * min(losses) and len(losses) > 3:
            break
    _, suggestion = suggest(rates[: len(losses)], np.array(losses))
    assert suggestion is not None
    assert 0.001 / curvature < suggestion < 1 / curvature


def test_the_first_drop_of_a_loss_above_chance_is_not_the_suggestion() -> None:
    rates = np.geomspace(1e-6, 1, 121)
    logs = np.log10(rates)
    # A steep fall at 1e-5, a flat one at 1e-2, the least loss near 3e-2, then a rise.
    losses = 3 - 1.0 / (1 + np.exp(-(logs + 5) * 8)) - 0.8 / (1 + np.exp(-(logs + 2) * 4)) + 3 * np.maximum(0, logs + 1) ** 2
    _, suggestion = suggest(rates, losses)
    assert suggestion is not None
    assert 4e-3 < suggestion < 2e-2


def test_smoothing_keeps_a_line_and_halves_noise() -> None:
    rates = np.geomspace(1e-6, 1, 120)
    line = np.linspace(3, 1, 120)
    noise = np.random.default_rng(0).normal(0, 0.1, 120)
    smooth, _ = suggest(rates, line + noise)
    middle = slice(12, -12)
    assert np.abs(smooth[middle] - line[middle]).std() < 0.05 < noise.std()


def test_losses_that_do_not_fall_give_no_suggestion() -> None:
    rates = np.geomspace(1e-6, 1, 100)
    assert suggest(rates, 2.3 + np.random.default_rng(1).normal(0, 0.1, 100))[1] is None
    assert suggest(rates, np.linspace(1, 2, 100))[1] is None


def test_a_small_training_learns_at_the_suggestion_and_diverges_at_the_end() -> None:
    state = torch.random.get_rng_state()
    found = sweep(optimizer="sgd", highest=1e4, gradient_clip_norm=0.0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.suggestion is not None
    assert 1e-3 < found.suggestion < 1
    assert found.rates[0] == pytest.approx(1e-6)
    assert len(found.rates) == len(found.losses) == len(found.smooth) < 60, "it went on after the loss had diverged"
    # Steps of almost no length leave the loss of ten batches at that of the first weights.
    assert found.losses[:10] == pytest.approx([np.mean(found.losses[:10])] * 10, rel=0.25)
    assert found == sweep(optimizer="sgd", highest=1e4, gradient_clip_norm=0.0)


def test_rates_are_those_before_batch_scaling() -> None:
    """Four times the images of a step, at four times the rate for params.yaml's own, is the same sweep told in its terms."""
    plain = sweep(optimizer="sgd", lowest=4e-4, highest=4e-1)
    scaled = sweep(optimizer="sgd", lowest=1e-4, highest=1e-1, batch_scaling="linear", base_batch_size=4)
    assert scaled.losses == pytest.approx(plain.losses, rel=1e-4)
    assert scaled.rates == pytest.approx([rate / 4 for rate in plain.rates])


def test_the_picture_shows_the_sweep() -> None:
    found = RateSweep((1e-4, 1e-3, 1e-2), (2.0, 1.5, 1.0), (2.0, 1.5, 1.0), 1e-3, 2e-3)
    first, again = picture(found, "title"), picture(found, "title")
    assert first == again
    with Image.open(io.BytesIO(first)) as image:
        assert image.size == (880, 495)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The rates go from 0.1 to 0.1; the first must be above 0 and below"):
        sweep(lowest=0.1, highest=0.1)
    with pytest.raises(ConfigError, match="19 steps are too few"):
        sweep(steps=19)
    with pytest.raises(ConfigError, match="no option 'pacth'"):
        sweep(cnn_options={"pacth": 3})
    with pytest.raises(TrainingError, match="not finite at the first step"):
        sweep(cnn_options={"width": 8, "stages": 1, "blocks": 1}, weights=str(_whole(tmp_path)))


def _whole(folder: Path) -> Path:
    """A weights file of the small network, all finite and far too large."""
    options: dict[str, int | float | str | bool] = {"width": 8, "stages": 1, "blocks": 1}
    model = build("small_resnet", num_classes=3, image_size=(8, 8), mean=(0.5,) * 3, std=(0.2,) * 3, options=options)
    values = {
        key: torch.full_like(value, 3e38) if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    torch.save(values, folder / "whole.pt")
    return folder / "whole.pt"
