"""Profiles of alignments, and models mixed with them, wherever a scorer is named."""

import gzip
import io
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from carp_nb.carp import CARP, CARPConfig
from carp_nb.cli import app
from carp_nb.devices import as_dtype
from carp_nb.embedding import embed
from carp_nb.errors import CarpError
from carp_nb.explorer import explore
from carp_nb.homologs import PSSM
from carp_nb.layouts import save_checkpoint
from carp_nb.mutant_tables import mutants_by_protein
from carp_nb.scorers import Mixture, load_scorer, load_scorers, scorer_sha256
from carp_nb.scoring import mutation_scan, rank_proteins, score_mutants

WILD_TYPE = "MKTAYIAKQR"
FAMILY = f">q\n{WILD_TYPE}\n>a\nMKTAYLAKQR\n>b\nMRTAWLAKQ-\n>c\nMRSAFLgggAKHR\n"
MUTANTS = ["K2R", "I6L", "I6L:K2R", "A4W", "WT", "A4A"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A family and a model, which does not depend on a name that ships."
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "family.a3m").write_text(FAMILY)
    torch.manual_seed(0)
    model = CARP(CARPConfig(d_embed=4, d_model=16, n_layers=4, kernel_size=3, r=4))
    model.name = "small"
    save_checkpoint(model.eval(), folder / "small.safetensors")
    return folder


def both(folder) -> str:
    return f"{folder}/small.safetensors+{folder}/family.a3m"


def command(*words) -> str:
    "What a command that is refused says."
    said = CliRunner().invoke(app, [str(word) for word in words])
    assert said.exit_code == 1 and "Traceback" not in said.output
    assert len(said.stderr.strip().splitlines()) == 1, said.stderr
    return said.stderr


@pytest.mark.parametrize("method", ["masked", "masked-each", "wild-type"])
def test_log_odds_of_a_mixture_are_the_weighted_sum(folder, method):
    mixed = load_scorer(both(folder), "cpu")
    expected = np.zeros(len(MUTANTS))
    for member, weight in zip(mixed.members, mixed.weights):
        expected += weight * score_mutants(member, WILD_TYPE, MUTANTS, method=method)
    scores = score_mutants(mixed, WILD_TYPE, MUTANTS, method=method)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert (
        sum(mixed.weights) == pytest.approx(1)
        and (scores[-2:] == 0).all()
        and (scores[:-2] != 0).all()
    )


def test_log_probs_keep_the_contract(folder):
    masked = [(1,), (1, 5), ()]
    at = [(1, 2), (), (9,)]
    for name in (f"{folder}/family.a3m", both(folder)):
        scorer = load_scorer(name, "cpu")
        for answer, positions in zip(scorer.log_probs(WILD_TYPE, masked, at), at, strict=True):
            assert answer.shape == (len(positions), 20) and answer.dtype == torch.float32
            torch.testing.assert_close(answer.exp().sum(-1), torch.ones(len(positions)))
        # the masked positions are read unless others are named
        assert [len(a) for a in scorer.log_probs(WILD_TYPE, masked)] == [1, 2, 0]


def test_an_incremental_pass_changes_nothing(folder):
    "A scan of a long protein is computed in windows and from what changes."
    rows = FAMILY.split("\n")
    long = "\n".join(row if row.startswith(">") else 40 * row for row in rows)
    wild_type = 40 * WILD_TYPE
    (folder / "long.a3m").write_text(long)
    mixed = load_scorer(f"{folder}/small.safetensors+{folder}/long.a3m", "cpu")
    mixed.batch_tokens = 256
    assert mixed.members[1].batch_tokens == 256
    scan = mutation_scan(mixed, wild_type)
    for position in (1, 200, 400):
        expected = np.zeros(20)
        for member, weight in zip(mixed.members, mixed.weights):
            expected += weight * member.log_probs(wild_type, [(position - 1,)])[0].numpy()[0]
        got = scan.loc[position].to_numpy()
        np.testing.assert_allclose(got - got[0], expected - expected[0], atol=1e-4)


def test_number_type_reaches_the_model_and_leaves_the_mixture(folder):
    mixed = load_scorer(both(folder), "cpu")
    copy = as_dtype(mixed, "bfloat16")
    assert copy.members[1].embed.weight.dtype == torch.bfloat16
    assert mixed.members[1].embed.weight.dtype == torch.float32
    assert copy.members[1] is copy.models[0]
    exact = score_mutants(mixed, WILD_TYPE, MUTANTS)
    np.testing.assert_allclose(score_mutants(copy, WILD_TYPE, MUTANTS), exact, atol=0.1)


@pytest.mark.parametrize("suffix", ["a3m", "a2m", "fasta", "sto", "a3m.gz"])
def test_every_alignment_is_read_by_its_suffix(folder, suffix):
    path = folder / f"other.{suffix}"
    aligned = FAMILY.replace("ggg", "")
    if suffix == "sto":
        rows = [r.split("\n") for r in aligned.strip(">\n").split("\n>")]
        text = "".join(f"{name} {row}\n" for name, row in rows)
        path.write_text(f"# STOCKHOLM 1.0\n{text}//\n")
    elif suffix.endswith(".gz"):
        path.write_bytes(gzip.compress(aligned.encode()))
    else:
        path.write_text(aligned)
    scorer = load_scorer(path)
    assert isinstance(scorer, PSSM) and scorer.name == "other"
    expected = score_mutants(load_scorer(f"{folder}/family.a3m"), WILD_TYPE, MUTANTS)
    np.testing.assert_allclose(score_mutants(scorer, WILD_TYPE, MUTANTS), expected)


def test_names_tell_apart_and_checksums_follow_the_content(folder, tmp_path):
    shutil.copy(folder / "small.safetensors", folder / "step_2.safetensors")
    shutil.copy(folder / "family.a3m", folder / "a+b.a3m")
    names = [both(folder), f"{folder}/step_2.safetensors+{folder}/family.a3m"]
    names += [f"{folder}/step_2.safetensors+{folder}/a+b.a3m", f"{folder}/a+b.a3m"]
    scorers = load_scorers(",".join(names), "cpu")
    assert [s.name for s in scorers] == ["small+family", "step_2+family", "step_2+a+b", "a+b"]
    sums = [scorer_sha256(s) for s in scorers]
    # copies hold the same, so the first three are one mixture
    assert sums[0] == sums[1] == sums[2] != sums[3]
    other = Mixture(scorers[0].members, [0.4, 0.4, 0.2], "other")
    assert scorer_sha256(other) != sums[0]
    with pytest.raises(CarpError, match=r"two models are called 'small\+family'"):
        load_scorers(f"{names[0]},{names[0]}", "cpu")


def test_a_part_of_the_protein_is_placed_and_the_rest_is_named(folder):
    name = f"{folder}/family.a3m"
    scores = score_mutants(load_scorer(name), WILD_TYPE, MUTANTS)
    longer = score_mutants(load_scorer(name), f"GG{WILD_TYPE}GG", MUTANTS, offset=-1)
    np.testing.assert_array_equal(longer, scores)
    part = score_mutants(load_scorer(name), WILD_TYPE[1:], MUTANTS, offset=2)
    np.testing.assert_array_equal(part, scores)
    for model in (name, both(folder)):
        said = command("score", f"GG{WILD_TYPE}", "--model", model)
        assert "2 positions lie outside the alignment, which covers residues 3 to 12" in said


@pytest.mark.parametrize("mixed", [False, True])
def test_rows_outside_the_alignment_are_counted_or_kept_unscored(folder, tmp_path, mixed):
    name = both(folder) if mixed else f"{folder}/family.a3m"
    (tmp_path / "long.fasta").write_text(f">long\nGW{WILD_TYPE}GG\n")
    (tmp_path / "mt.csv").write_text("mutant\nK53R\nW51A\nG63A:K53R\nK53W\n")
    words = ["score", tmp_path / "long.fasta", "--offset", 50, "--model", name, "--mutants"]
    said = command(*words, tmp_path / "mt.csv")
    assert "2 of 4 rows cannot be used: line 3, W51A: position 51 lies outside the align" in said
    assert "which covers residues 52 to 61; line 4," in said and "--skip-bad" in said
    assert "2 a position outside the alignment" in said and "pseudo-likelihood" not in said
    said = command(*words, "K53R,W51A")
    assert "1 of 2 mutants cannot be scored: W51A: position 51" in said and "--skip-bad" in said
    inside = score_mutants(load_scorer(name, "cpu"), f"GW{WILD_TYPE}GG", ["K4R", "K4W"])
    for mutants in (tmp_path / "mt.csv", "K53R,W51A,G63A:K53R,K53W"):
        done = CliRunner().invoke(app, [*map(str, words), str(mutants), "--skip-bad"])
        assert done.exit_code == 0, done.output
        table = pd.read_csv(io.StringIO(done.stdout))
        np.testing.assert_allclose(table.score[[0, 3]], inside, atol=1e-5)
        assert table.score[[1, 2]].isna().all() and table.note.isna().tolist() == [1, 0, 0, 1]
        assert table.note[1].endswith("outside the alignment, which covers residues 52 to 61")


def test_positions_outside_the_alignment_are_left_out_with_a_note(folder, tmp_path):
    name = f"{folder}/family.a3m"
    words = [f"GG{WILD_TYPE}", "--model", name, "--offset", "50", "-o"]
    for verb, output in (("score", "s.csv"), ("map", "m.html")):
        said = command(verb, *words, tmp_path / output)
        assert "give that part of the protein, or leave the others out with --skip-bad" in said
        done = CliRunner().invoke(app, [verb, *words, str(tmp_path / output), "--skip-bad"])
        assert done.exit_code == 0, done.output
        assert "2 positions lie outside the alignment, which covers residues 52 to 61; left" in (
            done.stderr
        )
    scores = pd.read_csv(tmp_path / "s.csv").set_index("mutant").score
    assert len(scores) == 19 * len(WILD_TYPE) and scores.notna().all()
    assert scores["K53R"] == pytest.approx(score_mutants(load_scorer(name), WILD_TYPE, ["K2R"])[0])


def test_each_model_ranks_what_all_of_them_cover(folder):
    "As zero_shot.ipynb does for a protein with an alignment beside a model."
    models = load_scorers(f"{folder}/small.safetensors,{folder}/family.a3m", "cpu")
    proteins = [("long", f"GW{WILD_TYPE}")]
    with pytest.warns(UserWarning, match="1 of 3 mutants are left out.*residues 3 to 12"):
        wanted = mutants_by_protein("K4R,W2A,K4W", proteins, skip_bad=True, models=models)
    assert wanted == {"long": ["K4R", "K4W"]}
    ranked = rank_proteins(models, proteins, wanted, skip_bad=True)
    assert [len(table) for table in ranked.values()] == [2, 2]
    with pytest.warns(UserWarning, match="long: family: 2 positions lie outside the alignment"):
        ranked = rank_proteins(models, proteins, skip_bad=True)
    assert [len(table) for table in ranked.values()] == [19 * 12, 19 * 10]


@pytest.mark.parametrize(
    "wild_type, said",
    [
        ("MKTAYIAKQW", "1 of 10 residues differ, first number 10 of the wild type, W, where"),
        (f"GG{WILD_TYPE[:5]}W{WILD_TYPE[6:]}", "first number 8 of the wild type, W, where the"),
        ("WWWWWWWWWWWW", "residues differ, first number"),
        (2 * WILD_TYPE, "fits at residue 1 and at residue 11; give the alignment of the whole"),
    ],
)
def test_another_protein_is_refused_where_it_differs(folder, wild_type, said):
    for model in (f"{folder}/family.a3m", both(folder)):
        assert said in command("score", wild_type, "--model", model)


@pytest.mark.parametrize(
    "name, said",
    [
        ("nowhere.a3m", "nowhere.a3m does not exist"),
        ("carp_600k_sprot50+nowhere.a3m", "nowhere.a3m does not exist"),
        ("carp_600k_sprot50+", "before the plus stands a model and behind it the file of an align"),
        ("+{}/family.a3m", "before the plus stands a model"),
        ("carp_600k_sprot50+esm1b", "before the plus stands a model"),
        ("blosum62+{}/family.a3m", "is no model, and only a model is mixed with a profile"),
        ("{0}/family.a3m+{0}/family.a3m", "is no model, and only a model is mixed"),
        ("carp_601k+{}/family.a3m", "no model is named 'carp_601k'; did you mean"),
        ("{}/alone.a3m", "alone: the alignment holds no homolog of q"),
        ("carp_600k_sprot50+{}/alone.a3m", "alone: the alignment holds no homolog of q"),
        ("{}/copies.a3m", "copies: the alignment holds no homolog of q"),
        ("{}/family.txt", "and an alignment from a file that ends in .a3m, .a2m, .sto"),
        ("{}/ragged.fasta", "rows cannot be used: a has 9 columns"),
        ("{}/weights.a3m", "weights.a3m"),
    ],
)
def test_wrong_names_and_files_are_one_sentence(folder, name, said):
    (folder / "alone.a3m").write_text(f">q\n{WILD_TYPE}\n")
    (folder / "copies.a3m").write_text(f">q\n{WILD_TYPE}\n>a\n{WILD_TYPE}\n>b\n{WILD_TYPE}\n")
    (folder / "family.txt").write_text(FAMILY)
    (folder / "ragged.fasta").write_text(f">q\n{WILD_TYPE}\n>a\n{WILD_TYPE[1:]}\n")
    shutil.copy(folder / "small.safetensors", folder / "weights.a3m")
    assert said in command("score", WILD_TYPE, "--model", name.format(folder))


def test_profiles_have_no_representations(folder, tmp_path):
    (tmp_path / "one.fasta").write_text(f">one\n{WILD_TYPE}\n")
    for name in (f"{folder}/family.a3m", both(folder), "nowhere.sto"):
        said = command("embed", tmp_path / "one.fasta", tmp_path / "e.npz", "--model", name)
        assert "it scores mutants, by load_scorer, and has no representations" in said
    with pytest.raises(CarpError, match="has no representations"):
        embed(load_scorer(both(folder), "cpu"), {"a": "MK"}, tmp_path / "x.npz")
    assert not list(tmp_path.glob("*.np*"))


def test_pseudo_likelihood_is_refused(folder):
    "A profile has columns, so it says nothing of insertions."
    for name in (f"{folder}/family.a3m", both(folder)):
        said = command("score", WILD_TYPE, "--mutants", "K2del", "--model", name, "--method",
                       "pseudo-likelihood")  # fmt: skip
        assert "is not a masked language model" in said


def test_a_command_and_the_map_take_the_names(folder):
    words = ["score", WILD_TYPE, "--mutants", "K2R", "--model"]
    for name in (f"{folder}/family.a3m", both(folder)):
        said = CliRunner().invoke(app, [*words, name])
        score = score_mutants(load_scorer(name), WILD_TYPE, ["K2R"])[0]
        assert said.exit_code == 0 and f"K2R,{score:.4f}"[:9] in said.stdout
        opened = explore(WILD_TYPE, name, device="cpu", dtype="float32")
        while opened.step():
            pass
        assert abs(opened.map.values[1, 14] - score) < 1e-4
