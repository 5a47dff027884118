"""Insertions and deletions: the sequence that a name stands for, and its pseudo-likelihood."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carp_nb.alphabet import AMINO_ACIDS, PROTEIN
from carp_nb.carp import CARP, CARPConfig
from carp_nb.errors import CarpError
from carp_nb.esm import ESM, ESMConfig
from carp_nb.homologs import PSSM
from carp_nb.indels import mutated_sequence, pseudo_log_likelihood
from carp_nb.mutant_tables import read_mutant_table, score_table
from carp_nb.scorers import Blosum62
from carp_nb.scoring import score_mutants

CASES = Path(__file__).parent / "cases"
GB1 = "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
PSEUDO = "pseudo-likelihood"
THREE = dict(zip(AMINO_ACIDS, "Ala Cys Asp Glu Phe Gly His Ile Lys Leu Met Asn".split()))
THREE |= dict(zip("PQRSTVWY", "Pro Gln Arg Ser Thr Val Trp Tyr".split()))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    # a receptive field narrower than the protein, so that the incremental way is taken
    return CARP(CARPConfig(16, 3, r=2), "small").eval()


@torch.no_grad()
def one_by_one(model, sequence: str) -> float:
    "The sum by its definition: one row per masked residue."
    tokens = PROTEIN.encode(sequence)
    masked = tokens.repeat(len(tokens), 1).fill_diagonal_(PROTEIN.mask_idx)
    at = range(len(tokens))
    return float(model(masked)[at, at].double().log_softmax(-1)[at, tokens].sum())


@pytest.mark.parametrize("sequence", [GB1, GB1[:9], 2 * GB1], ids=len)
def test_the_sum_is_that_of_one_pass_per_residue(model, sequence):
    expected = one_by_one(model, sequence)
    got = pseudo_log_likelihood(model, sequence)
    assert abs(got - expected) / len(sequence) < 1e-5


def test_a_transformer_is_scored_by_plain_batches():
    torch.manual_seed(0)
    esm = ESM(ESMConfig(16, 2, 2, 32), "small").eval()
    whole = torch.cat(esm.log_probs(GB1, [(i,) for i in range(len(GB1))]))
    expected = sum(float(row[AMINO_ACIDS.index(x)]) for row, x in zip(whole, GB1))
    assert pseudo_log_likelihood(esm, GB1) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("long_names", [False, True])
@settings(max_examples=30, deadline=None)
@given(
    start=st.integers(0, 50),
    taken=st.integers(1, 5),
    put=st.text(AMINO_ACIDS, min_size=1, max_size=4),
    offset=st.integers(-60, 300),
)
def test_names_stand_for_the_sequence_that_they_say(long_names, start, taken, put, offset):
    def name(letters):
        return "".join(THREE[x] for x in letters) if long_names else letters

    stop = start + taken
    first = f"{name(GB1[start])}{start + offset}"
    last = f"{name(GB1[stop - 1])}{stop - 1 + offset}"
    after = f"{name(GB1[start + 1])}{start + 1 + offset}"
    stretch = first if taken == 1 else f"{first}_{last}"
    prefix = "p." if long_names else ""
    for mutant, sequence in {
        f"{stretch}del": GB1[:start] + GB1[stop:],
        f"{stretch}del{name(GB1[start:stop])}": GB1[:start] + GB1[stop:],
        f"{stretch}dup": GB1[:stop] + GB1[start:stop] + GB1[stop:],
        f"{stretch}delins{name(put)}": GB1[:start] + put + GB1[stop:],
        f"{first}_{after}ins{name(put)}": GB1[: start + 1] + put + GB1[start + 1 :],
    }.items():
        assert mutated_sequence(prefix + mutant, GB1, offset) == sequence
    assert mutated_sequence(sequence, GB1, offset) == sequence


@pytest.mark.parametrize(
    ("mutant", "reason"),
    [
        ("p.Tyr3Ter", "stop codon"),
        ("p.Tyr3_Lys4insGlnTer", "ends the protein"),
        ("p.Tyr3_Lys4insALA", "one or three residues"),
        ("p.Tyr3_Lys4ins5", "which residues stand where"),
        ("p.Tyr3_Lys4insXaa", "not made of the 20"),
        ("p.Tyr3fs", "which residues stand where"),
        ("p.Met1ext-5", "which residues stand where"),
        ("p.Met1?", "not known"),
        ("p.Ala3del", "the wild type has Y at position 3"),
        ("p.Tyr3_Lys4delTyr", "it names Tyr where the wild type has YK"),
        ("p.Lys4_Tyr3del", "does not stand before"),
        ("p.Tyr3insGln", "between two neighbours"),
        ("p.Glu56_Gly57del", "outside the wild type"),
        ("M1_E56del", "no residue is left"),
        ("Y3del:Y3A", "meet at one place"),
        ("24del", "which residues stand where"),
        ("Y3_\u212a4insA", "plain letter"),
        (GB1 + "X", "gains or loses X"),
        ("FRAMESHIFT", "not a substitution"),
    ],
)
def test_what_has_no_sequence_is_refused_in_one_sentence(mutant, reason):
    with pytest.raises(CarpError, match=reason) as refused:
        mutated_sequence(mutant, GB1)
    assert GB1 not in str(refused.value)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=20), st.text("AK2_3delinsupGQ.p()[;]:", max_size=20)))
def test_any_text_is_a_sequence_or_one_sentence(text):
    try:
        assert set(mutated_sequence(text, GB1)) <= set(AMINO_ACIDS)
    except CarpError as error:
        assert "\n" not in str(error).strip() or "\n" in text


def test_proteingym_and_mavedb_come_back_with_scores(model):
    for name in ("m_indel.csv", "d_mave_del.csv"):
        before = read_mutant_table(CASES / name, GB1)
        after = score_table(model, GB1, before, method=PSEUDO)
        pd.testing.assert_frame_equal(after[before.table.columns], before.table)
        assert (after.note == "").all() and after.score_per_residue.notna().all()
        score = "model_score" if "score" in before.table else "score"
        sequences = {
            "m_indel.csv": [GB1[:5] + GB1[6:], GB1[:5] + "A" + GB1[5:]],
            "d_mave_del.csv": ["MA" + GB1[2:], GB1[:2] + GB1[3:]],
        }[name]
        wild = one_by_one(model, GB1)
        expected = [one_by_one(model, s) - wild for s in sequences]
        np.testing.assert_allclose(after[score], expected, atol=6e-4)


def test_without_the_method_they_are_counted_and_not_repeated(model):
    for name, count in (("m_indel.csv", 2), ("d_mave_del.csv", 1)):
        table = read_mutant_table(CASES / name, GB1)
        with pytest.raises(CarpError, match=f"--method {PSEUDO}.* {count} of them") as refused:
            score_table(model, GB1, table)
        assert GB1[8:40] not in str(refused.value)
        kept = score_table(model, GB1, table, skip_bad=True)
        assert (kept.note != "").sum() == count


def test_a_mixed_list_is_scored_by_one_method_and_each_sequence_once(model, monkeypatch):
    asked = []
    once = pseudo_log_likelihood
    monkeypatch.setattr(
        "carp_nb.indels.pseudo_log_likelihood",
        lambda model, sequence, bar: asked.append(sequence) or once(model, sequence, bar),
    )
    # either of two neighbours that are the same may be taken out
    mutants = ["WT", "Q2A", "T16del", "T17del", "T18del", "p.Gln2Ala"]
    scores = score_mutants(model, GB1, mutants, method=PSEUDO)
    assert len(asked) == len(set(asked)) == 3
    assert scores[0] == 0 and len(set(scores[2:5])) == 1 and scores[1] == scores[5]
    assert abs(scores[1] - score_mutants(model, GB1, ["Q2A"])[0]) > 1e-4


def test_models_that_do_not_mask_are_refused(tmp_path):
    alignment = tmp_path / "a.fasta"
    alignment.write_text(f">q\n{GB1}\n>h\n{GB1[:-1]}D\n")
    for scorer in (Blosum62(), PSSM.from_alignment(alignment)):
        with pytest.raises(CarpError, match="not a masked language model"):
            score_mutants(scorer, GB1, ["Q2del"], method=PSEUDO)


def test_another_protein_is_noticed(model):
    with pytest.warns(UserWarning, match="make sure that this is their wild type"):
        score_mutants(model, GB1, [GB1[20:] + "A"], method=PSEUDO)
