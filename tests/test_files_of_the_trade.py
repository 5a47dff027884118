"""Plain files as programs and people write them: read right, or refused in one sentence.

The files in tests/cases were made for these tests; each is a few lines that once failed or misled.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carp_nb.assays import read_assay
from carp_nb.baselines import Blosum62
from carp_nb.datasets import read_dms
from carp_nb.errors import CarpError
from carp_nb.mutant_tables import read_mutant_table, score_table
from carp_nb.mutants import parse_mutant
from carp_nb.readers import read_aligned, read_alignment, read_fasta, table_lines
from carp_nb.scoring import mutation_scan
from carp_nb.tasks import read_labelled

CASES = Path(__file__).parent / "cases"
GB1 = "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"


@pytest.mark.parametrize("name", ["plain.fa", "comment.fa", "cr.fa", "wronggz.fa"])
def test_fasta_dialects_hold_the_same_protein(name):
    assert [sequence for _, sequence in read_fasta(CASES / name)] == [GB1]


def test_a_stop_at_the_end_is_left_out_with_a_note():
    with pytest.warns(UserWarning, match="stop codon"):
        assert [sequence for _, sequence in read_fasta(CASES / "star.fa")] == [GB1]


def test_dna_is_noticed():
    with pytest.warns(UserWarning, match="looks like DNA"):
        list(read_fasta(CASES / "dna.fna"))


def test_a_file_that_is_not_the_gzip_of_its_name_is_read_by_content():
    assert len(list(table_lines(CASES / "notgz2.csv.gz"))) > 1


def test_rare_residues_are_left_out_of_a_scan():
    ((_, sequence),) = read_fasta(CASES / "U.fa")
    scan = mutation_scan(Blosum62(), sequence)
    assert scan.index[scan.isna().all(axis=1)].tolist() == [sequence.index("U") + 1]


@pytest.mark.parametrize("name", ["a_plain.a3m", "a_colabfold.a3m", "a_hh.a3m"])
def test_alignments_have_their_query(name):
    first, row = next(iter(read_aligned(CASES / name)))
    assert row == "MKTAYIAK", first
    assert read_alignment(CASES / name).query == "MKTAYIAK"


@pytest.mark.parametrize("name", ["m_plain.csv", "m_hgvs.csv", "m_semi.csv", "m.tsv"])
def test_a_table_of_mutants_comes_back_with_scores(name):
    before = read_mutant_table(CASES / name)
    after = score_table(Blosum62(), GB1, before)
    pd.testing.assert_frame_equal(after[before.table.columns], before.table)
    expected = score_table(Blosum62(), GB1, read_mutant_table(CASES / "m_plain.csv"))
    score = "model_score" if "score" in before.table else "score"
    np.testing.assert_array_equal(after[score], expected["score"])


def test_whole_sequences_in_the_place_of_mutants_are_refused_without_repeating_them():
    with pytest.raises(CarpError, match="2 a whole sequence") as refused:
        score_table(Blosum62(), GB1, read_mutant_table(CASES / "m_indel.csv"))
    assert "MQYKLLNGKT" not in str(refused.value)


def test_measurements_of_mavedb():
    scan = read_dms(CASES / "d_mave.csv", GB1, 1)
    assert scan.table.mutant.tolist() == ["Q2A", "D22A:G41L"]
    assert scan.table.score.tolist() == [0.5, 1.0]


def test_a_deletion_is_counted_by_kind():
    with pytest.raises(CarpError, match="They are 1 an insertion, deletion or frameshift"):
        read_dms(CASES / "d_mave_del.csv", GB1, 1)
    scan = read_dms(CASES / "d_mave_del.csv", GB1, 1, skip_bad=True)
    assert scan.dropped["an insertion, deletion or frameshift"] == 1 and len(scan) == 1
    mutants = read_mutant_table(CASES / "d_mave_del.csv")
    table = score_table(Blosum62(), GB1, mutants, skip_bad=True)
    assert table.note.str.contains("deletion").tolist() == [False, True]


def test_the_documented_target_wins():
    task = read_labelled(CASES / "f_twotargets.csv")
    raw = pd.read_csv(CASES / "f_twotargets.csv")
    assert task.target == "target" and task.table.target.tolist() == raw.target.tolist()


def test_columns_of_flip_and_proteingym():
    flip = read_labelled(CASES / "f_flip.csv")
    assert flip.read["valid"] > 0 and set(flip.table.split) == {"train", "valid", "test"}
    gym = read_labelled(CASES / "f_pg.csv")
    assert gym.target == "DMS_score"
    assert gym.table.sequence.iloc[0] == pd.read_csv(CASES / "f_pg.csv").mutated_sequence[0]


def test_numbered_folds_are_no_obstacle():
    assert read_assay(CASES / "f_fold.csv", how="random").split == "random"
    with pytest.warns(UserWarning, match="the split column has numbers"):
        last = read_assay(CASES / "f_fold.csv")
    raw = pd.read_csv(CASES / "f_fold.csv")
    assert last.available["test"] == (raw.split == raw.split.max()).sum()
    other = read_assay(CASES / "f_fold.csv", test_fold=0)
    assert other.available["test"] == (raw.split == 0).sum()


READERS = {
    "fasta": (lambda path: list(read_fasta(path)), ".fasta"),
    "alignment": (lambda path: list(read_aligned(path)), ".a3m"),
    "table": (lambda path: list(table_lines(path)), ".csv"),
    "scan": (lambda path: read_dms(path, GB1), ".csv"),
    "labelled": (read_labelled, ".csv"),
    "mutants": (read_mutant_table, ".csv"),
}
STARTS = [b"", b">a\n", b"mutant,score\n", b"sequence,target,split\n", b"# STOCKHOLM 1.0\n"]
CONTENTS = st.builds(
    lambda start, rest: start + rest,
    st.sampled_from(STARTS),
    st.one_of(
        st.binary(max_size=80),
        st.text("MKVX*-.,;\t\n\r>#_ 0123A24Cé", max_size=80).map(str.encode),
    ),
)


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=60, deadline=None)
@given(content=CONTENTS)
def test_any_bytes_give_a_value_or_one_sentence(tmp_path_factory, reader, content):
    read, suffix = READERS[reader]
    path = tmp_path_factory.mktemp("any") / f"any{suffix}"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(path)
        except CarpError as error:
            assert path.name in str(error)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_any_text_is_a_mutant_or_one_sentence(text):
    try:
        parse_mutant(text)
    except CarpError as error:
        assert "mutant" in str(error)
