"""README.md from nbs/index.ipynb: nbconvert's markdown, with links that work from the project's root.

python scripts/readme.py           # write README.md and the figures in README_files/
python scripts/readme.py --check   # exit 1 if they are not what the notebook gives
"""

import argparse
import configparser
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
FIGURES = "README_files"
# only here: the notebook is opened where there is no network, and the docs load nothing from outside
BADGES = """\
[![Python {min_python} or newer](https://img.shields.io/badge/python-{min_python}+-blue)](settings.ini)
[![Code MIT](https://img.shields.io/badge/code-MIT-green)](LICENSE)
[![Paper](https://img.shields.io/badge/paper-10.1016/j.cels.2024.01.008-orange)](https://doi.org/10.1016/j.cels.2024.01.008)
[![Open a map in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/nbs/mutate.ipynb)
"""


def from_root(match: re.Match) -> str:
    "A link relative to nbs/ as a link relative to the root; web addresses, anchors and absolute paths as they are."
    target = match["target"]
    if re.match(r"[a-z][a-z0-9+.-]*:|#|/", target, re.I):
        return match[0]
    return match["open"] + posixpath.normpath(posixpath.join("nbs", target))


def prepare(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "Drop `#| hide` cells and directive lines, and make the links of markdown cells start at the root."
    nb.cells = [cell for cell in nb.cells if not re.search(r"^#\|\s*hide\b", cell.source, re.M)]
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(
                r"""(?P<open>\]\(|(?:src|href)=")(?P<target>[^)"\s]+)""", from_root, cell.source
            )
        else:
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
    nb.metadata.language_info = {
        "name": "python"
    }  # nbdev_clean strips it, code fences are coloured by it
    return nb


def badges() -> str:
    "The badges, with what settings.ini says of the project."
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    return BADGES.format(**settings["DEFAULT"])


def render(nb: nbformat.NotebookNode) -> dict[str, bytes]:
    "The files to write, by path from the root."
    resources = {"unique_key": "README", "output_files_dir": FIGURES}
    text, resources = MarkdownExporter().from_notebook_node(prepare(nb), resources)
    text = re.sub(r"<style.*?</style>\n?", "", text, flags=re.S)  # GitHub shows its content as text
    text = re.sub(r"[ \t]+$", "", text, flags=re.M)
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    title, _, rest = text.partition("\n\n")
    text = f"{title}\n\n{badges()}\n{rest}"
    return {"README.md": text.encode(), **resources["outputs"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args().check
    index = ROOT / "nbs/index.ipynb"
    if not index.exists():
        sys.exit("nbs/index.ipynb is missing, and README.md is made from it.")
    files = render(nbformat.read(index, as_version=4))
    stale = [
        old for old in ROOT.glob(f"{FIGURES}/*") if old.relative_to(ROOT).as_posix() not in files
    ]
    if check:
        different = [
            name
            for name, data in files.items()
            if not (ROOT / name).exists() or (ROOT / name).read_bytes() != data
        ]
        different += [old.relative_to(ROOT).as_posix() for old in stale]
        if different:
            sys.exit(f"{', '.join(different)}: not what nbs/index.ipynb gives; run `make readme`.")
        return
    for old in stale:
        old.unlink()
    for name, data in files.items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(data)
    print("wrote " + ", ".join(files))


if __name__ == "__main__":
    main()
