"""What is told of labels that were made wrong by hand: `.venv/bin/python benchmarks/agreement.py FILE...`

Each file is read as a job reads it; its stresses, then its forces, are multiplied by factors of units and signs, and
`train/agreement.py` says what it sees, as a Markdown table: `-` nothing, else how many times the stresses (S), or the forces
against energies (F), the energies against forces (E), are what a fit to the others predicts.
"""

import re
import sys
from functools import partial
from pathlib import Path

from mlip_pace import reference
from mlip_pace.ace import core
from mlip_pace.collect import dataset
from mlip_pace.collect.split import TRAIN
from mlip_pace.errors import DataError
from mlip_pace.inputs import inputs_of
from mlip_pace.sources import load
from mlip_pace.train import agreement

FACTORS = {dataset.STRESS: (1, -1, 160.22, 0.1, 10), dataset.FORCES: (-1, 1 / 51.42, 1 / 25.71, 23.06)}
SAID = re.compile(r"(stresses|: forces|differences).*? are (\S+) times what")
SHORT = {"stresses": "S", ": forces": "F", "differences": "E"}


def said(inputs, frames):
    """What is said of these labels, in short."""
    target, subtracted = reference.subtracted_from(frames, inputs.settings.reference, inputs.cutoff, 1)
    elements = sorted({symbol for atoms in target[dataset.ATOMS] for symbol in atoms.symbols})
    build = inputs.builder(elements, core.shortest_of_every_pair(subtracted.shortest, elements))
    train = target[target[dataset.SPLIT] == TRAIN]
    try:
        told = agreement.doubt_about_stresses(train, partial(build, inputs.cutoff), inputs.settings.training.seed, 1)
    except DataError as error:
        told = error.message
    found = SAID.search(told)
    return f"{SHORT[found[1]]} {found[2]}" if found else "-"


def main():
    columns = [(label, factor) for label, factors in FACTORS.items() for factor in factors]
    heads = [f"{label.removesuffix('_dft')} times {factor:.3g}" for label, factor in columns]
    print(f"| set | structures | {' | '.join(heads)} |")
    print("|---" * (2 + len(columns)) + "|")
    for path in sys.argv[1:]:
        inputs = inputs_of(load(data={"path": path}, output={"path": "/nowhere"}, basis={"cutoff": 5.0}))
        frames, _ = dataset.assemble(dataset.structures_of(inputs.files), None, inputs.rules())
        cells = []
        for label, factor in columns:
            if label in frames:
                wrong = frames.assign(**{label: [None if one is None else factor * one for one in frames[label]]})
                cells.append(said(inputs, wrong))
            else:
                cells.append("")
        print(f"| {Path(path).parent.name}/{Path(path).stem} | {len(frames)} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
