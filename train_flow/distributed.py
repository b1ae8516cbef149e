"""The processes of a training: torchrun starts several of them, otherwise there is one."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


def init_distributed(device: str) -> torch.device:
    """Joins the process group that torchrun describes, if any; returns this process's device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:  # the latter of a torch without CUDA
        reason = str(e).partition("\n")[0]
        raise ValueError(f"--device {device} cannot be used ({reason}); e.g. --device cpu") from e
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return torch.device(device)
    if device.startswith("cuda"):
        local = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(local)
        dist.init_process_group("nccl")
        return torch.device("cuda", local)
    dist.init_process_group("gloo")
    return torch.device(device)


def leave_distributed() -> None:
    """Waits for the other processes and leaves their group, if there is one."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


@dataclass
class Processes:
    """This process, number `rank` of `world`; the first one writes the files and the log.

    >>> Processes(rank=1, world=2).share(torch.arange(6))
    tensor([1, 3, 5])
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> Processes:
        """The group that this process has joined, or itself alone."""
        if not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, indices: Tensor) -> Tensor:
        """This process's part of the indices of a batch."""
        return indices[self.rank :: self.world]

    def average_(self, *tensors: Tensor) -> None:
        """Replaces each tensor by its mean over the processes."""
        if self.world > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor /= self.world

    def agree(self, values: list[int], device: torch.device) -> list[int]:
        """The largest of each value over the processes, so that all of them do the same.

        >>> Processes().agree([0, 15], torch.device("cpu"))
        [0, 15]
        """
        if self.world == 1:
            return values
        largest = torch.tensor(values, device=device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()
