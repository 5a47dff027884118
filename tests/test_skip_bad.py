"""One bad record or row does not lose a run, and nothing is left out or folded without a word."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import matthews_corrcoef, roc_auc_score
from test_cli import _one_cache, refused, typed  # noqa: F401
from test_files_of_the_trade import CASES, GB1

from carp_nb.batching import open_corpus
from carp_nb.datasets import read_dms
from carp_nb.editing import Mutant
from carp_nb.embedding import read_embeddings
from carp_nb.errors import CarpError
from carp_nb.maps import ranked_figure
from carp_nb.mutant_tables import MutantTable, score_tables
from carp_nb.mutants import mutants_from_sequences, parse_mutant
from carp_nb.readers import parse_numbers, read_aligned, read_fasta
from carp_nb.scorers import Blosum62
from carp_nb.scoring import rank_proteins
from carp_nb.tasks import read_labelled

GOOD = [f">good{i}\n{GB1[i:]}\n" for i in range(3)]
BAD = {  # what is wrong -> the record, the line that is named
    "has no sequence": (">bad\n", 3),
    "'-' at position 3": (">bad\nMK-V\n", 4),
    "'\N{LATIN SMALL LETTER SHARP S}'": (">bad\nMK\N{LATIN SMALL LETTER SHARP S}V\n", 4),
    "'1' at position 2": (">bad\nM1\n", 4),
    "the header has no id": (">\nMKV\n", 3),
}


@pytest.mark.parametrize("why", BAD)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_one_bad_record_is_refused_or_left_out(tmp_path, why, place):
    record, line = BAD[why]
    records = [*GOOD[:place], record, *GOOD[place:]]
    path = tmp_path / "many.fa"
    path.write_text("".join(records), encoding="latin-1")
    with pytest.raises(CarpError) as refusal:
        list(read_fasta(path, hint="Say --skip-bad."))
    named = f"many.fa, line {line - 2 + 2 * place}"
    assert named in str(refusal.value) and "Say --skip-bad." in str(refusal.value)
    with pytest.warns(UserWarning, match=r"many\.fa: 1 of 4 records are left out") as notes:
        kept = list(read_fasta(path, skip_bad=True))
    assert [name for name, _ in kept] == ["good0", "good1", "good2"]
    assert len(notes) == 1 and f"line {line - 2 + 2 * place}" in str(notes[0].message)


@pytest.fixture
def mixed(tmp_path):
    (tmp_path / "mixed.fa").write_text(">a\nMKV\n>bad\nM*K\n>x\nXXXX\n>b\nMUK\n")
    return tmp_path / "mixed.fa"


def test_score_embed_and_corpus_leave_out_a_bad_record(mixed, tmp_path):
    for words in (
        ("score", mixed),
        ("embed", mixed, tmp_path / "no.safetensors"),
        ("corpus", mixed, tmp_path / "no"),
        ("corpus", mixed, tmp_path / "no.fasta"),
    ):
        done = typed(*words)
        assert done.exit_code == 1 and not list(tmp_path.glob("no*"))
        assert "mixed.fa, line 4, bad: '*' at position 2" in done.stderr
        assert "--skip-bad" in done.stderr and "Traceback" not in done.output
    assert typed("score", mixed, "--skip-bad", "-o", tmp_path / "s.csv").exit_code == 0
    table = pd.read_csv(tmp_path / "s.csv")
    assert table.protein.value_counts().to_dict() == {"a": 57, "b": 38}
    assert table.score.notna().all()
    made = tmp_path / "e.safetensors"
    assert typed("embed", mixed, made, "--skip-bad").exit_code == 0
    vectors = dict(read_embeddings(made))
    assert list(vectors) == ["a", "x", "b"] and np.isfinite(list(vectors.values())).all()
    assert typed("corpus", mixed, tmp_path / "c", "--skip-bad").exit_code == 0
    assert len(open_corpus(tmp_path / "c")) == 3


def test_a_protein_of_unknown_residues_gives_a_note_and_no_nan(tmp_path):
    (tmp_path / "x.fa").write_text(">x\nXXBZ\n")
    done = typed("score", tmp_path / "x.fa")
    assert done.exit_code == 0 and done.stdout == "protein,mutant,score,percentile\n"
    assert done.stderr == (
        "note: x: not one of its 4 residues is one of the 20 amino acids; left out.\n"
    )
    done = typed("embed", tmp_path / "x.fa", tmp_path / "x.safetensors")
    assert "have none of the 20 amino acids" in done.stderr
    with pytest.warns(UserWarning):
        ranked = rank_proteins([Blosum62()], [("x", "XX")])
    assert ranked_figure(ranked["x", "blosum62"], "XX") is not None


def test_positions_without_odds_are_reported():
    done = typed("score", CASES / "U.fa")
    assert "1 of 56 positions (U11) are none of the 20 amino acids; left out." in done.stderr
    done = typed("score", CASES / "U.fa", "--mutants", "U11A,M1A", "--skip-bad")
    assert 'U11A,,,"U11A: U is not one of the 20 amino acids' in done.stdout
    assert "M1A,-" in done.stdout


class Short(Blosum62):
    "A scorer with a longest length."

    max_length = 5


def test_a_protein_that_is_too_long_is_refused_before_the_work_or_left_out():
    proteins = [("a", "MKT"), ("long", "MKTAYI"), ("b", "MKV")]
    with pytest.raises(CarpError, match=r"record 2, long, has 6.*--skip-bad"):
        rank_proteins([Short()], proteins)
    with pytest.warns(UserWarning, match="left out"):
        ranked = rank_proteins([Short()], proteins, skip_bad=True)
    assert [name for name, _ in ranked] == ["a", "b"]
    rows = [MutantTable("", ["M1A"])] * 3
    with pytest.warns(UserWarning, match="left out"):
        table = score_tables(Short(), proteins, rows, skip_bad=True)
    assert table.protein.tolist() == ["a", "b"]


FOLDING = [  # each becomes a plain letter or digit by upper(), lower(), int() or float()
    "\N{LATIN SMALL LETTER SHARP S}",
    "\N{LATIN SMALL LETTER LONG S}",
    "\N{LATIN SMALL LETTER DOTLESS I}",
    "\N{FULLWIDTH LATIN CAPITAL LETTER A}",
    "\N{KELVIN SIGN}",
    "\N{LATIN SMALL LIGATURE FI}",
]
DIGITS = ["\N{ARABIC-INDIC DIGIT THREE}", "\N{FULLWIDTH DIGIT THREE}", "\N{DEVANAGARI DIGIT THREE}"]


@pytest.mark.parametrize("letter", FOLDING)
def test_letters_that_fold_are_refused_by_every_reader(tmp_path, letter):
    sequence = f"MK{letter}V"
    (tmp_path / "a.fa").write_text(f">a\n{sequence}\n")
    (tmp_path / "a.csv").write_text(f"sequence,target\n{sequence},1\nMKV,0\n")
    variants = tmp_path / "v.csv"
    variants.write_text(f"mutant,score,mutated_sequence\nK2R,1,MR{letter}V\n")
    readers = {
        "mutant": lambda: parse_mutant(f"A2{letter}"),
        "sequence": lambda: mutants_from_sequences("MKSV", [sequence]),
        "fasta": lambda: list(read_fasta(tmp_path / "a.fa")),
        "alignment": lambda: list(read_aligned(tmp_path / "a.fa")),
        "labelled": lambda: read_labelled(tmp_path / "a.csv"),
        "labelled fasta": lambda: read_labelled(tmp_path / "a.fa"),
        "wild type": lambda: read_dms(variants, f"MK{letter}V"),
        "map": lambda: Mutant("MKSV").put(1, letter),
    }
    for name, read in readers.items():
        with pytest.raises(CarpError):
            read()
            pytest.fail(f"{name} takes {letter!r}")


@pytest.mark.parametrize("digit", DIGITS)
def test_digits_of_other_scripts_are_refused_by_every_reader(tmp_path, digit):
    (tmp_path / "m.csv").write_text(f"mutant;score\nM1A;{digit},{digit}\nK2A;0,5\n")
    for cell in (f"{digit},{digit}", digit, f"1{digit}"):
        assert parse_numbers(pd.Series([cell])).isna().all()
    with pytest.raises(CarpError, match="line 2"):
        read_dms(tmp_path / "m.csv", "MKV", 1)
    with pytest.raises(CarpError):
        parse_mutant(f"K{digit}A")
    folds = "".join(f"MKV{'A' * k},1,{n}\n" for k, n in enumerate((0, 1, digit)))
    (tmp_path / "f.csv").write_text(f"sequence,target,split\n{folds}")
    with pytest.raises(CarpError, match="split"):
        read_labelled(tmp_path / "f.csv")


@pytest.fixture
def assay(tmp_path):
    "A table in ProteinGym's layout with 300 made-up measurements, 5 of them missing, and 1 deletion."
    rng = np.random.default_rng(0)
    rows = []
    for i, wt in enumerate(GB1, 1):
        for mt in rng.choice([a for a in "ACDEFGHIKLMNPQRSTVWY" if a != wt], 6, replace=False):
            rows.append((f"{wt}{i}{mt}", f"{rng.normal():.3f}", int(rng.random() > 0.6)))
    table = pd.DataFrame(rows[:300], columns=["mutant", "DMS_score", "DMS_score_bin"])
    table.loc[::60, "DMS_score"] = ""
    table.loc[300] = ["K4del", "0.1", 1]
    table.to_csv(tmp_path / "assay.csv", index=False)
    return tmp_path / "assay.csv"


def measure(shown: str) -> dict[str, dict[str, str]]:
    "The lines of a comparison by measured column: what comes before and after `left out`."
    lines = {}
    for line in shown.splitlines():
        words = line.split()
        if words and words[0].startswith("DMS_score"):
            lines[words[0]] = dict(
                zip(["Spearman", "lo", "to", "hi", "NDCG", "recall", "AUC", "MCC"], words[-8:])
            )
            lines[words[0]]["n"] = words[2]
    return lines


def test_measured_prints_the_measures_of_proteingym(assay, tmp_path):
    out = tmp_path / "scored.csv"
    words = ("score", CASES / "plain.fa", "--mutants", assay, "--skip-bad", "-o", out)
    done = typed(*words, "--measured", "DMS_score,DMS_score_bin")
    assert done.exit_code == 0, done.stderr
    assert "1 not scored, 5 not measured" in done.stdout
    lines = measure(done.stdout)
    table = pd.read_csv(out)
    table = table[table.score.notna()]
    fit, score = table.DMS_score_bin, table.score
    assert lines["DMS_score_bin"]["n"] == "300"
    assert lines["DMS_score_bin"]["AUC"] == f"{roc_auc_score(fit, score):.3f}"
    assert lines["DMS_score_bin"]["MCC"] == f"{matthews_corrcoef(fit, score >= score.median()):.3f}"
    table = table[table.DMS_score.notna()]
    measured, score = table.DMS_score.to_numpy(), table.score.to_numpy()
    rho = spearmanr(score, measured).statistic
    gains = (measured - measured.min()) / np.ptp(measured)
    discount = 1 / np.log2(np.arange(29) + 2)
    ndcg = gains[np.argsort(-score)[:29]] @ discount / (np.sort(gains)[::-1][:29] @ discount)
    best = measured >= np.percentile(measured, 90)
    recall = (best & (score >= np.percentile(score, 90))).sum() / best.sum()
    line = lines["DMS_score"]
    assert line["n"] == "295" and (line["AUC"], line["MCC"]) == ("–", "–")
    assert (line["Spearman"], line["NDCG"], line["recall"]) == tuple(
        f"{value:.3f}" for value in (rho, ndcg, recall)
    )
    assert float(line["lo"]) < rho < float(line["hi"])
    lower = measure(typed(*words, "--measured", "DMS_score", "--direction", "lower").stdout)
    assert lower["DMS_score"]["Spearman"] == f"{-rho:.3f}"
    on_screen = typed(*words[:-2], "--measured", "DMS_score")
    assert "Spearman" in on_screen.stderr and "Spearman" not in on_screen.stdout


def test_measured_is_refused_before_a_model_is_loaded(assay, tmp_path, monkeypatch):
    monkeypatch.setattr("carp_nb.scorers.load_scorer", None)
    plain = CASES / "plain.fa"
    words = ("score", plain, "--mutants", assay, "--skip-bad", "--measured")
    refused(*words, "DMS", contains="there is no column 'DMS'")
    refused(*words, "DMS_score", "--direction", "up", contains="say higher or lower")
    refused("score", plain, "--measured", "x", contains="give the table with --mutants")
    refused("score", plain, "--direction", "lower", contains="--direction belongs to --measured")
    text = assay.read_text().replace(",0.1,", ",n.d.,")
    assay.write_text(text)
    refused(
        *words[:4], "--measured", "DMS_score", contains="line 302, DMS_score 'n.d.' is not a number"
    )


def test_a_negative_correlation_says_what_is_known(tmp_path):
    "BLOSUM62 against itself, turned round."
    mutants = [f"{wt}{i}A" for i, wt in enumerate(GB1, 1) if wt != "A"]
    scores = pd.DataFrame({"mutant": mutants})
    done = typed("score", GB1, "--mutants", ",".join(mutants))
    scores["kd"] = (
        -pd.read_csv(pd.io.common.StringIO(done.stdout))
        .set_index("mutant")
        .score[mutants]
        .to_numpy()
    )
    scores.to_csv(tmp_path / "kd.csv", index=False)
    words = ("score", CASES / "plain.fa", "--mutants", tmp_path / "kd.csv", "--measured", "kd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "If a lower kd is fitter, say --direction lower." in typed(*words).stderr
        turned = typed(*words, "--direction", "lower").stderr
    assert "negative" not in turned and "1.000" in turned
