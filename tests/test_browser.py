"""mutate.ipynb in JupyterLab, in Chromium, by mouse and keyboard; no request leaves this machine."""
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

from carp_nb.pretrained import load_model
from carp_nb.scoring import score_mutants
from carp_nb.widget import read_state

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
ROOT = Path(__file__).resolve().parent.parent
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
WILD_TYPE = "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
MINUTES = 5 * 60 * 1000   # milliseconds: a machine may be busy


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "The address of a JupyterLab of this test alone, with the notebook in its root folder."
    place = tmp_path_factory.mktemp("lab")
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    (place / "root").mkdir()
    shutil.copy(ROOT / "nbs/mutate.ipynb", place / "root")
    own = {name: str(place / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    with open(place / "log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=",
                                   f"--ServerApp.root_dir={place / 'root'}"], env={**os.environ, **own, "OMP_NUM_THREADS": "1"}, cwd=place, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status", timeout=5); break
            except OSError: time.sleep(0.5)
        else: pytest.fail((place / "log").read_text()[-2000:])
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture
def page(lab):
    "mutate.ipynb, run from top to bottom; afterwards nothing has left this machine and no script has failed."
    outside, failed = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1250}, device_scale_factor=1.5, accept_downloads=True)
        page.set_default_timeout(MINUTES)
        page.on("request", lambda r: None if r.url.startswith((lab, "data:", "blob:")) else outside.append(r.url))
        page.on("websocket", lambda w: None if w.url.startswith(lab.replace("http", "ws")) else outside.append(w.url))
        page.on("pageerror", lambda e: failed.append(str(e)))
        page.goto(f"{lab}/lab/tree/mutate.ipynb?reset", timeout=MINUTES)
        page.wait_for_selector("text=/\\| Idle/")
        menu(page, "Run", "Run All Cells")
        if page.locator(".jp-Dialog .jp-mod-accept").count(): page.click(".jp-Dialog .jp-mod-accept")
        page.wait_for_selector(".cm-root[data-busy=false]", state="attached")
        page.locator(".cm-root").scroll_into_view_if_needed()
        yield page
        browser.close()
    assert not outside and not failed


def menu(page, bar: str, *items: str) -> None:
    page.click(f".lm-MenuBar-itemLabel:text-is('{bar}')")
    for item in items: page.click(f".lm-Menu-itemLabel:text-is('{item}')")


def click_cell(page, number: int, letter: str, offset: int) -> None:
    "Click where a substitution is drawn, the whole protein in view; the sizes are those of map.js."
    page.click("[data-is=all]")
    page.locator("[data-is=map]").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    box, length = page.locator("[data-is=map]").bounding_box(), len(WILD_TYPE)
    width = min(26, (box["width"] - 34) / length)
    page.mouse.click(box["x"] + 34 + (number - offset + 0.5) * width, box["y"] + 76 + ("GAVLIMPCFWYSTNQHKRDE".index(letter) + 0.5) * 15)


def settled(page, mutant: str) -> float:
    "The score on screen, once it is that of this mutant."
    page.wait_for_selector(f"[data-is=numbers][data-mutant='{mutant}']:not([data-score=''])", state="attached")
    return float(page.locator("[data-is=numbers]").get_attribute("data-score"))


def saved(page, what: str, folder: Path) -> Path:
    with page.expect_download() as download: page.click(f"[data-is={what}]")
    download.value.save_as(folder / download.value.suggested_filename)
    return folder / download.value.suggested_filename


def test_sequence_two_clicks_score_export_and_both_themes(page, tmp_path):
    page.click("[data-is=other]")
    page.fill("[data-is=offset]", "228")
    page.fill("[data-is=paste]", f">gb1\n{WILD_TYPE}")
    page.click("[data-is=openit]")
    page.wait_for_function("[...document.querySelectorAll('[data-is=count]')].some(c => c.textContent === '56 positions')", timeout=MINUTES)
    assert page.input_value("[data-is=offset]") == "228"
    click_cell(page, 252, "W", 228)
    settled(page, "T252W")
    click_cell(page, 267, "E", 228)
    score = settled(page, "T252W:D267E")
    model = load_model("carp_600k_sprot50", "cpu")
    assert abs(score - score_mutants(model, WILD_TYPE, ["T252W:D267E"], 228, dtype="auto")[0]) < 1e-4
    shown = page.locator("[data-is=numbers] tr:first-child td:nth-child(2)").inner_text()
    assert abs(float(shown.replace("−", "-")) - score) < 0.006
    # the same by keyboard: the cursor stands where the last click was; take it back, move down... and put another one in
    page.keyboard.press("Enter"); settled(page, "T252W")
    page.keyboard.press("ArrowUp"); page.keyboard.press("Enter"); page.wait_for_timeout(500)   # D is the wild type: nothing to add
    page.keyboard.press("ArrowUp"); page.keyboard.press("Enter"); settled(page, "T252W:D267R")
    page.keyboard.press("Control+z"); settled(page, "T252W")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.activeElement.matches('[data-is=map]')")
    page.fill("[data-is=mutant]", "T252A"); page.press("[data-is=mutant]", "Enter"); settled(page, "T252A")
    page.fill("[data-is=mutant]", "K252A"); page.press("[data-is=mutant]", "Enter")
    assert "the wild type has T at position 252, not K" in page.locator("[data-is=error]:not([hidden])").inner_text()
    page.fill("[data-is=mutant]", "T252W:D267E"); page.press("[data-is=mutant]", "Enter"); settled(page, "T252W:D267E")
    table = pd.read_csv(saved(page, "csv", tmp_path))
    assert len(table) == 56 * 19 and table[table.in_mutant].mutant.tolist() == ["T252W", "D267E"]
    assert saved(page, "fasta", tmp_path).read_text().count(">") == 2
    assert saved(page, "png", tmp_path).read_bytes().startswith(b"\x89PNG") and b"<svg" in saved(page, "svg", tmp_path).read_bytes()
    page.click("[data-is=copy]")
    assert read_state(page.input_value("[data-is=paste]"))[0].text == "T252W:D267E"
    page.click("[data-is=other]")
    pictures = Path(os.environ.get("CARP_NB_SCREENSHOTS", tmp_path))
    pictures.mkdir(parents=True, exist_ok=True)
    for theme in ("Light", "Dark"):
        menu(page, "Settings", "Theme", f"JupyterLab {theme}")
        page.wait_for_selector(f".cm-root[data-theme={theme.lower()}]")
        page.wait_for_function("""dark => { const map = document.querySelector('[data-is=legend]'), middle = map.getContext('2d').getImageData(184 * map.width / map.clientWidth, 9 * map.height / map.clientHeight, 1, 1).data;
            return dark === (middle[0] + middle[1] + middle[2] < 3 * 128); }""", arg=theme == "Dark")   # zero is the middle colour of the theme
        page.locator(".cm-root").screenshot(path=pictures / f"map-{theme.lower()}.png")
        assert (pictures / f"map-{theme.lower()}.png").stat().st_size > 20_000


def test_three_thousand_residues_do_not_freeze_the_page(page):
    long = (WILD_TYPE * 54)[:3000]
    page.click("[data-is=other]")
    page.fill("[data-is=paste]", long)
    page.evaluate("""() => { window.worst = 0; let last = performance.now();
        const tick = now => { window.worst = Math.max(window.worst, now - last); last = now; requestAnimationFrame(tick); }; requestAnimationFrame(tick); }""")
    page.click("[data-is=openit]")
    page.wait_for_selector("text=/of 3,000 positions/")
    page.click("[data-is=all]")
    for _ in range(8): page.click("[data-is=in]")
    page.fill("[data-is=mutant]", "M2801W"); page.press("[data-is=mutant]", "Enter")
    settled(page, "M2801W")                       # far from where the map is filled: a question passes in front
    page.click("[data-is=cancel]:text-is('Cancel')")
    page.wait_for_selector("[data-is=cancel]:text-is('Go on')")
    assert not page.locator("text=/^3,000 positions/").count()
    assert page.evaluate("window.worst") < 5000   # milliseconds between two pictures, on a machine that computes at the same time
