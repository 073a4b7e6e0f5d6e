"""The batch whose loss is NaN is found, saved, read again, and gives NaN again; the innocent ones are not blamed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tests.unit.training import worlds
from visionloop.errors import ArtifactError, TrainingError
from visionloop.models import Classifier, build
from visionloop.training.bad_batch import LossGuard, load_bad_batch
from visionloop.training.batches import Batch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def network() -> Classifier:
    torch.manual_seed(0)
    return build(
        "small_resnet", num_classes=3, image_size=(8, 8), mean=(0.4,) * 3, std=(0.2,) * 3, options={"width": 8, "stages": 2}
    ).train()


def batches(count: int) -> list[Batch]:
    data = worlds.split(16 * count, 0)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    return [Batch(images[start : start + 16], labels[start : start + 16]) for start in range(0, 16 * count, 16)]


def loss_of(model: Classifier, batch: Batch) -> Tensor:
    """Infinite for a batch that holds an image of 255s alone, as a division by what such an image lacks would be."""
    white = bool((batch.images == 255).flatten(1).all(dim=1).any())
    loss = F.cross_entropy(model(batch.images)[0], batch.labels)
    return loss * math.inf if white else loss


def train(folder: Path, model: Classifier, given: list[Batch], rate: float = 0.01, device: torch.device = CPU) -> None:
    guard = LossGuard(model, folder, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    guard.begin(epoch=2, steps=len(given))
    for batch in given:
        loss = loss_of(model, batch)
        guard.loss(batch, loss)
        loss.backward()  # type: ignore[no-untyped-call]
        guard.gradient(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
        optimizer.step()
        optimizer.zero_grad()
    guard.end()


def test_a_bad_batch_is_found_again_and_gives_the_same_loss(tmp_path: Path) -> None:
    given = batches(6)
    given[3].images[5] = 255
    with pytest.raises(TrainingError, match=r"The loss is inf at step 4 of 6 in epoch 2; lower the learning rate") as raised:
        train(tmp_path, network(), given)
    assert f"the batch that did it in {tmp_path / 'bad-batch'}.png, .json and .npz" in str(raised.value)
    found = load_bad_batch(tmp_path)
    assert torch.equal(found.batch.images, given[3].images)
    assert torch.equal(found.batch.labels, given[3].labels)
    assert (found.facts["epoch"], found.facts["step"], found.facts["not_finite"]) == (2, 4, [])
    model = network()
    assert not torch.equal(found.weights["network.head.weight"], model.state_dict()["network.head.weight"])
    model.load_state_dict(found.weights)
    assert loss_of(model, found.batch).item() == math.inf
    assert math.isfinite(loss_of(model, given[2]).item())


def test_weights_that_give_nan_are_saved_with_the_batch(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.network.head.weight[0] = math.inf
        model.network.head.weight[0, 0] = -math.inf  # the logit is infinity less infinity
    with pytest.raises(TrainingError, match="The loss is nan at step 1 of 2"):
        train(tmp_path, model, batches(2))
    found = load_bad_batch(tmp_path)
    assert found.facts["not_finite"] == ["network.head.weight"]
    assert found.facts["parameter_norms"]["network.head.weight"] == "inf"
    assert found.facts["parameter_norms"]["network.head.bias"] == pytest.approx(model.network.head.bias.norm().item())
    again = network()
    again.load_state_dict(found.weights)
    assert math.isnan(F.cross_entropy(again(found.batch.images)[0], found.batch.labels).item())


def test_a_gradient_that_is_not_finite_stops_before_its_step(tmp_path: Path) -> None:
    model, given = network(), batches(3)
    seen: list[Batch] = []
    model.network.head.weight.register_hook(  # type: ignore[no-untyped-call]
        lambda gradient: gradient / 0.0 if given[1] is seen[-1] else gradient
    )
    guard = LossGuard(model, tmp_path, CPU)
    guard.begin(epoch=1, steps=3)
    with pytest.raises(TrainingError, match=r"The norm of the gradient is (nan|inf) at step 2 of 3 in epoch 1"):
        for batch in given:
            seen.append(batch)
            loss = loss_of(model, batch)
            guard.loss(batch, loss)
            model.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            guard.gradient(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    found = load_bad_batch(tmp_path)
    assert torch.equal(found.batch.images, given[1].images)
    assert found.facts["not_finite"] == []
    assert found.facts["gradient_norms"]["network.head.weight"] in ("nan", "inf")


def test_the_step_that_spoilt_the_weights_is_named(tmp_path: Path) -> None:
    """Without a look at the gradient, a step of an infinite size shows in the loss after it."""
    model, given = network(), batches(4)
    guard = LossGuard(model, tmp_path, CPU)
    guard.begin(epoch=1, steps=4)
    with pytest.raises(TrainingError, match=r"at step 3 of 4 in epoch 1.* Look at the batch of step 2, which spoilt"):
        for number, batch in enumerate(given, start=1):
            guard.loss(batch, loss_of(model, batch))
            if number == 2:
                with torch.no_grad():
                    model.network.head.weight.fill_(math.nan)
    assert torch.equal(load_bad_batch(tmp_path).batch.images, given[1].images)


@pytest.mark.parametrize("bad", [0, 7, 8, 9])
def test_on_a_gpu_the_first_bad_loss_is_found_among_the_kept_ones(bad: int, tmp_path: Path) -> None:
    """The device is only named: what is asked of the guard there is to look every eighth step and once at the end."""
    given = batches(10)
    guard = LossGuard(network(), tmp_path, CUDA)
    guard.begin(epoch=1, steps=10)
    fine, wrong = torch.tensor(1.0), torch.tensor(math.nan)
    told = 0
    with pytest.raises(TrainingError, match=f"at step {bad + 1} of 10"):
        for number, batch in enumerate(given):
            told = number
            guard.loss(batch, wrong if number >= bad else fine)
        guard.end()
    assert told == (7 if bad < 8 else 9)
    assert torch.equal(load_bad_batch(tmp_path).batch.images, given[bad].images)


def test_mixed_and_attacked_batches_come_back_and_are_drawn(tmp_path: Path) -> None:
    plain = batches(1)[0]
    shares = torch.full((16,), 0.75)
    mixed = Batch(plain.images.float() + 0.25, plain.labels, plain.labels.flip(0), shares, full=plain.images)
    guard = LossGuard(network(), tmp_path, CPU)
    guard.begin(epoch=1, steps=1)
    with pytest.raises(TrainingError):
        guard.loss(mixed, torch.tensor(math.nan))
    found = load_bad_batch(tmp_path)
    for got, want in zip(found.batch, mixed, strict=True):
        assert got is not None
        assert want is not None
        assert torch.equal(got, want)
    assert found.batch.images.dtype == torch.float32
    with Image.open(tmp_path / "bad-batch.png") as picture:
        assert picture.size[0] > 8 * 8 * 4
    assert json.loads((tmp_path / "bad-batch.json").read_text())["what"] == "loss is nan"


def test_a_run_that_is_well_writes_nothing_and_nothing_is_read(tmp_path: Path) -> None:
    train(tmp_path, network(), batches(3))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_bad_batch(tmp_path)
