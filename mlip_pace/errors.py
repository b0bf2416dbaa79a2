"""One exception for each exit code (docs/contract.md, section 5).

Each carries `message` (what is wrong and where), `hint` (what to do about it) and `detail` (the end of a tool's log).
"""

from __future__ import annotations


class JobError(Exception):
    """Ends the job with `code`; `resumable` says whether the same command can succeed later or elsewhere."""

    code = 70
    reason = "bug"
    resumable = False

    def __init__(self, message: str, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail


class SettingsError(JobError):
    code, reason = 64, "settings"


class DataError(JobError):
    """`left_out` are all structures that were, each with `source` and `reason`."""

    code, reason = 65, "data"

    def __init__(self, message: str, hint: str = "", left_out: list[dict[str, str]] | None = None) -> None:
        super().__init__(message, hint)
        self.left_out = left_out or []


class NoInputError(JobError):
    code, reason = 66, "no-input"


class ClusterError(JobError):
    code, reason, resumable = 68, "cluster", True


class DeviceError(JobError):
    code, reason, resumable = 69, "device", True


class ToolError(JobError):
    code, reason = 70, "tool-failed"


class OutOfMemoryError(JobError):
    code, reason, resumable = 71, "out-of-memory", True


class OutputError(JobError):
    code, reason = 73, "output-not-writable"


class StorageError(JobError):
    code, reason, resumable = 74, "storage", True


class BusyError(JobError):
    code, reason, resumable = 75, "busy", True


class WorkerError(JobError):
    code, reason, resumable = 76, "worker", True


class UnsafeError(JobError):
    code, reason = 77, "unsafe"


class OtherResultError(JobError):
    code, reason = 78, "other-result"


class DivergedError(JobError):
    code, reason = 80, "diverged"


class GateError(JobError):
    code, reason = 81, "quality-gate"


class WorthlessError(JobError):
    code, reason = 82, "worse-than-nothing"


class TimeLimitError(JobError):
    code, reason, resumable = 124, "time-limit", True


class SignalError(JobError):
    """Stopped by a signal; exit code 128 + its number."""

    reason, resumable = "signal", True

    def __init__(self, number: int, name: str) -> None:
        super().__init__(f"stopped by {name}", "run the same command again: a job goes on from what it has done")
        self.code = 128 + number
