"""What a kept file depends on is in its key: other data, weights, settings or code never pass for it,
and two names never become one file.
"""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from carp_nb import checkpoints, datasets, results
from carp_nb.baselines import fit_cnn
from carp_nb.batching import Corpus
from carp_nb.carp import CARP, TABLE_S1
from carp_nb.cli import app
from carp_nb.embedding import embed, read_embeddings
from carp_nb.errors import CarpError
from carp_nb.files import in_project, tensors_sha256, write_text
from carp_nb.finetune import FinetuneConfig, finetune
from carp_nb.identity import file_name, file_names, model_sha256
from carp_nb.pretrain import PretrainConfig, pretrain, refuse_other_run
from carp_nb.results import Results, Run, cached_rows, provenance
from carp_nb.rows import SharedRepresentations, TokenRows
from carp_nb.tensors import save_tensors

LETTERS = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
CONFIG = PretrainConfig("carp_4k", tokens=600, batch_tokens=256, max_length=64, snapshots=0)
VALID, OTHER = ["MKTAYIAKQR", "MKTWYIA"], ["MKTAYIAKQR", "MKTWYIG"]


def training_set() -> Corpus:
    return Corpus.from_records([(str(i), LETTERS[i:] + LETTERS[:i]) for i in range(8)])


def train(folder: Path, config: PretrainConfig = CONFIG, valid=VALID, name: str = "mine"):
    record = {"train": {"name": "t"}, "valid": {"name": name}}
    return pretrain(config, training_set(), valid, folder, record, "cpu", progress=False)


def models_of_one_file() -> tuple[CARP, CARP]:
    "Two models with the same tensors, of which the second looks further."
    torch.manual_seed(0)
    one = CARP(TABLE_S1["carp_4k"], "m").eval()
    other = CARP(replace(one.config, r=2), "m").eval()
    other.load_state_dict(one.state_dict())
    return one, other


# pretraining


@pytest.mark.parametrize("finished", [True, False])
def test_other_held_out_sequences_are_another_run(finished, tmp_path):
    train(tmp_path)
    if not finished:
        (tmp_path / "carp_4k.safetensors").unlink()
    before = (tmp_path / "held_out.parquet").read_bytes()
    with pytest.raises(CarpError, match="holds a run with valid_sha256"):
        train(tmp_path, valid=OTHER)
    # nor does it help to delete the record, as a message advises for a damaged one
    (tmp_path / "config.json").unlink()
    with pytest.raises(CarpError, match=r"\.parquet belongs to another run"):
        train(tmp_path, valid=OTHER)
    assert (tmp_path / "held_out.parquet").read_bytes() == before
    train(tmp_path)


def test_checkpoints_of_another_run_are_not_gone_on_with(tmp_path):
    train(tmp_path)
    for path in [*tmp_path.glob("*.parquet"), *tmp_path.glob("*.safetensors")]:
        path.unlink()
    (tmp_path / "config.json").unlink()
    with pytest.raises(CarpError, match="checkpoints belongs to another run"):
        train(tmp_path, replace(CONFIG, lr=1e-4))


def test_an_old_record_had_the_defaults_of_later_settings(tmp_path):
    train(tmp_path)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    for later in ("clip", "skip_non_finite", "snapshots", "recompute", "valid_sha256"):
        del record["config"][later]
    path.write_text(json.dumps(record))
    with pytest.raises(CarpError, match=r"holds a run with clip=0.0, not 1"):
        train(tmp_path, replace(CONFIG, clip=1))
    # without a checksum, held-out sequences are known by their name
    for table in tmp_path.glob("*.parquet"):
        pd.DataFrame(pd.read_parquet(table).to_dict("list")).to_parquet(table)
    with pytest.raises(CarpError, match="was measured on mine, not on yours"):
        train(tmp_path, valid=OTHER, name="yours")
    train(tmp_path)
    assert json.loads(path.read_text()) == record


def test_an_old_run_that_goes_on_knows_its_sequences_from_then_on(tmp_path):
    train(tmp_path)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["valid_sha256"]
    path.write_text(json.dumps(record))
    (tmp_path / "carp_4k.safetensors").unlink()
    train(tmp_path)
    with pytest.raises(CarpError, match="valid_sha256"):
        train(tmp_path, valid=OTHER)


def test_a_run_of_another_kind_is_refused(tmp_path):
    write_text(tmp_path / "config.json", json.dumps({"config": {"method": "pt-fr", "seed": 0}}))
    with pytest.raises(CarpError, match="holds a run with method='pt-fr'; choose another folder"):
        train(tmp_path)


def test_kept_runs_go_on_and_are_compared():
    paths = sorted(in_project("outputs").rglob("config.json"))
    assert paths
    for path in paths:
        settings = json.loads(path.read_text())["config"]
        known = {k: v for k, v in settings.items() if k in asdict(CONFIG)}
        config = asdict(PretrainConfig(**known))
        # of the oldest runs the held-out sequences are not recorded
        now = {"valid_sha256": "of today", **settings, **config}
        refuse_other_run(path.parent, now)
        with pytest.raises(CarpError, match="clip"):
            refuse_other_run(path.parent, {**now, "clip": 1})


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "x" * 121, "nul", "a\\b"])
def test_a_name_does_not_lead_out_of_its_folder(name, tmp_path):
    folder = tmp_path / "a" / "b" / "run"
    done = CliRunner().invoke(app, ["pretrain", str(folder), "--name", name, "--tokens", "100"])
    assert done.exit_code == 1 and done.stderr.startswith("name is "), done.output
    assert not list(tmp_path.iterdir())


# names


def test_two_names_never_become_one_file(tmp_path):
    run = Run("zero_shot", {"budget": "smoke"}, tmp_path, provenance())
    names = ["a/1", "a_1", "a 1", "ä", "ö", "A_1", "../x", "nul", "x" * 200, "x" * 201]
    tables = {name: pd.DataFrame({"mutant": [name]}) for name in names}
    written = run.save(tables)
    assert len({path.name.casefold() for path in written}) == len(names) + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(p.name for p in written)
    assert all(len(os.fsencode(path.name)) <= 124 for path in written)
    assert {pd.read_csv(path).mutant[0] for path in tmp_path.glob("*.csv")} == set(names)
    assert file_name("gb1-one_vs_rest-pt-fr-m-0-smoke") == "gb1-one_vs_rest-pt-fr-m-0-smoke"


def test_joined_names_are_told_apart():
    keys = [("mutants", "a", "b_c"), ("mutants", "a_b", "c"), ("mutants", "p", "m")]
    names = file_names(keys)
    assert len(set(names.values())) == 3
    assert names[keys[2]] == "mutants_p_m"


# results


def saved(folder: Path, value: float | None, when: str) -> Run:
    made = {**provenance(), "when": when}
    run = Run("zero_shot", {"budget": "smoke", "fasta": when}, folder, made)
    if value is not None:
        run.add(pd.DataFrame({"metric": ["spearman"], "value": [value], "n": [9]}), model="m")
    run.save({f"table {when}": pd.DataFrame({"a": [1]})})
    return run


def test_rows_of_an_earlier_run_do_not_stay_in_its_folder(tmp_path):
    saved(tmp_path, 0.5, "1")
    assert Results.read(tmp_path).rows.value.tolist() == [0.5]
    saved(tmp_path, None, "2")
    assert len(Results.read(tmp_path).rows) == 0
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".json"]


def test_rows_and_record_of_two_runs_are_noticed(tmp_path):
    saved(tmp_path, 0.5, "1")
    earlier = (tmp_path / "run.json").read_bytes()
    saved(tmp_path, 0.6, "2")
    # as if the second had been killed between its two files
    (tmp_path / "run.json").write_bytes(earlier)
    with pytest.warns(UserWarning, match="holds rows of another run"):
        assert len(Results.read(tmp_path).rows) == 0
    # rows know their run without the file beside them
    (tmp_path / "run.json").unlink()
    assert Results.read(tmp_path).rows.when.tolist() == ["2"]


def test_kept_rows_are_read_as_ever(recwarn):
    rows = Results.read(in_project("outputs")).rows
    on_disk = sum(len(pd.read_parquet(p)) for p in in_project("outputs").rglob("results.parquet"))
    assert len(rows) == on_disk > 0
    assert not [w for w in recwarn if "another run" in str(w.message)]


def test_kept_parts_depend_on_code_and_device(monkeypatch, tmp_path):
    run = Run("checkpoints", {"budget": "smoke"}, tmp_path, provenance())
    calls = []

    def make():
        calls.append(1)
        return pd.DataFrame({"value": [0.5]})

    cached_rows(run, "a", make)
    cached_rows(run, "a", make)
    assert len(calls) == 1
    monkeypatch.setattr(results, "code_sha256", lambda: "changed and not committed")
    cached_rows(run, "a", make)
    run.record["device"] = "NVIDIA"
    cached_rows(run, "a", make)
    assert len(calls) == 3


def test_the_loss_of_a_checkpoint_is_that_of_its_sequences(monkeypatch, tmp_path):
    run = Run("checkpoints", {"budget": "smoke"}, tmp_path, provenance())
    measured = []

    def evaluate(model, sequences, batch_tokens):
        measured.append(sequences)
        return SimpleNamespace(loss=float(len(measured)))

    monkeypatch.setattr(checkpoints, "evaluate", evaluate)
    compute = SimpleNamespace(batch_tokens=1)
    for sequences in (VALID, VALID, OTHER):
        tests = SimpleNamespace(sequences=sequences, held_out="my.fasta", compute=compute)
        checkpoints._add_loss(run, None, tests, {"weights_sha": "w", "model": "m"})
    assert measured == [VALID, OTHER]


# fits, representations, embeddings


def table(n: int) -> pd.DataFrame:
    return pd.DataFrame({"sequence": [LETTERS[i : i + 9] for i in range(n)], "target": range(n)})


def test_a_row_that_moves_from_training_to_validation_is_another_fit(tmp_path):
    rows = table(8).astype({"target": float})
    config = FinetuneConfig("pt-fr", "regression", epochs=1, batch=4)
    encoder, wider = models_of_one_file()
    fitted = finetune(encoder, rows[:5], rows[5:], config, tmp_path, "cpu", False)
    with pytest.raises(CarpError, match="holds a run with rows="):
        finetune(encoder, rows[:6], rows[6:], config, tmp_path, "cpu", False)
    with pytest.raises(CarpError, match="holds a run with shape_sha256="):
        finetune(wider, rows[:5], rows[5:], config, tmp_path, "cpu", False)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CarpError, match=r"model\.safetensors belongs to another run"):
        finetune(encoder, rows[:6], rows[6:], config, tmp_path, "cpu", False)
    again = finetune(encoder, rows[:5], rows[5:], config, tmp_path, "cpu", False)
    assert tensors_sha256(again.head) == tensors_sha256(fitted.head)
    assert not list(tmp_path.glob("*.npy"))


def test_a_small_cnn_knows_where_validation_begins(tmp_path):
    rows = table(8).astype({"target": float})
    small = {"epochs": 1, "channels": 4, "features": 4, "device": "cpu"}
    fit_cnn(rows[:5], rows[5:], tmp_path, **small)
    with pytest.raises(CarpError, match="holds a run with rows="):
        fit_cnn(rows[:6], rows[6:], tmp_path, **small)


def test_the_same_tensors_in_another_shape_are_another_model(tmp_path):
    one, wider = models_of_one_file()
    assert tensors_sha256(one) == tensors_sha256(wider)
    assert model_sha256(one) != model_sha256(wider)
    shared = SharedRepresentations(tmp_path)
    tokens = TokenRows(one.alphabet, [LETTERS])
    for encoder in (one, wider, one):
        shared.rows(encoder, tokens)
    assert shared.files == 2
    path = tmp_path / "a.safetensors"
    embed(one, [LETTERS], path, progress=False)
    with pytest.raises(CarpError, match="its shape_sha is"):
        embed(wider, [LETTERS], path, progress=False)
    # a file from before this checksum is valid
    stored = read_embeddings(path)
    older = {k: v for k, v in stored.metadata.items() if k != "shape_sha"}
    tensors = {name: stored._stored._file.get_tensor(name) for name in ("offsets", "embeddings")}
    tensors["ids"] = stored._stored._file.get_tensor("ids")
    save_tensors(tensors, path, older)
    embed(one, [LETTERS], path, progress=False)


# caches of data


def test_a_table_that_has_changed_is_cut_again(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "cache_dir", lambda: tmp_path / "cache")
    source = tmp_path / "raw_df.csv"
    monkeypatch.setattr(datasets, "_obtain", lambda *_: source)
    seen = []
    for score in ("1", "1", "22"):
        source.write_text(f"protein_name,mutant,gt\nA,K2R,{score}\n")
        cut = datasets._from_table("scans/A.csv", "origin", "https://host/raw_df.csv")
        seen.append(pd.read_csv(cut)["gt"][0])
    assert seen == [1, 1, 22]


def test_an_archive_is_unpacked_again_for_files_that_came_later(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(datasets, "fetch", lambda *_, **__: tmp_path / "a.tar.gz")

    def unpack(archive, folder, wanted):
        folder.mkdir()
        for name in wanted:
            (folder / name).write_text(name)

    monkeypatch.setattr(datasets, "unpack_tar", unpack)
    for wanted in (["a.csv"], ["a.csv", "b.csv"]):
        monkeypatch.setattr(datasets, "_names_in", lambda url, wanted=wanted: wanted)
        for name in wanted:
            assert datasets._from_archive(name, "https://host/a.tar.gz")


def test_a_restarted_run_goes_on_from_a_checkpoint_of_another(tmp_path):
    from carp_nb.restart import restart

    train(tmp_path / "run")
    begun = restart(tmp_path / "run", "lr=1e-4")
    train(begun.folder, begun.config)
    with pytest.raises(CarpError, match="give float32 or bfloat16"):
        restart(tmp_path / "run", "dtype=../../x")
