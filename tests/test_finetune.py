"""Fine-tuning as its users rely on it: repeatable, resumable, honest about the test set, and clear about bad input."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from forks import on_two_processes

from carp_nb import finetune as module
from carp_nb.assays import check_task, read_assay, run_task
from carp_nb.carp import CARP, TABLE_S1
from carp_nb.esm import ESM, TABLE_S2
from carp_nb.finetune import METHODS, FinetuneConfig, FineTuned, finetune, untrained
from carp_nb.heads import PooledHead
from carp_nb.metrics import evaluate_predictions
from carp_nb.rows import EpochBatches, SharedRepresentations
from carp_nb.targets import Targets
from carp_nb.tasks import Task
from carp_nb.training import processes


def labelled(n: int = 90, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    sequences = sorted({"".join(rng.choice(list("ACDK"), rng.integers(6, 16))) for _ in range(n)})
    table = pd.DataFrame(
        {"sequence": sequences, "target": [s.count("K") / len(s) for s in sequences]}
    )
    return table.assign(split=rng.choice(["train", "valid", "test"], len(table), p=[0.6, 0.2, 0.2]))


@pytest.fixture(scope="module")
def carp():
    torch.manual_seed(0)
    return CARP(TABLE_S1["carp_4k"], "carp_4k").eval()


@pytest.fixture(scope="module")
def esm():
    torch.manual_seed(0)
    return ESM(TABLE_S2["esm_4_9k"], "esm_4_9k").eval()


def fit(encoder, folder, **settings):
    config = FinetuneConfig(**{"method": "pt-ft", "lr": 5e-3, "epochs": 4, "warmup": 2, **settings})
    return lambda train, valid: finetune(
        encoder, train, valid, config, folder, "cpu", progress=False
    )


@pytest.mark.parametrize("method", METHODS)
def test_same_run_twice_gives_the_same_numbers(carp, tmp_path, method):
    task, runs = labelled(), []
    for i in range(2):
        torch.manual_seed(100 + i)
        torch.rand(i)  # what was drawn before makes no difference
        runs.append(run_task(fit(carp, tmp_path / str(i), method=method), Task(task), n_boot=20))
    (_, first, one), (_, second, two) = runs
    assert first.predicted.tolist() == second.predicted.tolist() and one.equals(two)
    histories = [pd.read_parquet(tmp_path / str(i) / "history.parquet") for i in range(2)]
    pd.testing.assert_frame_equal(*histories)


def test_another_seed_is_another_head_and_all_encoders_of_a_size_start_from_one(carp):
    other = untrained(carp, 7)
    assert not torch.equal(other.decoder.weight, carp.decoder.weight) and torch.equal(
        untrained(carp, 7).decoder.weight, other.decoder.weight
    )
    heads = [
        module._prepare(
            e, FinetuneConfig(m, seed=s), Targets("regression"), torch.device("cpu")
        ).head.out.weight
        for e, m, s in [(carp, "pt-ft", 0), (other, "na-fr", 0), (carp, "pt-fr", 1)]
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("method, at", [("pt-ft", 7), ("pt-fr", 13), ("pt-ft", 1)])
def test_resume_ends_where_an_undisturbed_run_ends(carp, tmp_path, monkeypatch, method, at):
    task = labelled()
    whole = run_task(fit(carp, tmp_path / "whole", method=method), Task(task), n_boot=20)
    original, calls = Targets.loss, 0

    def killed(self, out, target, reduction="mean"):
        nonlocal calls
        calls += out.requires_grad
        if calls == at:
            raise KeyboardInterrupt
        return original(self, out, target, reduction)

    with monkeypatch.context() as m:
        m.setattr(Targets, "loss", killed)
        with pytest.raises(KeyboardInterrupt):
            run_task(fit(carp, tmp_path / "cut", method=method), Task(task), n_boot=20)
    assert not (tmp_path / "cut/model.safetensors").exists() and list(
        (tmp_path / "cut/checkpoints").glob("*.pt")
    )
    resumed = run_task(fit(carp, tmp_path / "cut", method=method), Task(task), n_boot=20)
    assert resumed[1].predicted.tolist() == whole[1].predicted.tolist() and resumed[2].equals(
        whole[2]
    )
    pd.testing.assert_frame_equal(
        *[pd.read_parquet(tmp_path / n / "history.parquet") for n in ("whole", "cut")]
    )


def test_test_rows_are_read_once_and_validation_rows_never_train(carp, tmp_path, monkeypatch):
    task, trained, predicted = labelled(), [], []
    getitem, predict = EpochBatches.__getitem__, FineTuned.predict

    def batch(self, step):
        out = getitem(self, step)
        trained.extend(self.rows.alphabet.decode(row) for row in out[0])
        return out

    def read(self, sequences, progress=False):
        predicted.append(list(sequences))
        return predict(self, sequences, progress)

    monkeypatch.setattr(EpochBatches, "__getitem__", batch)
    monkeypatch.setattr(FineTuned, "predict", read)
    run_task(fit(carp, tmp_path), Task(task), n_boot=10)
    of = {s: set(task.sequence[task.split == s]) for s in ("train", "valid", "test")}
    assert set(trained) == of["train"] and not set(trained) & (of["valid"] | of["test"])
    assert predicted == [task.sequence[task.split == "test"].tolist()]


def test_test_targets_change_nothing_but_the_metrics(carp, tmp_path):
    task = labelled()
    other = task.assign(target=np.where(task.split == "test", -100 * task.target, task.target))
    (_, a, _), (_, b, _) = (
        run_task(fit(carp, tmp_path / str(i)), Task(t), n_boot=10)
        for i, t in enumerate((task, other))
    )
    assert a.predicted.tolist() == b.predicted.tolist() and a.target.tolist() != b.target.tolist()


def test_early_stopping_restores_the_best_weights(carp, tmp_path):
    task = labelled()
    model, _, _ = run_task(
        fit(carp, tmp_path, lr=0.05, epochs=60, patience=3), Task(task), n_boot=10
    )
    history = pd.read_parquet(tmp_path / "history.parquet")
    best = int(history.loc[history.best, "epoch"].iloc[0])
    assert len(history) == best + 3 < 60
    valid = task[task.split == "valid"]
    loss = (
        np.mean((model.predict(valid.sequence.tolist()) - valid.target) ** 2) / model.targets.std**2
    )
    assert loss == pytest.approx(history.valid_loss.min(), rel=1e-4)


@pytest.mark.parametrize("cache", ["float32", "float16", "none"])
def test_frozen_from_the_cache_equals_frozen_without(esm, tmp_path, cache):
    task = labelled()
    _, rows, _ = run_task(
        fit(esm, tmp_path / cache, method="pt-fr", cache=cache), Task(task), n_boot=10
    )
    _, plain, _ = run_task(
        fit(esm, tmp_path / "plain", method="pt-fr", cache="none"), Task(task), n_boot=10
    )
    np.testing.assert_allclose(
        rows.predicted.astype(float),
        plain.predicted.astype(float),
        atol=2e-2 if cache == "float16" else 1e-5,
    )


def test_activation_checkpointing_and_parts_give_the_same_training(carp, tmp_path):
    task = labelled()
    plain, *others = [
        run_task(fit(carp, tmp_path / str(i), **s), Task(task), n_boot=10)[1].predicted.astype(
            float
        )
        for i, s in enumerate([{}, {"recompute": True}, {"accumulate": 3}])
    ]
    for other in others:
        np.testing.assert_allclose(other, plain, atol=1e-4)


def test_bfloat16_is_close(carp, tmp_path):
    task = labelled()
    for method in ("pt-ft", "pt-fr"):
        a, b = (
            run_task(
                fit(carp, tmp_path / f"{method}{d}", method=method, dtype=d, epochs=2),
                Task(task),
                n_boot=10,
            )[1].predicted.astype(float)
            for d in ("float32", "bfloat16")
        )
        assert np.abs(a - b).max() < 0.1 * task.target.std() + 0.02 and not np.array_equal(a, b)


def test_prediction_does_not_depend_on_what_else_is_predicted(esm):
    model = FineTuned(esm, PooledHead(4), Targets("regression"), FinetuneConfig("pt-ft"))
    sequences = ["MKT", "A" * 300, "MKTAYIAKQR"]
    np.testing.assert_allclose(
        model.predict(sequences), [model.predict([s])[0] for s in sequences], atol=1e-5
    )


def fitted(folder: Path):
    "Two small fits, frozen and whole; with the history of each."
    torch.manual_seed(0)
    encoder, task = CARP(TABLE_S1["carp_4k"], "carp_4k").eval(), labelled()
    train, valid = (task[task.split == s].reset_index(drop=True) for s in ("train", "valid"))
    for method in ("pt-ft", "pt-fr"):
        config = FinetuneConfig(
            method, lr=5e-3, epochs=4, warmup=2, batch=len(train) - 1
        )  # the last batch of an epoch has one row
        yield (
            finetune(encoder, train, valid, config, folder / method, "cpu", progress=False),
            pd.read_parquet(folder / method / "history.parquet"),
        )


def fit_in_each(folder: Path) -> None:
    for _ in fitted(folder):
        assert processes().num_processes == torch.distributed.get_world_size() == 2


def test_two_processes_fit_as_one(tmp_path, one_thread):
    assert on_two_processes(fit_in_each, tmp_path / "two") == [0, 0]
    sequences = labelled().sequence.tolist()
    for (one, history), (two, history_of_two) in zip(
        list(fitted(tmp_path / "one")), fitted(tmp_path / "two")
    ):  # two is finished, so it is loaded
        pd.testing.assert_frame_equal(history_of_two, history, rtol=1e-3)  # sums in another order
        np.testing.assert_allclose(two.predict(sequences), one.predict(sequences), atol=2e-3)
        assert history.valid_loss.iloc[-1] != history.valid_loss.iloc[0] and len(history) > 1


def test_fits_that_share_representations_give_what_fits_alone_give(carp, tmp_path):
    task, shared = labelled(), SharedRepresentations(tmp_path)
    for method, seed in (("pt-fr", 0), ("pt-fr", 1), ("na-fr", 1)):
        fits = [
            lambda train, valid, shared=s, name=name: finetune(
                carp,
                train,
                valid,
                FinetuneConfig(method, lr=5e-3, epochs=3, warmup=2, seed=seed),
                tmp_path / f"{name}{method}{seed}",
                "cpu",
                False,
                shared,
            )
            for name, s in (("shared", shared), ("alone", None))
        ]
        together, alone = (
            run_task(f, Task(task), n_boot=10)[1].predicted.astype(float) for f in fits
        )
        np.testing.assert_allclose(together, alone, atol=1e-4)
    assert (
        shared.files == 6
    )  # train, valid and test of the pretrained encoder and of the one drawn from seed 1


def test_notebook_fits_a_csv_and_predicts_a_second(papermill, tmp_path):
    labelled().to_csv(tmp_path / "mine.csv", index=False)
    pd.DataFrame({"name": ["a", "b"], "sequence": ["ACDKK", "AACCDD"]}).to_csv(
        tmp_path / "new.csv", index=False
    )
    done = papermill("finetune", csv="mine.csv", predict_csv="new.csv")
    assert done.status == 0, done.shown
    rows, new = (
        pd.read_parquet(done.out / "results.parquet"),
        pd.read_csv(done.out / "predictions.csv"),
    )
    assert (
        set(rows.metric) == {"spearman", "mse"}
        and rows.lo.le(rows.value).all()
        and rows.hi.ge(rows.value).all()
    )
    assert new.sequence.tolist() == ["ACDKK", "AACCDD"]
    np.testing.assert_allclose(
        new.predicted,
        FineTuned.load(done.out / "model.safetensors", "cpu").predict(new.sequence.tolist()),
        rtol=1e-2,
        atol=1e-2,
    )
    assert (done.out / "figure.svg").exists()


def test_notebook_tells_three_classes_apart(papermill, tmp_path):
    task = labelled(150)
    task = task.assign(
        place=np.select([task.target < 0.2, task.target < 0.35], ["few", "some"], "many")
    ).drop(columns="target")
    task.to_csv(tmp_path / "mine.csv", index=False)
    task[:3].to_csv(tmp_path / "new.csv", index=False)
    done = papermill(
        "finetune",
        csv="mine.csv",
        predict_csv="new.csv",
        kind="classification",
        target_column="place",
        method="pt-fr",
        lr="0.003",
    )
    assert done.status == 0, done.shown
    rows, new, tested = (
        pd.read_parquet(done.out / "results.parquet"),
        pd.read_csv(done.out / "predictions.csv"),
        pd.read_csv(done.out / "test_predictions.csv"),
    )
    assert rows.metric.tolist() == ["accuracy"] and rows.value.iloc[0] == pytest.approx(
        (tested.predicted == tested.target).mean()
    )
    chances = [f"probability of {c}" for c in ("few", "many", "some")]
    assert new.columns.tolist() == ["sequence", "predicted", *chances] and set(new.predicted) <= {
        "few",
        "many",
        "some",
    }
    np.testing.assert_allclose(new[chances].sum(axis=1), 1, atol=1e-6)
    assert not (done.out / "figure.svg").exists()  # a calibration plot has one axis of probability


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda t: t.drop(columns="target"), "choose target_column"),
        (
            lambda t: t.assign(sequence=t.sequence.where(t.index != 3, "MKJ1O")),
            "row 4: '1' at position 4 is not a residue letter",
        ),
        (lambda t: t.assign(target=1.0), "nothing to learn from"),
        (lambda t: t[t.split != "valid"], "has no valid rows"),
        (lambda t: t.assign(target=t.target.where(t.index != 3, np.inf)), "is not a number"),
        (
            lambda t: t.assign(target=np.nan),
            r"no row that can be used; \d+ read, \d+ left out \(no target\)",
        ),
        (
            lambda t: t.assign(sequence=t.sequence.where(t.index != 3, "")),
            "row 4: the sequence is empty",
        ),
    ],
)
def test_bad_csv(tmp_path, change, sentence):
    change(labelled()).to_csv(path := tmp_path / "mine.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=sentence):
            check_task(read_assay(path))


def test_rows_left_out_are_counted_and_said(tmp_path):
    task = labelled()
    holes = task.assign(target=task.target.where(task.index > 4))
    twice = pd.concat(
        [
            task,
            task[task.split == "test"][:2].assign(split="train"),
            task[task.split == "train"][:3].assign(split="valid"),
        ]
    )
    for table, said in (
        (holes, ["5 rows (no target)"]),
        (twice, ["2 rows (train also in test)", "3 rows (train also in valid)"]),
    ):
        table.to_csv(path := tmp_path / "mine.csv", index=False)
        with pytest.warns(UserWarning) as caught:
            read = read_assay(path)
        assert (
            all(s in str(caught[0].message) for s in said)
            and sum(read.dropped.values()) == len(table) - len(read) == 5
        )
        check_task(read)


def test_one_class_is_refused(tmp_path):
    labelled().assign(target="a").to_csv(path := tmp_path / "mine.csv", index=False)
    with pytest.raises(
        ValueError, match="all training targets are a; there is nothing to learn from one class"
    ):
        check_task(read_assay(path, kind="classification"))


def test_an_unseen_class_has_no_auroc():
    with pytest.warns(UserWarning, match="1 of 3 targets are of a class"):
        found = evaluate_predictions(
            ["a", "b", "c"], np.array([0.1, 0.9, 0.4]), "classification", 10, classes=["a", "b"]
        )
    assert found.metric.tolist() == ["accuracy"] and found.value[0] == pytest.approx(2 / 3)


def test_a_wild_type_without_a_measurement_is_no_cut(tmp_path):
    pd.DataFrame({"sequence": ["AC", "AD", "AE", "AF"], "target": [1.0, 2.0, 3.0, 4.0]}).to_csv(
        tmp_path / "a.csv", index=False
    )
    with pytest.raises(ValueError, match="the wild type was not measured"):
        read_assay(tmp_path / "a.csv", how="low-vs-high", wild_type="AA")
    table = read_assay(tmp_path / "a.csv", how="low-vs-high").table
    assert (table.split == "test").tolist() == [
        False,
        False,
        True,
        True,
    ]
