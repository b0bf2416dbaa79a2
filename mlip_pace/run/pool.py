"""What workers compute: a map, and sums. They are processes of our own, forked from us, or those of a cluster.

Results are those of one process, bit by bit: a map keeps the order of its items, and a sum is a tree whose form follows from
the number of its items alone.
"""

from __future__ import annotations

import gc
import multiprocessing
import operator
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial, reduce
from itertools import count, islice
from typing import Any, Protocol, TypeVar

from threadpoolctl import threadpool_limits

from mlip_pace.errors import OutOfMemoryError, ToolError
from mlip_pace.run import limits
from mlip_pace.run.child import as_child
from mlip_pace.run.stopping import SIGNALS, raise_if_stopped

T = TypeVar("T")
R = TypeVar("R")
A = TypeVar("A", bound="Addable")

ARITY = 8  # neighbours that are added up before their sum goes into the next level of the tree
AHEAD = 2  # tasks for each worker that are under way, or done and waiting to be taken: they are in memory
SEVERAL = 8  # items of a task at most
TASKS = 128  # of a sum, about, at most: what each hands back may be as large as the whole


class Addable(Protocol):
    """What can be summed; `+` makes a new one and leaves both as they are."""

    def __add__(self: A, other: A, /) -> A: ...


class Cluster(Protocol):
    """Workers beyond this machine (`cluster.py`). Functions and items are sent to them, so they are such as can be pickled."""

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]: ...

    def sums(self, function: Callable[[T], A], groups: Sequence[Sequence[T]]) -> list[A]: ...


Workers = int | Cluster  # so many processes of this machine, or a cluster


def parallel_map(function: Callable[[T], R], items: Sequence[T], workers: Workers) -> Iterator[R]:
    """`map(function, items)` in worker processes that end with us, or on a cluster; results in the order of the items.

    Function and items are there in processes without being sent: these are forked from us.
    """
    if not isinstance(workers, int):
        yield from workers.map(function, items)
        return
    if workers <= 1 or len(items) <= 1:
        yield from map(function, items)
        return
    kills = limits.out_of_memory_kills()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, len(items)), context, _start_worker, (function, items)) as pool:
        try:
            tasks = iter(chunks(range(len(items)), several(len(items), workers)))
            under_way = deque(pool.submit(_work, task) for task in islice(tasks, AHEAD * workers))
            while under_way:
                results = under_way.popleft().result()
                under_way.extend(pool.submit(_work, task) for task in islice(tasks, 1))
                for result in results:
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


def parallel_sums(function: Callable[[T], A], groups: Sequence[Sequence[T]], workers: Workers) -> list[A]:
    """For each group of items (one at least) the sum of `function` over it. The workers add, too."""
    if not isinstance(workers, int):
        return workers.sums(function, groups)
    tasks = blocks(groups, TASKS)
    results = parallel_map(partial(sum_of, function), [block for some in tasks for block in some], workers)
    return [tree_sum(islice(results, len(some))) for some in tasks]


def several(items: int, workers: int) -> int:
    """How many items make a task: small ones a few at a time, since each message takes half a millisecond."""
    return max(1, min(SEVERAL, items // (16 * workers)))


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in their order, so many at a time."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def tree_sum(terms: Iterable[T], add: Callable[[T, T], T] = operator.add) -> T:
    """ARITY terms in their order, ARITY such sums, and so on. Sums of aligned blocks in place of their terms change nothing."""
    levels: list[tuple[int, T | None]] = []
    for term in terms:
        for level in count():
            if level == len(levels):
                levels.append((0, None))
            number, so_far = levels[level]
            term = term if so_far is None else add(so_far, term)
            if number + 1 < ARITY:
                levels[level] = number + 1, term
                break
            levels[level] = 0, None
    return reduce(lambda right, left: add(left, right), [so_far for _, so_far in levels if so_far is not None])


def blocks(groups: Sequence[Sequence[T]], most: int) -> list[list[Sequence[T]]]:
    """The groups in blocks of 1, ARITY, ARITY^2, … items, the smallest that make about `most` in all."""
    size = 1
    while sum(len(group) for group in groups) > most * size:
        size *= ARITY
    return [[group[n : n + size] for n in range(0, len(group), size)] for group in groups]


def sum_of(function: Callable[[T], A], items: Sequence[T]) -> A:
    return tree_sum(map(function, items))


_task: tuple[Callable[[Any], Any], Sequence[Any]]  # of a worker


def _start_worker(function: Callable[[Any], Any], items: Sequence[Any]) -> None:
    global _task
    as_child()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # stopping is the parent's business
    threadpool_limits(1)
    gc.freeze()  # what is inherited is not ours to collect: looking through it takes time, and memory for copies of its pages
    _task = function, items


def _work(task: Sequence[int]) -> list[Any]:
    function, items = _task
    return [function(items[item]) for item in task]
