"""`make demo`: a picture of a protein before and after a model is adapted to its homologs."""

import re
import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from carp_nb import load_model, read_fasta
from carp_nb.adaptation import read_card
from carp_nb.files import in_project

ROOT = Path(__file__).resolve().parent.parent


def test_demo_draws_what_it_has_computed(monkeypatch, tmp_path, capsys):
    def place(path: str) -> Path:
        return tmp_path / "demo" if path.startswith("outputs") else in_project(path)

    monkeypatch.setattr("carp_nb.files.in_project", place)
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", ["demo.py", str(picture), "--updates", "1"])
    runpy.run_path(str(ROOT / "scripts/demo.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert re.search(r"351 homologs .*held-out loss \d\.\d+ -> \d\.\d+ nats", said)
    image = plt.imread(picture)
    assert image.shape[1] > 1500 and image[..., :3].std() > 0.1
    assert picture.read_bytes() == (tmp_path / "demo/map.png").read_bytes()
    weights = tmp_path / "demo/adapted.safetensors"
    assert read_card(weights).query == "P0C8F3" and load_model(weights).name.endswith("_adapted")
    assert (tmp_path / "demo/adapted.md").read_text().startswith("# ")


def test_demo_marks_the_motifs_of_a_kinase():
    demo = runpy.run_path(str(ROOT / "scripts/demo.py"), run_name="demo")
    _, protein = next(read_fasta(in_project("data/homologs/pk1_asfwa.fasta.gz")))
    marks = demo["find_motifs"](protein)
    stretches = {name: protein[first - 1 : last] for name, (first, last) in marks.items()}
    assert stretches == {"catalytic loop": "FIHGDIKDENLII", "DFG": "DFG"}
