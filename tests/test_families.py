"""Scans with the families of their proteins: whose alignment it is, what is fitted once, what goes on."""

import sys
import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from carp_nb.carp import CARP, TABLE_S1
from carp_nb.datasets import Scan
from carp_nb.errors import CarpError
from carp_nb.families import FamilyFits, family_rows, read_families
from carp_nb.family_results import protein_means, protein_table
from carp_nb.homologs import NoHomologs
from carp_nb.layouts import save_checkpoint
from carp_nb.pretrained import load_model
from carp_nb.results import cached_rows

WILD_TYPE = "MKTAYIAKQRQISFVK"
OTHER = "GWLVRKDEHNPST"


def scan(name: str, wild_type: str = WILD_TYPE, offset: int = 1) -> Scan:
    "A made-up scan of a substitution by W and one by A at each residue."
    rows = []
    for i, letter in enumerate(wild_type):
        rows += [(f"{letter}{i + offset}{to}", (7 * i) % 5) for to in "WA" if to != letter]
    table = pd.DataFrame(rows, columns=["mutant", "score"])
    return Scan(table, wild_type, offset, name, sha256=name)


def write_family(path, wild_type: str = WILD_TYPE) -> None:
    homologs = [wild_type[:i] + "L" + wild_type[i + 1 :] for i in (2, 5, 9)]
    rows = "".join(f">h{i}\n{row}\n" for i, row in enumerate(homologs))
    path.write_text(f">{path.stem}\n{wild_type}\n{rows}")


@pytest.fixture
def adapted(monkeypatch):
    "Stands in for the training: each fit is noted, and gives weights of its own."
    fits = []

    def adapt(model, family, config, *, folder, device):
        name = "carp_4k_random" if isinstance(model, str) else model.name
        saved = folder / f"{name}_adapted.safetensors"
        if not saved.exists():
            fits.append((family.stem, name, config.seed, config.updates))
            torch.manual_seed(len(fits))
            made = CARP(TABLE_S1["carp_4k"])
            made.name = saved.stem
            save_checkpoint(made.eval(), saved)
        made = load_model(saved, device)
        vars(made)["card"] = SimpleNamespace(
            seconds=1.0, updates=config.updates, loss_before=2.9, loss_after=2.6, sequences=4
        )
        return made

    monkeypatch.setattr("carp_nb.families.adapt", adapt)
    return fits


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    model = CARP(TABLE_S1["carp_4k"])
    model.name = "tiny"
    save_checkpoint(model.eval(), tmp_path / "tiny.safetensors")
    return load_model(tmp_path / "tiny.safetensors", "cpu")


def all_rows(families, fits, folder) -> pd.DataFrame:
    run = SimpleNamespace(folder=folder, record={})
    parts = []
    for family in families:
        parts += family_rows(family, fits, folder / "fits", partial(cached_rows, run))
    return pd.concat(parts, ignore_index=True)


def test_scans_of_a_protein_share_its_alignment_and_its_fits(tmp_path, adapted, model):
    (tmp_path / "ali").mkdir()
    write_family(tmp_path / "ali/AB_CD.a3m")
    write_family(tmp_path / "ali/EF_GH.a3m", OTHER)
    scans = [scan("AB_CD_2013"), scan("EF_GH_2014", OTHER), scan("AB_CD_2016", "GG" + WILD_TYPE)]
    families = read_families(scans, str(tmp_path / "ali"))
    assert [(f.protein, len(f.profiles)) for f in families] == [
        ("AB_CD", 2),
        ("EF_GH", 1),
    ]
    fits = FamilyFits([model], seeds=(3, 4), updates=7, n_boot=20, device="cpu")
    rows = all_rows(families, fits, tmp_path)
    # two proteins, two seeds, from the model and from random weights; not once for each scan
    assert len(adapted) == len(set(adapted)) == 8
    assert {fit[2:] for fit in adapted} == {(3, 7), (4, 7)}
    spearman = rows[rows.metric == "spearman"].set_index(["task", "model"]).sort_index()
    names = ["carp_4k_random_adapted", "pssm", "tiny_adapted", "tiny_adapted+pssm"]
    without = ["dms_matrix", "pssm+dms_matrix"]
    averaged = ["tiny_adapted_averaged", "tiny_adapted_averaged+pssm"]
    for task in ("AB_CD_2013", "AB_CD_2016", "EF_GH_2014"):
        assert sorted(set(spearman.loc[task].index)) == sorted([*names, *averaged, *without])
        assert sorted(spearman.loc[(task, "tiny_adapted+pssm")].seed) == [3, 4]
    # what the alignment does not cover has a score of the adapted model alone
    n = {name: spearman.loc[[("AB_CD_2016", name)]].n.iloc[0] for name in names}
    n |= {name: spearman.loc[[("AB_CD_2016", name)]].n.iloc[0] for name in without}
    assert n["tiny_adapted"] - 4 == n["pssm"] == n["tiny_adapted+pssm"] == n["pssm+dms_matrix"]
    assert n["tiny_adapted"] == n["dms_matrix"]
    # the fits together are one more model, which belongs to no seed
    assert len(spearman.loc[[("AB_CD_2016", averaged[0])]]) == 1
    assert n["tiny_adapted"] == spearman.loc[("AB_CD_2016", averaged[0])].n.item()
    assert n["pssm"] == spearman.loc[("AB_CD_2016", averaged[1])].n.item()
    # two seeds are two models
    assert spearman.loc[("EF_GH_2014", "tiny_adapted")].weights_sha.nunique() == 2
    table = protein_table(rows, scans, "tiny", "masked", families).set_index("protein")
    means = spearman[spearman.seed > 0].groupby(["task", "model"]).value.mean().unstack()
    for role, name in (
        ("adapted", names[2]),
        ("mixture", names[3]),
        ("adapted from random", names[0]),
    ):
        assert table[role]["EF_GH"] == pytest.approx(means[name]["EF_GH_2014"])
        assert table[role]["AB_CD"] == pytest.approx(
            means[name][["AB_CD_2013", "AB_CD_2016"]].mean()
        )
    assert set(protein_means(table.reset_index()).n) == {2}


def test_an_interrupted_run_goes_on_and_finished_rows_are_not_computed_again(
    tmp_path, adapted, model, monkeypatch
):
    write_family(tmp_path / "x.a3m")
    families = read_families([scan("x"), scan("y")], str(tmp_path / "x.a3m"))
    assert len(families) == 1
    fits = FamilyFits([model], seeds=(0, 1), n_boot=20, device="cpu")
    scored = []
    score = sys.modules["carp_nb.families"].score_scan

    def counted(scorer, scan, *args, **kwargs):
        if len(scored) == 9:
            scored.append("stopped")
            raise KeyboardInterrupt
        scored.append((scorer.name, scan.name))
        return score(scorer, scan, *args, **kwargs)

    monkeypatch.setattr("carp_nb.families.score_scan", counted)
    with pytest.raises(KeyboardInterrupt):
        all_rows(families, fits, tmp_path)
    before = len(adapted)
    rows = all_rows(families, fits, tmp_path)
    assert before == 1 and len(adapted) == 4
    # PSSM, table and both, twice adapted, mixture and random, and the mean and its mixture, of two
    # scans: once each
    assert len(scored) - 1 == 2 * (3 + 2 * 3 + 2)
    again = all_rows(families, fits, tmp_path)
    assert len(scored) - 1 == 22 and len(adapted) == 4
    pd.testing.assert_frame_equal(rows, again)


def test_models_of_one_shape_share_the_one_from_random_weights(tmp_path, adapted, model):
    write_family(tmp_path / "x.a3m")
    families = read_families([scan("x")], str(tmp_path / "x.a3m"))
    second = load_model(tmp_path / "tiny.safetensors", "cpu")
    second.name = "second"
    rows = all_rows(families, FamilyFits([model, second], n_boot=20, device="cpu"), tmp_path)
    spearman = rows[rows.metric == "spearman"]
    assert not spearman.duplicated(["task", "model", "seed"]).any()
    assert sorted(name for _, name, *_ in adapted) == ["carp_4k_random", "second", "tiny"]


def test_without_adapting_the_model_itself_is_mixed(tmp_path, adapted, model):
    write_family(tmp_path / "x.a3m")
    families = read_families([scan("x")], str(tmp_path / "x.a3m"))
    rows = all_rows(families, FamilyFits([model], adapt=False, n_boot=20), tmp_path)
    assert set(rows.model) == {"pssm", "dms_matrix", "pssm+dms_matrix", "tiny+pssm"}
    assert not adapted


def test_alignments_are_found_by_name_or_by_content(tmp_path):
    (tmp_path / "ali").mkdir()
    write_family(tmp_path / "ali/AB.a3m", OTHER)
    write_family(tmp_path / "ali/AB_CD.a3m")
    [family] = read_families([scan("AB_CD_2013")], str(tmp_path / "ali"))
    assert family.path.name == "AB_CD.a3m"
    files = f"{tmp_path}/ali/AB.a3m,{tmp_path}/ali/AB_CD.a3m"
    found = read_families([scan("one", OTHER), scan("two")], files)
    assert {f.protein: f.path.name for f in found} == {"AB": "AB.a3m", "AB_CD": "AB_CD.a3m"}
    with pytest.raises(CarpError, match=r"AB\.a3m: its query .* is not the wild type of three"):
        read_families([scan("three", 2 * "ACDEFGHIKL")], f"{tmp_path}/ali/AB.a3m")
    with pytest.raises(CarpError, match="neither a folder of alignments nor a file"):
        read_families([scan("two")], "nowhere")
    with pytest.raises(CarpError, match=r"give the model as NAME\+family\.a3m"):
        read_families([], files)


def test_a_database_is_searched_once_for_each_protein(tmp_path, monkeypatch):
    searched = []

    def find_homologs(query, database, path, progress):
        name, sequence = query.read_text().strip(">").split()
        searched.append(name)
        if sequence == OTHER:
            raise NoHomologs(f"{database} holds no homolog of {name}.")
        write_family(path)
        record = f'{{"sequence": "{sequence}", "database": "{database}"}}'
        path.with_suffix(".search.json").write_text(record)

    monkeypatch.setattr("carp_nb.families.find_homologs", find_homologs)
    (tmp_path / "db.fasta").write_text(f">a\n{WILD_TYPE}\n")
    scans = [scan("one"), scan("again"), scan("two", OTHER)]
    for _ in range(2):
        with pytest.warns(UserWarning, match="holds no homolog of two. It gets no rows by family"):
            [family] = read_families(scans, "", str(tmp_path / "db.fasta"), tmp_path / "found")
        assert [p.whole.name for p in family.profiles] == ["one", "again"]
    # what was found is kept
    assert searched == ["one", "two", "two"]
    # an alignment that is given is not searched for
    write_family(tmp_path / "given.a3m", OTHER)
    files = str(tmp_path / "given.a3m")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read_families(scans, files, str(tmp_path / "db.fasta"), tmp_path / "found")
    assert len(found) == 2 and len(searched) == 3


def test_a_mean_is_over_the_proteins_that_have_everything():
    rows = []
    values = {"one": (0.1, 0.2, 0.3), "two": (0.3, 0.2, 0.5), "three": (0.9, 0.9, None)}
    for task, scores in values.items():
        for model, value in zip(("tiny", "blosum62", "pssm"), scores, strict=True):
            if value is not None:
                rows.append((task, model, "wild-type", "spearman", value))
    table = protein_table(
        pd.DataFrame(rows, columns=["task", "model", "method", "metric", "value"]),
        [scan(name) for name in values],
        "tiny",
        "wild-type",
    )
    means = protein_means(table).set_index("what")
    assert means.n.tolist() == [2, 2, 2]
    np.testing.assert_allclose(means["mean"], [0.2, 0.2, 0.4])
    np.testing.assert_allclose(means["minus BLOSUM62"]["PSSM"], 0.2)
