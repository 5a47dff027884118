"""flip.ipynb and in_domain.ipynb by papermill, with the smallest settings."""

import pandas as pd
import pytest

from carp_nb.defaults import PRETRAINED_MODEL
from carp_nb.experiments import load_split


@pytest.mark.parametrize(
    "notebook, place, tables",
    [
        (
            "flip",
            {"splits": "random", "seeds": "2", "train_rows": "20", "epochs": "1"},
            ["table_2", "table_3"],
        ),
        ("in_domain", {"tasks": "abeta42"}, ["table_4"]),
    ],
)
def test_smoke_on_what_ships(notebook, place, tables, papermill):
    done = papermill(notebook, environment={"CARP_NB_DATA": ""}, methods="ridge,pt-fr,cnn", **place)
    assert done.status == 0, done.shown
    rows = pd.read_parquet(done.out / "results.parquet")
    scores = rows[rows.metric == "spearman"]
    assert set(zip(scores.model, scores.method)) == {
        ("ridge", "train"),
        ("ridge", "train + valid"),
        ("cnn", "train"),
        (PRETRAINED_MODEL, "pt-fr"),
    }
    assert (
        scores.value.between(-1, 1).all()
        and scores.data_sha.str.len().eq(64).all()
        and set(rows.section) == {notebook}
    )
    assert scores.groupby("model").seed.unique().map(sorted).to_dict() == {
        m: [0] if m == "ridge" else list(range(int(place.get("seeds", 1))))
        for m in set(scores.model)
    }
    read = rows[(rows.metric == "train_rows") & (rows.method == "pt-fr")].iloc[0]
    assert (
        read.value == int(place.get("train_rows", 32)) < read.n
    )  # a smoke run reads part of the rows and says so
    for table in tables:
        cells = pd.read_csv(done.out / f"{table}.csv")
        assert (
            cells.paper.notna().any()
            and not cells["set"].isin(["gb1_olson_sample", "abeta42"]).any()
        )  # a stand-in is never beside the paper
    assert {p.name for p in done.out.glob("*.svg")} == {
        "against_paper.svg",
        "training_size.svg",
    }


@pytest.mark.parametrize(
    "notebook, parameters, sentence",
    [
        ("flip", {"splits": "one_vs_rest"}, "splits has 'one_vs_rest'; use random, low-vs-high."),
        (
            "flip",
            {"methods": "ridge,pt"},
            "methods has 'pt'; use pt-fr, pt-ft, na-fr, na-ft, ridge, cnn.",
        ),
        ("in_domain", {"tasks": "sprot_heldout_sample"}, "without a measurement"),
    ],
)
def test_wrong_parameters(notebook, parameters, sentence, papermill):
    done = papermill(notebook, environment={"CARP_NB_DATA": ""}, **parameters)
    assert done.status != 0 and sentence in done.shown, done.shown


def test_test_rows_are_the_same_for_every_seed_and_never_in_training():
    task = load_split("gb1_olson_sample", "random")
    pd.testing.assert_frame_equal(task.table, load_split("gb1_olson_sample", "random").table)
    part = task.subsample(300, 200, seed=1)
    test = set(task.rows_of("test").sequence)
    assert set(part.rows_of("test").sequence) <= test
    assert not set(part.table.sequence[part.table.split != "test"]) & test


def test_a_split_file_of_the_user_is_fitted_and_scored_by_auroc(papermill, tmp_path):
    "The csv that `carp-nb split` writes; 0 and 1 make it a classification."
    letters = "ACDEFGHIKLMNPQRSTVWY"
    splits = ["train", "train", "valid", "test"]
    rows = [
        (f"MK{letters[i % 20]}{letters[i // 20]}{'W' * (i % 2)}TA", i % 2, splits[i // 2 % 4])
        for i in range(80)
    ]
    own = tmp_path / "idr.csv"
    pd.DataFrame(rows, columns=["sequence", "target", "split"]).to_csv(own, index=False)
    done = papermill("in_domain", tasks=str(own), methods="ridge,pt-fr")
    assert done.status == 0, done.shown
    found = pd.read_parquet(done.out / "results.parquet")
    scores = found[found.metric == "auroc"]
    assert set(scores.model) == {"ridge", PRETRAINED_MODEL} and scores.value.between(0, 1).all()
    assert set(zip(found.task, found.split)) == {("idr.csv", "own")}
    assert scores[scores.model == "ridge"].value.max() > 0.9
