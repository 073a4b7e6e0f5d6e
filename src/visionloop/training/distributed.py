"""Several processes that train one model together, each on its part of every batch, as one process would.

`torchrun` starts them, on one machine or on several (docs/train-on-several-machines.md); `join` reads what it says in the
environment. Every process holds the whole model. Before each step they add up their gradients, each image weighing the same,
and batch norms take their statistics over the whole batch, so the model is that of one process but for the rounding of sums
in another order. What is drawn anew in a process, as dropout is, differs from the draws of one process.

A process that ends takes the others with it. They notice at once where its connection closes, and after `TIMEOUT` where
nothing is heard of it any more.

Does not cover: models that do not fit on one device, and processes that join or leave while training. The CUDA path (NCCL,
torch's own `SyncBatchNorm`) has not run on a GPU yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from visionloop.errors import ConfigError, PeerError, TrainingError
from visionloop.models.devices import choose_device

# How long one process may keep the others waiting: writing a checkpoint or compiling a network takes less. torch's own
# 30 minutes are long to sit beside a machine that is gone.
TIMEOUT = timedelta(minutes=5)
# Gradients travel in pieces of this size: large enough for the network's full speed, small enough to need little room.
_BUCKET_BYTES = 32 << 20
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Every method but `part` and `own_seed` is a meeting: all processes call it, in the same order.

    >>> with join("auto") as ranks:
    ...     print(ranks.rank, "of", ranks.world)
    """

    rank: int  # from 0
    world: int  # how many there are
    device: torch.device

    @classmethod
    def single(cls, device: torch.device) -> Ranks:
        """One process by itself, for which every meeting is a matter of no time."""
        return cls(0, 1, device)

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes files and talks."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Which of `count` things in a row are this process's: parts are equal, give or take one."""
        least, rest = divmod(count, self.world)
        start = self.rank * least + min(self.rank, rest)
        return slice(start, start + least + (self.rank < rest))

    def share(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """This process's part of an array [N]."""
        return indices[self.part(len(indices))]

    def own_seed(self, seed: int) -> int:
        """A seed of each process's own for what it draws by itself; that of the first is `seed`, as without the others."""
        return seed if self.main else int(np.random.SeedSequence([seed, self.rank]).generate_state(1, np.uint64)[0] >> 1)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of the processes' tensors, which have one shape; the same bits in each process."""
        if self.world == 1:
            return value
        with _meeting():
            total = value.detach().clone().to(self.device)
            dist.all_reduce(total)
        return total.to(value.device)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the sum of the processes' gradients into each parameter that learns.

        Each process scales its loss by its share of the step's images (its own over all processes'), so that the sum is
        the gradient of the mean over all images. A parameter without a gradient counts as one of zeros.
        """
        if self.world == 1:
            return
        bucket: list[Tensor] = []
        size = 0
        for parameter in parameters:
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            size += parameter.grad.numel() * parameter.grad.element_size()
            if size >= _BUCKET_BYTES:
                _sum_together(bucket)
                bucket, size = [], 0
        if bucket:
            _sum_together(bucket)

    def broadcast(self, state: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """What the first process has, in every process, on the CPU; it holds tensors, numbers, texts, lists and mappings.

        So one process reads a checkpoint, and machines need no disk in common.
        """
        if self.world == 1:
            return None if state is None else dict(state)
        buffer = io.BytesIO()
        if self.main:
            torch.save(None if state is None else dict(state), buffer)
        with _meeting():
            size = torch.tensor(buffer.getbuffer().nbytes, device=self.device)
            dist.broadcast(size, 0)
            if self.main:
                data = torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8).to(self.device)
            else:
                data = torch.empty(int(size), dtype=torch.uint8, device=self.device)
            dist.broadcast(data, 0)
        if self.main:
            return None if state is None else dict(state)
        loaded = torch.load(io.BytesIO(data.cpu().numpy().tobytes()), map_location="cpu", weights_only=True)
        return cast("dict[str, Any] | None", loaded)

    def broadcast_model(self, model: nn.Module) -> None:
        """Give every process the weights and buffers of the first."""
        if self.world == 1:
            return
        state = self.broadcast({name: value.cpu() for name, value in model.state_dict().items()} if self.main else None)
        if not self.main:
            assert state is not None
            model.load_state_dict(state)

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.world > 1:
            with _meeting():
                dist.barrier()

    def synchronize_norms(self, model: nn.Module) -> nn.Module:
        """The model with batch norms whose statistics are of the whole batch, over all processes.

        Names, weights and buffers stay, so optimizers and checkpoints know no difference; `plain_norms` goes back.

        Raises:
            ConfigError: the model has a batch norm of a kind that is not known here.
        """
        if self.world == 1:
            return model
        if self.device.type == "cuda":
            converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
            return converted
        return _replace_norms(model, _synchronized)


@contextlib.contextmanager
def join(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Ranks]:
    """Meet the other processes that `torchrun` has started; a process by itself where it has started none.

    With CUDA each process of a machine takes one GPU. While they are joined, SIGTERM raises `PeerError`: it is how
    `torchrun` tells a process that another one has ended.

    Raises:
        TrainingError: the device is not there; or the others cannot be reached.
        PeerError: another process ends meanwhile, at the next meeting.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks.single(choose_device(device))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    _die_with_parent()
    chosen = choose_device(device)
    if chosen.type == "cuda":
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"Process {local + 1} of this machine has no GPU: there are {torch.cuda.device_count()}; start one process "
                "per GPU, or set train.device to 'cpu'."
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    try:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
        raise TrainingError(
            f"Process {rank + 1} of {world} cannot reach the others ({_first_line(error)}); look whether all were started, "
            "with the same --nnodes and --rdzv-endpoint."
        ) from error
    try:
        with _told_to_stop():
            yield Ranks(rank, world, chosen)
    finally:
        dist.destroy_process_group()


def plain_norms(model: nn.Module) -> nn.Module:
    """The model with torch's own batch norms again, for what is kept."""
    return _replace_norms(model, _plain)


class SynchronizedNorm(_BatchNorm):
    """A batch norm over the images of all processes, on the CPU, where torch has none.

    In training the mean and the biased variance are of the whole batch, however unevenly it is spread, and the running
    variance takes the unbiased one, as in Ioffe and Szegedy 2015 (arXiv:1502.03167). Each process sends the mean, the sum of
    squared deviations and the count of its part; they are joined by Chan's rule (Chan, Golub and LeVeque 1979) in float64.
    """

    plain: type[_BatchNorm] = nn.BatchNorm2d  # what it stands for

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's own name
        if input.ndim < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.ndim}")

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Maps float [N, C, ...] to the same shape."""
        if not (self.training or self.running_mean is None):
            return super().forward(input)
        output, mean, variance, count = cast(
            "tuple[Tensor, Tensor, Tensor, Tensor]",
            _Normalize.apply(input, self.weight, self.bias, self.eps),
        )
        if self.training and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * float(count / (count - 1)), share)
        return output


class _Normalize(torch.autograd.Function):
    """Normalise by the statistics of all processes; the gradient of those is summed over all processes too."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        channels = maps.shape[1]
        # torch's own kernel, which wants float32 buffers to answer in float32; these are thrown away.
        unused = torch.zeros(2, channels)
        mean, variance = torch.batch_norm_update_stats(maps, unused[0], unused[1], 0.0)
        count = maps.numel() // channels
        own = torch.empty(2 * channels + 1, dtype=torch.float64)
        own[:channels], own[channels:-1], own[-1] = mean, variance.double() * count, count
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        with _meeting():
            dist.all_gather(parts, own)
        table = torch.stack(parts)
        means, deviations, counts = table[:, :channels], table[:, channels:-1], table[:, -1:]
        total = counts.sum()
        if total < 2:
            raise ConfigError(
                "A batch norm got a single value per channel over all processes, which has no variance; raise "
                "train.batch_size."
            )
        joint = (means * counts).sum(0) / total
        spread = (deviations.sum(0) + ((means - joint) ** 2 * counts).sum(0)) / total
        mean, variance = joint.float(), spread.float()
        ctx.save_for_backward(maps, weight, mean, variance)
        ctx.eps, ctx.total = eps, float(total)
        output = F.batch_norm(maps, mean, variance, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance, total)
        return output, mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, mean, variance = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        # As if the statistics were constants, which also gives the two sums over the process's own images.
        direct, along, straight = torch.ops.aten.native_batch_norm_backward(
            gradient, maps, scale, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.cat([along, straight]).double()
        with _meeting():
            dist.all_reduce(sums)
        of_along, of_straight = (sums / ctx.total).float().chunk(2)
        # What the statistics add, -scale / s * (mean(dy) + (x - m) / s * mean(dy * (x - m) / s)), is linear in x.
        deviation = torch.rsqrt(variance + ctx.eps)
        slope = -scale * deviation**2 * of_along
        offset = -scale * deviation * of_straight - slope * mean
        shape = [1, -1, *[1] * (maps.ndim - 2)]
        whole = direct + torch.addcmul(offset.view(shape), maps.float(), slope.view(shape))
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        return whole.to(maps.dtype), along if needs_weight else None, straight if needs_bias else None, None


def _replace_norms(model: nn.Module, replace: Any) -> nn.Module:
    """The model with each batch norm replaced, in place but for a model that is one itself."""
    if isinstance(model, _BatchNorm):
        return cast("nn.Module", replace(model))
    for name, child in model.named_children():
        replaced = _replace_norms(child, replace)
        if replaced is not child:
            setattr(model, name, replaced)
    return model


def _synchronized(norm: _BatchNorm) -> nn.Module:
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        raise ConfigError(
            f"The architecture has a batch norm of its own kind ({type(norm).__name__}), which cannot be spread over "
            "processes; set compute.processes to 1."
        )
    synchronized = _with_state(SynchronizedNorm, norm)
    synchronized.plain = type(norm)  # type: ignore[assignment]
    return synchronized


def _plain(norm: _BatchNorm) -> nn.Module:
    if isinstance(norm, SynchronizedNorm):
        return _with_state(norm.plain, norm)
    return _with_state(nn.BatchNorm2d, norm) if isinstance(norm, nn.SyncBatchNorm) else norm


def _with_state(kind: type[_BatchNorm], norm: _BatchNorm) -> nn.Module:
    """A norm of another kind with the very parameters and buffers of `norm`."""
    other = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    other.weight, other.bias = norm.weight, norm.bias
    other.running_mean, other.running_var = norm.running_mean, norm.running_var
    other.num_batches_tracked = norm.num_batches_tracked
    other.training = norm.training
    return other


def _sum_together(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    with _meeting():
        dist.all_reduce(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view(gradient.shape))
        start += gradient.numel()


@contextlib.contextmanager
def _meeting() -> Iterator[None]:
    """Say in one sentence that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise PeerError(
            f"Another of the {dist.get_world_size()} processes that train together has ended, or was silent for "
            f"{TIMEOUT.total_seconds() / 60:g} minutes ({_first_line(error)}); see what it said, and run again: training "
            "goes on after the last epoch that was saved."
        ) from error


@contextlib.contextmanager
def _told_to_stop() -> Iterator[None]:
    """Let SIGTERM raise, so that the process says why it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise PeerError(
            "This process was told to stop, because another of those that train together has ended, or the run was stopped; "
            "run again: training goes on after the last epoch that was saved."
        )

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException:
        # The process ends and says why; a signal that comes now, from the launcher, would cut the sentence off.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    signal.signal(signal.SIGTERM, before)


def _die_with_parent() -> None:
    """Ask Linux for SIGTERM when `torchrun` dies, which cannot stop its processes then; elsewhere they would go on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _first_line(error: BaseException) -> str:
    """The first sentence of an error, without the place in gloo's source that it begins with."""
    text = re.sub(r"^\[\S+:\d+\] ", "", str(error).strip().split("\n")[0])
    return text.partition(". ")[0][:160] or type(error).__name__
