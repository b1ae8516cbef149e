"""Shards made on a Ray cluster: the function of one machine as tasks of many."""

import logging
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from .job import Job, Shard
from .shards import Record, make_shard

RETRIES = 5  # times that a shard is made again whose worker was killed, or whose machine was lost
AHEAD = 2  # tasks that wait for each one that runs


def made_on_ray(
    job: Job, shards: Iterable[Shard], address: str, gpus_per_task: float = 0.0
) -> Iterator[Record]:
    """Yields the records of shards as the tasks of a cluster make them.

    Args:
        job: of a set whose directory, like that of the images, all machines see under one path.
        address: as `ray.init` takes it: auto, local, HOST:PORT, ray://HOST:PORT.
        gpus_per_task: share of a GPU for each task; 0: tasks take one core.

    >>> list(made_on_ray(Job("OUT", "DATA", copies=3), [], "auto"))  # doctest: +SKIP
    []

    Raises:
        ImportError: Ray is not installed.
        OSError: there is no such cluster, or a shard's workers ended again and again.
        ValueError: of `make_shard`.
    """
    try:
        import ray
    except ImportError as e:
        raise ImportError("--ray needs Ray: pip install ray") from e
    own, before = not ray.is_initialized(), signal.getsignal(signal.SIGTERM)
    if own:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    try:
        task = ray.remote(num_cpus=1, num_gpus=gpus_per_task, max_retries=RETRIES)(make_shard)
        yield from _gathered(ray, task, job, shards, _slots(ray, gpus_per_task) * AHEAD)
    finally:
        if own:
            ray.shutdown()
            if before is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray sets its own, and leaves it


def _slots(ray: Any, gpus_per_task: float) -> int:
    """How many tasks the cluster runs at once."""
    there = ray.cluster_resources()
    if gpus_per_task and not there.get("GPU"):
        raise ValueError("--gpus-per-task asks for GPUs, this cluster has none: leave it out")
    return max(1, int(there["GPU"] / gpus_per_task if gpus_per_task else there.get("CPU", 1)))


def _gathered(
    ray: Any, task: Any, job: Job, shards: Iterable[Shard], most: int
) -> Iterator[Record]:
    """Keeps up to `most` tasks in flight, so that memory does not grow with the dataset."""
    waiting: list[Any] = []
    for shard in shards:
        waiting.append(task.remote(job, shard))
        if len(waiting) >= most:
            done, waiting = ray.wait(waiting)
            yield from map(lambda ref: _result(ray, ref), done)
    while waiting:
        done, waiting = ray.wait(waiting)
        yield from map(lambda ref: _result(ray, ref), done)


def _result(ray: Any, reference: Any) -> Record:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as e:  # whose text is a traceback
        raise (e.cause or e) from None
    except ray.exceptions.RayError as e:
        raise OSError(
            f"a shard's workers ended {RETRIES + 1} times ({type(e).__name__}): see whether their "
            "machines have memory enough; the same command goes on"
        ) from e
