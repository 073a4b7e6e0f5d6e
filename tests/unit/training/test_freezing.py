"""What is frozen stays as it was, to the bit, through a step of training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.unit.training import worlds
from visionloop.config import FamilyParams
from visionloop.errors import ConfigError
from visionloop.models import Classifier, build, check_buildable
from visionloop.training.freezing import apply_freeze
from visionloop.training.optimizers import Optimizer


def frozen(freeze: str, name: str = "resnet18", size: int = 32) -> tuple[Classifier, FamilyParams]:
    model = build(name, num_classes=3, image_size=(size, size), mean=(0.5,) * 3, std=(0.2,) * 3, options={})
    changes = {"freeze": freeze, "weights": "torchvision"}
    settings = FamilyParams.model_validate({**worlds.params().cnn.model_dump(), **changes})
    apply_freeze(model, settings)
    return model, settings


def step(model: Classifier, settings: FamilyParams) -> tuple[set[str], set[str]]:
    """One step of training on noise; the names of the parameters and of the buffers that it changed."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = Optimizer(model, worlds.params(optimizer="sgd"), settings, steps_images=8)
    model.eval()
    model.train()
    images = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    F.cross_entropy(model(images)[0], torch.arange(8) % 3).backward()  # type: ignore[no-untyped-call]
    optimizer.step(0.1)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parameters = {name for name, _ in model.named_parameters()}
    return changed & parameters, changed - parameters


def test_of_a_frozen_backbone_only_the_head_learns() -> None:
    assert step(*frozen("backbone")) == ({"network.head.weight", "network.head.bias"}, set())


def test_frozen_norms_keep_their_statistics_and_all_weights_learn() -> None:
    model, settings = frozen("norms")
    parameters, buffers = step(model, settings)
    assert parameters == {name for name, _ in model.named_parameters()}
    assert buffers == set()


def test_without_freezing_the_statistics_follow_the_batches() -> None:
    _, buffers = step(*frozen("none"))
    assert len(buffers) == 3 * 20  # mean, variance and count of each of 20 batch norms


def test_what_is_frozen_stays_so_in_a_copy_and_through_train_and_eval() -> None:
    model, _ = frozen("backbone", "mobilenet_v3_small")
    for each in (model, copy.deepcopy(model)):
        each.eval()
        each.train()
        training = {name for name, module in each.named_modules() if module.training}
        assert training == {"", "network", "network.head"}


def test_a_frozen_backbone_gives_the_embedding_of_the_pretrained_model() -> None:
    """No dropout and no stochastic depth: training and use see the same numbers."""
    model, _ = frozen("backbone", "efficientnet_b0")
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)

    def embedding() -> Tensor:
        vectors: Tensor = model(images)[1]
        return vectors

    trained = embedding() if model.train().training else None
    model.eval()
    assert trained is not None and torch.equal(trained, embedding())
    assert any(isinstance(module, nn.Dropout) for module in model.modules())


def test_norms_that_are_not_there_cannot_be_frozen() -> None:
    with pytest.raises(ConfigError, match=r"freeze is 'norms', but vit_b_16 has no batch norm .*; set it to 'none'"):
        frozen("norms", "vit_b_16")
    with pytest.raises(ConfigError, match="swin_t has no batch norm"):
        check_buildable("swin_t", (64, 64), {}, freeze="norms")
    check_buildable("resnet18", (64, 64), {}, freeze="norms")
