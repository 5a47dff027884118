"""The table of what substitutions did in other experiments: where it comes from, and how it is used."""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carp_nb.alphabet import AMINO_ACIDS
from carp_nb.datasets import Scan
from carp_nb.errors import CarpError
from carp_nb.scans import SPLIT, ScanFacts, find_inputs
from carp_nb.scorers import EFFECTS, load_scorer, scorer_sha256
from carp_nb.scoring import score_mutants

SCRIPT = Path(__file__).parent.parent / "scripts/substitution_effects.py"


@pytest.fixture
def script(monkeypatch):
    # as a script finds the one beside it
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return runpy.run_path(str(SCRIPT), run_name="effects")


def scan(name: str, scores: dict[str, float], direction: int = 1) -> Scan:
    table = pd.DataFrame({"mutant": list(scores), "score": list(scores.values())})
    return Scan(table, "MKMK", name=name, direction=direction)


def test_the_shipped_table_is_that_of_the_validation_scans(script):
    try:
        scans, _ = find_inputs("validation", "", ScanFacts())
    except (CarpError, FileNotFoundError) as error:
        pytest.skip(f"the validation scans are not here: {error}")
    if {s.name for s in scans} != set(SPLIT[SPLIT.split == "validation"].scan):
        pytest.skip("not all of the validation scans are here")
    shipped = pd.read_csv(EFFECTS, index_col="wild type")
    pd.testing.assert_frame_equal(script["mean_ranks"](scans), shipped)


def test_a_protein_counts_once_and_a_direction_turns_its_ranks(script):
    one = [scan("a_1", {"M1A": 1.0, "M1C": 2.0, "K2A": 3.0})]
    ranks = script["mean_ranks"](one)
    assert ranks.loc["M", ["A", "C"]].tolist() == [0.1667, 0.5]
    assert ranks.loc["K", "A"] == 0.8333
    turned = script["mean_ranks"]([scan("a_1", {"M1A": 1.0, "M1C": 2.0, "K2A": 3.0}, -1)])
    np.testing.assert_allclose(turned.loc["M", ["A", "C"]].astype(float), [0.8333, 0.5])
    # several mutations at once say nothing of one, and what was never measured is missing
    more = script["mean_ranks"]([scan("a_1", {"M1A": 1.0, "M1C": 2.0, "K2A": 3.0, "M1A:K2A": 0})])
    pd.testing.assert_frame_equal(more, ranks)
    assert np.isnan(ranks.loc["W", "A"])
    # two scans of BLAT_ECOLX weigh as much together as the one of another protein
    low = [
        scan(f"BLAT_ECOLX_{year}", {"M1A": 1.0, "M1C": 2.0})
        for year in "Tenaillon2013 Palzkill2012".split()
    ]
    both = script["mean_ranks"]([*low, scan("IF1_ECOLI_Kishony", {"M1A": 2.0, "M1C": 1.0})])
    assert both.loc["M", ["A", "C"]].tolist() == [0.5, 0.5]


def test_scores_are_log_odds_of_the_ranks():
    ranks = pd.read_csv(EFFECTS, index_col="wild type")
    assert list(ranks) == list(ranks.index) == list(AMINO_ACIDS)
    odds = np.log(ranks / (1 - ranks))
    best = odds.max().max()
    table = load_scorer("dms_matrix")
    got = score_mutants(table, "MKW", ["K2R", "W3P", "K2R:W3P", "WT"])
    single = [odds.loc["K", "R"] - best, odds.loc["W", "P"] - best]
    np.testing.assert_allclose(got, [*single, sum(single), 0], rtol=1e-5)
    # a letter that is no amino acid has the mean of all
    (unknown,) = table.log_probs("MXK", [(1,)])
    np.testing.assert_allclose(unknown[0], odds.fillna(best).mean(), rtol=1e-5)


def test_its_checksum_is_that_of_the_file():
    assert len(scorer_sha256(load_scorer("DMS-matrix")) or "") == 64
    assert scorer_sha256(load_scorer("blosum62")) is None
