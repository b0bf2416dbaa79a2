"""What happens to the files of DFT programs: cut off, begun anew, a part lost, characters gone. And what must then be true."""

import gzip

import numpy as np
from ase import Atoms
from conftest import RAW
from hypothesis import strategies as st

from mlip_pace.collect.files import Frame, Unconverged


def raw(name: str) -> str:
    content = (RAW / name).read_bytes()
    return (gzip.decompress(content) if name.endswith(".gz") else content).decode()


def atoms_of(frame: Frame) -> Atoms:
    return frame.atoms if isinstance(frame, Unconverged) else frame


def identity(frame: Frame) -> dict[str, object]:
    """What of a frame must come from one and the same step."""
    atoms = atoms_of(frame)
    results = {name: np.asarray(value).tobytes() for name, value in atoms.calc.results.items() if value is not None}
    return {
        "atoms": (*atoms.symbols, *atoms.pbc, atoms.positions.tobytes(), atoms.cell.array.tobytes()),
        **{name: results.get(name) for name in ("energy", "forces", "stress")},
    }


@st.composite
def damaged(draw: st.DrawFn, texts: list[str], longest: int = 25) -> str:
    """One of the texts: cut at any byte, with another after it (a run that was restarted), without some lines or with some of
    them twice (up to `longest`: with more than a step has, one can end up in the same table of another), or garbled."""
    text = draw(st.sampled_from(texts))
    kind = draw(st.sampled_from(["cut", "again", "lost", "twice", "garbled"]))
    here = draw(st.integers(0, len(text)))
    if kind == "cut":
        return text[:here]
    if kind == "again":
        return text[:here] + draw(st.sampled_from(["", "\n"])) + draw(st.sampled_from(texts))
    if kind in ("lost", "twice"):
        lines = text.splitlines(keepends=True)
        begin = draw(st.integers(0, len(lines)))
        end = begin + draw(st.integers(1, longest))
        return "".join(lines[:begin] + lines[end:] if kind == "lost" else lines[:end] + lines[begin:])
    places = draw(st.lists(st.integers(0, len(text) - 1), min_size=1, max_size=20))
    characters = list(text)
    for place in places:
        characters[place] = draw(st.sampled_from("#*\x00é\n"))
    return "".join(characters)


def only_frames_of(originals: list[Frame], frames: list[Frame]) -> None:
    """Every frame is one of the originals, perhaps without stress, or a sentence of ours that says why there is none."""
    known = [identity(frame) for frame in originals if not isinstance(frame, str)]
    for frame in frames:
        if isinstance(frame, str):
            assert frame.startswith(("pw.x: ", "CP2K: ", "GPAW: "))
            assert "\n" not in frame
            assert "Error" not in frame
            continue
        found = identity(frame)
        assert any(
            found["atoms"] == one["atoms"]
            and found["energy"] == one["energy"]
            and (found["forces"] == one["forces"] or (found["forces"] is None and len(atoms_of(frame)) == 1))
            and found["stress"] in (None, one["stress"])
            for one in known
        )
