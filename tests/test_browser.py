"""Notebooks in JupyterLab, in Chromium, by mouse and keyboard; no request leaves this machine.

JupyterLab is started by the command of `make lab`. `pytest -m slow tests/test_browser.py` adds
what takes more than half a minute: the structure view, and zero_shot.ipynb.
"""

import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import matplotlib.image
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from carp_nb.datasets import load_dataset
from carp_nb.defaults import DEFAULT_MODEL
from carp_nb.editing import History, Mutant, read_state
from carp_nb.pretrained import load_model
from carp_nb.scoring import method_of, rank_mutants, score_mutants

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    "--no-sandbox --disable-gpu --enable-unsafe-swiftshader --disable-quic "
    "--no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
WILD_TYPE = "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
MINUTES = 5 * 60 * 1000  # milliseconds: a machine may be busy


def serve(place: Path, command: list, address: str, **environment):
    "Start a JupyterLab of the folder root/, whose settings lie beside it, and wait until it answers."
    own = {
        name: str(place / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
            "IPYTHONDIR",
        )
    }
    with open(place / "log", "w") as log:
        server = subprocess.Popen(
            command,
            env={**os.environ, **own, "OMP_NUM_THREADS": "1", **environment},
            cwd=place / "root",
            stdout=log,
            stderr=log,
        )
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/api/status", timeout=5)
            return server
        except OSError:
            time.sleep(0.5)
    server.terminate()
    pytest.fail((place / "log").read_text()[-2000:])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "The address and the root folder of a JupyterLab of this test alone, started as `make lab` does."
    place, port = tmp_path_factory.mktemp("lab"), free_port()
    (place / "root/nbs").mkdir(parents=True)
    shutil.copy(ROOT / "nbs/index.ipynb", place / "root/nbs")
    shutil.copytree(ROOT / "profiles/lab", place / "root/profiles/lab")
    (recipe,) = re.findall(r"^lab:.*\n\t(.+)", (ROOT / "Makefile").read_text(), re.M)
    command = recipe.replace("$(BIN)/jupyter", f"{sys.executable} -m jupyter").replace(
        "$(ARGS)",
        f"--no-browser --allow-root --ip=127.0.0.1 --port={port} --IdentityProvider.token=",
    )
    server = serve(place, shlex.split(command), f"http://127.0.0.1:{port}")
    yield f"http://127.0.0.1:{port}", place / "root"
    server.terminate()
    try:
        server.wait(60)
    except subprocess.TimeoutExpired:
        # a machine with much else to do
        server.kill()


@contextmanager
def chromium(address: str):
    "A page of a new browser; afterwards nothing has left this machine and no script has failed."
    outside, failed = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(
            viewport={"width": 1500, "height": 1250}, device_scale_factor=1.5, accept_downloads=True
        )
        page.set_default_timeout(MINUTES)
        page.on(
            "request",
            lambda r: (
                None if r.url.startswith((address, "data:", "blob:")) else outside.append(r.url)
            ),
        )
        page.on(
            "websocket",
            lambda w: (
                None if w.url.startswith(address.replace("http", "ws")) else outside.append(w.url)
            ),
        )
        page.on("pageerror", lambda e: failed.append(str(e)))
        yield page
        browser.close()
    assert not outside and not failed, (outside, failed)


def test_lab_opens_at_the_index_and_asks_nobody_for_news(lab):
    with chromium(lab[0]) as page:
        page.goto(lab[0], timeout=MINUTES)
        assert page.locator(".jp-Notebook h1").first.inner_text().startswith("carp_nb")
        assert page.locator(".lm-TabBar-tabLabel:text-is('index.ipynb')").count() == 1
        page.wait_for_selector("text=/\\| Idle/")
        page.wait_for_timeout(1000)
        assert not page.locator(".Toastify__toast").count()  # no question about news or updates


@contextmanager
def run_in(lab, source: str, code: str = "", **parameters):
    "A notebook of ours, run from top to bottom in a page: with other values in its parameters cell, and one more cell."
    address, root = lab
    notebook = nbformat.read(ROOT / "nbs" / source, as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    for name, value in parameters.items():
        cell.source, found = re.subn(
            rf"^({name}: \w+ = ).*$", lambda m: m[1] + repr(value), cell.source, flags=re.M
        )
        assert found == 1, name
    if code:
        notebook.cells.append(nbformat.v4.new_code_cell(code))
    nbformat.write(notebook, root / source)
    with chromium(address) as page:
        page.goto(f"{address}/lab/tree/{source}?reset", timeout=MINUTES)
        page.wait_for_selector("text=/\\| Idle/")
        menu(page, "Run", "Run All Cells")
        if page.locator(".jp-Dialog .jp-mod-accept").count():
            page.click(".jp-Dialog .jp-mod-accept")
        yield page


@pytest.fixture
def page(lab, tmp_path):
    "mutate.ipynb, run from top to bottom."
    with run_in(lab, "mutate.ipynb", output_dir=str(tmp_path / "run")) as page:
        page.wait_for_selector(".cm-root[data-busy=false]", state="attached")
        page.locator(".cm-root").scroll_into_view_if_needed()
        yield page


def complaints(page, notebook: Path) -> list:
    "Save a notebook: its cells that did not run, its errors, and what went to standard error."
    before = notebook.stat().st_mtime_ns
    menu(page, "File", "Save Notebook")
    while notebook.stat().st_mtime_ns == before:
        page.wait_for_timeout(200)
    cells = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    return [c.source for c in cells if not c.execution_count] + [
        o for c in cells for o in c.outputs if o.output_type == "error" or o.get("name") == "stderr"
    ]


def pictures(tmp_path) -> Path:
    "Where screenshots go: CARP_NB_SCREENSHOTS, or nowhere that stays."
    folder = Path(os.environ.get("CARP_NB_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def menu(page, bar: str, *items: str) -> None:
    page.click(f".lm-MenuBar-itemLabel:text-is('{bar}')")
    for item in items:
        page.click(f".lm-Menu-itemLabel:text-is('{item}')")


def click_cell(page, number: int, letter: str, offset: int) -> None:
    "Click where a substitution is drawn, the whole protein in view; the sizes are those of map.js."
    page.click("[data-is=all]")
    page.locator("[data-is=map]").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    box, length = page.locator("[data-is=map]").bounding_box(), len(WILD_TYPE)
    width = min(26, (box["width"] - 42) / length)
    page.mouse.click(
        box["x"] + 42 + (number - offset + 0.5) * width,
        box["y"] + 76 + ("GAVLIMPCFWYSTNQHKRDE".index(letter) + 0.5) * 15,
    )


def settled(page, mutant: str) -> float:
    "The score on screen, once it is that of this mutant."
    page.wait_for_selector(
        f"[data-is=numbers][data-mutant='{mutant}']:not([data-score=''])", state="attached"
    )
    return float(page.locator("[data-is=numbers]").get_attribute("data-score"))


def saved(page, what: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.click(f"[data-is={what}]")
    download.value.save_as(folder / download.value.suggested_filename)
    return folder / download.value.suggested_filename


def number_of(page, row: str) -> float:
    "A number out of the table beside the map."
    return float(
        page.locator(f"[data-is=numbers] tr:has-text('{row}') td:nth-child(2)")
        .inner_text()
        .replace("−", "-")
    )


def test_sequence_two_clicks_score_export_and_both_themes(page, lab, tmp_path):
    scan = load_dataset("abeta42")  # what the notebook opens brings its measurements
    measured = scan.table.set_index("mutant").score
    single = next(m for m in measured.index if ":" not in m)
    page.fill("[data-is=mutant]", single)
    page.press("[data-is=mutant]", "Enter")
    settled(page, single)
    assert abs(number_of(page, "Measured") - measured[single]) < 0.006
    page.select_option("[data-is=model]", "carp_2_4m_sprot50")
    page.wait_for_function(
        (
            "document.querySelector('[data-is=model]').selectedOptions[0].value === "
            "'carp_2_4m_sprot50' && "
            "document.querySelector('[data-is=count]').textContent === '42 positions'"
        ),
        timeout=MINUTES,
    )
    settled(page, single)  # the mutant, its measurement and its history stay
    assert abs(number_of(page, "Measured") - measured[single]) < 0.006 and page.is_enabled(
        "[data-is=undo]"
    )
    page.select_option("[data-is=model]", "carp_600k_sprot50")
    page.click("[data-is=other]")
    page.fill("[data-is=offset]", "228")
    page.fill("[data-is=paste]", f">gb1\n{WILD_TYPE}")
    page.click("[data-is=openit]")
    page.wait_for_function(
        "[...document.querySelectorAll('[data-is=count]')].some(c => c.textContent === '56 positions')",
        timeout=MINUTES,
    )
    assert page.input_value("[data-is=offset]") == "228"
    click_cell(page, 252, "W", 228)
    settled(page, "T252W")
    click_cell(page, 267, "E", 228)
    score = settled(page, "T252W:D267E")
    model = load_model("carp_600k_sprot50", "cpu")
    assert (
        abs(score - score_mutants(model, WILD_TYPE, ["T252W:D267E"], 228, dtype="auto")[0]) < 1e-4
    )
    shown = page.locator("[data-is=numbers] tr:first-child td:nth-child(2)").inner_text()
    assert abs(float(shown.replace("−", "-")) - score) < 0.006
    # the same by keyboard: the cursor stands where the last click was; take it back,
    # move down... and put another one in
    page.keyboard.press("Enter")
    settled(page, "T252W")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)  # D is the wild type: nothing to add
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    settled(page, "T252W:D267R")
    page.keyboard.press("Control+z")
    settled(page, "T252W")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.activeElement.matches('[data-is=map]')")
    page.fill("[data-is=mutant]", "T252A")
    page.press("[data-is=mutant]", "Enter")
    settled(page, "T252A")
    page.fill("[data-is=mutant]", "K252A")
    page.press("[data-is=mutant]", "Enter")
    assert (
        "the wild type has T at position 252, not K"
        in page.locator("[data-is=error]:not([hidden])").inner_text()
    )
    page.fill("[data-is=mutant]", "T252W:D267E")
    page.press("[data-is=mutant]", "Enter")
    settled(page, "T252W:D267E")
    table = pd.read_csv(saved(page, "csv", tmp_path))
    assert len(table) == 56 * 19 and table[table.in_mutant].mutant.tolist() == ["T252W", "D267E"]
    assert saved(page, "fasta", tmp_path).read_text().count(">") == 2
    assert (
        saved(page, "png", tmp_path).read_bytes().startswith(b"\x89PNG")
        and b"<svg" in saved(page, "svg", tmp_path).read_bytes()
    )
    # frozen positions and allowed residues, the list of additions given the mutant, back and forth
    page.click("summary:text-is('Frozen positions and allowed residues')")
    page.fill("[data-is=frozen]", "252, 260-262")
    page.press("[data-is=frozen]", "Enter")
    page.click("[data-is=letters] button:text-is('W')")
    page.wait_for_selector("[data-is=letters] button:text-is('W')[aria-pressed=false]")
    given_wild_type = page.locator("[data-is=additions] button").all_inner_texts()
    page.click("[data-is=givenmut]")
    page.wait_for_function(
        (
            "before => { const now = "
            "[...document.querySelectorAll('[data-is=additions] button')].map(b => "
            "b.innerText); return now.length === 10 && now.join() !== before; }"
        ),
        arg=",".join(given_wild_type),
    )
    page.wait_for_selector(".cm-root[data-busy=false]", state="attached")
    best = rank_mutants(
        model,
        History(Mutant(WILD_TYPE, 228)).do("set", "T252W:D267E").sequence,
        offset=228,
        dtype="auto",
    ).mutant
    added = page.locator("[data-is=additions] button > span:first-child").all_inner_texts()
    assert (
        added
        == [m for m in best if m[-1] != "W" and int(m[1:-1]) not in (252, 260, 261, 262, 267)][:10]
    )
    page.click("[data-is=reset]")
    settled(page, "T252W")  # frozen, so it stays
    page.click("[data-is=undo]")
    settled(page, "T252W:D267E")
    page.click("[data-is=redo]")
    settled(page, "T252W")
    page.click("[data-is=undo]")
    settled(page, "T252W:D267E")
    page.click("[data-is=copy]")
    state = page.input_value("[data-is=paste]")
    assert read_state(state)[0].text == "T252W:D267E" and read_state(state)[0].frozen == {
        24,
        32,
        33,
        34,
    }
    page.fill("[data-is=paste]", state[:-2])
    page.click("[data-is=openit]")  # cut off: told, and nothing else happens
    assert "copy the whole string" in page.locator("[data-is=error]:not([hidden])").inner_text()
    page.select_option("[data-is=protein]", "abeta42")
    page.wait_for_function(
        "document.querySelector('[data-is=count]').textContent === '42 positions'"
    )
    page.fill("[data-is=paste]", state)
    page.click("[data-is=openit]")
    settled(page, "T252W:D267E")
    assert (
        page.input_value("[data-is=frozen]") == "252, 260-262"
        and page.locator("[data-is=letters] [aria-pressed=false]").inner_text() == "W"
    )
    page.click("[data-is=other]")
    assert not complaints(page, lab[1] / "mutate.ipynb")
    for theme in ("Light", "Dark"):
        menu(page, "Settings", "Theme", f"JupyterLab {theme}")
        page.wait_for_selector(f".cm-root[data-theme={theme.lower()}]")
        page.wait_for_function(
            """dark => { const map = document.querySelector('[data-is=legend]'), pixels = map.getContext('2d');
                const x = map.dataset.middle * map.width / map.clientWidth, y = 9 * map.height / map.clientHeight;
                const middle = pixels.getImageData(x, y, 1, 1).data;
            return dark === (middle[0] + middle[1] + middle[2] < 3 * 128); }""",
            arg=theme == "Dark",
        )  # zero is the middle colour of the theme
        # JupyterLab covers the page with its own picture while a theme loads
        page.wait_for_selector("#jupyterlab-splash", state="detached")
        page.locator(".cm-root").screenshot(path=pictures(tmp_path) / f"map-{theme.lower()}.png")
        assert (pictures(tmp_path) / f"map-{theme.lower()}.png").stat().st_size > 20_000


@pytest.mark.slow
def test_odd_letters_their_export_and_the_end_of_the_kernel(page, lab, tmp_path):
    # long enough that it is not taken for a name
    odd = "MXQYKLILBGKTLKGUTTTEAVZDAATAEKVF"
    page.click("[data-is=other]")
    for sequence in (odd, WILD_TYPE):
        page.fill("[data-is=paste]", sequence)
        page.click("[data-is=openit]")
        page.wait_for_function(
            "n => document.querySelector('[data-is=count]').textContent === `${n} positions`",
            arg=len(sequence),
            timeout=MINUTES,
        )
        page.wait_for_selector(".cm-root[data-busy=false]", state="attached")
        assert not page.locator("[data-is=error]").is_visible()
        # the letters in front of the rows
        page.locator("[data-is=map]").scroll_into_view_if_needed()
        assert ink_at_the_left(page) > 200
        table = pd.read_csv(saved(page, "csv", tmp_path))
        left_out = [i for i, letter in enumerate(sequence, 1) if letter in "XBUZ"]
        if left_out:
            assert table[table.note.notna()].position.tolist() == left_out
            table = table[table.note.isna()]
        assert len(table) == 19 * (len(sequence) - len(left_out))
        some = table.sample(20, random_state=0)
        model = load_model(DEFAULT_MODEL, "cpu")
        wanted = (sequence, some.mutant.tolist(), 1, method_of(model), "auto")
        scores = score_mutants(model, *wanted)
        np.testing.assert_allclose(some.log_odds.to_numpy(float), scores, atol=1e-4)
    page.click("[data-is=other]")
    page.set_viewport_size({"width": 800, "height": 1250})
    page.locator(".cm-root").screenshot(path=pictures(tmp_path) / "map-800.png")
    menu(page, "Kernel", "Restart Kernel…")
    page.click(".jp-Dialog .jp-mod-accept")
    page.wait_for_selector(".cm-root[data-life=gone]")
    assert page.locator("[data-is=error]").inner_text() == "The kernel is gone: run the cell again."


def ink_at_the_left(page) -> int:
    "How many pixels are drawn in the margin with the letters of the rows."
    return page.evaluate("""() => { const map = document.querySelector('[data-is=map]');
        const scale = map.width / map.clientWidth, part = [20, 76, 22, 300].map(x => x * scale);
        const pixels = map.getContext('2d').getImageData(...part).data;
        return pixels.filter((alpha, i) => i % 4 === 3 && alpha > 100).length; }""")


def test_three_thousand_residues_do_not_freeze_the_page(page):
    long = (WILD_TYPE * 54)[:3000]
    page.click("[data-is=other]")
    page.fill("[data-is=paste]", long)
    page.evaluate("""() => { window.pictures = 0;
        const tick = () => { window.pictures += 1; requestAnimationFrame(tick); };
        requestAnimationFrame(tick); }""")
    page.click("[data-is=openit]")
    page.wait_for_selector("text=/of 3,000 positions/")
    page.click("[data-is=all]")
    for _ in range(8):
        drawn = page.evaluate("window.pictures")
        page.click("[data-is=in]")
        # the page goes on drawing while the map is computed; how fast depends on the machine
        page.wait_for_function("drawn => window.pictures > drawn", arg=drawn)
    page.fill("[data-is=mutant]", "M2801W")
    page.press("[data-is=mutant]", "Enter")
    settled(page, "M2801W")  # far from where the map is filled: a question passes in front
    page.click("[data-is=cancel]:text-is('Cancel')")
    page.wait_for_selector("[data-is=cancel]:text-is('Go on')")
    assert not page.locator("text=/^3,000 positions/").count()


def colours(page, box) -> int:
    "How many colours a drawing has in front of its background."
    image = matplotlib.image.imread(io.BytesIO(box.screenshot()))[..., :3]
    return len(np.unique((image.reshape(-1, 3) * 15).round(), axis=0))


@pytest.mark.slow
def test_structure_is_coloured_by_mean_effect_and_by_state(lab, tmp_path):
    chain = load_dataset("pdb_chains_sample").table.set_index("id").loc["1NKO_A"]
    seen = (
        "from carp_nb.widget import StructureView\nStructureView(pdb, sequence, "
        f"{{'one state': 'C' * len(sequence), 'three states': "
        f"{chain.dssp8.translate(str.maketrans('GIBTS', 'HHECC'))!r}}})"
    )
    with run_in(
        lab,
        "mutate.ipynb",
        seen,
        sequence=chain.sequence,
        pdb=chain.target,
        mutant=f"{chain.sequence[9]}10W",
        output_dir=str(tmp_path / "run"),
    ) as page:
        page.wait_for_selector(
            ".cm-root [data-is=structure][data-painted] canvas", state="attached"
        )
        page.wait_for_selector(".cm-root[data-busy=false]", state="attached")
        drawn = page.locator(".cm-root [data-is=structure]")
        drawn.scroll_into_view_if_needed()
        page.wait_for_timeout(3000)
        assert colours(page, drawn) > 30  # red, blue and what lies between
        before = drawn.get_attribute("data-painted")
        page.fill("[data-is=mutant]", "")
        page.press("[data-is=mutant]", "Enter")
        settled(page, "WT")
        page.wait_for_function(
            "n => document.querySelector('[data-is=structure]').dataset.painted > n",
            arg=int(before),
        )  # the side chain goes
        page.fill("[data-is=mutant]", f"{chain.sequence[9]}10W")
        page.press("[data-is=mutant]", "Enter")
        settled(page, f"{chain.sequence[9]}10W")
        for theme in ("Light", "Dark"):
            menu(page, "Settings", "Theme", f"JupyterLab {theme}")
            page.wait_for_timeout(2000)
            page.wait_for_selector("#jupyterlab-splash", state="detached")
            page.locator("[data-is=structurebox]").scroll_into_view_if_needed()
            page.locator("[data-is=structurebox]").screenshot(
                path=pictures(tmp_path) / f"structure-{theme.lower()}.png"
            )
        menu(page, "Settings", "Theme", "JupyterLab Light")
        boxes = page.locator(".cm-structures .cm-structure")
        boxes.last.scroll_into_view_if_needed()
        page.wait_for_timeout(2000)
        page.locator(".cm-structures").screenshot(path=pictures(tmp_path) / "states.png")
        assert (
            boxes.count() == 2 and colours(page, boxes.last) > 1.5 * colours(page, boxes.first) > 6
        )


def use_theme(page, theme: str) -> None:
    "Choose a theme, and wait until the map is drawn in it and JupyterLab's own picture is gone."
    menu(page, "Settings", "Theme", f"JupyterLab {theme}")
    page.wait_for_selector(f".cm-root[data-theme={theme.lower()}]")
    page.wait_for_selector("#jupyterlab-splash", state="detached")
    page.wait_for_timeout(2000)


def keep_picture(box, path: Path) -> None:
    "A screenshot of an element with 256 colours, which lies well in git."
    image = Image.open(io.BytesIO(box.screenshot())).convert("RGB")
    image.quantize(256, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    assert 10_000 < path.stat().st_size < 250_000


@pytest.mark.slow
def test_pictures_of_the_docs(lab, tmp_path):
    """The pictures of the map in docs/images; look at them before they are kept:
    CARP_NB_SCREENSHOTS=docs/images pytest -m slow -n0 tests/test_browser.py -k pictures
    """
    folder = pictures(tmp_path)
    given = {"sequence": f">gb1\n{WILD_TYPE}", "offset": 228, "mutant": "T252W:D267E"}
    with run_in(lab, "mutate.ipynb", output_dir=str(tmp_path / "gb1"), **given) as page:
        settled(page, "T252W:D267E")
        page.wait_for_selector(".cm-root[data-busy=false]", state="attached")
        for theme in ("Dark", "Light"):
            use_theme(page, theme)
            page.click("[data-is=all]")
            page.mouse.move(0, 0)
            page.wait_for_timeout(500)
            keep_picture(page.locator(".cm-root"), folder / f"map-{theme.lower()}.png")
    chain = load_dataset("pdb_chains_sample").table.set_index("id").loc["1NKO_A"]
    given = {"sequence": chain.sequence, "pdb": chain.target}
    with run_in(lab, "mutate.ipynb", output_dir=str(tmp_path / "chain"), **given) as page:
        page.wait_for_selector(".cm-root[data-busy=false]", state="attached")
        use_theme(page, "Light")
        box = page.locator("[data-is=structurebox]")
        box.scroll_into_view_if_needed()
        page.wait_for_selector("[data-is=structure][data-painted] canvas")
        page.wait_for_timeout(3000)
        keep_picture(box, folder / "structure.png")


@pytest.mark.slow
def test_zero_shot_runs_without_an_error(lab, tmp_path):
    budget, folder = (
        "laptop" if "CARP_NB_SCREENSHOTS" in os.environ else "smoke",
        "outputs/zero_shot/carp_600k_sprot50",
    )  # a picture to keep is of a whole run
    with run_in(lab, "zero_shot.ipynb", budget=budget, output_dir=folder) as page:
        while not (lab[1] / folder / "results.parquet").is_file():
            page.wait_for_timeout(1000)
        page.wait_for_selector("text=/\\| Idle/")
        assert pd.read_parquet(lab[1] / folder / "results.parquet").task.nunique() == 3
        assert not complaints(page, lab[1] / "zero_shot.ipynb")
        page.locator(".jp-OutputArea-output img").first.scroll_into_view_if_needed()
        page.screenshot(path=pictures(tmp_path) / "zero-shot.png")
