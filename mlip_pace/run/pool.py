"""Worker processes of our own: they are forked from us, and end with us."""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from mlip_pace.errors import OutOfMemoryError, ToolError
from mlip_pace.run import limits
from mlip_pace.run.child import as_child
from mlip_pace.run.stopping import SIGNALS, raise_if_stopped

T = TypeVar("T")
R = TypeVar("R")


def parallel_map(function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """`map(function, items)` in worker processes that end with us; results in the order of the items.

    Function and items are there in the workers without being sent: these are forked from us.
    """
    if workers <= 1 or len(items) <= 1:
        yield from map(function, items)
        return
    kills = limits.out_of_memory_kills()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, len(items)), context, _start_worker, (function, items)) as pool:
        try:
            # Many small items a few at a time: each message takes half a millisecond.
            for result in pool.map(_work, range(len(items)), chunksize=max(1, len(items) // (16 * workers))):
                raise_if_stopped()
                yield result
        except BrokenProcessPool:
            if limits.out_of_memory_kills() > kills:
                raise OutOfMemoryError("a worker process ran out of memory", "fewer MLIP_PACE_RUN_THREADS need less") from None
            hint = "if something outside killed it, run the same command again; fewer MLIP_PACE_RUN_THREADS need less memory"
            raise ToolError("a worker process was killed", hint) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_task: tuple[Callable[[Any], Any], Sequence[Any]]  # of a worker


def _start_worker(function: Callable[[Any], Any], items: Sequence[Any]) -> None:
    global _task
    as_child()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # stopping is the parent's business
    threadpool_limits(1)
    gc.freeze()  # what is inherited is not ours to collect: looking through it takes time, and memory for copies of its pages
    _task = function, items


def _work(item: int) -> Any:
    function, items = _task
    return function(items[item])
