"""Chains out of deposited files, heads for residues and pairs fitted to them, and structure.ipynb by papermill."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from biotite.structure.io.pdb import PDBFile
from biotite.structure.io.pdbx import CIFCategory, CIFFile, set_structure

from carp_nb.assays import check_task
from carp_nb.coordinates import contact_map, read_chain
from carp_nb.defaults import PRETRAINED_MODEL
from carp_nb.finetune import FinetuneConfig, FineTuned, finetune
from carp_nb.heads import ContactHead
from carp_nb.metrics import contact_precision, mean_precision
from carp_nb.pretrained import load_model
from carp_nb.rows import OneHot
from carp_nb.structure import (
    evaluate_structure,
    load_structure_task,
)
from carp_nb.tasks import Task, read_contacts

DEPOSITED = Path(os.environ.get("CARP_NB_DATA", "")) / "structures" / "deposited"
here = pytest.mark.skipif(
    not (DEPOSITED / "1ubi.pdb").is_file(), reason="CARP_NB_DATA has no structures/deposited"
)


@here
def test_ubiquitin():
    chain = read_chain(DEPOSITED / "1ubi.pdb")
    assert chain.sequence.startswith(
        "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRL"
    )
    contacts = contact_map(chain)
    assert (
        contacts[0, 62] and not contacts[0, 40] and (contacts == contacts.T).all()
    )  # strands 1 and 5 are neighbours


@here
def test_a_file_with_several_chains_asks_which():  # 3hsy has a third one, of sugars
    with pytest.raises(ValueError, match=r"holds 2 chains; choose one of A, B\."):
        read_chain(DEPOSITED / "3hsy.pdb")
    chain = read_chain(DEPOSITED / "3hsy.pdb", "A")
    assert (len(chain), chain.resolved.sum()) == (
        376,
        354,
    )  # SEQRES; the loops without coordinates count nowhere


def test_contact_head_in_bfloat16():
    torch.manual_seed(0)
    head, x, mask = (
        ContactHead(32, 32, 16, 24).eval(),
        torch.randn(2, 40, 32),
        torch.ones(2, 40, dtype=torch.bool),
    )
    with torch.no_grad():
        exact = head(x, mask)
        with torch.autocast("cpu", torch.bfloat16):
            half = head(x, mask)
    assert torch.corrcoef(torch.stack([exact.flatten(), half.flatten()]))[0, 1] > 0.99


@here
def test_mmcif_gives_the_chain_that_pdb_gives(tmp_path):
    file = CIFFile()
    set_structure(file, PDBFile.read(DEPOSITED / "1ubi.pdb").get_structure(model=1))
    file.write(tmp_path / "1ubi.cif")
    pdb, cif = read_chain(DEPOSITED / "1ubi.pdb"), read_chain(tmp_path / "1ubi.cif")
    assert pdb.sequence == cif.sequence
    np.testing.assert_allclose(pdb.cb, cif.cb, atol=1e-3)
    file.block["entity_poly"] = CIFCategory(
        {
            "entity_id": ["1", "2"],
            "pdbx_strand_id": ["B", "C,A"],
            "pdbx_seq_one_letter_code_can": ["GG", f"MA{pdb.sequence[:40]}\n{pdb.sequence[40:]}"],
        }
    )
    file.write(tmp_path / "1ubi.cif")
    whole = read_chain(tmp_path / "1ubi.cif")  # two residues in front have no coordinates
    assert (
        whole.sequence == "MA" + pdb.sequence
        and not whole.resolved[:2].any()
        and whole.resolved[2:].all()
    )


def chains(n: int, longest: int) -> pd.DataFrame:
    table = load_structure_task("contacts", "pdb_chains_sample").rows_of("train")
    table = table[table.sequence.str.len() <= longest].head(n)
    assert len(table) == n
    return table.reset_index(drop=True)


def long_range(
    maps: list, rows: pd.DataFrame
) -> float:  # precision of the best L/5 pairs, over that of the true map
    truth = [contact_map(t) for t in rows.target]
    own, best = (
        mean_precision([contact_precision(m, t) for m, t in zip(maps_, truth)])
        .set_index(["range", "top"])
        .value["long", "L/5"]
        for maps_ in (maps, [np.nan_to_num(t) for t in truth])
    )
    return own / best


@pytest.mark.slow
def test_contact_head_overfits_ten_chains(tmp_path):
    rows, encoder = chains(10, 110), load_model("carp_600k_sprot50", "cpu")
    config = FinetuneConfig(
        "pt-fr",
        "contacts",
        3e-3,
        batch=5,
        epochs=120,
        patience=120,
        channels=16,
        layers=8,
        crop=128,
    )
    model = finetune(encoder, rows, rows, config, tmp_path, "cpu", progress=False)
    half = FineTuned(
        model.encoder, model.head, model.targets, replace(model.config, dtype="bfloat16")
    )
    exact, rough = (long_range(m.predict(rows.sequence.tolist()), rows) for m in (model, half))
    print(
        "long range, best L/5 of ten chains, as a share of what the true map "
        f"reaches: float32 {exact:.3f}, bfloat16 {rough:.3f}"
    )
    assert exact > 0.95 and abs(exact - rough) < 0.03


WHOLE = """
import resource, sys, numpy as np, torch
from carp_nb.finetune import FinetuneConfig, FineTuned
from carp_nb.heads import ContactHead
from carp_nb.pretrained import load_model
from carp_nb.targets import Targets
encoder = load_model("carp_600k_sprot50", "cpu")
head, targets = ContactHead(encoder.config.d_model), Targets("contacts")
model = FineTuned(encoder, head, targets, FinetuneConfig("pt-fr", "contacts"))
found, = model.predict(["".join(np.random.default_rng(0).choice(list("ACDEFGHIKLMNPQRSTVWY"), 1000))])
assert found.shape == (1000, 1000) and np.isfinite(found).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20)
"""


@pytest.mark.slow
def test_a_chain_of_1000_residues_takes_less_than_8_gb():
    gigabytes = float(
        subprocess.run(
            [sys.executable, "-c", WHOLE], capture_output=True, text=True, check=True
        ).stdout.split()[-1]
    )
    print(f"peak {gigabytes:.2f} GiB")
    assert gigabytes < 8e9 / 2**30


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"target": "HHEEC"},
            "1 of 3 rows do not have one label per residue, the first is row 1 with 4 residues and 5 labels",
        ),
        ({"target": "HHE"}, "4 residues and 3 labels"),
    ],
)
def test_labels_of_another_length(change, sentence):
    task = pd.DataFrame(
        {
            "sequence": ["ACDE", "ACDF", "ACDG"],
            "target": ["HHEC"] * 3,
            "split": ["train", "valid", "test"],
        }
    )
    check_task(Task(task, "per_residue"))
    with pytest.raises(ValueError, match=sentence):
        check_task(Task(task.assign(target=[change["target"], "HHEC", "HHEC"]), "per_residue"))


def test_contacts_leave_the_encoder_frozen():
    with pytest.raises(ValueError, match="use pt-fr or na-fr, not pt-ft"):
        FinetuneConfig("pt-ft", "contacts")


@pytest.mark.parametrize("kind", ["per_residue", "contacts"])
def test_order_and_batches_change_no_prediction_and_labels_that_do_not_count_no_weight(
    tmp_path, kind
):
    rng, words = np.random.default_rng(0), ["ACDEFGHIKLMN", "MKTAYIAKQ", "GGSGG", "WYVTSRQPNM"]
    label = (
        (lambda s: "".join("HE"[a in "AKLM"] for a in s))
        if kind == "per_residue"
        else (lambda s: rng.normal(0, 5, (len(s), 3)).astype("float32"))
    )
    rows = pd.DataFrame({"sequence": words, "target": [label(s) for s in words]})
    fits = []
    for i, batch_tokens in enumerate((16, 4096)):
        config = FinetuneConfig(
            "pt-fr",
            kind,
            1e-3,
            epochs=2,
            batch=2,
            batch_tokens=batch_tokens,
            channels=4,
            layers=2,
            crop=8,
        )
        fits.append(
            finetune(
                OneHot(), rows, rows, config, tmp_path / str(i), "cpu", progress=False
            ).predict(words[:: 1 - 2 * i][:])
        )
    for a, b in zip(fits[0], fits[1][::-1]):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_masked_residues_do_not_count():
    chance = [np.eye(3)[[0, 1, 2, 0]]]
    full, part = (
        evaluate_structure([t], chance, "per_residue", 10, classes=("C", "E", "H")).value[0]
        for t in ("CEHH", "CEH-")
    )
    assert (full, part) == (0.75, 1.0)


def test_smoke_on_what_ships(papermill):
    done = papermill("structure", environment={"CARP_NB_DATA": ""})
    assert done.status == 0, done.shown
    rows = pd.read_parquet(done.out / "results.parquet")
    for metric in ("q3", "precision long L"):
        scores = rows[rows.metric == metric]
        assert (
            set(zip(scores.model, scores.method))
            == {
                (PRETRAINED_MODEL, "pt-fr"),
                (PRETRAINED_MODEL, "na-fr"),
                ("one-hot", "frozen"),
            }
            and scores.value.between(0, 1).all()
        )
    assert (
        set(rows.task) == {"secondary_structure: pdb_chains_sample", "contacts: pdb_chains_sample"}
        and rows.data_sha.str.len().eq(64).all()
    )
    assert {p.name for p in done.out.glob("*.svg")} == {
        "contacts.svg",
        "confusion.svg",
        "trace.svg",
    }
    assert (
        not pd.read_csv(done.out / "table_1.csv")["set"].isin(set(rows.task)).any()
    )  # a stand-in is never beside the paper


def test_a_wrong_task_is_one_sentence(papermill):
    done = papermill("structure", task="folds")
    assert (
        done.status != 0
        and "task has 'folds'; use secondary_structure, remote_homology, contacts." in done.shown
    ), done.shown


def test_training_sequences_in_the_test_of_the_other_set_are_dropped(monkeypatch):
    def labelled(rows):
        table = pd.DataFrame(rows, columns=["sequence", "target", "split"]).assign(id="x")
        return Task(table, "classification", sums={"a": "0"})

    sets = {
        "a": labelled(
            [
                ("ACD", "1", "train"),
                ("AAA", "2", "train"),
                ("CCC", "1", "valid"),
                ("DDD", "2", "valid"),
                ("EEE", "1", "test"),
            ]
        ),
        "b": labelled([("ACD", "1", "test"), ("CCC", "1", "test"), ("FFF", "2", "train")]),
    }
    monkeypatch.setattr("carp_nb.structure.load_task", sets.get)
    task = load_structure_task("remote_homology", "a+b")
    assert task.table[["sequence", "split"]].to_numpy().tolist() == [
        ["AAA", "train"],
        ["DDD", "valid"],
        ["ACD", "test"],
        ["CCC", "test"],
    ]
    assert sum(task.dropped.values()) == 2 and task.available == {
        "train": 1,
        "valid": 1,
        "test": 2,
    }


def test_distances_of_trrosetta_train_as_the_coordinates_they_come_from(tmp_path, monkeypatch):
    rows = chains(3, 80)
    for name, sequence, xyz in zip(rows.id, rows.sequence, rows.target):
        distance = np.nan_to_num(np.linalg.norm(xyz[:, None] - xyz, axis=-1))
        np.savez(
            tmp_path / f"{name}.npz",
            msa=np.array([["ARNDCQEGHILKMFPSTWYV-".find(a) for a in sequence]], np.int8),
            dist6d=np.where(distance < 20, distance, 0),
        )
    task = read_contacts(tmp_path, "train")
    table = task.table.set_index("id").loc[rows.id].reset_index()
    monkeypatch.setattr("carp_nb.structure.load_task", lambda name: replace(task, table=table))
    maps = load_structure_task("contacts", "trrosetta").table
    maps = maps.set_index("id").loc[rows.id].reset_index()

    def off(m):
        return m[~np.eye(len(m), dtype=bool)]

    for known, found in zip(rows.target, maps.target):
        np.testing.assert_array_equal(off(contact_map(found)), off(contact_map(known)))
    config = FinetuneConfig(
        "pt-fr", "contacts", 1e-3, epochs=2, batch=2, channels=4, layers=2, crop=32
    )
    one, other = (
        finetune(OneHot(), t, rows, config, tmp_path / name, "cpu", progress=False).predict(
            rows.sequence.tolist()
        )
        for name, t in (("xyz", rows), ("maps", maps))
    )
    for a, b in zip(one, other):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.savez(tmp_path / f"{rows.id[0]}.npz", msa=np.zeros((1, 4), np.int8), dist6d=np.zeros((5, 5)))
    with pytest.raises(ValueError, match=r"distances of shape \(5, 5\)"):
        load_structure_task("contacts", "trrosetta")
