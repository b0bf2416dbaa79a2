"""A basis is read once, and again when its file has changed."""

import datetime
import os
import re
from itertools import combinations_with_replacement

import numpy as np
import pytest
from conftest import ROOT

from mlip_pace.ace import basis
from mlip_pace.ace.basis import BasisFile, Section
from mlip_pace.ace.files import write_linear
from mlip_pace.settings import BasisSettings


@pytest.fixture
def section():
    return basis.section(BasisSettings.model_construct(functions=2, body_order=2), ["Al"], {"Al-Al": 0.9})


def test_the_largest_n_and_l_are_those_of_the_page_on_physics():
    """Of bases with as many functions as there are, by order and number of different elements."""
    page = (ROOT / "docs" / "physics.md").read_text()
    rows = re.findall(r"^\| (\d|more) \| ([\d, ]+) \| ([\d, ]+) \|$", page, re.MULTILINE)
    said = {
        (4 if kinds == "more" else int(kinds), order): (int(n), int(angular))
        for kinds, *both in rows
        for order, (n, angular) in enumerate(zip(*(one.split(", ") for one in both), strict=True), 1)
    }
    found = {}
    for elements, functions, body_order in ((["Al", "Mg"], 6000, 7), (["Al", "Cu", "Mg", "Zn"], 8000, 6)):
        pairs = ("-".join(pair) for pair in combinations_with_replacement(elements, 2))
        settings = BasisSettings(cutoff=5.0, functions=functions, body_order=body_order)
        built = basis.basis_set(basis.section(settings, elements, dict.fromkeys(pairs, 2.0)))
        for central, several in enumerate(zip(built.basis_rank1, built.basis, strict=True)):
            for function in (*several[0], *several[1]):
                place = len({central, *function.mus}), function.rank
                n, angular = found.get(place, (0, 0))
                found[place] = max(n, *function.ns), max(angular, *function.ls)
    # An order of fewer neighbours than a function has elements does not exist.
    assert found == {(kinds, order): most for (kinds, order), most in said.items() if order >= kinds - 1}


def test_what_is_written_is_not_what_is_shared(tmp_path, section):
    write_linear(tmp_path / "one.yaml", section, np.array([1.5, 2.5]))
    write_linear(tmp_path / "two.yaml", BasisFile(tmp_path / "one.yaml"), np.array([3.5, 4.5]))
    assert basis.function_coefficients(section).tolist() == [0, 0]
    assert basis.function_coefficients(BasisFile(tmp_path / "one.yaml")).tolist() == [1.5, 2.5]
    assert basis.function_coefficients(BasisFile(tmp_path / "two.yaml")).tolist() == [3.5, 4.5]


def test_a_file_that_has_changed_is_read_again_whatever_time_it_bears(tmp_path, section):
    file = tmp_path / "one.yaml"
    write_linear(file, section, np.array([1.5, 2.5]))
    os.utime(file, ns=(0, 0))
    assert basis.function_coefficients(BasisFile(file)).tolist() == [1.5, 2.5]
    file.write_text(file.read_text().replace("2.5", "7.5"))
    os.utime(file, ns=(0, 0))
    assert basis.function_coefficients(BasisFile(file)).tolist() == [1.5, 7.5]


@pytest.mark.parametrize("more", [{"metadata": datetime.date(2024, 1, 1)}, {1: 2}, {("Al", "Al"): {}}])
def test_a_section_may_hold_what_yaml_holds(section, more):
    assert len(basis.smoothness(Section({**section.content, "comment": more}))) == 2
