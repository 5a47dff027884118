"""The baselines against the numbers that were published for them, and an interrupted run of the
small CNN against an undisturbed one.
"""

import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest

from carp_nb.assays import run_task
from carp_nb.baselines import fit_cnn, fit_ridge
from carp_nb.datasets import list_datasets, load_task
from carp_nb.tasks import Task


def spearman(fit, task: Task) -> float:
    return run_task(fit, task, n_boot=0)[2].set_index("metric").value["spearman"]


@pytest.mark.parametrize(
    "name,use_valid,published",
    [
        ("flip_gb1_one_vs_rest", True, 0.28),
        ("flip_gb1_two_vs_rest", True, 0.59),
        ("flip_gb1_three_vs_rest", True, 0.76),
        ("flip_gb1_low_vs_high", True, 0.34),
        ("flip_gb1_one_vs_rest", False, 0.226),
        ("flip_gb1_two_vs_rest", False, 0.563),
        ("flip_gb1_three_vs_rest", False, 0.750),
        ("flip_gb1_low_vs_high", False, 0.345),
        ("tape_fluorescence", False, 0.68),
        ("tape_stability", False, 0.48),
    ],
)
def test_ridge_gives_the_published_number(name, use_valid, published):
    if not list_datasets().here[name]:
        pytest.skip(f"{name} is not on this machine")
    assert (
        abs(spearman(partial(fit_ridge, use_valid=use_valid), load_task(name)) - published) < 0.01
    )


def test_an_interrupted_cnn_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACDE"), 10)) for _ in range(80)]
    rows = pd.DataFrame({"sequence": sequences, "target": [float(s.count("A")) for s in sequences]})
    fit = partial(
        fit_cnn,
        rows[:60],
        rows[60:],
        epochs=8,
        patience=8,
        batch=16,
        channels=8,
        features=8,
        device="cpu",
    )
    whole = fit(folder=tmp_path / "whole")

    from carp_nb.finetune import EarlyStopping

    call = EarlyStopping.__call__

    def cut_off(self):
        answer = call(self)
        if len(self.memory["history"]) == 4:
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(EarlyStopping, "__call__", cut_off)
    with pytest.raises(KeyboardInterrupt):
        fit(folder=tmp_path / "cut")
    monkeypatch.setattr(EarlyStopping, "__call__", call)
    resumed = fit(folder=tmp_path / "cut")
    np.testing.assert_array_equal(
        resumed.predict(rows.sequence.tolist()), whole.predict(rows.sequence.tolist())
    )
    pd.testing.assert_frame_equal(resumed.history, whole.history)
    shutil.rmtree(tmp_path / "cut")


def test_a_cnn_whose_validation_score_is_never_defined_keeps_its_last_weights(tmp_path):
    rows = pd.DataFrame(
        {"sequence": ["ACDE", "AADE", "CCDE", "ACCC"], "target": [1.0, 2.0, 3.0, 2.0]}
    )
    fitted = fit_cnn(
        rows, rows[:1], tmp_path, epochs=5, patience=2, channels=8, features=8, device="cpu"
    )  # one row has no rank
    assert (
        fitted.history.valid_score.isna().all()
        and np.isfinite(fitted.predict(rows.sequence.tolist())).all()
    )


def test_ridge_says_what_it_crops():
    rows = pd.DataFrame({"sequence": ["ACDE", "AADE"], "target": [1.0, 2.0]})
    with pytest.warns(UserWarning, match="1 of 2 sequences are longer than the 4 residues"):
        fit_ridge(rows).predict(["ACDEF", "ACDE"])
