"""The documentation is built without a warning, and asks nothing of anybody outside."""

import ast
import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
LACKING = [name for name in ("sphinx", "myst_nb", "furo") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(LACKING),
    reason=f"{', '.join(LACKING)} not installed: pip install -e '.[docs]' -c constraints.txt",
)


class Page(HTMLParser):
    "What a page links to, what it loads by itself, and the anchors that it has."

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found.get("id"), found.get("name")}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" and found.get("href"):
            self.loads.append(found["href"])
        self.loads += [found[key] for key in ("src", "srcset", "data", "poster") if found.get(key)]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    "Built once; warnings are errors, a broken link between pages among them."
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/docs.py", out],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=out,
    )
    assert done.returncode == 0, done.stdout
    return out


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_notebook_and_how_to_page_and_module_is_there(site, pages):
    sources = [*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("docs/*.md")]
    sources = [p for p in sources if ".ipynb_checkpoints" not in p.parts]
    expected = {p.relative_to(ROOT).with_suffix("").as_posix() for p in sources} - {"docs/index"}
    expected |= {
        f"api/{p.stem}" for p in ROOT.glob("carp_nb/*.py") if not p.stem.startswith("_")
    } | {"index"}
    assert expected <= {path.relative_to(site).with_suffix("").as_posix() for path in pages}


def test_every_kept_run_is_shown_with_its_figures(site):
    for run in ROOT.glob("outputs/*/*/notebook.ipynb"):
        if not (run.parent / "run.json").is_file():
            continue
        page = (site / f"nbs/{run.parent.parent.name}.html").read_text(encoding="utf-8")
        after = page.partition(
            f'Run <code class="docutils literal notranslate"><span class="pre">{run.parent.name}</span></code>'
        )[2]
        outputs = [o for c in nbformat.read(run, as_version=4).cells for o in c.get("outputs", [])]
        assert after and after.partition(">Run <code")[0].count("<img") >= sum(
            "image/png" in o.get("data", {}) for o in outputs
        ), run


def test_reference_has_the_public_names_and_their_comments(site):
    "Names of `__all__` and one parameter's comment, as the module has them now."
    for module in ROOT.glob("carp_nb/[a-z]*.py"):
        names = [
            node.value
            for node in ast.parse(module.read_text()).body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        ]
        page = re.sub(
            r"<[^>]+>", "", (site / f"api/{module.stem}.html").read_text(encoding="utf-8")
        )
        missing = [name for value in names for name in ast.literal_eval(value) if name not in page]
        assert not missing, f"{module.stem}: {missing}"
    comment = re.search(
        r"wild_type: str,\s*# (.+)",
        (ROOT / "carp_nb/scoring.py").read_text().partition("def score_mutants(")[2],
    )[1]
    assert comment in (site / "api/scoring.html").read_text(encoding="utf-8")


def test_links_between_pages_lead_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file() or (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].anchors
            ):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken, broken


def test_pages_load_nothing_from_outside(site, pages):
    outside = re.compile(r"^(?:[a-z]+:)?//", re.I)
    loaded = [
        f"{path.relative_to(site)}: {source}"
        for path, page in pages.items()
        for source in page.loads
        if outside.match(source)
    ]
    loaded += [
        f"{path.relative_to(site)}: {found[0]}"
        for path in site.rglob("*.css")
        for found in re.finditer(
            r"(?:url\(['\"]?|@import ['\"])(?:https?:)?//[^)'\"]+", path.read_text(encoding="utf-8")
        )
    ]
    assert not loaded, loaded
