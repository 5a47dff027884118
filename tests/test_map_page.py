"""The map without a kernel: the page of `carp-nb map`, offline in Chromium, and the picture that
stands in a notebook where no widget can be.
"""

import json
import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from execnb.nbio import read_nb, write_nb
from nbconvert import HTMLExporter
from nbdev.clean import clean_nb
from typer.testing import CliRunner

from carp_nb import widget
from carp_nb.alphabet import AMINO_ACIDS
from carp_nb.cli import app
from carp_nb.editing import Mutant
from carp_nb.errors import CarpError
from carp_nb.explorer import Explorer, explore
from carp_nb.page import fill_map, map_page, write_map
from carp_nb.pretrained import load_model
from carp_nb.scorers import Blosum62
from carp_nb.scoring import score_mutants
from carp_nb.widget import MutationMap, page_text

ROOT = Path(__file__).resolve().parent.parent
WILD_TYPE = "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
EVIL = """x</script><!--<b>"'&amp;$title</title>\u202e"""
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --enable-unsafe-swiftshader --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()


class Page(HTMLParser):
    "The elements of a page, what they load, and what stands in its scripts."

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.loads, self.scripts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "poster")]

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)

    @property
    def maps(self) -> list[dict]:
        return json.loads(self.scripts[0])


def full(sequence: str, label: str = "") -> Explorer:
    return fill_map(Explorer(Blosum62(), Mutant(sequence), label=label))


def log_odds(recorded: dict) -> tuple[dict, np.ndarray]:
    "The message of a page that says what is on screen, and its rows [L, 22]."
    now, (_, rows, _) = recorded["messages"][1]
    return now, np.frombuffer(b64decode(rows), np.float32).reshape(-1, 22)


def test_scores_are_those_of_score_mutants(tmp_path):
    map_page(WILD_TYPE, tmp_path / "map.html", "carp_600k_sprot50", offset=228, device="cpu")
    [recorded] = Page((tmp_path / "map.html").read_text()).maps
    now, rows = log_odds(recorded)
    assert (now["offset"], len(rows)) == (228, 56)
    mutants = [f"{wt}{i}{a}" for i, wt in enumerate(WILD_TYPE, 228) for a in AMINO_ACIDS if a != wt]
    model = load_model("carp_600k_sprot50", "cpu")
    wanted = score_mutants(model, WILD_TYPE, mutants, 228)
    own = np.array(list(WILD_TYPE))[:, None] == np.array(list(AMINO_ACIDS))
    np.testing.assert_allclose(rows[:, :20][~own], wanted, atol=2e-6)
    assert not rows[:, :20][own].any()


def test_a_page_is_small_and_loads_nothing():
    rng = np.random.default_rng(0)
    sequence = "".join(rng.choice(list(AMINO_ACIDS), 3000))
    for length, most in ((300, 150_000), (3000, 600_000)):
        e = full(sequence[:length])
        e.map.values[:] = rng.normal(size=(length, 20))
        text = page_text([e])
        assert len(text.encode()) < most
        page = Page(text)
        assert not page.loads and not {"link", "img", "iframe"} & set(page.tags)
        assert not re.search(r"https?://|//cdn|\bimport\b|\bfetch\(|XMLHttpRequest|url\(", text)
        assert "default-src 'none'" in text


def test_any_name_is_text():
    e = full("MKTAYIAK", EVIL)
    page = Page(page_text([full("MKV", "one"), e]))
    assert page.tags.count("script") == 2 and page.tags.count("title") == 1
    assert "b" not in page.tags
    assert [m["label"] for m in page.maps] == ["one", e.label]
    assert e.label.startswith("x</script><!--<b>") and "\u202e" not in e.label
    alone = page_text([e])
    assert Page(alone).tags.count("script") == 2
    assert alone.count("</title>") == 1 and "<!--" not in alone
    # a name of a file is plain
    assert re.fullmatch(r"[\w.=+-]+\.csv", page.maps[1]["file"])


def test_a_page_names_no_file_of_this_disk(tmp_path):
    weights = tmp_path / "secret" / "mine.safetensors"
    weights.parent.mkdir()
    shutil.copy(load_model("carp_600k_sprot50", "cpu").path, weights)
    map_page("MKTAYIAK", tmp_path / "map.html", weights, device="cpu")
    text = (tmp_path / "map.html").read_text()
    assert "secret" not in text and str(tmp_path) not in text
    # the same weights as those that were measured
    assert "measured here" in Page(text).maps[0]["trust"]


def test_what_a_map_lacks_is_said():
    with pytest.warns(UserWarning, match="none of the 20 amino acids"):
        e = full("MKUXAYIAK")
    e.history.do("add", "K2R")
    e.step()
    partly = explore(WILD_TYPE, Blosum62())
    while not partly.map.done.any():
        partly.step()
    missing = (~partly.map.done).sum()
    notes = [m["notes"] for m in Page(page_text([e, partly])).maps]
    assert "without odds: U3, X4" in notes[0] and "Mutant K2R: score" in notes[0]
    assert notes[1] == f"{missing} positions were not computed when the page was saved."


@pytest.mark.parametrize(
    "words, said",
    [
        (["MKTAYIAK", "-o", "map.pdf"], "map.pdf has to end in .html, .png or .svg.\n"),
        (["two.fasta", "-o", "map.png"], "is a picture of one protein and 2 are given; "),
        (["none.fasta", "-o", "map.html"], "none.fasta is not a file; "),
        (["MK*T", "-o", "map.html"], "remove the stop symbol"),
        (["MKTAYIAK", "-o", "map.html", "--model", "carp_1b"], "carp_1b"),
        (["MKTAYIAK", "-o", "folder.html"], "is a folder; give the name of a file in it.\n"),
        (["long.fasta", "-o", "map.html"], "a page holds at most 100,000 residues and these are"),
    ],
)
def test_a_fault_is_one_sentence_and_the_old_file_stays(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("two.fasta").write_text(">a\nMKTAYIAK\n>b\nMKV\n")
    Path("long.fasta").write_text(">a\n" + "MKTAYIAKQR" * 10_001 + "\n")
    Path("folder.html").mkdir()
    for name in ("map.html", "map.png", "map.pdf"):
        Path(name).write_text("old")
    done = CliRunner().invoke(app, ["map", *words])
    assert done.exit_code == 1 and said in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.output
    kept = {p.name: p.read_text() for p in tmp_path.glob("map.*")}
    assert kept == {"map.html": "old", "map.png": "old", "map.pdf": "old"}


def test_a_page_that_fails_half_way_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "map.html").write_text("old")
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises((OSError, CarpError)):
        write_map(full("MKTAYIAK"), tmp_path / "map.html")
    assert [p.name for p in tmp_path.iterdir()] == ["map.html"]
    assert (tmp_path / "map.html").read_text() == "old"


def test_records_that_cannot_be_used_are_left_out_if_asked(tmp_path):
    fasta = tmp_path / "three.fasta"
    fasta.write_text(">a\nMKTAYIAK\n>b\nMK-T\n>c\nMKV\n")
    words = ["map", str(fasta), "-o", str(tmp_path / "map.html"), "--model", "blosum62"]
    assert CliRunner().invoke(app, words).exit_code == 1
    done = CliRunner().invoke(app, [*words, "--skip-bad"])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"a, c by blosum62: {tmp_path / 'map.html'}\n"


# the picture


def test_the_bundle_has_the_widget_and_a_small_picture(monkeypatch):
    monkeypatch.setattr(widget, "_is_watched", lambda: True)
    rng = np.random.default_rng(1)
    view = MutationMap(explore("".join(rng.choice(list(AMINO_ACIDS), 300)), Blosum62()))
    bundle, _ = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    picture = b64decode(bundle["image/png"])
    assert picture.startswith(b"\x89PNG") and len(picture) < 150_000
    assert bundle["text/plain"] == "protein: run this cell to see the map"


def test_the_picture_of_a_long_protein_is_its_beginning():
    picture = widget._draw_picture(explore(WILD_TYPE * 60, Blosum62()))
    assert picture.startswith(b"\x89PNG") and len(picture) < 150_000


def test_the_export_is_the_page():
    class Watched(MutationMap):
        def send(self, content, buffers=None):
            self.__dict__.setdefault("sent", []).append((content, buffers))

    view = Watched(explore(WILD_TYPE, Blosum62()))
    view.wait()
    view.receive({"do": "export", "with": ["html"]})
    name, content = next((c["name"], b[0]) for c, b in view.sent if c["kind"] == "file")
    assert name == "protein-blosum62.html" and content.decode() == page_text([view.explorer])


def test_an_executed_notebook_shows_the_map_without_a_kernel(papermill):
    done = papermill("mutate", model="blosum62")
    assert done.status == 0, done.shown
    notebook = nbformat.read(done.notebook, as_version=4)
    [shown] = [o.data for c in notebook.cells if c.source.endswith("\nview") for o in c.outputs]
    assert set(shown) == {"image/png", "text/plain"}
    picture = "".join(shown["image/png"].split())
    html, _ = HTMLExporter().from_notebook_node(notebook)
    assert picture in html
    cleaned = read_nb(done.notebook)
    clean_nb(cleaned)
    write_nb(cleaned, done.notebook)
    [shown] = [o.data for c in cleaned.cells if c.source.endswith("\nview") for o in c.outputs]
    assert "".join("".join(shown["image/png"]).split()) == picture
    assert picture in HTMLExporter().from_filename(str(done.notebook))[0]


# in a browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=300_000)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    "A function that opens a file in a page without a network; nothing was asked for, no script failed."
    asked, failed, contexts = [], [], []

    def open_page(path: Path, **settings):
        contexts.append(browser.new_context(offline=True, accept_downloads=True, **settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda r: asked.append(r.url))
        page.on("pageerror", lambda e: failed.append(str(e)))
        page.on("console", lambda m: failed.append(m.text) if m.type == "error" else None)
        page.goto(path.as_uri())
        page.wait_for_selector("[data-is=status]:not(:empty)")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not failed
    assert not [url for url in asked if not url.startswith(("file:", "blob:", "data:"))]


def status_has(page, text: str) -> None:
    page.wait_for_function(
        "text => document.querySelector('[data-is=status]').textContent.includes(text)", arg=text
    )


@pytest.fixture(scope="module")
def gb1(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "gb1.html"
    map_page(f">gb1\n{WILD_TYPE}", path, "carp_600k_sprot50", offset=228, device="cpu")
    return path


def test_csv_of_the_page_is_that_of_score_mutants(visit, gb1, tmp_path):
    page = visit(gb1)
    with page.expect_download() as download:
        page.click("#csv")
    assert download.value.suggested_filename == "gb1-carp_600k_sprot50.csv"
    download.value.save_as(tmp_path / "a.csv")
    table = pd.read_csv(tmp_path / "a.csv")
    assert len(table) == 56 * 19
    model = load_model("carp_600k_sprot50", "cpu")
    wanted = score_mutants(model, WILD_TYPE, table.mutant.tolist(), 228)
    # rounded to four decimals, of numbers that are kept with about seven digits
    np.testing.assert_allclose(table.log_odds, wanted, atol=0.5e-4 + 2e-6)
    per_position = table.groupby("position").probability.sum()
    assert ((per_position > 0) & (per_position < 1)).all()
    # p(mutant) = p(wild type) * exp(log-odds), and all of a position are 1
    own = 1 - per_position[table.position].to_numpy()
    np.testing.assert_allclose(table.probability / own, np.exp(table.log_odds), rtol=0.02)


def test_hover_keys_and_search(visit, gb1):
    page = visit(gb1, viewport={"width": 1400, "height": 900})
    page.fill("#go", "t252w")
    page.press("#go", "Enter")
    status_has(page, "T252W")
    status_has(page, "probability 0.")
    # all of it is masked: nothing is pale
    assert "preview" not in page.locator("[data-is=status]").text_content()
    assert page.locator("[data-is=count]").text_content() == "56 positions"
    page.keyboard.press("ArrowRight")
    status_has(page, "A253W")
    page.keyboard.press("Enter")  # mutates nothing here
    box = page.locator("[data-is=map]").bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 200)
    status_has(page, " nats")
    for wrong, said in (
        ("A252W", "residue 252 is T, not A"),
        ("9", "there is no residue 9: the protein has 228 to 283"),
        ("T252X", "X is none of the 20 amino acids"),
        ("?", "?: write a residue number or a substitution"),
    ):
        page.fill("#go", wrong)
        page.click("#find")
        assert said in page.inner_text("#said")
    # nothing on it waits for a kernel
    assert not page.locator("[data-is=error]").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [800, 1400])
def test_both_themes_at_two_widths(visit, gb1, scheme, width, tmp_path):
    page = visit(gb1, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.locator(".cm-root").get_attribute("data-theme") == scheme
    [red, *_] = re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (int(red) < 128) == (scheme == "dark")
    # nothing runs off the page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    other = "light" if scheme == "dark" else "dark"
    page.emulate_media(color_scheme=other)
    page.wait_for_selector(f".cm-root[data-theme={other}]")


def test_several_proteins_and_any_name(visit, tmp_path):
    path = write_map([full("MKTAYIAK", "one"), full("MKV", EVIL)], tmp_path / "two.html")
    page = visit(path)
    assert page.inner_text("h1") == "one"
    page.select_option("#protein", "1")
    assert page.inner_text("h1").startswith("x</script><!--<b>")
    status_has(page, "3 residues")
    page.fill("#go", "2")
    page.press("#go", "Enter")
    status_has(page, "K2K  the wild type")


def test_three_thousand_residues(visit, tmp_path):
    path = write_map(full((WILD_TYPE * 54)[:3000], "long"), tmp_path / "long.html")
    page = visit(path)
    page.fill("#go", "2801")
    page.press("#go", "Enter")
    status_has(page, "M2801M  the wild type")
    page.click("[data-is=all]")
    status_has(page, "M2801M")
