"""Signals: TERM, INT, USR1 and USR2 end the job, soon and in good order. Imports little, so that it can be there first.

As PID 1 of a container we get only those signals that have a handler, so `watch` comes before the imports that take a second.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from mlip_pace.errors import SignalError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
# Docker kills 10 s after the TERM of `docker stop`. What cannot end by itself (a long call into a library) is ended after this.
SECONDS_TO_STOP = 8.0

_stopped_by: int | None = None
_raising = False


def watch(give_up: Callable[[SignalError], None]) -> None:
    """From now on the first signal counts, further ones change nothing. `give_up` is called before the exit by force."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)  # written to at once, also while the main thread is in a library
    for number in SIGNALS:
        signal.signal(number, _stop)
    threading.Thread(target=_exit_in_time, args=(reader, give_up), daemon=True).start()


def raise_from_now_on() -> None:
    """A signal, also one of before, raises `SignalError` wherever we are."""
    global _raising
    _raising = True
    raise_if_stopped()


def hold() -> None:
    """A signal raises nothing any more: the job is ending anyway."""
    global _raising
    _raising = False


def raise_if_stopped() -> None:
    """Raise `SignalError` after a signal: what a handler raises within a fork or a library's `except` is lost."""
    if _stopped_by is not None:
        raise _error(_stopped_by)


def _error(number: int) -> SignalError:
    return SignalError(number, signal.Signals(number).name)


def _stop(number: int, _: FrameType | None) -> None:
    global _stopped_by
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    _stopped_by = number
    if _raising:
        raise_if_stopped()


def _exit_in_time(reader: int, give_up: Callable[[SignalError], None]) -> None:
    while (number := os.read(reader, 1)[0]) not in SIGNALS:
        pass
    time.sleep(SECONDS_TO_STOP)
    error = _error(number)
    try:
        give_up(error)
    finally:
        os._exit(error.code)  # our children end with us (child.py)
