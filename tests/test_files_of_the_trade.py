"""Plain files as programs and people write them: read right, or refused in one sentence.

The files in tests/cases were made for these tests; each is a few lines that once failed or misled.
"""

import gzip
import io
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import _one_cache, refused, typed  # noqa: F401

from carp_nb.assays import read_assay
from carp_nb.datasets import read_dms
from carp_nb.errors import CarpError
from carp_nb.measured import read_measurement
from carp_nb.mutant_tables import mutants_by_protein, read_mutant_table, read_mutants, score_table
from carp_nb.mutants import parse_mutant
from carp_nb.readers import read_aligned, read_alignment, read_fasta, table_lines
from carp_nb.scans import ScanFacts, read_own_scan
from carp_nb.scorers import Blosum62
from carp_nb.scoring import agreement, clean_sequence, mutation_scan
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


TABLES = {  # name -> text or bytes; each holds the mutants of m_plain.csv
    "byte order mark": b"\xef\xbb\xbfmutant,kcat\nQ2A,0.5\nD22A:G41L,1\n",
    "utf-16": "mutant\tkcat\nQ2A\t0.5\nD22A:G41L\t1\n".encode("utf-16"),
    "utf-16 without a mark": "mutant\tkcat\nQ2A\t0.5\nD22A:G41L\t1\n".encode("utf-16-le"),
    "packed": gzip.compress(b"mutant,kcat\nQ2A,0.5\nD22A:G41L,1\n"),
    "CR": b"mutant,kcat\rQ2A,0.5\rD22A:G41L,1\r",
    "quoted semicolons": b'"mutant";"kcat, 1/s"\n"Q2A";"0,5"\n"D22A:G41L";"1,0"\n',
    "a comma in a name": b"mutant;kcat, 1/s\nQ2A;0,5\nD22A:G41L;1,0\n",
    "quoted decimal commas": b'mutant,kcat\nQ2A,"0,5"\nD22A:G41L,"1,0"\n',
    "a stated separator": b"sep=;\nmutant;kcat\nQ2A;0,5\nD22A:G41L;1\n",
    "blanks around names": b"mutant , kcat\nQ2A, 0.5\nD22A:G41L, 1\n",
    "a list": b"Q2A\nD22A:G41L\n",
    "a list of HGVS": b"p.Gln2Ala\np.[Asp22Ala;Gly41Leu]\n",
    "a reference": b"hgvs_pro\nNP_000001.2:p.Gln2Ala\nENSP01:p.[(Asp22Ala);(Gly41Leu)]\n",
}


@pytest.mark.parametrize("dialect", TABLES)
def test_dialects_of_a_table_hold_the_same_mutants(tmp_path, dialect):
    (tmp_path / "t.csv").write_bytes(TABLES[dialect])
    before = read_mutant_table(tmp_path / "t.csv", GB1)
    after = score_table(Blosum62(), GB1, before)
    expected = score_table(Blosum62(), GB1, read_mutant_table(CASES / "m_plain.csv"))
    np.testing.assert_array_equal(after["score"], expected["score"])
    pd.testing.assert_frame_equal(after[before.table.columns], before.table)
    if before.table.shape[1] > 1:
        measured = read_measurement(before, before.table.columns[1])
        assert measured.values.tolist() == [0.5, 1.0]


def test_the_first_line_of_a_list_may_hold_a_semicolon(tmp_path):
    (tmp_path / "l.txt").write_text("p.[Asp22Ala;Gly41Leu]\nQ2A;Y3F\nQ2A\n")
    assert read_mutants(str(tmp_path / "l.txt")) == ["p.[Asp22Ala;Gly41Leu]", "Q2A;Y3F", "Q2A"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.xlsx", b"PK\3\4rest", "workbook"),
        ("t.xls", b"\xd0\xcf\x11\xe0rest", "workbook"),
        ("t.parquet", b"PAR1\x15\4", "parquet table"),
        ("t.txt", b"Q2A\nQ2A,Y3F\n", "line 2: a list has one mutant a line"),
        ("t.csv", b"mutant,x\n", "holds no mutants"),
        ("t.csv", b"mutant\np.[Gln2Ala];[Tyr3Phe]\n", "two alleles"),
        ("t.csv", b"mutant\np.[Gln2Ala(;)Tyr3Phe]\n", "two alleles"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CarpError, match=reason) as refused:
        score_table(Blosum62(), GB1, read_mutant_table(tmp_path / name, GB1))
    assert name in str(refused.value)


@pytest.mark.parametrize("name", ["none.xlsx", "none.parquet", "none.csv.gz"])
def test_a_missing_table_is_no_strange_mutant(name):
    with pytest.raises(FileNotFoundError, match=name):
        read_mutants(name)


OUT = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t", ".parquet": ""}


@pytest.mark.parametrize("suffix", OUT)
@pytest.mark.parametrize("name", ["m_plain.csv", "m_semi.csv", "m.tsv", "m_hgvs.csv", "packed.gz"])
def test_a_table_comes_back_in_each_format(tmp_path, name, suffix):
    path = CASES / name
    if name == "packed.gz":
        path = tmp_path / name
        path.write_bytes(gzip.compress((CASES / "m_semi.csv").read_bytes()))
    out = tmp_path / f"out{suffix}"
    words = ("--mutants", path, "--model", "blosum62", "-o", out)
    assert typed("score", CASES / "plain.fa", *words).exit_code == 0
    before = read_mutant_table(path).table
    if suffix == ".parquet":
        after = pd.read_parquet(out)
    else:
        packed = out.read_bytes()[:2] == b"\x1f\x8b"
        assert packed == suffix.endswith(".gz")
        text = out.read_bytes()
        text = gzip.decompress(text) if packed else text
        after = pd.read_csv(io.BytesIO(text), sep=OUT[suffix], dtype=str, keep_default_na=False)
    columns = list(before)
    assert list(after)[: len(columns)] == columns and len(after) == len(before)
    assert after[columns].astype(str).to_numpy().tolist() == before.to_numpy().tolist()
    (score,) = [c for c in ("model_score", "score") if c in after and c not in columns][:1]
    np.testing.assert_allclose(after[score].astype(float), [-2.07944, -6.23832])


def test_two_columns_of_one_name_have_no_place_in_parquet(tmp_path):
    (tmp_path / "t.csv").write_text("mutant,a,a\nQ2A,1,2\n")
    words = ("score", GB1, "--mutants", tmp_path / "t.csv", "--model", "blosum62", "-o")
    refused(*words, tmp_path / "o.parquet", contains="two columns are called 'a'")
    assert typed(*words, tmp_path / "o.csv").exit_code == 0


@pytest.mark.parametrize(("yes", "no"), [("True", ""), ("1", "0"), ("1.0", "0.0"), ("yes", "no")])
def test_validation_rows_of_flip_in_any_spelling(tmp_path, yes, no):
    rows = [f"MK{a},{i},train,{yes if i % 2 else no}\n" for i, a in enumerate("VACDEF")]
    (tmp_path / "f.csv").write_text("".join(["sequence,target,set,validation\n", *rows]))
    split = read_labelled(tmp_path / "f.csv").table.split.tolist()
    assert split == ["train", "valid"] * 3


def test_an_unknown_validation_word_is_refused(tmp_path):
    (tmp_path / "f.csv").write_text("sequence,target,set,validation\nMK,1,train,maybe\n")
    with pytest.raises(CarpError, match=r"f\.csv: validation is 'maybe'"):
        read_labelled(tmp_path / "f.csv")


def test_folds_with_a_decimal_point_and_stops_in_a_labelled_table(tmp_path):
    rows = [f"MK{a}*,{i},{i % 3}.0\n" for i, a in enumerate("VACDEF")]
    (tmp_path / "f.csv").write_text("".join(["sequence,target,split\n", *rows]))
    with pytest.warns(UserWarning, match="at the end of 6 sequences"):
        task = read_assay(tmp_path / "f.csv", test_fold=0)
    assert task.table.sequence.tolist() == [f"MK{a}" for a in "VACDEF"]
    assert task.table.split.tolist() == ["test", "train", "valid"] * 2


STOCKHOLM = {
    "dots for gaps": b"# STOCKHOLM 1.0\nq MKTA\nb M.TA\n//\n",
    "byte order mark": b"\xef\xbb\xbf# STOCKHOLM 1.0\nq MKTA\nb M-TA\n//\n",
    "blank first line": b"\n# STOCKHOLM 1.0\nq MKTA\nb M-TA\n//\n",
    "CR": b"# STOCKHOLM 1.0\rq MKTA\rb M-TA\r//\r",
    "blocks": b"# STOCKHOLM 1.0\nq MK\nb M-\n#=GC SS CC\n\nq TA\nb TA\n//\n",
    "insertions": b"# STOCKHOLM 1.0\nq M.KTA\nb Mg-TA\n//\n",
}


@pytest.mark.parametrize("dialect", STOCKHOLM)
def test_dialects_of_stockholm_hold_the_same_rows(tmp_path, dialect):
    (tmp_path / "a.sto").write_bytes(STOCKHOLM[dialect])
    alignment = read_alignment(tmp_path / "a.sto")
    assert alignment.query == "MKTA" and alignment.rows[1].tolist() == [10, 20, 16, 0]


def test_rows_of_one_name_are_not_joined_and_a_cut_file_is_noticed(tmp_path):
    (tmp_path / "a.sto").write_text("# STOCKHOLM 1.0\nq MK\nq MR\n//\n")
    with pytest.raises(CarpError, match=r"a\.sto, line 3: q has two rows"):
        read_alignment(tmp_path / "a.sto")
    (tmp_path / "a.sto").write_text("# STOCKHOLM 1.0\nq MK\n")
    with pytest.warns(UserWarning, match="is it cut off"):
        read_alignment(tmp_path / "a.sto")


def test_the_title_of_a_pir_file_is_no_sequence(tmp_path):
    (tmp_path / "a.pir").write_text(">P1;CRAB\ncrab\nMKV*\n")
    with pytest.raises(CarpError, match=r"a\.pir, line 1.*PIR"):
        list(read_fasta(tmp_path / "a.pir"))


@pytest.mark.parametrize("name", ["m_indel.csv", "d_mave_del.csv"])
def test_a_scan_with_indels_says_which_command_compares_them(name):
    with pytest.raises(CarpError, match="--measured COLUMN --method pseudo-likelihood"):
        read_own_scan(CASES / name, ScanFacts(fasta=str(CASES / "plain.fa")))


def test_indels_are_compared_with_measurements():
    mutants = [*(f"{wt}{i}A" for i, wt in enumerate(GB1, 1) if wt != "A"), "K4del", GB1[1:]]
    values = np.arange(len(mutants), dtype=float)
    table = agreement(values, values, mutants).set_index("metric")
    assert table.n["spearman"] == len(mutants) and table.value["spearman"] == pytest.approx(1)
    assert not table.index.str.endswith("_mutations").any()


def test_a_ranking_by_pseudo_likelihood_keeps_indels():
    wanted = mutants_by_protein(
        "Q2A,K4del,Q2fs", [("p", GB1)], skip_bad=True, method="pseudo-likelihood"
    )
    assert wanted == {"p": ["Q2A", "K4del"]}


def test_a_query_called_consensus_stays_the_query(tmp_path):
    path = tmp_path / "a.a3m"
    path.write_text(">TPR_consensus\nMKTAYIAK\n>aa_1\nMKSAYIAK\n>b\nMKSAYIAR\n")
    alignment = read_alignment(path)
    assert alignment.names == ["TPR_consensus", "aa_1", "b"]


@pytest.mark.parametrize(
    "text",
    [
        'mutant\tcomment\tscore\nQ2A\t"weak\t0.5\nD22A\tok\t1\nY3F\t"strong\t2\nK4A\tok\t3\n',
        'mutant,score,comment\nQ2A,0.5,"5 inch\nD22A,1,x\nY3F,2,y\n',
    ],
)
def test_a_quote_that_is_not_closed_swallows_no_rows(text, tmp_path):
    (tmp_path / "q.csv").write_text(text)
    with pytest.raises(CarpError, match=r"q\.csv, line 2: a quote opens here"):
        read_mutant_table(tmp_path / "q.csv", GB1)


@pytest.mark.parametrize("cell", ["0,{}", "{}%", "\N{MINUS SIGN}0.{}"])
def test_numbers_in_any_spelling_are_no_classes(cell, tmp_path):
    rows = [f"MK{'ACDEFGHIKL'[i]};{cell.format(i)};train" for i in range(10)]
    (tmp_path / "n.csv").write_text("\n".join(["sequence;target;split", *rows]))
    task = read_labelled(tmp_path / "n.csv", kind=None)
    assert (task.kind, task.table.target.nunique()) == ("regression", 10)


def test_classes_are_written_in_one_way(tmp_path):
    cells = ["TRUE", "true", "False", "#N/A", "<NA>"]
    rows = [f"MK{letter},{cell}" for letter, cell in zip("ACDEF", cells)]
    (tmp_path / "c.csv").write_text("\n".join(["sequence,target", *rows]))
    task = read_labelled(tmp_path / "c.csv", kind=None)
    assert (task.classes, task.dropped["no target"]) == ([0, 1], 2)


@pytest.mark.parametrize("sequence", ["MK*V", "M2KC", "MK-D", "M?K"])
def test_nothing_is_cut_out_of_labelled_sequences(sequence, tmp_path):
    (tmp_path / "s.csv").write_text(f"sequence,target\nMKA,1\n{sequence},2\n")
    with pytest.raises(CarpError, match="line 3"):
        read_labelled(tmp_path / "s.csv")


def test_a_stop_at_the_end_of_a_labelled_sequence_is_left_out(tmp_path):
    (tmp_path / "s.csv").write_text("sequence,target\nMKA*,1\nMKC,2\n")
    with pytest.warns(UserWarning, match="at the end of 1 sequences"):
        assert read_labelled(tmp_path / "s.csv").table.sequence[0] == "MKA"


def test_labels_behind_comments_and_under_other_names(tmp_path):
    (tmp_path / "a.fa").write_bytes(
        b"\xef\xbb\xbf;mine\n>a DMS_score=1.5\nMKV\n>b DMS_score=2\nMKA\n"
    )
    assert read_labelled(tmp_path / "a.fa").table.target.tolist() == [1.5, 2]
    flip = "Sequence,Target,Set,Validation\nMKV,1,train,True\nMKA,2,train,\nMKC,3,test,\n"
    (tmp_path / "f.csv").write_text(flip)
    assert read_labelled(tmp_path / "f.csv").table.split.tolist() == ["valid", "train", "test"]


def test_two_records_of_one_name_are_no_wild_type(tmp_path):
    (tmp_path / "wt.fa").write_text(f">a\nMKTA\n>a\n{GB1}\n")
    (tmp_path / "a.csv").write_text("mutant,score\nQ2A,1\n")
    with pytest.raises(CarpError, match="two records have the same id"):
        read_own_scan(tmp_path / "a.csv", ScanFacts(fasta=str(tmp_path / "wt.fa")))


def test_three_letter_codes_are_no_residues():
    with pytest.raises(CarpError, match="three-letter codes"):
        clean_sequence("MetGlnTyrLys")


def test_a_sequence_that_contradicts_its_mutant_is_noticed(tmp_path):
    (tmp_path / "m.csv").write_text(
        f"mutant,mutated_sequence\nQ2A,{GB1}\nY3F,{GB1[:2]}F{GB1[3:]}*\n"
    )
    with pytest.warns(UserWarning, match="1 of the first 2 rows have another sequence"):
        assert read_mutants(str(tmp_path / "m.csv"), GB1) == ["Q2A", "Y3F"]


def test_a_scan_may_name_its_wild_type_in_each_row(tmp_path):
    (tmp_path / "w.csv").write_text(f"mutant,sequence,score\nQ2A,{GB1},1\nY3F,{GB1},2\n")
    assert read_own_scan(tmp_path / "w.csv", ScanFacts()).wild_type == GB1


@pytest.mark.parametrize(
    "mutant",
    [
        "EGFR:p.Lys2Ala",
        "P04637-2:p.Lys2Ala",
        "NM_000546.6(TP53):p.Lys2Ala",
        "NP_1.1:p.Lys2Ala;NP_1.1:p.Thr3Cys",
        "K2A:p.Thr3Cys",
    ],
)
def test_hgvs_may_name_any_reference(mutant):
    assert str(parse_mutant(mutant)[0]) == str(parse_mutant("K2A")[0])
    assert len(parse_mutant(mutant)) == 1 + ("Thr3" in mutant)


def test_a_scan_of_mavedb_begins_with_comments(tmp_path):
    text = (
        "# Accession: urn:1\n# Licence: CC0, x\naccession,hgvs_pro,score\nurn:1#1,p.Gln2Ala,0.5\n"
    )
    (tmp_path / "m.csv").write_text(text)
    table = read_dms(tmp_path / "m.csv", GB1, 1).table
    assert table.iloc[0].tolist() == ["Q2A", 0.5]


@pytest.mark.parametrize("text", [",1,2,3\nA,1,2,3\n", ",A,C,D\nM1,1,2,3\n"])
def test_a_matrix_the_other_way_round_is_refused(text, tmp_path):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(CarpError, match="a matrix of scores has the residues of the wild type"):
        read_dms(tmp_path / "x.csv", "MKV", 1)


def test_a_file_of_flip_is_read_as_flip_does(tmp_path):
    text = "sequence,target,set,validation\nMK*V,1,train,True\nM_KA,2,train,\nMKC,3,test,\n"
    (tmp_path / "f.csv").write_text(text)
    task = read_labelled(tmp_path / "f.csv")
    assert task.table.sequence.tolist() == ["MKV", "MKA", "MKC"] and task.stripped == 2


def test_a_table_of_r_names_its_rows(tmp_path):
    (tmp_path / "r.tsv").write_text("mutant\tscore\n1\tQ2A\t0.5\n2\tY3F\t1\n")
    table = read_mutant_table(tmp_path / "r.tsv", GB1)
    assert table.mutants == ["Q2A", "Y3F"]
    assert read_measurement(table, "score").values.tolist() == [0.5, 1.0]
