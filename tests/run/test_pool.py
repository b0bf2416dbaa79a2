"""The parallel map and the sums: the same results for any number of workers."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlip_pace.errors import ToolError
from mlip_pace.run import pool


def _die(item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item**2


def test_a_worker_that_is_killed_ends_the_map_by_name():
    with pytest.raises(ToolError, match="a worker process was killed") as failed:
        list(pool.parallel_map(_die, range(8), 2))
    assert "MLIP_PACE_RUN_THREADS" in failed.value.hint


def test_what_a_worker_raises_is_raised():
    def fail(item):
        raise ZeroDivisionError(item)

    with pytest.raises(ZeroDivisionError):
        list(pool.parallel_map(fail, range(4), 2))


def test_results_come_in_the_order_of_the_items():
    assert list(pool.parallel_map(lambda n: n**2, range(50), 2)) == [n**2 for n in range(50)]


def test_results_that_nobody_takes_do_not_pile_up():
    done = multiprocessing.Value("i", 0)

    def counted(item):
        with done.get_lock():
            done.value += 1
        return item

    results = pool.parallel_map(counted, range(2000), 2)
    next(results)
    before = -1
    while before != done.value:
        before = done.value
        time.sleep(0.3)
    assert done.value <= (2 * pool.AHEAD + 1) * pool.SEVERAL
    assert list(results) == list(range(1, 2000))


def unlike(count):
    """Numbers whose sum depends on the order and the brackets."""
    return np.random.default_rng(count).normal(size=count) * 10.0 ** np.random.default_rng(1).uniform(-12, 12, count)


@pytest.mark.parametrize("counts", [(1,), (8,), (9,), (130,), (1, 20, 3), (1100, 7, 64), (3000,)])
def test_sums_have_the_same_bits_for_any_number_of_workers(counts):
    groups = [list(unlike(count)) for count in counts]
    alone = pool.parallel_sums(np.sqrt, [np.square(group) for group in groups], 1)
    assert alone == pool.parallel_sums(np.sqrt, [np.square(group) for group in groups], 2)
    assert alone == [pool.sum_of(np.sqrt, np.square(group)) for group in groups]
    assert alone == pytest.approx([np.abs(group).sum() for group in groups], rel=1e-12)


@given(st.integers(1, 700), st.sampled_from([1, 8, 64, 512]))
def test_a_sum_of_blocks_is_the_sum(count, size):
    terms = list(unlike(count))
    parts = [pool.tree_sum(terms[n : n + size]) for n in range(0, count, size)]
    assert pool.tree_sum(parts) == pool.tree_sum(terms)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=9))
def test_few_sums_are_handed_back(counts):
    tasks = pool.blocks([range(count) for count in counts], pool.TASKS)
    assert [sum(map(len, some)) for some in tasks] == counts
    assert sum(map(len, tasks)) <= pool.TASKS + len(counts)
