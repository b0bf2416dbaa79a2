"""Memory of pacemaker by atoms in a batch: where the `..._BYTES` of `pacemaker` are from (docs/design.md).

    .venv/bin/python benchmarks/memory.py DATA --functions 300 --atoms 500

One iteration on the structures of more than 50 atoms (40 at most), without a linear start; the peak is that of its process.
"""

import argparse
import resource
import tempfile
from pathlib import Path

from mlip_pace import reference
from mlip_pace.ace import basis
from mlip_pace.collect import dataset
from mlip_pace.collect.files import find_files
from mlip_pace.settings import BasisSettings, DataSettings, ReferenceSettings, TrainingSettings
from mlip_pace.train import pacemaker

CUTOFF = 5.0  # Å


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data")
    parser.add_argument("--functions", type=int, default=300)
    parser.add_argument("--atoms", type=int, default=500)
    given = parser.parse_args()
    data = DataSettings.model_construct(test_fraction=0.0)
    frames, about = dataset.assemble(dataset.structures_of(find_files(given.data)), None, dataset.Rules(data, cutoffs=[CUTOFF]))
    target = reference.delta(reference.choose(ReferenceSettings.model_construct(), frames, CUTOFF), frames)
    target = target[target[dataset.ATOMS].map(len) > 50].iloc[:40]
    shortest = reference.shortest_distances(target[dataset.ATOMS], CUTOFF)
    section = basis.section(BasisSettings.model_construct(functions=given.functions), about.elements, shortest)
    size = max(1, round(given.atoms / target[dataset.ATOMS].map(len).mean()))
    training = TrainingSettings.model_construct(max_epochs=1, start="zero", batch_size=size)
    with tempfile.TemporaryDirectory() as folder:
        pacemaker.PacemakerRunner(Path(folder), section, training).train(target)
    atoms = round(size * target[dataset.ATOMS].map(len).mean())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"{given.functions} functions, {atoms} atoms in a batch: {peak} MB")


if __name__ == "__main__":
    main()
