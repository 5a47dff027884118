"""Runs whose loss is no number: limited gradients, updates that are left out, and restarts."""

from contextlib import suppress
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import carp_nb.pretrain as pretraining
from carp_nb.cli import app
from carp_nb.pretrain import mlm_step
from carp_nb.training import NonFiniteLoss, TrainConfig, train

TIMING = ["seconds", "tokens_per_second"]
BATCHES = [torch.randn(8, 4, generator=torch.Generator().manual_seed(i)) for i in range(30)]
CONFIG = partial(TrainConfig, steps=30, lr=0.05, log_every=5)


def outcome(
    folder: Path, config: TrainConfig, fails=(), stop_at=0, poison=1.0
) -> tuple[torch.Tensor, pd.DataFrame]:
    "Weights and metrics of a small run; its losses at `fails` are no number."
    calls = 0

    def loss(model, batch, generator):
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        value = ((model(batch)[:, 0] - 9 * batch.sum(1)) ** 2).mean()
        step = next(i for i, known in enumerate(BATCHES) if known is batch)
        return value * (float("nan") if step + 1 in fails else poison), len(batch)

    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    metrics = train(model, BATCHES, loss, config, folder, progress=False)
    return model.weight.detach(), metrics.drop(columns=TIMING)


def test_without_limit_the_numbers_are_the_same(tmp_path):
    weight, metrics = outcome(tmp_path / "plain", CONFIG())
    assert list(metrics) == ["step", "tokens", "loss", "lr"]
    for i, options in enumerate([{"clip": 1e9}, {"skip_non_finite": 3}]):
        same, counted = outcome(tmp_path / str(i), CONFIG(**options))
        assert torch.equal(same, weight)
        pd.testing.assert_frame_equal(counted[list(metrics)], metrics, check_exact=True)
    # Adam's first updates hardly depend on the length of a gradient, its later ones do
    clipped, _ = outcome(tmp_path / "clipped", CONFIG(clip=0.1))
    assert not torch.equal(clipped, weight)


@pytest.mark.parametrize("options", [{"clip": 0.1}, {"clip": 0.1, "skip_non_finite": 2}])
def test_a_stopped_run_goes_on_bit_for_bit(options, tmp_path):
    fails = (4, 20) if "skip_non_finite" in options else ()
    whole = outcome(tmp_path / "whole", CONFIG(**options), fails)
    for stop_at in (3, 4, 11):
        with suppress(KeyboardInterrupt):
            outcome(tmp_path / "parts", CONFIG(**options), fails, stop_at)
    parts = outcome(tmp_path / "parts", CONFIG(**options), fails)
    assert torch.equal(parts[0], whole[0])
    pd.testing.assert_frame_equal(parts[1], whole[1], check_exact=True)


def test_a_loss_that_is_no_number_is_left_out_and_counted(tmp_path):
    with pytest.warns(UserWarning, match=r"update 7 is left out.*1 of at most 2"):
        weight, metrics = outcome(tmp_path, CONFIG(skip_non_finite=2), (7, 12))
    assert torch.isfinite(weight).all() and metrics.loss.notna().all()
    assert metrics.skipped.tolist() == [0, 1, 2, 2, 2, 2]
    # the residues of an update that was left out were not trained on
    assert metrics.tokens.iloc[-1] == 8 * 28


@pytest.mark.filterwarnings("ignore:update")
def test_one_more_than_allowed_ends_the_run(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"update 12 is nan.*lr.*clip=1.*skip_non_finite"):
        outcome(tmp_path, CONFIG(skip_non_finite=1), (7, 12))
    # the same folder goes on if one more is allowed
    _, metrics = outcome(tmp_path, CONFIG(skip_non_finite=2), (7, 12))
    assert metrics.skipped.iloc[-1] == 2


@pytest.mark.filterwarnings("ignore:update")
def test_a_gradient_that_is_not_finite_spoils_no_weight(tmp_path):
    # finite in the loss, infinite in its gradient
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[override]
            return gradient * float("inf")

    def loss(model, batch, generator):
        value = model(batch).square().mean()
        return (Steep.apply(value) if batch is BATCHES[3] else value), len(batch)

    model = nn.Linear(4, 1)
    metrics = train(model, BATCHES, loss, CONFIG(skip_non_finite=1), tmp_path, progress=False)
    assert metrics.skipped.iloc[-1] == 1 and torch.isfinite(model.weight).all()
    with pytest.raises(NonFiniteLoss, match="the gradient of update 4 is not finite"):
        train(model, BATCHES, loss, CONFIG(clip=1.0), tmp_path / "b", progress=False)


def fail_at_fourth(calls: list, model, batch, generator):
    calls.append(1)
    value, *counts = mlm_step(model, batch, generator)
    return value * (float("nan") if len(calls) == 4 else 1), *counts


def test_the_command_goes_on_beside_the_run_that_failed(tmp_path, monkeypatch):
    fasta = tmp_path / "a.fasta"
    fasta.write_text("".join(f">{i}\n{'MKTAYIAKQRQISFVKSHFSRQ' * 3}\n" for i in range(9)))
    run = tmp_path / "run"
    words = [
        "pretrain",
        str(run),
        "--size",
        "carp_4k",
        "--train",
        str(fasta),
        "--valid",
        str(fasta),
    ]
    words += ["--tokens", "3000", "--batch-tokens", "300", "--device", "cpu", "--dtype", "float32"]
    with monkeypatch.context() as patched:
        patched.setattr(pretraining, "mlm_step", partial(fail_at_fourth, []))
        done = CliRunner().invoke(app, words)
    assert done.exit_code == 1 and "--restart-with lr=" in done.output, done.output
    before = sorted(path.name for path in run.rglob("*"))
    done = CliRunner().invoke(app, ["pretrain", str(run), "--restart-with", "lr=1e-4,clip=1"])
    assert done.exit_code == 0, done.output
    new = tmp_path / "run-lr=0.0001-clip=1.0"
    assert str(new) in done.output and (new / "carp_4k.safetensors").exists()
    card = (new / "README.md").read_text()
    assert "after 2 updates went on with lr=0.0001, clip=1.0" in card
    assert sorted(path.name for path in run.rglob("*")) == before
