"""The processes that share the work: those of torchrun, or this one alone."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Part = TypeVar("Part")
AN_HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Ranks(AbstractContextManager):
    """The processes that train one run together: those of torchrun, or this one alone.

    Args:
        rank: this process's number. Number 0 writes and logs, for all.
        count: how many there are, on all machines.
        local: this process's number on its machine, which is its GPU's.
        patience: how long one waits for another: while the first one validates or writes, say.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    patience: timedelta = AN_HOUR

    @classmethod
    def of_torchrun(cls, patience: timedelta = AN_HOUR) -> "Ranks":
        names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
        rank, count, local = (int(os.environ.get(name, n)) for name, n in names.items())
        return cls(rank, count, local, patience)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> "Ranks":
        if self.count > 1:
            # CPU tensors, the control messages, go over gloo even where the networks are on GPUs.
            gpus = torch.cuda.is_available() and dist.is_nccl_available()  # Windows has no NCCL
            backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
            dist.init_process_group(backend, timeout=self.patience)
        return self

    def __exit__(self, kind, error, trace) -> None:
        # After a fault the others may never answer; then the process just ends.
        if self.count > 1 and kind is None:
            dist.destroy_process_group()

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network whose backward pass averages gradients over the ranks."""
        if self.count == 1:
            return net
        # Buffers are batch norm's running statistics, which training does not read, and spectral
        # norm's vectors, which all ranks compute alike from the same start; sending them out would
        # change them between the two forward passes of the discriminator's step.
        return DistributedDataParallel(net, broadcast_buffers=False)

    def mean(self, values: Tensor) -> Tensor:
        if self.count == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values / self.count

    def largest(self, number: int) -> int:
        if self.count == 1:
            return number
        tensor = torch.tensor(number)  # on the CPU, so that no GPU is waited for
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def average_buffers(self, *nets: nn.Module) -> None:
        """Give all ranks the same batch norm statistics, of which each gathered its own."""
        for buffer in chain.from_iterable(net.buffers() for net in nets):
            if buffer.is_floating_point():
                buffer.copy_(self.mean(buffer))

    def gather(self, own: list) -> list:
        """The lists of all ranks, one after the other."""
        if self.count == 1:
            return own
        everyone: list[list] = [[]] * self.count
        dist.all_gather_object(everyone, own)
        return [item for part in everyone for item in part]


def is_lost_connection(error: Exception) -> bool:
    """Whether this is what gloo or NCCL raise when another rank is gone."""
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text


def end_process(status: int) -> NoReturn:
    """sys.exit, once all is done; a process of torchrun's ends at once.

    While Python and C++ tidy up after themselves, threads of torch's have now and then aborted a
    process that had done its work, and torchrun then reports a failure.
    """
    if Ranks.of_torchrun().count > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def accumulated(parts: Iterable[Part], net: nn.Module) -> Iterator[Part]:
    """The parts of a batch; the ranks exchange the gradients of `net` with the last one's only."""
    *others, last = parts
    for part in others:
        with net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext():
            yield part
    yield last
