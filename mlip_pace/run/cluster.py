"""The workers of a Dask cluster in place of processes on this machine: the same map and the same sums (`pool.py`), bit by bit.

Dask does the work: it places tasks, runs those of a lost worker again and moves partial sums between workers. What is ours is
what a batch job needs beside: a bounded number of tasks under way, results in the order of the items, workers that fit,
another try where a worker is slow, and an end with an exit code of its own.
"""

from __future__ import annotations

import logging
import pickle
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import median
from typing import Any, TypeVar
from uuid import uuid4

import cloudpickle
import dask.config
from distributed import Client, Future
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.scheduler import KilledWorker

from mlip_pace.errors import ClusterError, SettingsError, TimeLimitError, WorkerError
from mlip_pace.run import pool, worker
from mlip_pace.run.steps import write_whole
from mlip_pace.run.stopping import raise_if_stopped
from mlip_pace.run.worker import Misfit, Ticket

T = TypeVar("T")
R = TypeVar("R")
A = TypeVar("A", bound=pool.Addable)

CONNECT = 60  # s, for the scheduler to be there
AHEAD = 3  # tasks for each thread of the workers that are under way, or done and waiting for those before them
TASKS = 4  # of a sum for each thread, at least
LOOK = 1.0  # s without news, after which to see how the workers are
SLOW, SLOWEST = 3.0, 5.0  # times the usual, and s, that a task may take before an idle worker tries it as well
FETCH = 20  # s for a result to come, after which to see whether there is a worker
CLOSE = 2  # s, to say goodbye to a scheduler
SHOWN = 8  # files, about, that a worker is asked for: the question goes with every task
FOLDER = ".cluster-"


@contextmanager
def connected(
    scheduler: str, output: Path, files: Sequence[Path], say: Callable[[str], None], deadline: float
) -> Iterator[DaskCluster]:
    """The cluster of a scheduler: its address, or the path of its scheduler file.

    Its workers must see the output path and the `files` (some are looked at) under the same paths, and be of our version.
    Raises `ClusterError` if the scheduler is not there, `SettingsError` if it wants a certificate and we have none,
    `WorkerError` if a worker does not fit, `TimeLimitError` if there is none at the `deadline`.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it has to say, we say
    work = output.absolute() / "work"
    for left in work.glob(f"{FOLDER}*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    token = uuid4().hex
    folder = work / f"{FOLDER}{token}"
    folder.mkdir(parents=True)
    try:
        write_whole(folder / worker.TOKEN, token)
        sizes = {str(path.absolute()): path.stat().st_size for path in files[:: 1 + len(files) // SHOWN]}
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}), _client(scheduler) as client:
            cluster = DaskCluster(client, Ticket(folder, token, sizes, worker.programs()), say, deadline)
            cluster.refuse_misfits()
            say(f"workers of the cluster at {cluster.address}: {cluster.threads}")
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _client(scheduler: str) -> Iterator[Client]:
    try:
        address = scheduler if "://" in scheduler else worker.address_in(Path(scheduler), CONNECT)
        if address.startswith("tls:") and not dask.config.get("distributed.comm.tls.client.cert"):
            raise SettingsError(
                f"the scheduler {address} speaks TLS, and the job has no certificate",
                "set DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT and its like, as deploy/tls.env does",
            )
        client = Client(address, timeout=CONNECT, set_as_default=False, direct_to_workers=True)
    except OSError as error:
        raise ClusterError(
            f"no scheduler answers at MLIP_PACE_RUN_SCHEDULER={scheduler}: {error}",
            "start it (docs/howto/cluster.md), then run the same command again",
        ) from None
    try:
        yield client
    finally:
        with suppress(OSError, ClosedClientError):
            client.close(timeout=CLOSE)


@dataclass
class _Task:
    """A task that is under way, with its twin on another worker if it had to have one."""

    submit: Callable[..., Future[Any]]  # with keywords of `Client.submit`
    begin: float
    futures: list[Future[Any]] = field(default_factory=list)
    ended: Future[Any] | None = None


class DaskCluster:
    """A `pool.Cluster`. What a task raises is raised here; `ClusterError` if the scheduler is lost."""

    def __init__(self, client: Client, ticket: Ticket, say: Callable[[str], None], deadline: float) -> None:
        self.client, self.ticket, self.say, self.deadline = client, ticket, say, deadline
        self.address = str(getattr(client.scheduler, "address", ""))
        self.proven = False  # whether a worker has done something
        self.fitting: set[str] = set()  # addresses of workers
        self.closed = -1e9  # when a worker was put out of use
        self.waiting = False  # for a worker
        self.looked, self.threads = -1e9, 1
        self.names = count()

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """`map(function, items)` on the workers; results in the order of the items."""
        size = pool.several(len(items), self._threads())
        with self._sent(function) as sent:
            calls = (self._call(worker.results, sent, items[n : n + size]) for n in range(0, len(items), size))
            for future in self._ended(calls):
                yield from self._fetched(future)

    def sums(self, function: Callable[[T], A], groups: Sequence[Sequence[T]]) -> list[A]:
        """For each group of items the sum of `function` over it, added up on the workers, by the tree of `pool.tree_sum`."""
        tasks = pool.blocks(groups, max(pool.TASKS, TASKS * self._threads()))
        with self._sent(function) as sent:
            parts = self._ended(self._call(worker.total, sent, block) for some in tasks for block in some)
            totals = [pool.tree_sum(islice(parts, len(some)), self._added) for some in tasks]
            return [self._fetched(future) for future in self._ended(partial(_same, future) for future in totals)]

    @contextmanager
    def _sent(self, function: Callable[..., Any]) -> Iterator[str]:
        """The file with a function, for the time that it is needed."""
        file = self.ticket.folder / f"function-{next(self.names)}"
        write_whole(file, cloudpickle.dumps(function))
        try:
            yield str(file)
        finally:
            file.unlink(missing_ok=True)

    def _call(self, kind: Callable[..., Any], function: str, items: Sequence[Any]) -> Callable[..., Future[Any]]:
        return partial(self._submit, kind, function, pickle.dumps(list(items), protocol=5))  # cloudpickle takes twice as long

    def _submit(self, kind: Callable[..., Any], *arguments: Any, **where: Any) -> Future[Any]:
        key = f"{kind.__name__}-{self.ticket.token}-{next(self.names)}"
        with self._talking():
            return self.client.submit(kind, self.ticket, *arguments, key=key, pure=False, **where)

    def _added(self, one: Future[Any], other: Future[Any]) -> Future[Any]:
        return self._submit(worker.added, one, other, priority=1)  # before more parts: what is added needs no memory

    def _fetched(self, future: Future[Any]) -> Any:
        """The result; with all of its workers lost it is computed again."""
        while True:
            with self._talking():
                try:
                    return future.result(timeout=FETCH)
                except TimeoutError:
                    if future.status == "error":
                        raise self._reason(future) from None
            self._wait_for_workers()

    def _ended(self, calls: Iterable[Callable[..., Future[Any]]]) -> Iterator[Future[Any]]:
        """The future of each call when it has its result, in their order. Raises what a task raised."""
        calls, window, under_way = iter(calls), deque[_Task](), dict[str, _Task]()
        news: SimpleQueue[Future[Any]] = SimpleQueue()
        usual: deque[float] = deque(maxlen=100)

        def submit(task: _Task, **where: Any) -> None:
            future = task.submit(**where)
            task.futures.append(future)
            under_way[str(future.key)] = task
            future.add_done_callback(news.put)

        try:
            while True:
                for call in islice(calls, max(0, AHEAD * self._threads() - len(window))):
                    window.append(_Task(call, time.monotonic()))
                    submit(window[-1])
                if not window:
                    return
                if (first := window[0].ended) is not None:
                    if first.status == "error":
                        raise self._reason(first)
                    window.popleft()
                    yield first
                    continue
                raise_if_stopped()
                try:
                    future = news.get(timeout=LOOK)
                except Empty:
                    self._look_after([task for task in window if task.ended is None], usual, submit)
                    continue
                if (task := under_way.pop(str(future.key), None)) is None:  # its twin was first
                    continue
                if future.status == "cancelled":
                    raise self._lost()
                if future.status == "error" and self._failed_by_a_misfit(task):
                    task.begin = time.monotonic()
                    with self._talking():
                        future.retry()
                    under_way[str(future.key)] = task
                    future.add_done_callback(news.put)
                    continue
                self.proven |= future.status == "finished"
                task.ended = future
                usual.append(time.monotonic() - task.begin)
                for twin in task.futures:
                    if twin is not future:
                        under_way.pop(str(twin.key), None)
                        twin.release()
        finally:
            for task in under_way.values():
                for future in task.futures:
                    future.release()

    def _look_after(self, tasks: list[_Task], usual: Sequence[float], submit: Callable[..., None]) -> None:
        """Without news: is there a worker, and is one so slow that another, which is idle, should try its task as well?"""
        at_work = self._workers()
        if not at_work:
            self._wait_for_workers()
            return
        late = max(SLOWEST, SLOW * median(usual)) if usual else float("inf")
        idle = [address for address, keys in at_work.items() if not keys]
        busy = {str(key) for keys in at_work.values() for key in keys}
        for task in tasks:
            alone = len(task.futures) == 1 and str(task.futures[0].key) in busy
            if idle and alone and time.monotonic() - task.begin > late:
                submit(task, workers=[idle.pop()], allow_other_workers=True)

    def _workers(self) -> dict[str, Any]:
        """The keys of the tasks that each worker has."""
        with self._talking():
            return dict(self.client.processing())

    def _wait_for_workers(self) -> None:
        """Until there is one."""
        while not (found := self._workers()):
            if not self.waiting:
                self.say("the cluster has no worker: waiting for one")
                self.waiting = True
            if time.monotonic() > self.deadline:
                raise TimeLimitError("the time limit came before a worker of the cluster", "start workers, then run it again")
            raise_if_stopped()
            time.sleep(LOOK / 2)
        if self.waiting:
            self.say(f"the cluster has workers, {len(found)}: going on")
            self.waiting = False

    def _threads(self) -> int:
        """Of all workers together, as of a moment ago."""
        if time.monotonic() - self.looked > 2 * LOOK:
            with self._talking():
                self.threads = max(1, sum(self.client.nthreads().values()))
            self.looked = time.monotonic()
        return self.threads

    def refuse_misfits(self) -> None:
        """Raise `WorkerError` if one of the workers that are there does not fit; wait for one, if there is none."""
        self._wait_for_workers()
        if reasons := self._misfits():
            raise WorkerError("\n".join(sorted(reasons.values())), worker.HINT)
        self.threads = len(self._workers())

    def _close_misfits(self) -> None:
        """Put workers out of use that came later and do not fit."""
        for address, why in self._misfits().items():
            self.say(f"{why}; it is put out of use")
            with self._talking():
                self.client.retire_workers([address], close_workers=True, remove=True)
            self.closed = time.monotonic()

    def _misfits(self) -> dict[str, str]:
        """Why each worker that has not shown that it fits cannot take part, by address."""
        tries = {address: self._submit(worker.show, workers=[address]) for address in self._workers().keys() - self.fitting}
        until = time.monotonic() + CONNECT  # one that does not answer by then is slow
        while not all(future.done() for future in tries.values()) and time.monotonic() < until:
            raise_if_stopped()
            with self._talking():
                time.sleep(0.05)
        reasons = {}
        for address, future in tries.items():
            if future.status == "cancelled":
                raise self._lost()
            if future.status == "error":
                reason = self._reason(future)
                said = reason.message if isinstance(reason, Misfit) else f"the worker {address} cannot take part: {reason!r}"
                reasons[address] = said
            elif future.status == "finished":  # a slow one has shown nothing yet
                self.fitting.add(address)
        return reasons

    def _failed_by_a_misfit(self, task: _Task) -> bool:
        """Whether a task that failed was under way when there was a worker that does not fit. (A worker without our package, or
        with another, may fail in any way. While no task has been done, the fault may be ours.)
        """
        if self.proven:
            self._close_misfits()
        return task.begin < self.closed

    def _reason(self, future: Future[Any]) -> BaseException:
        """What a task raised."""
        with self._talking():
            reason: BaseException | None = future.exception(timeout=CONNECT)
        if isinstance(reason, KilledWorker):
            return WorkerError(
                f"workers were killed over and over at the same task, at last {reason.last_worker.address}",
                "for want of memory, say: fewer MLIP_PACE_RUN_THREADS for a worker leave each process more",
            )
        assert reason is not None
        return reason

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """With a scheduler that is there: Dask would wait for a lost one to come back, and keep until then what it is told."""
        if self.client.status != "running":
            raise self._lost()
        try:
            yield
        except (OSError, ClosedClientError, FutureCancelledError) as error:
            raise self._lost() from error

    def _lost(self) -> ClusterError:
        return ClusterError(
            f"the connection to the scheduler {self.address} is lost",
            "what is done is kept: start the scheduler and workers again, then run the same command again",
        )


def _same(future: Future[Any], **_: Any) -> Future[Any]:
    return future
