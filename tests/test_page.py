"""What the page of the mutation map shows for what the kernel sends, under node: no browser needed."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from carp_nb.alphabet import AMINO_ACIDS
from carp_nb.datasets import load_dataset
from carp_nb.editing import Mutant
from carp_nb.explorer import Explorer
from carp_nb.files import package_folder
from carp_nb.scorers import Blosum62
from carp_nb.widget import MutationMap

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")
STATIC = package_folder("static")
WILD_TYPE = "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
ROWS = "GAVLIMPCFWYSTNQHKRDE"


class Told(MutationMap):
    "A view whose messages are kept as steps of page.mjs."

    def send(self, content, buffers=None):
        kept = [base64.b64encode(bytes(b)).decode() for b in buffers or []]
        self.__dict__.setdefault("told", []).append({"message": content, "buffers": kept})


def messages(explorer: Explorer) -> list[dict]:
    "What the kernel tells a page that opens a full map."
    view = Told(explorer)
    view.wait(60)
    view.told.clear()
    view.receive({"do": "hello"})
    view.wait(60)
    return view.told


def show(steps: list[dict], **first) -> list[dict]:
    "What the page shows after each step; the first one opens it."
    done = subprocess.run(
        [NODE, Path(__file__).parent / "page.mjs", STATIC / "structure.js", STATIC / "map.js"],
        input=json.dumps([first, *steps], allow_nan=False),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def letters(shown: dict) -> list[str]:
    "The letters in front of the rows, if nothing cuts them off."
    return [
        t["text"] for t in shown["map"] if t["right"] < 60 and not t["clips"] and t["text"] in ROWS
    ]


ODD = {
    "X inside": "MKXAYI",
    "X first": "XMKAYI",
    "X last": "MKAYIX",
    "B, U, Z, O, J": "MBKUAZYOIJ",
    "nothing but X": "X",
    "one residue": "M",
    "two": "MK",
    "X in front of a long one": "X" * 300 + WILD_TYPE * 20,
}


@pytest.mark.parametrize("name", ODD)
def test_any_letters_are_drawn_and_the_next_protein_too(name):
    odd, plain = (
        messages(Explorer(Blosum62(), Mutant(ODD[name]))),
        messages(Explorer(Blosum62(), Mutant(WILD_TYPE))),
    )
    *_, first = show(odd)
    *_, then = show(odd + plain)
    for shown in (first, then):
        assert not shown["errors"] and not shown["error"] and not shown["open"]
        assert letters(shown) == list(ROWS)


def test_a_residue_without_odds_says_so():
    at_x = [{"hover": [34 + 26 * 2 + 13, 76 + 20]}]
    *_, shown = show(messages(Explorer(Blosum62(), Mutant("MKXAYI"))) + [{"click": "all"}, *at_x])
    assert (
        "X3" in shown["words"]["status"]
        and "none of the 20 amino acids" in shown["words"]["status"]
    )
