"""The program `mlip-pace` and its commands. Turns errors into exit codes (docs/contract.md, section 5)."""

from __future__ import annotations

import argparse
import errno
import gc
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mlip_pace import __version__
from mlip_pace.errors import DataError, JobError, OutOfMemoryError, OutputError, SettingsError, StorageError, ToolError
from mlip_pace.run import stopping

if TYPE_CHECKING:
    from mlip_pace.collect.convert import Summary
    from mlip_pace.run.log import Journal

# One thread for the linear algebra of our own process: it works on small matrices, and pacemaker has its own setting.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


DONE = {"check": "checked", "collect": "collected", "predict": "predicted", "suggest": "suggested"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = argparse.ArgumentParser(prog="mlip-pace", description="From DFT results to an ACE interatomic potential.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("run", help="the whole job (the default); settings are MLIP_PACE_* environment variables")
    checking = commands.add_parser("check", help="read settings and data, print the plan, train nothing")
    checking.add_argument("--json", action="store_true", help="JSON lines; the last has the plan")
    collecting = commands.add_parser("collect", help="read and audit DFT results and write them in one file; train nothing")
    collecting.add_argument("data", help="DFT files: a file, a directory or a glob")
    collecting.add_argument("output", type=Path, help="the file to write: .xyz, .extxyz, or .pckl.gzip for pacemaker")
    predicting = commands.add_parser("predict", help="energies, forces, stresses, uncertainties and grades of structures")
    predicting.add_argument(
        "potential", type=Path, nargs="+", help="the potential.json of an output path; several: an ensemble"
    )
    predicting.add_argument("data", help="structures or DFT files: a file, a directory or a glob")
    predicting.add_argument("output", type=Path, help="the extended XYZ file to write")
    suggesting = commands.add_parser("suggest", help="of many structures those whose DFT would teach a potential most")
    suggesting.add_argument("potential", type=Path, help="the potential.json of an output path")
    suggesting.add_argument("candidates", help="structures, DFT files or LAMMPS dumps: a file, a directory or a glob")
    suggesting.add_argument("output", type=Path, help="the extended XYZ file to write, or a folder for POSCARs")
    suggesting.add_argument("-n", "--number", type=int, default=50, help="how many (50)")
    commands.add_parser("worker", help="compute for jobs, on the cluster of MLIP_PACE_RUN_SCHEDULER, until its scheduler ends")
    listing = commands.add_parser("settings", help="every setting with its type, default, unit and meaning")
    listing.add_argument("--json", action="store_true", help="as a JSON schema")
    commands.add_parser("version", help="the version")
    given = parser.parse_args(arguments)
    if given.command == "settings":
        from mlip_pace import settings

        print(json.dumps(settings.json_schema(), indent=1) if given.json else settings_table())
        return 0
    if given.command == "version":
        print(f"mlip-pace {__version__}")
        return 0
    return _job(given)


def settings_table() -> str:
    """Every setting as a Markdown table, as in the README."""
    from mlip_pace import settings

    lines = ["| variable | type | default | unit | meaning |", "|---|---|---|---|---|"]
    return "\n".join(lines + ["| " + " | ".join((f"`{name}`", *rest)) + " |" for name, *rest in settings.rows()])


def _job(given: argparse.Namespace) -> int:
    def give_up(error: JobError) -> None:
        journal.close(error.code, error.reason, error.message, error.hint, error.resumable)

    stopping.watch(give_up)
    gc.disable()  # until a command has its imports: looking through them takes a fifth of the start
    from mlip_pace import sources
    from mlip_pace.run.log import Journal

    journal = Journal("json" if given.command == "check" and given.json else sources.log_format())
    more: dict[str, Any] = {}
    try:
        if given.command == "predict":
            more = {"summary": _predict(given, journal)}
        elif given.command == "suggest":
            more = {"summary": _suggest(given, journal)}
        elif given.command == "worker":
            _worker()
        elif given.command == "collect":
            from mlip_pace.collect.convert import Summary

            summary = Summary()
            more["summary"] = vars(summary)  # is in the last line whatever is raised
            _collect(given, journal, summary)
        else:
            loaded = sources.load()
            from mlip_pace import check, job

            _keep_all()
            stopping.raise_from_now_on()
            if given.command == "check":
                plan = check.check(loaded, journal)
                more = {"plan": plan} if given.json else {}
            else:
                job.run_job(loaded, journal)
        stopping.hold()
        message = DONE.get(given.command, "published")
        code, reason, hint, resumable = 0, "done", "", False
    except Exception as raised:
        stopping.hold()
        error = as_job_error(raised)
        code, reason, message, hint, resumable = error.code, error.reason, error.message, error.hint, error.resumable
        if isinstance(error, DataError) and error.left_out and "summary" not in more:
            more["left_out"] = error.left_out
        journal.end_progress()
        journal.say("\n".join(text for text in (error.detail, message, hint) if text), "error")
        if isinstance(error, _Unforeseen):
            traceback.print_exception(raised, file=sys.stderr)
    journal.close(code, reason, message, hint, resumable, **more)
    _keep_all()  # or Python looks through everything once more as it ends: half a second
    return code


def _keep_all() -> None:
    """Nothing that there is by now is garbage; what comes is looked through."""
    gc.freeze()
    gc.enable()


def _collect(given: argparse.Namespace, journal: Journal, summary: Summary) -> None:
    from mlip_pace import sources
    from mlip_pace.collect.convert import convert
    from mlip_pace.collect.dataset import Rules
    from mlip_pace.run import limits

    loaded = sources.load()
    _keep_all()
    stopping.raise_from_now_on()
    journal.enter("collect")
    threads = limits.cpus() if loaded.run.threads == "auto" else loaded.run.threads
    # A converter writes what there is: the limit is one of training, unless it is asked for.
    limit = 1.0 if loaded.origins["DATA_MAX_REJECTED"] == "default" else loaded.data.max_rejected
    rules = Rules(loaded.data, loaded.basis.elements, loaded.basis.cutoffs)
    try:
        convert(given.data, given.output, rules, limit, summary, threads)
    finally:
        for warning in summary.warnings:
            journal.warn(warning)
        for item in summary.left_out:
            journal.say(f"left out: {item['source']}: {item['reason']}")
    for keys, count in summary.keys.items():
        journal.say(f"labels of {count} structures: {keys}")
    for symbol, energy in summary.e0.items():
        journal.say(f"E0 of {symbol}: {energy:.6f} eV ({summary.e0_source[symbol]})")
    journal.say(f"{summary.used} of {summary.read} structures of {summary.files} files are in {given.output}")


def _worker() -> NoReturn:
    from mlip_pace import sources
    from mlip_pace.run import limits, worker

    _keep_all()
    given = sources.load().run
    if given.scheduler is None:
        raise SettingsError("a worker needs MLIP_PACE_RUN_SCHEDULER", "give it that of the job: tcp://host:8786, say")
    worker.start(given.scheduler, limits.cpus() if given.threads == "auto" else given.threads)


def _predict(given: argparse.Namespace, journal: Journal) -> dict[str, Any]:
    from mlip_pace.ace.activeset import EXTRAPOLATION
    from mlip_pace.publish.evaluate import error_table
    from mlip_pace.publish.predict import predict
    from mlip_pace.run import limits

    _keep_all()
    stopping.raise_from_now_on()
    journal.enter("predict")
    summary = predict(given.potential, given.data, given.output, limits.cpus())
    for item in summary["unreadable"]:
        journal.warn(f"left out: {item['source']}: {item['reason']}")
    journal.say(f"{summary['structures']} structures with {summary['atoms']} atoms are in {given.output}")
    if "largest_gamma" not in summary:
        journal.warn("the potential has no active set (potential.asi), so there are no extrapolation grades")
    elif summary["extrapolating"]:
        journal.warn(
            f"{summary['extrapolating']} structures have a grade above {EXTRAPOLATION:g} (the largest: "
            f"{summary['largest_gamma']:.3g}): the potential extrapolates there"
        )
    if "not_compared" in summary:
        journal.warn(f"the labels of {summary['not_compared']} structures are not compared: {summary['why_not_compared']}")
    if "too_close" in summary:
        journal.warn(
            f"{summary['too_close']} structures have atoms closer than the data ({summary['closest']}): there the reference "
            "rules, and neither grades nor uncertainties tell of it"
        )
    if "largest_energy_uncertainty" not in summary:
        journal.warn("the fit gave no uncertainties (`uncertainty` of the sidecar says why)")
    if "errors" in summary:
        journal.say(error_table({"labels": summary["errors"]}))
    if "energy_mae_but_for_e0" in summary:
        journal.warn(
            "the energies of the labels are on another scale than those that the potential learned (other E0, pseudopotentials "
            "or settings): but for a constant of each element their error (MAE) is "
            f"{1e3 * summary['energy_mae_but_for_e0']:.3g} meV/atom"
        )
    if "coverage" in summary:
        journal.say(summary.pop("coverage_table"))
    return summary


def _suggest(given: argparse.Namespace, journal: Journal) -> dict[str, Any]:
    from mlip_pace.publish import suggest
    from mlip_pace.run import limits

    if given.number < 1:
        raise SettingsError(f"-n {given.number}: one structure or more is expected", "give a positive number")
    _keep_all()
    stopping.raise_from_now_on()
    journal.enter("suggest")
    suggest.refuse_output(given.output, given.candidates)
    suggested = suggest.suggest(given.potential, given.candidates, given.number, limits.cpus())
    suggest.write(suggested, given.output)
    for assumed in suggested.assumed:
        journal.warn(assumed)
    for item in suggested.left_out:
        journal.say(f"left out: {item['source']}: {item['reason']}")
    journal.say(suggest.table(suggested))
    chosen = len(suggested.suggestions)
    journal.say(f"{chosen} structures are in {given.output}; {suggested.others} others would teach less")
    return suggest.summary_of(suggested)


class _Unforeseen(ToolError):
    reason = "bug"


def as_job_error(error: Exception) -> JobError:
    """The error with its exit code; what we did not foresee is 70."""
    if isinstance(error, JobError):
        return error
    if isinstance(error, MemoryError):
        said = f": {error}" if str(error) else ""
        return OutOfMemoryError(
            f"out of memory{said}",
            "give it more memory, or fewer MLIP_PACE_RUN_THREADS (predict and suggest: fewer CPUs, by taskset)",
        )
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            return StorageError(f"{error.strerror}{where}", "free space on the output path, then run the same command again")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return OutputError(f"{error.strerror}{where}", f"uid {os.getuid()} must be able to write there")
    return _Unforeseen(f"{type(error).__name__}: {error}", "this is a bug in mlip-pace; please report it with the lines above")


if __name__ == "__main__":
    sys.exit(main())
