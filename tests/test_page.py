"""What the page of the mutation map shows for what the kernel sends, under node: no browser needed."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carp_nb.alphabet import AMINO_ACIDS
from carp_nb.datasets import Scan
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


def scan_of(wild_type: str, offset: int = 1000) -> Scan:
    "Made-up measurements of its first residue."
    names = [f"{wild_type[0]}{offset}{a}" for a in AMINO_ACIDS if a != wild_type[0]]
    table = pd.DataFrame({"mutant": names, "score": np.arange(19.0)})
    return Scan(table, wild_type, offset)


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
    at_x = [{"hover": [42 + 26 * 2 + 13, 76 + 20]}]
    *_, shown = show([*messages(Explorer(Blosum62(), Mutant("MKXAYI"))), {"click": "all"}, *at_x])
    assert (
        "X3" in shown["words"]["status"]
        and "none of the 20 amino acids" in shown["words"]["status"]
    )


@pytest.fixture(scope="module")
def full():
    "What opens a full map."
    return messages(Explorer(Blosum62(), Mutant(WILD_TYPE)))


def test_a_page_says_that_it_is_starting(full):
    opened, late, _, answered = show([{"wait": 9000}, *full[:2]])
    assert opened["root"]["life"] == "starting" and opened["words"]["count"] == "starting …"
    assert late["root"]["life"] == "silent" and "No answer from the kernel" in late["error"]
    assert answered["root"]["life"] == "open" and not answered["error"]


@pytest.mark.parametrize("end", [{"live": False}, {"send": "fails", "click": "undo"}])
def test_a_page_whose_kernel_is_gone_says_so_and_stays_so(full, end):
    *_, gone, clicked, later = show([*full, end, {"click": "csv"}, {"wait": 60_000}])
    for shown in (gone, clicked, later):
        assert shown["root"]["life"] == "gone" and not shown["errors"]
        assert shown["error"] == "The kernel is gone: run the cell again."
    assert not clicked["sent"]
    assert all(name in clicked["inert"] for name in ("cm-bar", "cm-body"))


def test_a_page_whose_kernel_comes_back_asks_for_everything(full):
    *_, gone, back, opened = show([*full, {"live": False}, {"live": True}, full[0]])
    assert gone["root"]["life"] == "gone" and back["sent"] == [{"do": "hello", "with": []}]
    assert opened["root"]["life"] == "open" and not opened["error"] and not opened["inert"]


def test_a_silent_kernel_is_told_apart_from_one_that_answers(full):
    *_, silent, heard = show([*full, {"click": "undo", "wait": 9000}, full[-1]])
    assert silent["root"]["life"] == "silent" and "run the cell again" in silent["error"]
    assert heard["root"]["life"] == "open" and not heard["error"]


def test_a_page_that_waits_for_results_asks_whether_anybody_is_there(full):
    busy = {**full[-1], "message": {**full[-1]["message"], "busy": True}}
    *_, asked, silent = show([*full, busy, {"wait": 21_000}, {"wait": 9000}])
    assert {"do": "ping", "with": []} in asked["sent"] and silent["root"]["life"] == "silent"
    *_, over = show([*full, {"wait": 21_000}, {"over": True}])  # and one that is used again
    assert over["sent"] == [{"do": "ping", "with": []}]


THEMES = [
    ({"data-jp-theme-light": "true"}, True, "light"),
    ({"data-jp-theme-light": "false"}, False, "dark"),
    ({"class": "vscode-dark", "data-vscode-theme-kind": "vscode-dark"}, False, "dark"),
    ({"class": "vscode-light", "data-vscode-theme-kind": "vscode-light"}, True, "light"),
    ({"class": "vscode-high-contrast"}, False, "dark"),
    ({"class": "vscode-high-contrast vscode-high-contrast-light"}, True, "light"),
    ({"data-theme": "dark"}, False, "dark"),
    ({"data-theme": "auto"}, True, "dark"),
    ({}, True, "dark"),
    ({}, False, "light"),
]


@pytest.mark.parametrize(("body", "machine_is_dark", "theme"), THEMES)
def test_theme_is_that_of_the_page_around(body, machine_is_dark, theme):
    (shown,) = show([], body=body, dark=machine_is_dark)
    assert shown["root"]["theme"] == theme


def test_theme_follows_a_switch(full):
    *_, light, dark = show(
        [*full, {"body": {"class": "vscode-light"}}, {"body": {"class": "vscode-dark"}}]
    )
    assert (light["root"]["theme"], dark["root"]["theme"]) == ("light", "dark")


def test_a_preview_is_pale_and_replaced_column_by_column():
    e = Explorer(Blosum62(), Mutant(WILD_TYPE))
    told = []
    for steps in (1, 1, 60):  # the preview, two positions, the rest
        e.cancelled = False
        for _ in range(steps):
            e.step()
        e.cancelled = True
        told.append(messages(e))
    at_the_end = {"hover": [42 + 13 * 20, 200]}
    *_, preview, hovered = show([*told[0], at_the_end])
    *_, partial = show([*told[0], *told[1]])
    *_, full = show([*told[0], *told[2], at_the_end])
    assert preview["words"]["count"] == "0 of 56 positions; pale: preview"
    assert "(preview)" in hovered["words"]["status"]
    assert "(preview)" not in full["words"]["status"] and "nats" in full["words"]["status"]
    assert partial["words"]["count"] == "2 of 56 positions; pale: preview"
    assert full["words"]["count"] == "56 positions"
    opaque = [
        [image[4 * i + 3] for i in range(56)]
        for image in (preview["pixels"], partial["pixels"], full["pixels"])
    ]
    assert set(opaque[0]) == {128} and set(opaque[2]) == {255}
    assert opaque[1] == [255, 255] + [128] * 54
    # nothing but the colours comes from a preview
    assert preview["words"]["additions"] != full["words"]["additions"]
    assert "of 0 singles so far" in preview["words"]["numbers"]


def test_time_left_is_said_while_the_map_fills(full):
    now = full[-1]["message"]
    for seconds, words in [
        (4, "about 5 s left"),
        (61, "about 60 s left"),
        (400, "about 7 min left"),
        (9000, "about 2.5 h left"),
    ]:
        busy = {**full[-1], "message": {**now, "busy": True, "done": 10, "seconds_left": seconds}}
        assert words in show([*full, busy])[-1]["words"]["count"]
    waiting = {**full[-1], "message": {**now, "busy": True, "done": 10, "seconds_left": None}}
    assert "left" not in show([*full, waiting])[-1]["words"]["count"]


def test_exported_picture_has_the_rows_of_the_map(full):
    drawn = letters(show(full)[-1])
    e = Explorer(Blosum62(), Mutant(WILD_TYPE))
    ticks = [t.get_text() for t in e.figure().axes[0].get_yticklabels()]
    assert drawn == ticks == list(ROWS)


def test_first_residue_of_a_fragment_is_not_offered_as_methionine(full):
    e = Explorer(Blosum62(), Mutant(WILD_TYPE[1:], offset=2))
    *_, shown = show(messages(e))
    assert "Q2M is not offered" in shown["words"]["additions"]
    assert "Q2M" not in e.additions(2000).mutation.tolist()
    e.history.do("add", "Q2M")  # by hand it can be put in
    assert e.mutant.text == "Q2M"
    assert "not offered" not in show(full)[-1]["words"]["additions"]


@pytest.mark.parametrize("width", [300, 500, 760, 1400])
@pytest.mark.parametrize("length", [1, 56, 1100])
def test_no_label_is_cut_off(width, length):
    wild_type = (WILD_TYPE * 20)[:length]
    e = Explorer(Blosum62(), Mutant(wild_type, offset=1000), scan_of(wild_type))
    *_, shown = show([*messages(e), {"click": "all"}], width=width)
    for canvas in ("map", "legend"):
        for label in shown[canvas]:
            if not label["clips"]:
                assert label["left"] >= 0 and label["right"] <= shown["width"][canvas], label


def test_page_shows_an_adaptation_and_can_stop_it(full):
    far = {"message": {"kind": "adapting", "update": 150, "updates": 300, "loss": "2.41"}}
    begun = {"message": {"kind": "adapting", "update": 0, "updates": 0, "loss": ""}}
    steps = [
        {"click": "adapt"},
        {**begun, "wait": 30_000},
        far,
        {"click": "adapt"},
        {"message": {"kind": "adapted"}},
    ]
    asked, reading, half, stopped, over = show([*full, *steps])[-5:]
    assert asked["sent"] == [{"do": "adapt", "with": [{"path": ""}]}]
    assert reading["words"]["adapt"] == "Stop" and "reading" in reading["words"]["adaptnote"]
    assert half["words"]["adaptnote"].startswith("update 150 of 300, loss 2.41, about 30 s left")
    assert stopped["sent"] == [{"do": "stop", "with": []}]
    assert over["words"]["adapt"] == "Adapt" and not over["words"]["adaptnote"].startswith("update")


def test_page_says_how_far_the_model_can_be_trusted(full):
    *_, shown = show(full)
    assert shown["words"]["trust"].startswith("blosum62: mean Spearman ")
