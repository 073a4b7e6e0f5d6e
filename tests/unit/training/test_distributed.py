"""Two real processes train as one does, and one that is left alone says so."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.unit.training import ranks_world, worlds
from visionloop.data.policy import AugmentPolicy
from visionloop.errors import ConfigError, PeerError
from visionloop.training.batches import Batch, batch_sizes, plain_batches, train_batches
from visionloop.training.distributed import Ranks, join

CPU = torch.device("cpu")
# Sums of float32 in another order differ in the last of 24 bits; after 21 steps the losses were 2.4e-7 apart, and 0.14 where
# each process had batch norms of its own.
CURVE = 1e-5
# By AdamW the losses were 6e-7 apart after four epochs; it divides by the gradient's own size, which can let roundings grow.
TRAINED = 1e-4


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same work in this process alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = Ranks.single(CPU)
    try:
        with torch.random.fork_rng():
            return {
                "norm": ranks_world.norm(alone),
                "cnn": ranks_world.curves(alone, "cnn", {"crop_padding_pixels": 1, "mixup": 0.4}),
                "vit": ranks_world.curves(alone, "vit", {"crop_padding_pixels": 1, "brightness": 0.1}),
                **{
                    f"trained {family}": ranks_world.trained(alone, family, tmp_path_factory.mktemp("alone"))
                    for family in ("cnn", "vit")
                },
            }
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found, the first one's first."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = ranks_world.start("curves", folder)
    said = ranks_world.finish(processes)
    assert [process.returncode for process in processes] == [0, 0], said
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


POLICIES: list[dict[str, Any]] = [
    {},
    {"horizontal_flip": True, "rotation_degrees": 20.0, "erasing": 0.5},
    {"crop_padding_pixels": 1, "mixup": 0.4, "cutmix": 1.0, "mixed_share": 0.7, "balance": "sampler"},
]


@pytest.mark.parametrize("policy", POLICIES, ids=["plain", "changed", "mixed and balanced"])
@pytest.mark.parametrize("world", [2, 3])
def test_the_parts_in_a_row_are_the_batch_of_one_process_bit_for_bit(policy: dict[str, Any], world: int) -> None:
    data = worlds.split(50, 0)
    arguments: dict[str, Any] = {"batch_size": 16, "seed": 4, "epoch": 2}
    whole = list(train_batches(data, AugmentPolicy(**policy), **arguments))
    assert [len(batch.labels) for batch in whole] == batch_sizes(50, 16) == [13, 13, 12, 12]
    parts = [
        list(train_batches(data, AugmentPolicy(**policy), **arguments, ranks=Ranks(rank, world, CPU)))
        for rank in range(world)
    ]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert max(len(share.labels) for share in shares) - min(len(share.labels) for share in shares) <= 1
        for name in Batch._fields:
            value = getattr(batch, name)
            if value is None:
                assert all(getattr(share, name) is None for share in shares)
            else:
                assert torch.equal(torch.cat([getattr(share, name) for share in shares]), value), name


def test_validation_is_spread_and_every_image_comes_once() -> None:
    data = worlds.split(20, 0)
    found = [batch for rank in range(3) for batch in plain_batches(data, 4, Ranks(rank, 3, CPU))]
    assert np.array_equal(torch.cat([batch.images for batch in found]), data.images)
    assert max(len(batch.labels) for batch in found) == 4
    few = worlds.split(2, 0)
    assert [len(list(plain_batches(few, 4, Ranks(rank, 3, CPU)))) for rank in range(3)] == [1, 1, 0]


def test_batches_too_small_for_the_processes_are_refused() -> None:
    with pytest.raises(ConfigError, match="A batch has 2 images and 3 processes share it, so some would have none"):
        next(train_batches(worlds.split(5, 0), AugmentPolicy(), batch_size=3, seed=0, epoch=1, ranks=Ranks(0, 3, CPU)))


def test_one_process_draws_as_ever_and_each_other_its_own() -> None:
    seeds = [Ranks(rank, 3, CPU).own_seed(77) for rank in range(3)]
    assert seeds[0] == 77
    assert len(set(seeds)) == 3


def test_a_synchronized_norm_is_torchs_norm_of_the_whole_batch(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """Outputs, both gradients and running statistics; the processes have 4 and 4 images, then 2 and 5."""
    for name, value in one["norm"].items():
        parts = [found["norm"][name] for found in two]
        if name.startswith(("out", "gradient")):
            assert len(parts[0]) == (4 if name.endswith("0") else 2)
            torch.testing.assert_close(torch.cat(parts), value, rtol=1e-4, atol=1e-4)
        else:
            torch.testing.assert_close(parts[0], value, rtol=1e-5, atol=1e-5)
            assert torch.equal(parts[0], parts[1]), f"{name} differs between the processes"


@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_two_processes_have_the_loss_curve_of_one(family: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    alone, first, second = one[family], two[0][family], two[1][family]
    assert len(alone["losses"]) == 21
    assert alone["losses"][-1] < 0.7 * alone["losses"][0], "nothing was learnt, so nothing is compared"
    torch.testing.assert_close(first["losses"], alone["losses"], rtol=CURVE, atol=CURVE)
    assert int(first["right"]) == int(alone["right"])
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name} differs between the processes"


def test_the_first_process_tells_the_others(two: list[dict[str, Any]]) -> None:
    assert two[1]["state"]["text"] == "from the first"
    assert two[1]["state"]["tensor"].tolist() == [0, 1, 2, 3, 4]
    assert two[1]["nothing"] is None


@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_a_training_by_two_processes_has_the_curve_of_one(
    family: str, one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    """By the real loop, with AdamW, a clipped gradient and averaged weights, over four epochs."""
    alone, first, second = (found[f"trained {family}"] for found in (one, *two))
    assert alone["train"][-1] < 0.5 * alone["train"][0], "nothing was learnt, so nothing is compared"
    for name in ("train", "val"):
        assert first[name] == pytest.approx(alone[name], rel=TRAINED), name
        assert first[name] == second[name]
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert second["said"] == [], "only the first process talks"


def test_a_killed_process_stops_the_other_and_the_run_goes_on_to_the_same_weights(
    two: list[dict[str, Any]], tmp_path: Path
) -> None:
    first, second = ranks_world.start("killed", tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "go.asked").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    assert second.wait(timeout=30) == -signal.SIGKILL
    (tmp_path / "go").touch()
    begin = time.monotonic()
    said = ranks_world.finish([first, second], seconds=30)[0]
    assert time.monotonic() - begin < 20
    assert first.returncode == PeerError.exit_code
    assert said.startswith("PeerError: Another of the 2 processes that train together has ended"), said
    assert said.endswith("run again: training goes on after the last epoch that was saved.\n")

    again = ranks_world.start("again", tmp_path)
    texts = ranks_world.finish(again)
    assert [process.returncode for process in again] == [0, 0], texts
    for rank in range(2):
        found, whole = torch.load(tmp_path / f"{rank}.pt"), two[0]["trained cnn"]
        assert 1 <= found["resumed"] <= 2
        assert found["train"] == whole["train"]
        assert all(torch.equal(value, whole["weights"][name]) for name, value in found["weights"].items())


def test_a_process_whose_partner_is_silent_stops_after_the_timeout(tmp_path: Path) -> None:
    first, second = ranks_world.start("silent", tmp_path)
    try:
        said = first.communicate(timeout=60)[0]
    finally:
        second.kill()
        ranks_world.finish([first, second])
    assert first.returncode == PeerError.exit_code
    assert "or was silent for" in said


def test_a_norm_of_another_kind_is_refused() -> None:
    class Odd(nn.BatchNorm2d):
        """Not one that we know how to spread."""

    with pytest.raises(ConfigError, match="a batch norm of its own kind"):
        Ranks(0, 2, CPU).synchronize_norms(nn.Sequential(Odd(3)))


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join("cpu") as ranks:
        assert (ranks.rank, ranks.world, ranks.main) == (0, 1, True)
        assert ranks.sum(torch.ones(2)).tolist() == [1, 1]
        model = nn.Sequential(nn.BatchNorm2d(3))
        assert ranks.synchronize_norms(model) is model
        assert type(model[0]) is nn.BatchNorm2d
