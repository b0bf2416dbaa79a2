"""report.html: its figures computed again from the published files, and the page as a real browser shows it."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.io import read
from conftest import EXAMPLES, beside, mlip_pace
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from mlip_pace import load_calculator
from mlip_pace.collect import columns
from mlip_pace.publish.potential import Potential
from mlip_pace.report import accuracy, figures, learning
from mlip_pace.report.section import SUBSETS
from mlip_pace.run.steps import sha256
from mlip_pace.train.fit import LEAST_SQUARES

WIDTHS = (360, 1440)


@pytest.fixture(scope="module")
def page(trained):
    return (trained / "report.html").read_text()


@pytest.fixture(scope="module")
def sidecar(trained):
    return Potential.load(trained / "potential.json")


@pytest.fixture(scope="module")
def panels(page):
    found = re.findall(r'<script type="application/json" id="data-(.*?)">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


@pytest.fixture(scope="module")
def predicted(trained, sidecar):
    """Every used structure with DFT and with what the published files say now: nothing of the stages' own predictions."""
    calculator, frames, rows = load_calculator(trained / "potential.json"), read(EXAMPLES, ":"), []
    table = columns.load(trained / "work" / "6-evaluate" / "predictions")
    e0 = sidecar.metadata["e0"]["energies"]
    for source, subset in zip(table.source, table.subset, strict=True):
        labelled = frames[int(source.split("#")[1])]
        atoms = Atoms(labelled.numbers, labelled.positions, cell=labelled.cell, pbc=labelled.pbc, calculator=calculator)
        free, n = sum(e0[s] for s in atoms.symbols), len(atoms)
        rows.append({
            "source": source, "subset": subset, "atoms": labelled, "type": labelled.info["config_type"],
            "energy": ((labelled.get_potential_energy() - free) / n, (atoms.get_potential_energy() - free) / n),
            "forces": (labelled.get_forces(), atoms.get_forces()),
            "stress": (labelled.get_stress() * 160.21766208, atoms.get_stress() * 160.21766208),
        })  # fmt: skip
    return pd.DataFrame(rows)


def values(predicted, quantity, subset):
    part = predicted[predicted.subset == subset]
    return [np.concatenate([np.ravel(pair[side]) for pair in part[quantity]]) for side in (0, 1)]


@pytest.mark.parametrize("quantity", ["energy", "forces", "stress"])
@pytest.mark.parametrize("subset", ["train", "test"])
def test_parity(panels, predicted, quantity, subset):
    dft, ace = values(predicted, quantity, subset)
    density, points = panels[f"parity-{quantity}-{subset}"]["layers"]
    expected, _, _ = np.histogram2d(dft, ace, bins=(density["x"], density["y"]))
    drawn = np.zeros_like(expected)
    for column, row, count in density["counts"]:
        drawn[column, row] = count
    assert drawn.sum() == len(dft)  # no value is lost
    assert np.abs(drawn - expected).sum() <= 0.02 * len(dft) + 2  # edges are rounded: one on an edge may be next door
    worst = np.sort(np.abs(ace - dft))[::-1][:5]
    np.testing.assert_allclose(np.abs(np.array(points["y"]) - points["x"]), worst, atol=2e-3 * np.abs(dft).max() + 1e-6)
    assert all(name.split(":")[0] in set(predicted.source) for name in points["names"])


@pytest.mark.parametrize("quantity", ["energy", "forces"])
def test_distributions(panels, predicted, quantity):
    for layer in panels[f"distribution-{quantity}"]["layers"]:
        dft, ace = values(predicted, quantity, layer["colour"])
        expected = np.quantile(np.abs(ace - dft), layer["y"])
        above = expected > 1.01 * min(layer["x"])
        np.testing.assert_allclose(np.array(layer["x"])[above], expected[above], rtol=1e-4)


def test_errors_by_distance_and_by_force(panels, predicted, sidecar):
    nearest, force, error = [], [], []
    for row in predicted.itertuples():
        big = row.atoms.repeat(3)
        images = big.get_all_distances(mic=True) if row.atoms.pbc.all() else row.atoms.get_all_distances()
        np.fill_diagonal(images, np.inf)
        nearest += images.min(axis=0)[: len(row.atoms)].tolist()
        force += np.linalg.norm(row.forces[0], axis=1).tolist()
        error += np.linalg.norm(row.forces[1] - row.forces[0], axis=1).tolist()
    for name, x in (("distance", nearest), ("force", force)):
        density, *lines, points = panels[f"error-by-{name}"]["layers"]
        columns = np.clip(np.searchsorted(density["x"], x, side="right") - 1, 0, len(density["x"]) - 2)
        drawn = np.zeros(len(density["x"]) - 1)
        for column, _, count in density["counts"]:
            drawn[column] += count
        assert drawn.sum() == len(x)
        assert np.abs(drawn - np.bincount(columns, minlength=len(drawn))).sum() <= 0.02 * len(x) + 2
        np.testing.assert_allclose(points["y"], sorted(error, reverse=True)[: len(points["y"])], rtol=1e-4)
        assert {line["colour"] for line in lines} <= set(sidecar.metadata["errors"])
        assert "train" in {line["colour"] for line in lines}


def test_learning_curve(panels, trained):
    train = trained / "work" / "5-train"
    for column, name in (("loss", "loss"), ("rmse_epa", "rmse-epa"), ("rmse_f_comp", "rmse-f-comp")):
        layers = {layer["label"]: layer for layer in panels[f"learning-{name}"]["layers"]}
        for label, file in (("train", "metrics.txt"), ("test", "test_metrics.txt")):
            iterations, expected = [], []
            for folder in (train / LEAST_SQUARES, *sorted(train.glob("attempt-*"))):
                if (folder / file).exists():
                    head, *lines = [line.split() for line in (folder / file).read_text().splitlines()]
                    before = iterations[-1] if iterations else 0
                    iterations += [before + float(line[head.index("iter_num")]) for line in lines]
                    expected += [float(line[head.index(column)]) for line in lines]
            assert layers[label]["x"] == iterations
            np.testing.assert_allclose(layers[label]["y"], expected, rtol=1e-5)
        assert layers["linear start"]["x"] == [0.0]
        assert layers["linear start"]["y"] == layers["train"]["y"][:1]


@pytest.mark.parametrize("pair", ["Al-Al", "Al-Mg", "Mg-Mg"])
def test_dimers(panels, trained, sidecar, pair):
    layers = {layer["label"]: layer for layer in panels[f"dimer-{pair}"]["layers"]}
    calculator = load_calculator(trained / "potential.json")
    energies = []
    for r in (50.0, *layers["sum"]["x"][::20]):
        energies.append(Atoms(pair.split("-"), [(0, 0, 0), (0, 0, r)], calculator=calculator).get_potential_energy())
    np.testing.assert_allclose(layers["sum"]["y"][::20], np.array(energies[1:]) - energies[0], rtol=1e-4, atol=1e-4)
    parts = np.array(layers["ACE"]["y"]) + layers["reference"]["y"]
    np.testing.assert_allclose(layers["sum"]["y"], parts, rtol=1e-4, atol=1e-3)
    assert layers["shortest in the data"]["x"] == [pytest.approx(sidecar.metadata["basis"]["shortest"][pair], rel=1e-5)]


def test_equations_of_state(panels, predicted, trained, sidecar):
    volumes = {name: panel for name, panel in panels.items() if name.startswith("volume-")}
    assert {panel["title"].split(":")[0] for panel in volumes.values()} >= {"Al", "Mg", "AlMg", "Al3Mg"}
    calculator, e0 = load_calculator(trained / "potential.json"), sidecar.metadata["e0"]["energies"]
    by_source = {row.source: row for row in predicted.itertuples()}
    for panel in volumes.values():
        curve, points = panel["layers"]
        for v, e, name in zip(points["x"], points["y"], points["names"], strict=True):
            row = by_source[name.split(":")[0]]
            assert v == pytest.approx(row.atoms.cell.volume / len(row.atoms), rel=1e-5)
            assert e == pytest.approx(row.energy[0], abs=1e-5)
        for place in (0, -1):  # where the curve meets structures of the data
            row = by_source[points["names"][place].split(":")[0]]
            atoms = Atoms(row.atoms.numbers, row.atoms.positions, cell=row.atoms.cell, pbc=True, calculator=calculator)
            energy = (atoms.get_potential_energy() - sum(e0[s] for s in atoms.symbols)) / len(atoms)
            assert curve["y"][place] == pytest.approx(energy, abs=2e-3)


def test_selection_and_errors_by_type(panels, predicted, trained, sidecar):
    sources = list(json.loads((trained / "work" / "4-select" / "chosen.json").read_text()))
    panel = panels["chosen"]
    chosen, left = panel["layers"]
    for kind, n, m in zip(panel["categories"], chosen["x"], left["x"], strict=True):
        pool = predicted[(predicted.type == kind) & (predicted.subset != "test")]
        assert n == pool.source.isin(sources).sum()
        assert m == (~pool.source.isin(sources)).sum()
    for quantity, factor in (("energy", 1e3), ("forces", 1.0)):
        panel = panels[f"by-type-{quantity}"]
        for layer in panel["layers"]:
            for kind, value in zip(panel["categories"], layer["x"], strict=True):
                part = predicted[(predicted.type == kind) & (predicted.subset == layer["colour"])]
                if value is None:
                    assert part.empty
                    continue
                dft, ace = values(part, quantity, layer["colour"])
                assert value == pytest.approx(factor * np.sqrt(((ace - dft) ** 2).mean()), rel=1e-4, abs=1e-6)
    seconds = dict(sidecar.metadata["seconds"])
    assert seconds.pop("publish") > 0  # drawing the page is a part of it
    assert panels["seconds"]["layers"][0]["x"] == pytest.approx(list(seconds.values()))


def test_grades_of_what_was_not_chosen(trained, sidecar, tmp_path):
    frame = columns.load(trained / "work" / "6-evaluate" / "predictions")
    frame["subset"] = "train"  # the coefficients were fitted to all, the radial functions to what was chosen
    grades = {source: 0.001 * (n + 1) for n, source in enumerate(frame.source[:10])}
    (tmp_path / "chosen.json").write_text(json.dumps(dict.fromkeys(frame.source[10:], 1.0)))
    (tmp_path / "grades.json").write_text(json.dumps(grades))
    _, panel = learning.selection_section(sidecar.metadata, frame, tmp_path).panels
    points = panel.layers[0]
    assert points.x == pytest.approx(sorted(grades.values(), reverse=True))
    worst = frame.iloc[9]
    error = 1e3 * abs(worst.energy_pred - worst.energy_dft) / len(worst.ase_atoms)
    assert points.y[0] == pytest.approx(error, rel=1e-5)
    assert points.names[0].startswith(worst.source)


def test_the_table_is_that_of_the_sidecar(page, sidecar):
    for subset, e in sidecar.metadata["errors"].items():
        row = re.search(rf'<tr><td data-label="set">{SUBSETS[subset]}</td>(.*?)</tr>', page)[1]
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
        assert cells[:2] == [str(e["n_structures"]), str(e["n_atoms"])]
        assert cells[2] == f"{1e3 * e['energy_mae']:.2f} / {1e3 * e['energy_rmse']:.2f}"
        assert cells[3] == f"{e['forces_mae']:.4f} / {e['forces_rmse']:.4f}"


def test_it_says_which_holes_were_looked_for(page, sidecar):
    (one,) = sidecar.metadata["probe"]["rounds"]
    section = re.search(r'<section id="holes".*?</section>', page, re.DOTALL)[0]
    for kind, count in one["trials"].items():
        assert f'<td data-label="{kind}">{one["holes"].get(kind, 0)} of {count}</td>' in section
    assert "this one stays as it is" in section


def test_worst_structures_are_named_by_file_and_frame(page, predicted):
    gap = (predicted.energy.map(lambda pair: pair[1] - pair[0])).abs()
    number = predicted.source[gap.idxmax()].split("#")[1]
    first = re.search(r"By energy.*?<tbody>\s*<tr>(.*?)</tr>", page, re.DOTALL)[1]
    assert f'<td data-label="frame">{number}</td>' in first
    assert f"{1e3 * gap.max():.2f}" in first


def test_it_says_what_was_left_out_and_where_settings_came_from(page):
    assert "isolated atom: its energy is E0 of Al" in page
    assert re.search(r'MLIP_PACE_BASIS_FUNCTIONS</td><td data-label="value">20</td><td data-label="from">environment', page)
    assert sha256(EXAMPLES) in page


def test_names_from_files_cannot_become_code():
    name = "<script>alert(1)</script> $x$"
    points = figures.Layer("points", name, "warn", [1.0], [1.0], [name])
    text = figures.svg(figures.Panel("p", name, name, name, [points]))
    assert "<script" not in text
    assert "alert(1)" in text


def test_large_data_stay_light():
    rng = np.random.default_rng(1)
    dft = rng.normal(size=300_000)
    edges = np.linspace(-6, 6, accuracy.BINS + 1)
    layer = figures.cells("", "train", dft, dft + rng.normal(0, 0.1, dft.size), edges, edges)
    assert sum(count for *_, count in layer.counts) == 300_000
    assert len(figures.svg(figures.Panel("p", "", "x", "y", [layer]))) < 100_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    flags = "headless no-sandbox disable-gpu hide-scrollbars disable-background-networking disable-component-update"
    for flag in (*flags.split(), f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument("--" + flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


def show(browser, file, width, scheme="light"):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500})  # fmt: skip
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get(file.as_uri())


def test_no_errors_no_requests_and_a_figure_in_every_section(browser, trained):
    browser.get("about:blank")
    browser.get_log("performance")
    show(browser, trained / "report.html", 1440)
    assert browser.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith(("data:", "chrome:"))] == [(trained / "report.html").as_uri()]
    names = {section.get_attribute("id") for section in browser.find_elements(By.CSS_SELECTOR, "section")}
    assert names == {"errors", "parity", "where", "learning", "crystals", "dimers", "volumes", "holes", "uncertainty",
                     "selection", "worst", "audit", "made"}  # fmt: skip
    for name in names - {"worst", "audit", "holes", "crystals", "uncertainty"}:
        drawn = browser.find_elements(By.CSS_SELECTOR, f"#{name} figure svg")
        assert drawn, name
        assert all(svg.size["height"] > 80 for svg in drawn)
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len([i for i in ids if not re.search("clip|glyph|-[mp][0-9a-f]{10}$", i)]) == len(
        {i for i in ids if not re.search("clip|glyph|-[mp][0-9a-f]{10}$", i)}
    )


# Text that runs out of its figure or the window, and pairs of texts of one figure that cover each other.
COLLISIONS = """
const wrong = [], wide = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > wide) wrong.push('the page is wider than the window');
for (const e of document.querySelectorAll('h1,h2,h3,p,li,td,th,figcaption,summary')) {
  const r = e.getBoundingClientRect();
  if (r.width && (r.right > wide + 1 || r.left < -1 || e.scrollWidth > e.clientWidth + 1)) wrong.push('cut: ' + e.textContent);
}
for (const svg of document.querySelectorAll('figure svg')) {
  const box = svg.getBoundingClientRect(), seen = [];
  for (const t of svg.querySelectorAll('text')) {
    const r = t.getBoundingClientRect(), where = svg.closest('figure').id + ': ' + t.textContent;
    if (r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1)
      wrong.push('out of ' + where);
    for (const [other, text] of seen)
      if (Math.min(r.right, other.right) - Math.max(r.left, other.left) > 1.5 &&
          Math.min(r.bottom, other.bottom) - Math.max(r.top, other.top) > 3) wrong.push('on ' + text + ' in ' + where);
    seen.push([r, t.textContent]);
  }
}
return wrong;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_overlapping_or_blank(browser, trained, tmp_path, width, scheme):
    show(browser, trained / "report.html", width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script(COLLISIONS) == []
    browser.save_screenshot(tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as image:
        assert image.width == width
        grey = np.asarray(image.convert("L"), dtype=float)
    assert grey.std() > 10
    assert (grey.mean() > 128) == (scheme == "light")


@pytest.fixture(scope="module")
def silicon(tmp_path_factory):
    """The output folder of a job on 14,758 atoms, with radial functions refined once."""
    output, data = tmp_path_factory.mktemp("silicon") / "out", beside("si-zuo2020")
    settings = {"DATA_TEST_PATH": data / "test.extxyz", "TRAINING_OPTIMIZER": "auto", "TRAINING_MAX_EPOCHS": 1}
    code, events, _ = mlip_pace(output, data / "train.extxyz", BASIS_FUNCTIONS=60, **settings)
    assert code == 0, events
    return output


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_of_the_silicon_set(browser, silicon, width):
    show(browser, silicon / "report.html", width)
    assert browser.get_log("browser") == []
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script(COLLISIONS) == []
    assert (silicon / "report.html").stat().st_size < 1_000_000


def test_pointing_at_an_outlier_names_it(browser, trained, predicted):
    show(browser, trained / "report.html", 1440)
    (title,) = browser.find_elements(By.CSS_SELECTOR, "#parity-energy-test-layer1point0 title")
    assert title.get_attribute("textContent").split(":")[0] in set(predicted.source)
