"""Shards made by processes of this machine, which end with the one that started them."""

import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from .._utils.processes import end_with_parent
from .job import Job, Shard
from .shards import Record, make_shard

AHEAD = 2  # shards that wait for each process: memory does not grow with the dataset


def made_by_processes(job: Job, shards: Iterable[Shard], processes: int) -> Iterator[Record]:
    """Yields the records of shards as they are finished; one process is this one.

    >>> list(made_by_processes(Job("OUT", "DATA", copies=3), [], processes=1))
    []

    Raises:
        OSError: a process was ended, e.g. for want of memory.
        ValueError, OSError: of `make_shard`.
    """
    if processes == 1:
        yield from (make_shard(job, shard) for shard in shards)
        return
    # not forked: threads of torch would not survive it
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=end_with_parent)
    try:
        yield from _gathered(pool, job, shards, processes * AHEAD)
    except BrokenProcessPool as e:
        raise OSError(
            "a process that makes shards was ended by the system, perhaps for want of memory: the "
            "same command goes on; fewer --processes take less memory"
        ) from e
    finally:
        pool.shutdown(cancel_futures=True)


def _gathered(
    pool: ProcessPoolExecutor, job: Job, shards: Iterable[Shard], most: int
) -> Iterator[Record]:
    waiting: set[Future] = set()
    for shard in shards:
        waiting.add(pool.submit(make_shard, job, shard))
        if len(waiting) >= most:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)
