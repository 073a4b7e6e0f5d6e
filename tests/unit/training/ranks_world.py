"""What each of several processes does in the tests of `distributed`; started by them with torchrun's environment."""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.forked import Forked, say
from tests.unit.training import worlds
from visionloop.data.policy import AugmentPolicy
from visionloop.errors import TrainingError
from visionloop.models import Family, build
from visionloop.training import EpochRecord, distributed, train
from visionloop.training.batches import batch_sizes, plain_batches, train_batches
from visionloop.training.distributed import Ranks, join, plain_norms

IMAGES, BATCH, EPOCHS = 100, 15, 3  # batches of 15 and 14: parts of 8 and 7, and of 7 and 7
Curves = dict[str, Tensor]


def start(task: str, folder: Path, world: int = 2) -> list[Forked]:
    """The processes of one task, standard error joined to standard output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    return [
        Forked(run, task, folder, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]


def finish(processes: list[Forked], seconds: float = 120) -> list[str]:
    """What each said, once all have ended; none is left behind."""
    try:
        return [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def curves(ranks: Ranks, family: Family, policy: dict[str, Any]) -> Curves:
    """A small training by hand: the loss of each step, the validation's sums, the last weights."""
    data, val = worlds.split(IMAGES, 0), worlds.split(31, 1)
    torch.manual_seed(5)
    options: dict[str, Any] = {"width": 8, "stages": 2} if family == "cnn" else {"patch": 2, "width": 32, "depth": 2}
    architecture = {"cnn": "small_resnet", "vit": "small_vit"}[family]
    model: nn.Module = build(
        architecture, num_classes=3, image_size=(8, 8), mean=(0.36,) * 3, std=(0.12,) * 3, options=options, weights=None
    ).to(memory_format=torch.channels_last)
    names = list(model.state_dict())
    ranks.broadcast_model(model)
    model = ranks.synchronize_norms(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for epoch in range(1, EPOCHS + 1):
        model.train()
        batches = train_batches(data, AugmentPolicy(**policy), batch_size=BATCH, seed=3, epoch=epoch, ranks=ranks)
        for size, batch in zip(batch_sizes(IMAGES, BATCH), batches, strict=True):
            logits, _ = model(batch.images)
            loss = batch.loss(functools.partial(F.cross_entropy, logits, reduction="none"))
            loss = loss * (len(batch.labels) / size)
            loss.backward()  # type: ignore[no-untyped-call]
            ranks.sum_gradients(model.parameters())
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(ranks.sum(loss.detach()))
    model = plain_norms(model).eval()
    assert list(model.state_dict()) == names
    right = torch.zeros((), dtype=torch.int64)
    with torch.inference_mode():
        for batch in plain_batches(val, 8, ranks):
            right += (model(batch.images)[0].argmax(1) == batch.labels).sum()
    return {"losses": torch.stack(losses), "right": ranks.sum(right), **model.state_dict()}


def norm(ranks: Ranks) -> Curves:
    """A batch norm over 8 images, of which this process has its part; momentum None is a plain mean."""
    generator = torch.Generator().manual_seed(1)
    maps = 3 + 2 * torch.randn(8, 4, 5, 3, generator=generator)
    found: Curves = {}
    for momentum in (0.1, None):
        model: nn.Module = nn.Sequential(nn.BatchNorm2d(4, momentum=momentum))
        with torch.no_grad():
            model.get_parameter("0.weight").copy_(torch.tensor([0.5, 1, 2, -1]))
        model = ranks.synchronize_norms(model)
        for start in (0, 1):  # twice, so that the running statistics move; parts of 4 and 4 images, then of 2 and 5
            own = maps[start:]
            if ranks.world == 2:
                cut = 4 - 2 * start
                own = own[:cut] if ranks.main else own[cut:]
            own = own.clone().to(memory_format=torch.channels_last).requires_grad_()
            out = model(own)
            (out**3).sum().backward()
            assert own.grad is not None
            found[f"out {momentum} {start}"], found[f"gradient {momentum} {start}"] = out.detach(), own.grad
        ranks.sum_gradients(model.parameters())
        found |= {f"{name} {momentum}": value for name, value in plain_norms(model).state_dict().items()}
        gradient = model.get_parameter("0.weight").grad
        assert gradient is not None
        found[f"weight gradient {momentum}"] = gradient
        model.eval()
        found[f"eval {momentum}"] = model(maps).detach()
    return found


def trained(ranks: Ranks, family: Family, folder: Path, wait_for: Path | None = None) -> dict[str, Any]:
    """A training by the real loop; after the second epoch it waits for the file `wait_for`."""
    said: list[str] = []

    def on_epoch(record: EpochRecord) -> None:
        if wait_for is not None and record.epoch == 2:
            wait_for.with_suffix(".asked").touch()
            while not wait_for.exists():
                time.sleep(0.01)

    # Without dropout, whose draws are each process's own.
    params = worlds.params(epochs=4, batch_size=15, vit_options={"patch": 2, "width": 32, "depth": 2}, ema_decay=0.9)
    result = train(
        family, worlds.split(IMAGES, 0), worlds.split(31, 1), worlds.meta(), params, resume=folder / f"resume {family}",
        ranks=ranks, on_epoch=on_epoch, say=said.append,
    )  # fmt: skip
    return {
        "weights": result.classifier.state_dict(),
        "train": [record.train_loss for record in result.history],
        "val": [record.val_loss for record in result.history],
        "accuracy": [record.val_accuracy for record in result.history],
        "resumed": result.resumed_after,
        "said": said,
    }


def _task_curves(ranks: Ranks, folder: Path) -> None:
    results = {
        "norm": norm(ranks),
        "cnn": curves(ranks, "cnn", {"crop_padding_pixels": 1, "mixup": 0.4}),
        "vit": curves(ranks, "vit", {"crop_padding_pixels": 1, "brightness": 0.1}),
        "trained cnn": trained(ranks, "cnn", folder),
        "trained vit": trained(ranks, "vit", folder),
    }
    state = ranks.broadcast({"text": "from the first", "tensor": torch.arange(5)} if ranks.main else None)
    torch.save({**results, "state": state, "nothing": ranks.broadcast(None)}, folder / f"{ranks.rank}.pt")


def _task_killed(ranks: Ranks, folder: Path) -> None:
    """A training whose second process is killed from outside, while the first waits."""
    trained(ranks, "cnn", folder, folder / "go")


def _task_again(ranks: Ranks, folder: Path) -> None:
    """The same training once more."""
    torch.save(trained(ranks, "cnn", folder), folder / f"{ranks.rank}.pt")


def _task_silent(ranks: Ranks, folder: Path) -> None:
    """The second process does not answer."""
    if not ranks.main:
        time.sleep(60)
    ranks.sum(torch.ones(1))


_TASKS: dict[str, Callable[[Ranks, Path], None]] = {
    "curves": _task_curves,
    "killed": _task_killed,
    "again": _task_again,
    "silent": _task_silent,
}


def run(task: str, folder: Path) -> int:
    """One process's part of a task, as stage `train` would end."""
    if task == "silent":
        distributed.TIMEOUT = timedelta(seconds=1)
    try:
        with join("cpu") as ranks:
            _TASKS[task](ranks, folder)
    except TrainingError as error:
        say(f"{type(error).__name__}: {error}")
        return error.exit_code
    return 0
