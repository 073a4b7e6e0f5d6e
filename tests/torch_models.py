"""Small torch classifiers for tests, built once per process: fresh ones, and two trained on the digits for a few seconds."""

from __future__ import annotations

import copy
import functools
import math
from typing import Literal

import torch
import torch.nn.functional as F

from tests.onnx_models import TRAIN, digits
from visionloop.card import ModelCard
from visionloop.compression.export import onnx_bytes
from visionloop.models import Classifier, build
from visionloop.preprocess import PreprocessSpec

Family = Literal["cnn", "vit"]
ARCHITECTURE = {"cnn": "small_resnet", "vit": "small_vit"}
OPTIONS: dict[Family, dict[str, int]] = {
    "cnn": {"width": 16, "stages": 2},
    "vit": {"patch": 4, "width": 48, "depth": 2, "heads": 3},
}
OPSET = 20


@functools.cache
def fresh(family: Family) -> tuple[Classifier, ModelCard]:
    """A network of random weights for 16 x 16 images and ten classes, with its card."""
    data = digits()
    torch.manual_seed(0)
    options = OPTIONS[family]
    model = build(
        ARCHITECTURE[family], num_classes=10, image_size=(16, 16), mean=data.mean, std=data.std, options=options
    ).eval()
    card = ModelCard(
        family=family,
        architecture=ARCHITECTURE[family],
        architecture_options=dict(options),
        labels=tuple("0123456789"),
        preprocess=PreprocessSpec(16, 16),
        mean=data.mean,
        std=data.std,
        embedding_size=model.embedding_size,
        precision="fp32",
        parameters=sum(item.numel() for item in model.parameters()),
        lineage={"data": "d" * 64, "visionloop": "0.0.0"},
    )
    return model, card


@functools.cache
def fresh_onnx(family: Family) -> bytes:
    """`fresh` as ONNX."""
    model, card = fresh(family)
    return onnx_bytes(model, card=card, opset=OPSET)


@functools.cache
def trained(family: Family) -> tuple[Classifier, ModelCard]:
    """`fresh` after a few epochs on the digits: right on most of them, which random weights are on none."""
    _, card = fresh(family)
    data = digits()
    images, labels = torch.from_numpy(data.images[TRAIN]), torch.from_numpy(data.labels[TRAIN])
    torch.manual_seed(0)
    with torch.random.fork_rng():
        copy = build(
            card.architecture, num_classes=10, image_size=(16, 16), mean=card.mean, std=card.std, options=OPTIONS[family]
        )
    epochs, rate = {"cnn": (6, 0.01), "vit": (20, 0.003)}[family]
    steps = len(images) // 64
    optimizer = torch.optim.AdamW(copy.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    copy.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images))[: steps * 64].view(steps, 64):
            loss = F.cross_entropy(copy(images[batch])[0], labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return copy.eval(), card


@functools.cache
def badly_ranged() -> tuple[Classifier, ModelCard]:
    """`trained("cnn")` with channels between two convolutions up to 16 times smaller or larger, and undone behind them.

    In float it is the same network. In integers, which have one scale for a whole map, small channels are lost.
    """
    model, card = trained("cnn")
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in model.network.get_submodule("stages").children():
            scale, shift = block.get_parameter("norm2.weight"), block.get_parameter("norm2.bias")
            factors = torch.exp((2 * torch.rand(len(scale), generator=generator) - 1) * math.log(16))
            scale.mul_(factors)
            shift.mul_(factors)
            block.get_parameter("conv2.weight").div_(factors[None, :, None, None])
    return model, card
