"""What someone meets first: an installation with versions that were tested, sizes, a map on Colab."""

import configparser
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import nbformat
import pytest
from packaging.requirements import Requirement

from carp_nb.fetch import stated
from carp_nb.pretrained import PUBLISHED, list_models, shipped_weights

ROOT = Path(__file__).resolve().parent.parent
config = configparser.ConfigParser(delimiters=["="], interpolation=None)
config.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = config["DEFAULT"]


def test_no_untested_biotite_is_installed():
    "From 1.7 on it asks for Python 3.12 and reads PDB files by another library; 2 renamed more."
    wanted = {r.name: r for r in map(Requirement, SETTINGS["requirements"].split())}["biotite"]
    taken = [v for v in ("1.5.0", "1.6.0", "1.7.1", "1.8.0", "2.0.0") if v in wanted.specifier]
    assert taken == ["1.6.0"]


def test_size_is_that_of_the_file(tmp_path, monkeypatch):
    "On this disk, or as it is stated: weights may be kept in half precision, or with more beside."
    (tmp_path / "carp_38m.pt").write_bytes(bytes(1_230_000))
    monkeypatch.setenv("CARP_NB_WEIGHTS", str(tmp_path))
    size = list_models().set_index("name").size_mb
    for name, file in shipped_weights().items():
        assert size[name] == round(file.stat().st_size / 1e6, 1)
    assert size["carp_38m"] == 1.2
    assert size["esm1b"] == round(stated(PUBLISHED["esm1b"].url).bytes / 1e6, 1) == 7828.6


@pytest.mark.parametrize("modules", [{}, {"google.colab": None}])
def test_first_cell_installs_on_colab_alone(modules):
    "A badge opens the map there, and its first cell of code finds no carp_nb."
    cells = nbformat.read(ROOT / "nbs" / "mutate.ipynb", as_version=4).cells
    first = next(cell for cell in cells if cell.cell_type == "code")
    asked = []
    shell = SimpleNamespace(run_line_magic=lambda *words: asked.append(words))
    names = {"get_ipython": lambda: shell}
    with mock.patch.dict(sys.modules, modules):
        exec(first.source, names)
    # a variable left behind would be taken for a parameter
    assert set(names) == {"get_ipython", "sys", "__builtins__"}
    assert len(asked) == len(modules)
    for magic, words in asked:
        assert magic == "pip"
        assert shlex.split(words)[-1] == f"{SETTINGS['repo']} @ git+{SETTINGS['git_url']}"
