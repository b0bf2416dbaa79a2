"""Extended XYZ: frame by frame, and a large file in pieces that workers read by themselves."""

from __future__ import annotations

import io
import re
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, takewhile

from ase import Atoms
from ase.io.extxyz import read_xyz

from mlip_pace.collect.files import InputFile, in_one_line, opened, packed
from mlip_pace.settings import ELEMENTS

BYTES_IN_PIECE = 2**20  # some hundred structures: seconds of work for a worker
SHORT = 24  # bytes: longer than a line with a number of atoms


@dataclass(frozen=True)
class Piece:
    """A file, or a part of one between two frames, which a worker reads by itself."""

    file: InputFile
    begin: int = 0  # bytes
    end: int | None = None
    frames: int = 0  # that come before it
    lines: int = 0


def pieces_of(file: InputFile) -> list[Piece]:
    """A plain extended XYZ file in pieces of about BYTES_IN_PIECE, any other in one."""
    if file.format != "extxyz" or packed(file.path):
        return [Piece(file)]
    pieces, here, frames, lines = [Piece(file)], 0, 0, 0
    with file.path.open("rb") as content:
        while (first := content.readline()).strip().isdigit():  # what is no number is for the reader to complain about
            if here - pieces[-1].begin >= BYTES_IN_PIECE:
                pieces[-1] = replace(pieces[-1], end=here)
                pieces.append(Piece(file, here, None, frames, lines))
            body = [first, *islice(content, int(first) + 1)]
            if _another_within(body[2:]):
                break  # frames and lines cannot be counted like this
            here, frames, lines = here + sum(map(len, body)), frames + 1, lines + len(body)
    return pieces


def _another_within(atoms: list[bytes]) -> bool:
    """Whether another frame begins among the lines of atoms. There may be 10^8 of them, of which few are short."""
    short = min(map(len, atoms), default=SHORT) < SHORT
    return b"=" in b"".join(atoms) or (short and any(len(row.split(None, 1)) < 2 for row in atoms))


def read(piece: Piece) -> Iterator[Atoms | str]:
    """Frame by frame, so that a broken one does not take the others with it; of files one after the other, each."""
    with opened(piece.file.path) as binary:
        if piece.begin:
            binary.seek(piece.begin)
        content = binary if piece.end is None else io.BytesIO(binary.read(piece.end - piece.begin))
        lines = io.TextIOWrapper(content, encoding="utf-8-sig", errors="replace")
        ahead: deque[str] = deque()  # lines that were read and not used

        def line() -> str:
            return ahead.popleft() if ahead else lines.readline()

        number = piece.lines
        while first := line():
            number += 1
            if not first.strip():
                continue
            if not first.strip().isdecimal():
                yield f"line {number}: a number of atoms is expected, found {first.strip()[:40]!r}; read on at the next number"
                while (other := line()) and not other.strip().isdecimal():
                    number += 1
                ahead.appendleft(other)
                continue
            count = int(first)
            body = list(takewhile(bool, (line() for _ in range(count + 1))))
            if (begins := _another(body)) is not None:
                yield f"line {number}: the frame of {count} atoms is cut, another one begins at line {number + begins + 1}"
                ahead.extendleft(reversed(body[begins:]))
                number += begins
                continue
            ahead.appendleft(following := line())
            if len(body) <= count or (not following and _cut(body[1:])):
                yield f"line {number}: the file ends within a frame of {count} atoms"
            elif "=" in following:  # the comment line of a frame, of which the number of atoms is the end of this one
                yield f"line {number}: the frame of {count} atoms is cut, another one begins in its last line"
            elif _cut(body[1:]):
                yield f"line {number}: the last number of the frame is cut"
            else:
                try:
                    yield _frame(first, body)
                except Exception as error:  # whatever a broken frame makes ASE stumble over
                    yield f"line {number}: {_flaw(body, error)}"
            number += count + 1


def _another(body: list[str]) -> int | None:
    """Which of the lines behind a number of atoms is the first of another frame, as where a cut file has another after it."""
    if len(body) > 1 and body[0].strip().isdecimal() and "=" in body[1]:
        return 0
    return next((n for n, row in enumerate(body[1:], 1) if "=" in row or row.strip().isdecimal()), None)


def _cut(atoms: list[str]) -> bool:
    """Whether the last number lacks decimals that all others have, which must be many; of a line without end, if it lacks
    columns, or decimals that all others of its column, or, of a single atom, both others of its vector, have.
    """
    if not atoms:
        return False
    if atoms[-1].endswith("\n"):
        ends = [line.rpartition(".")[2].strip() for line in atoms[-2:]]
        return len(ends[0]) != len(ends[-1]) and _differs(atoms)
    *others, last = (line.split() for line in atoms)
    if not last or (others and len(last) < len(others[-1])):
        return True
    alike = [words[-1] for words in others if words] if others else last[-3:-1]
    decimals = {len(word.partition(".")[2]) for word in alike}
    return len(decimals) == 1 and len(last[-1].partition(".")[2]) < decimals.pop()


def _differs(atoms: list[str]) -> bool:
    """Whether the last number is the only one with fewer decimals."""
    words = [word for line in atoms for word in line.split() if "." in word]
    *others, last = (len(word.partition(".")[2]) for word in words) if words else [0]
    return len(others) >= _ENOUGH and len(set(others)) == 1 and last < others[0] and atoms[-1].split()[-1:] == words[-1:]


_ENOUGH = 20  # numbers that have the same decimals by chance: printed in full, about half of them have 16


# ASE refuses a frame whose stress or virial has not nine numbers; Voigt's six are as usual.
_TENSOR = re.compile(r"""(?<!\S)(stress|virial)=("[^"]*"|'[^']*'|\{[^}]*\}|\[[^\]]*\]|\S+)""")


def _frame(first: str, body: list[str]) -> Atoms:
    def renamed(match: re.Match[str]) -> str:
        return match[0] if len(match[2].strip("\"'{}[]").replace(",", " ").split()) == 9 else f"{_ASIDE}{match[0]}"

    comment = _TENSOR.sub(renamed, body[0]) if "stress=" in body[0] or "virial=" in body[0] else body[0]
    comment = _SMALL.sub(lambda match: match[0].upper(), comment)
    atoms: Atoms = next(read_xyz(io.StringIO(first + comment + "".join(body[1:])), 0))
    for name in ("stress", "virial"):
        if _ASIDE + name in atoms.info:
            atoms.info[name] = atoms.info.pop(_ASIDE + name)
    return atoms


_ASIDE = "aside_"
_SMALL = re.compile(r"(?<=:)[sril](?=:\d)")  # types of columns, which some programs write in small letters


def _flaw(body: list[str], error: Exception) -> str:
    """What is wrong with a frame that ASE cannot read."""
    columns = Counter(len(line.split()) for line in body[1:])
    usual = columns.most_common(1)[0][0] if columns else 0
    odd = next((n for n, line in enumerate(body[1:], 1) if len(line.split()) != usual), None)
    if odd is not None:
        return f"atom {odd} of the frame has {len(body[odd].split())} columns, the others {usual}"
    symbols = (line.split()[0] for line in body[1:])
    unknown = next((one for one in symbols if re.match("[A-Za-z]", one) and one.capitalize() not in ELEMENTS), None)
    if unknown is not None:
        return f"{unknown}: no chemical element"
    return f"the frame is no extended XYZ, its comment line or a number in it cannot be read ({in_one_line(error)})"
