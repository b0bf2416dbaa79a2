"""How long the basis takes by the number of elements: `python benchmarks/elements.py --functions 100 5 6 8 10 20`.

Each in a process of its own, for its memory. CPU seconds to build pyace's configuration (`build`), then what `check` needs of
the basis, which builds it once more (`check`), then its arrays (`arrays`); MB at most. The results are in docs/scale.md.
"""

import argparse
import os
import resource
import time
from itertools import combinations_with_replacement, pairwise

from ase.data import chemical_symbols

from mlip_pace.ace import basis
from mlip_pace.ace.shapes import FEW, sets_of_many
from mlip_pace.errors import SettingsError
from mlip_pace.settings import BasisSettings


def measured(elements: int, functions: int) -> str:
    symbols = sorted(chemical_symbols[3 : 3 + elements])
    shortest = {"-".join(pair): 2.0 for pair in combinations_with_replacement(symbols, 2)}
    try:
        on = basis.section(BasisSettings(cutoff=5.0, functions=functions), symbols, shortest)
    except SettingsError as error:
        return error.message
    times = [time.process_time()]
    for step in (on.configuration, lambda: basis.refuse_unusable(on, symbols), lambda: basis.expansion(on)):
        step()
        times.append(time.process_time())
    build, check, arrays = (f"{after - before:.1f}" for before, after in pairwise(times))
    kinds, share = sets_of_many(elements, 4, functions)
    sets = f"; at most {kinds} elements in a function, {share} functions of each set" if elements > FEW else ""
    size, memory = basis.size(on), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return (
        f"{max(size.functions.values())} functions, {size.parameters} parameters, build {build} s, check {check} s, "
        f"arrays {arrays} s, {memory} MB{sets}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", type=int, default=500)
    parser.add_argument("elements", type=int, nargs="+")
    given = parser.parse_args()
    for elements in given.elements:
        if child := os.fork():
            os.waitpid(child, 0)
            continue
        print(elements, measured(elements, given.functions), flush=True)
        os._exit(0)
