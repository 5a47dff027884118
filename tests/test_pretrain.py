"""Pretraining over several processes, killed at any moment, and with a damaged checkpoint:
always the run that was planned.
"""

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from forks import on_two_processes

from carp_nb.batching import Corpus, uniref50_records
from carp_nb.datasets import load_dataset
from carp_nb.pretrain import PretrainConfig, pretrain, pretrain_here
from carp_nb.pretrained import load_model
from carp_nb.training import NonFiniteLoss, TrainConfig, processes, train

CONFIG = PretrainConfig(
    "carp_4k",
    tokens=60_000,
    batch_tokens=1024,
    max_length=128,
    lr=1e-2,
    cooldown=0.2,
    seed=3,
    name="small",
)
SHORT = replace(CONFIG, tokens=20_000)
TIMING = ["seconds", "tokens_per_second"]


def data() -> tuple[Corpus, list[str]]:
    train_set = [r for r in load_dataset("sprot_train_sample") if len(r[1]) < 300][:120]
    return Corpus.from_records(train_set), [
        s for _, s in load_dataset("sprot_heldout_sample") if len(s) < 200
    ][:6]


def outcome(folder: Path) -> tuple[dict, pd.DataFrame, pd.DataFrame]:
    weights = load_model(folder / "small.safetensors", "cpu").state_dict()
    return (
        weights,
        pd.read_parquet(folder / "metrics.parquet").drop(columns=TIMING),
        pd.read_parquet(folder / "held_out.parquet"),
    )


def assert_same(folder: Path, other: Path) -> None:
    for a, b in zip(outcome(folder), outcome(other), strict=True):
        if isinstance(a, dict):
            assert all(torch.equal(a[k], b[k]) for k in a)
        else:
            pd.testing.assert_frame_equal(a, b, check_exact=True)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    pretrain(CONFIG, *data(), folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    "What the same run in several parts or processes is compared with."
    folder = tmp_path_factory.mktemp("short")
    pretrain(SHORT, *data(), folder, progress=False)
    return folder


def in_child(folder: Path) -> int:
    "Train in a forked process, which begins with everything imported; its process id."
    if pid := os.fork():
        return pid
    try:
        torch.set_num_threads(1)
        pretrain(CONFIG, *data(), folder, progress=False)
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_twenty_random_moments(undisturbed, tmp_path):
    draw, kills, train_seconds = (
        random.Random(0),
        0,
        pd.read_parquet(undisturbed / "metrics.parquet").seconds.iloc[-1],
    )
    while kills < 20:
        pid = in_child(tmp_path / "killed")
        time.sleep(draw.uniform(0, 0.3 + 0.2 * train_seconds))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        else:  # finished early: the next attempt resumes a finished run
            (tmp_path / "killed" / "small.safetensors").unlink()
    os.waitpid(in_child(tmp_path / "killed"), 0)
    assert_same(tmp_path / "killed", undisturbed)


def test_damaged_last_checkpoint_falls_back_to_the_one_before(undisturbed, tmp_path):
    pretrain(CONFIG, *data(), tmp_path, progress=False)
    for path in [tmp_path / "small.safetensors", tmp_path / "metrics.parquet"]:
        path.unlink()
    newest = sorted((tmp_path / "checkpoints").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    with pytest.warns(UserWarning, match="falling back to the one before"):
        pretrain(CONFIG, *data(), tmp_path, progress=False)
    assert_same(tmp_path, undisturbed)


def test_two_processes_train_as_one(short, tmp_path):
    sets = {
        "train": [r for r in load_dataset("sprot_train_sample") if len(r[1]) < 300][:120],
        "valid": enumerate(data()[1]),
    }
    for name, records in sets.items():
        (tmp_path / f"{name}.fasta").write_text("".join(f">{i}\n{s}\n" for i, s in records))
    pretrain_here(
        2,
        replace(SHORT, accumulate=2),
        f"{tmp_path}/train.fasta",
        f"{tmp_path}/valid.fasta",
        tmp_path / "two",
        "cpu",
    )
    _, metrics, held_out = outcome(tmp_path / "two")
    _, metrics_of_one, held_out_of_one = outcome(short)
    pd.testing.assert_frame_equal(metrics, metrics_of_one, rtol=1e-4)  # sums in another order
    pd.testing.assert_frame_equal(held_out, held_out_of_one, rtol=1e-3)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["steps"] == int(
        metrics.step.iloc[-1]
    )


def fails_on_one(folder: Path) -> None:
    assert processes().num_processes == 2
    rank = processes().process_index

    def loss(model, rows, generator):
        failed = rank and rows[0, 0] == 5  # update 2, the second process
        return model(rows).mean() * (float("nan") if failed else 1), 1

    batches = [torch.full((4, 1), value) for value in (1.0, 5.0)]
    try:
        train(torch.nn.Linear(1, 1), batches, loss, TrainConfig(2), folder, progress=False)
    except NonFiniteLoss as error:
        Path(f"{folder}.{rank}.told").write_text(str(error))


def test_a_loss_that_fails_on_one_process_stops_both_with_the_batch(tmp_path):
    assert on_two_processes(fails_on_one, tmp_path / "run") == [0, 0]
    for rank in (0, 1):
        assert "the loss of update 2 is nan" in (tmp_path / f"run.{rank}.told").read_text()
    assert torch.load(tmp_path / "run/non_finite_batch.pt", weights_only=True)["step"] == 1


def sums_once(folder: Path) -> None:
    rank, summed = processes().process_index, []

    def loss(model, rows, generator):
        summed.append(model.require_backward_grad_sync)
        return model(rows).square().mean(), len(rows), len(rows)

    config = TrainConfig(2, accumulate=3)
    train(torch.nn.Linear(1, 1), [torch.ones(12, 1)] * 2, loss, config, folder, progress=False)
    Path(f"{folder}.{rank}.told").write_text(str(summed))


def test_processes_sum_their_gradients_once_an_update(tmp_path):
    assert on_two_processes(sums_once, tmp_path / "run") == [0, 0]
    for rank in (0, 1):
        assert (tmp_path / f"run.{rank}.told").read_text() == str([False, False, True] * 2)


def test_parts_and_recomputed_activations_change_memory_not_the_run(short, tmp_path):
    pretrain(replace(SHORT, accumulate=4, recompute=True), *data(), tmp_path, progress=False)
    pd.testing.assert_frame_equal(outcome(tmp_path)[1], outcome(short)[1], rtol=1e-4)


def test_the_authors_reader_and_ours_give_the_same_sequences(tmp_path):
    from sequence_models.datasets import UniRefDataset

    text, starts, sequences = b"", [], ["MKTAYIAKQR", "ACDEFGHIKLMNPQ", "WWY"]
    for sequence in sequences:
        text += b">entry\n"
        starts.append(len(text))
        text += sequence.encode() + b"\n"
    (tmp_path / "consensus.fasta").write_bytes(text)
    (tmp_path / "splits.json").write_text(json.dumps({"train": [0, 2], "valid": [1], "test": []}))
    np.savez(
        tmp_path / "lengths_and_offsets.npz", ells=[len(s) for s in sequences], seq_offsets=starts
    )
    theirs = UniRefDataset(f"{tmp_path}/", "train")
    assert [s for _, s in uniref50_records(tmp_path, "train")] == [
        theirs[i][0] for i in range(len(theirs))
    ]
