"""What only a GPU can show: every path there computes what the processor does, memory can be
limited, and bf16 training goes on after a stop.
"""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from carp_nb.alphabet import PROTEIN
from carp_nb.batching import Corpus
from carp_nb.carp import CARP, TABLE_S1
from carp_nb.datasets import load_dataset
from carp_nb.heads import ResidueHead
from carp_nb.incremental import masked_log_probs
from carp_nb.kernels import conv_path, dilated_conv
from carp_nb.pretrain import PretrainConfig, pretrain, pretrain_here
from carp_nb.pretrained import load_model
from carp_nb.scoring import score_mutants
from carp_nb.timing import ModelProcess

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
DEVICE = "cuda"


@pytest.mark.parametrize("path", ["conv", "unfold", "shift"])
def test_fp32_paths_are_exact(path, monkeypatch):
    monkeypatch.setattr(
        torch.backends.cudnn, "allow_tf32", False
    )  # to which the convolution would round
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in [(2, 300, 64), (64, 64, 5), (64,)]
    )
    for dilation in (1, 8, 128):
        with torch.no_grad(), conv_path(path):
            y = dilated_conv(*(t.float().to(DEVICE) for t in (x, weight, bias)), dilation)
        with conv_path("conv"):
            torch.testing.assert_close(
                y.cpu().double(), dilated_conv(x, weight, bias, dilation), rtol=1e-5, atol=1e-4
            )


def test_scores_are_those_of_the_processor():
    model, scan = load_model("carp_600k_sprot50", "cpu"), load_dataset("gb1_olson_sample")
    mutants = ["D22A", "D22A:G41L", "T16K", "V54A:D47E:K31R"]
    here = score_mutants(model, scan.wild_type, mutants)
    there = score_mutants(model.to(DEVICE), scan.wild_type, mutants, dtype="float32")
    assert abs(here - there).max() < 1e-3


def test_incremental_answers_are_dense_answers():
    model, wild_type = (
        load_model("carp_600k_sprot50", "cpu").to(DEVICE),
        load_dataset("gb1_olson_sample").wild_type,
    )
    masked = [(i,) for i in range(len(wild_type))] + [(3, 20, 41)]
    for a, b in zip(
        *(
            masked_log_probs(model, wild_type, masked, path=path)
            for path in ("incremental", "dense")
        )
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_the_head_of_secondary_structure_stays_finite_in_mixed_precision():
    head, x, mask = (
        ResidueHead(16, 3).to(DEVICE),
        1e3 * torch.randn(2, 40, 16, device=DEVICE),
        torch.ones(2, 40, dtype=torch.bool, device=DEVICE),
    )
    with torch.autocast(DEVICE, torch.bfloat16):
        out = head(x, mask)
    out.sum().backward()
    assert out.dtype == torch.float32 and all(
        torch.isfinite(p.grad).all() for p in head.parameters()
    )


def test_a_limit_on_memory_ends_a_length_and_not_the_run():
    with ModelProcess("carp_40k", 4096, device=DEVICE, memory=1e9) as model:
        answer = model.forward(512)
        assert answer["wall"] > 0 and answer["peak"] > answer["weights"]
    with ModelProcess("esm_41k:plain", 16384, device=DEVICE, memory=1e9) as model:
        assert model.forward(16384) == {} and model.forward(64)["wall"] > 0


TRAIN = [r for r in load_dataset("sprot_train_sample") if len(r[1]) < 300][:120]
VALID = [s for _, s in load_dataset("sprot_heldout_sample") if len(s) < 200][:6]
CONFIG = PretrainConfig(
    "carp_4k",
    tokens=60_000,
    batch_tokens=2048,
    max_length=128,
    lr=1e-2,
    dtype="bfloat16",
    name="small",
)


def test_bf16_training_is_resumed(tmp_path):
    train_set = Corpus.from_records(TRAIN)
    model = pretrain(CONFIG, train_set, VALID, tmp_path, device=DEVICE, progress=False)
    metrics, newest = (
        pd.read_parquet(tmp_path / "metrics.parquet"),
        sorted((tmp_path / "checkpoints").glob("*.pt")),
    )
    first = (tmp_path / "snapshots" / "step_0000001.safetensors").stat().st_mtime_ns
    newest[-1].unlink()  # as if it had been stopped before the last one
    (tmp_path / "small.safetensors").unlink()
    (tmp_path / "metrics.parquet").unlink()
    again = pretrain(CONFIG, train_set, VALID, tmp_path, device=DEVICE, progress=False)
    assert (
        tmp_path / "snapshots" / "step_0000001.safetensors"
    ).stat().st_mtime_ns == first  # it went on and did not begin again
    assert (
        metrics.loss.iloc[-1] < math.log(len(PROTEIN))
        and pd.read_parquet(tmp_path / "metrics.parquet").step.iloc[-1] == metrics.step.iloc[-1]
    )
    for a, b in zip(model.parameters(), again.parameters()):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one(tmp_path):
    for name, records in {"train": TRAIN, "valid": enumerate(VALID)}.items():
        (tmp_path / f"{name}.fasta").write_text("".join(f">{i}\n{s}\n" for i, s in records))
    config = replace(CONFIG, dtype="float32")
    pretrain(
        config, Corpus.from_records(TRAIN), VALID, tmp_path / "one", device=DEVICE, progress=False
    )
    pretrain_here(
        2,
        replace(config, accumulate=2),
        f"{tmp_path}/train.fasta",
        f"{tmp_path}/valid.fasta",
        tmp_path / "two",
        DEVICE,
    )
    one, two = (pd.read_parquet(tmp_path / name / "held_out.parquet") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, rtol=0.02)  # TF32, and sums in another order


@pytest.mark.parametrize("size", ["carp_38m", "carp_76m"])
def test_mixed_precision_gives_the_full_sizes_finite_gradients(size):
    model = CARP(TABLE_S1[size], size).to(DEVICE)
    tokens, mask = (t.to(DEVICE) for t in PROTEIN.batch(["MKTAYIAKQRQISFVKSHFSRQ" * 20] * 2))
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = model(tokens, mask).float().square().mean()
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
