"""The mutation map from outside: many actions at random, a kernel that stays free, and
mutate.ipynb as papermill runs it.
"""

import threading
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carp_nb.alphabet import AMINO_ACIDS
from carp_nb.defaults import DEFAULT_MODEL
from carp_nb.editing import History, Mutant, read_state, write_state
from carp_nb.errors import CarpError
from carp_nb.explorer import Explorer, explore
from carp_nb.pretrained import load_model
from carp_nb.scorers import Blosum62
from carp_nb.scoring import score_mutants
from carp_nb.widget import MutationMap

WILD_TYPE = "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
MINUTE = 60  # seconds after which a thread is held to be stuck
POSITION = st.integers(-2, 60)
STEP = st.one_of(
    st.tuples(st.just("toggle"), POSITION, st.sampled_from(AMINO_ACIDS + AMINO_ACIDS.lower())),
    st.tuples(
        st.just("freeze"), st.lists(POSITION, max_size=3).map(lambda p: ",".join(map(str, p)))
    ),
    st.tuples(st.just("allow"), st.text(AMINO_ACIDS, min_size=1, max_size=6)),
    st.tuples(
        st.just("renumber"),
        st.one_of(st.integers(-10, 500), st.sampled_from(["", "abc", "24", 2.7, 7.0])),
    ),
    st.tuples(st.just("reset")),
    st.tuples(st.just("undo")),
    st.tuples(st.just("redo")),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=25))
def test_any_actions_leave_a_mutant_that_can_be_written_and_undone(steps):
    history = History(Mutant(WILD_TYPE))
    for name, *arguments in steps:
        before = history.now
        try:
            getattr(history, name)() if name in ("undo", "redo") else history.do(name, *arguments)
        except ValueError:
            assert history.now == before
        now = history.now
        assert all(now.wild_type[i] != letter for i, letter in now.mutations)
        assert (
            now.frozen == before.frozen or now.mutations == before.mutations
        )  # freezing mutates nothing
        if name == "toggle":
            assert not {i for i, _ in set(now.mutations) ^ set(before.mutations)} & now.frozen
        assert read_state(write_state(now))[0] == now
        assert history.do("add", now.text) == now  # what is in can be added again, frozen or not
        assert score_mutants(Blosum62(), WILD_TYPE, [now.text], now.offset).shape == (1,)
    while history.past:
        history.undo()
    assert history.now == Mutant(WILD_TYPE)


def test_score_is_that_of_score_mutants_for_many_mutants():
    model, rng = load_model("carp_600k_sprot50", "cpu"), np.random.default_rng(0)
    explorer = Explorer(model, Mutant(WILD_TYPE, 228))
    explorer.cancelled = True
    for n in range(1, 6):
        explorer.history.do("reset")
        for i in rng.choice(len(WILD_TYPE), n, replace=False):
            explorer.history.do(
                "toggle",
                int(i) + 228,
                next(a for a in rng.permutation(list(AMINO_ACIDS)) if a != WILD_TYPE[i]),
            )
        while explorer.step():
            pass
        found, text = explorer.summary, explorer.mutant.text
        np.testing.assert_allclose(
            found["score"], score_mutants(model, WILD_TYPE, [text], 228)[0], atol=1e-5
        )
        np.testing.assert_allclose(
            found["sum"], score_mutants(model, WILD_TYPE, [text], 228, "masked-each")[0], atol=1e-4
        )


class Held(Blosum62):
    "A model that says when it is asked, and answers when it is allowed to."

    def __init__(self):
        super().__init__()
        self.asked, self.allowed = threading.Semaphore(0), threading.Semaphore(0)

    def log_probs(self, wild_type, masked, at=None):
        self.asked.release()
        self.allowed.acquire()
        return super().log_probs(wild_type, masked, at)

    def answer(self) -> None:
        "Answer one question, and wait for the next."
        self.allowed.release()
        assert self.asked.acquire(timeout=MINUTE)

    def release(self) -> None:
        "Answer whatever is asked until the next `hold`."
        self.allowed.release(10_000)

    def hold(self) -> None:
        self.asked, self.allowed = threading.Semaphore(0), threading.Semaphore(0)


class Kept(MutationMap):
    "A view whose messages are kept."

    def send(self, content, buffers=None):
        self.__dict__.setdefault("sent", []).append(content)


def test_long_protein_is_interrupted_by_a_click_and_by_cancel():
    model = Held()
    view = Kept(Explorer(model, Mutant(WILD_TYPE * 54)))  # 3,024 residues
    done = view.explorer.map.done
    assert model.asked.acquire(timeout=MINUTE)
    click = threading.Thread(
        target=view.receive, args=[{"do": "toggle", "with": [3000, "W"]}], daemon=True
    )
    click.start()
    click.join(MINUTE)
    assert not click.is_alive()  # the caller is free while the model works
    assert view.explorer.summary["score"] is None
    model.answer()  # what was in hand, the preview
    model.answer()  # the click, before the rest of the map
    assert view.explorer.summary["score"] is not None and done.sum() == 0
    model.answer()  # its single mutant, for the sum
    assert done.sum() == 1
    view.receive({"do": "cancel"})
    model.release()
    view.wait(MINUTE)
    assert view._thread is None and done.sum() < 20
    before = done.sum()
    model.hold()
    view.receive({"do": "resume"})
    assert model.asked.acquire(timeout=MINUTE)
    model.answer()
    assert done.sum() > before
    view.receive({"do": "cancel"})
    model.release()
    view.wait(MINUTE)
    assert view._thread is None and done.sum() < 3024


def test_clicks_from_several_threads_are_all_answered():
    view = Kept(Explorer(Blosum62(), Mutant(WILD_TYPE)))
    letters = [next(a for a in "AW" if a != wt) for wt in WILD_TYPE]
    hands = [
        threading.Thread(
            target=lambda part=part: [
                view.receive({"do": "toggle", "with": [i + 1, letters[i]]}) for i in part
            ]
        )
        for part in np.array_split(range(len(WILD_TYPE)), 4)
    ]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()
    view.wait(MINUTE)
    assert len(view.explorer.mutant.mutations) == len(WILD_TYPE) and view.explorer.map.done.all()
    assert (
        view.sent[-1]["busy"] is False
        and view.sent[-1]["mutant"] == view.explorer.mutant.text
        and view.sent[-1]["score"] is not None
    )


def test_a_page_that_opens_while_rows_arrive_gets_them_all():
    class Slow(Kept):
        def _send_protein(self):
            # an update by the thread at work, while the protein is being described
            thread = threading.Thread(target=self._send_update)
            thread.start()
            thread.join(0.5)
            super()._send_protein()

        def send(self, content, buffers=None):
            rows = 0
            if content["kind"] == "now" and buffers:
                rows = len(buffers[0]) // 4
            super().send({**content, "rows": rows})

    view = Slow(Explorer(Blosum62(), Mutant(WILD_TYPE)))
    view.wait(MINUTE)
    view.sent.clear()
    view.receive({"do": "hello"})
    view.wait(MINUTE)
    kinds = [m["kind"] for m in view.sent]
    # the page knows no protein before that message, and forgets all rows with it
    after = view.sent[kinds.index("protein") :]
    assert sum(m["rows"] for m in after) == len(WILD_TYPE)


def test_a_failing_model_is_told_once_and_ends():
    class Broken(Blosum62):
        def log_probs(self, wild_type, masked, at=None):
            raise RuntimeError("out of memory")

    view = Kept(Explorer(Broken(), Mutant(WILD_TYPE)))
    with pytest.raises(RuntimeError, match="out of memory"):
        view.wait(MINUTE)
    told = [m["text"] for m in view.sent if m["kind"] == "error"]
    assert told == ["RuntimeError: out of memory"] and view._thread is None
    view.receive({"do": "toggle", "with": [3, "W"]})
    with pytest.raises(RuntimeError, match="out of memory"):
        view.wait(MINUTE)
    assert view._thread is None


def test_a_page_that_opens_after_a_failure_is_told_and_can_go_on(tmp_path):
    alignment = tmp_path / "short.a3m"
    alignment.write_text(f">part\n{WILD_TYPE[5:40]}\n>other\n-{WILD_TYPE[6:40]}\n")
    view = Kept(explore(WILD_TYPE, str(alignment)))
    with pytest.raises(CarpError, match="positions lie outside the alignment"):
        view.wait(MINUTE)
    # what a notebook shows does not fail with it
    assert "image/png" in view._repr_mimebundle_()[0]
    view.sent.clear()
    view.receive({"do": "hello"})
    assert [m["kind"] for m in view.sent][-2:] == ["now", "error"]
    view.receive({"do": "open", "with": [{"model": "blosum62"}]})
    assert view.wait(MINUTE).map.done.all()
    view.sent.clear()
    view.receive({"do": "hello"})
    assert "error" not in [m["kind"] for m in view.sent]


def homologs(n: int) -> str:
    "Sequences that differ from the wild type in a few places, as a FASTA file, the wild type first."
    rng = np.random.default_rng(0)
    records = [f">gb1\n{WILD_TYPE}\n"]
    for i in range(n):
        letters = np.array(list(WILD_TYPE))
        places = rng.choice(len(letters), rng.integers(4, 25), replace=False)
        letters[places] = rng.choice(list(AMINO_ACIDS), len(places))
        records.append(f">h{i}\n{''.join(letters)}\n")
    return "".join(records)


def test_model_of_a_map_is_adapted_and_the_one_before_comes_back(monkeypatch):
    adaptation = pytest.importorskip("carp_nb.adaptation")
    few = partial(adaptation.AdaptConfig, updates=3, batch_tokens=200)
    monkeypatch.setattr(adaptation, "AdaptConfig", few)
    first = Explorer(load_model("carp_600k_sprot50", "cpu"), Mutant(WILD_TYPE))
    view = Kept(first, device="cpu", dtype="float32")
    view.wait(MINUTE)
    before = view.explorer.map.values.copy()
    view.receive({"do": "add", "with": ["T25W"]})
    ask = {"do": "adapt", "with": [{"name": "gb1.a3m", "text": homologs(20)}]}
    view.receive(ask)
    view.receive(ask)  # one at a time
    view.receive({"do": "stop"})
    view.wait(MINUTE)
    told = [m["text"] for m in view.sent if m["kind"] == "error"]
    assert "being adapted already" in told[0] and "stop" in told[1] and len(told) == 2
    assert view.explorer.source == "carp_600k_sprot50" and view._job is None
    view.receive(ask)
    view.wait(MINUTE)
    name = "carp_600k_sprot50-protein-adapted"
    assert (view.explorer.source, view.explorer.mutant.text) == (name, "T25W")
    assert np.abs(view.explorer.map.values - before).max() > 0.01
    protein = [m for m in view.sent if m["kind"] == "protein"][-1]
    assert "adapted from carp_600k_sprot50 to 20 homologs" in protein["trust"]
    assert {name, "carp_600k_sprot50"} <= set(protein["models"])
    view.receive({"do": "open", "with": [{"model": "carp_600k_sprot50"}]})
    view.wait(MINUTE)
    np.testing.assert_allclose(view.explorer.map.values, before, atol=1e-4)
    view.receive({"do": "open", "with": [{"model": name}]})
    view.wait(MINUTE)
    assert view.explorer.source == name


@pytest.mark.parametrize(
    "family", [{"path": " "}, {"path": "/nowhere.a3m"}, {"name": "x.a3m", "text": ""}]
)
def test_a_family_that_is_none_is_told(family):
    pytest.importorskip("carp_nb.adaptation")
    view = Kept(Explorer(load_model("carp_600k_sprot50", "cpu"), Mutant("MKTAYI")))
    view.receive({"do": "adapt", "with": [family]})
    view.wait(MINUTE)
    assert len([m for m in view.sent if m["kind"] == "error"]) == 1
    assert view._job is None and view.explorer.map.done.all()


def test_mutate_notebook_ends_with_what_stopped_the_map(papermill, tmp_path):
    alignment = tmp_path / "short.a3m"
    alignment.write_text(f">part\n{WILD_TYPE[5:40]}\n>other\n-{WILD_TYPE[6:40]}\n")
    done = papermill("mutate", sequence=WILD_TYPE, model=alignment)
    assert done.status == 1 and "positions lie outside the alignment" in done.shown
    assert not list(done.out.glob("*.png"))


def test_mutate_notebook_exports(papermill):
    done = papermill(
        "mutate", sequence=WILD_TYPE, offset=228, mutant="T252W:D267E", dtype="float32"
    )
    assert done.status == 0, done.shown
    table = pd.read_csv(next(done.out.glob("*.csv")))
    assert table[table.in_mutant].mutant.tolist() == ["T252W", "D267E"] and len(table) == 56 * 19
    mutant, others = read_state(next(done.out.glob("*.txt")).read_text())
    assert mutant.text == "T252W:D267E" and others["model"] == DEFAULT_MODEL
