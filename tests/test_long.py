"""Very long proteins: exact at the seams, in bounded memory; and embeddings that survive a kill."""

import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import FORKS
from safetensors import safe_open

from benchmarks.memory import TITIN, long_protein
from carp_nb.alphabet import AMINO_ACIDS, PROTEIN
from carp_nb.carp import CARP, TABLE_S1, CARPConfig
from carp_nb.datasets import load_dataset
from carp_nb.embedding import embed, read_embeddings
from carp_nb.scoring import mutation_scan, score_mutants


@torch.no_grad()
def random_model(name: str, dtype: torch.dtype, width: int = 8) -> CARP:
    """A size of Table S1 at reduced width, no parameter at its initial value, its outer taps
    strong so that seams are felt.
    """
    torch.manual_seed(0)
    model = CARP(replace(TABLE_S1[name], d_model=width), name).to(dtype).eval()
    for key, value in model.named_parameters():
        if "norm" in key or key.endswith("bias"):
            value += 0.3 * torch.randn_like(value)
        elif "conv" in key:
            value[..., [0, -1]] *= 10
        elif "up." in key:
            value *= 4
    return model


def padded(lengths: list[int]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.randint(20, (n,)) for n in lengths], True, PROTEIN.pad_idx
    )


@pytest.mark.parametrize(
    "dtype, width, atol", [(torch.float64, 8, 1e-9), (torch.float32, 16, 1e-5)]
)
@pytest.mark.parametrize("name", TABLE_S1)
def test_tiles_equal_the_whole(name, dtype, width, atol):
    model, tile = (
        random_model(name, dtype, width),
        300,
    )  # longer than the reach of a block, shorter than that of the model
    for lengths in (
        [1],
        [2 * tile + 1],
        [3 * tile],
        [3 * tile + 1],
        [7 * tile - 1, 2 * tile, 5, tile + 256],
    ):
        tokens = padded(lengths)
        with torch.no_grad():
            model.tile = 10**9
            logits, hidden = model(tokens), model.represent(tokens, norm=False)
            model.tile = tile
            assert model.needs_tiles(tokens) == (max(lengths) > 2 * tile)
            scale = hidden.abs().max().clamp(min=1)
            torch.testing.assert_close(model(tokens), logits, rtol=0, atol=atol)
            torch.testing.assert_close(
                model.represent(tokens, norm=False) / scale, hidden / scale, rtol=0, atol=atol
            )


def test_gradients_do_not_know_of_tiles():
    model = random_model("carp_4k", torch.float64)
    tokens, found = padded([90, 17]), []
    for tile in (10, 10**9):
        model.tile = tile
        model.zero_grad()
        model(tokens).square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*found):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["carp_4k", "carp_76m", "carp_640m"])
def test_scores_of_a_long_protein_are_those_of_whole_passes(name):
    model, rng = random_model(name, torch.float64), random.Random(0)
    wild_type = "".join(rng.choices(AMINO_ACIDS, k=9000))
    sites = [(0,), (3570,), (4500, 4501), (8999,), (20, 8000)]
    mutants = [
        ":".join(f"{wild_type[i]}{i + 1}{'W' if wild_type[i] != 'W' else 'A'}" for i in site)
        for site in sites
    ]
    model.batch_tokens = model.tile = 1000
    found = {
        method: score_mutants(model, wild_type, mutants, method=method)
        for method in ("masked", "wild-type")
    }
    model.tile = 10**9
    for site, mutant, *scores in zip(sites, mutants, *found.values()):
        for hidden, score in zip((site, ()), scores):
            tokens = PROTEIN.encode(wild_type)
            tokens[list(hidden)] = PROTEIN.mask_idx
            with torch.no_grad():
                log_probs = model(tokens[None])[0].log_softmax(-1)
            expected = sum(
                log_probs[i, PROTEIN.encode(m[-1])[0]] - log_probs[i, PROTEIN.encode(m[0])[0]]
                for i, m in zip(site, mutant.split(":"))
            )
            assert score == pytest.approx(expected.item(), abs=1e-5)  # scores come in float32
    assert mutation_scan(model, wild_type, positions=[1, 9000]).shape == (2, 20)


# memory

needs_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="peak memory is read from /proc"
)


def extra_memory(name: str, sequence: str, work: str) -> float:
    "MB above the weights at the peak, in a process of its own."
    megabytes, seconds = long_protein(name, sequence, work)
    print(
        f"{name}, {len(sequence)} residues, {work}: {megabytes:.0f} MB above the weights, {seconds:.0f} s"
    )
    return megabytes


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize("work", ["sequence", "masked", "wild-type"])
def test_memory_does_not_grow_with_length(work):
    long = "".join(random.Random(0).choices(AMINO_ACIDS, k=150_000))
    grown = extra_memory("carp_600k", long, work) - extra_memory("carp_600k", long[:TITIN], work)
    one_activation = (len(long) - TITIN) * 128 * 4 / 2**20  # of which a plain pass holds several
    assert grown < one_activation


@pytest.fixture(scope="module")
def titin() -> str:
    sequence = max((s for _, s in load_dataset("pretrain_train")), key=len)
    assert len(sequence) == TITIN
    return sequence


@needs_linux
@pytest.mark.slow
@pytest.mark.skipif(
    "CARP_NB_DATA" not in os.environ,
    reason="titin is in the pretraining set, which CARP_NB_DATA does not name",
)
@pytest.mark.parametrize("work", ["sequence", "residue", "masked", "wild-type"])
def test_titin_under_two_gigabytes(titin, work):
    assert extra_memory("carp_38m", titin, work) < 2000


# a kill


def embed_counted(records: dict, path: Path, per: str, halfway=None) -> int:
    "Embed; how many sequences the model was asked for. From the twentieth on, say so and wait for the kill."
    torch.manual_seed(0)
    model, asked = CARP(CARPConfig(16, 3)).eval(), []
    represent = model.represent

    def counted(tokens, *args, **kwargs):
        if halfway and sum(asked) >= 20:
            halfway.send("as many as were asked for are on disk")
            signal.pause()
        asked.append(len(tokens))
        return represent(tokens, *args, **kwargs)

    model.represent = counted
    embed(model, records, path, per, batch_tokens=256, progress=False)
    return sum(asked)


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
@pytest.mark.parametrize("per", ["sequence", "residue"])
def test_killed_embedding_goes_on(per, tmp_path):
    rng = random.Random(0)
    records = {
        f"id {i}": "".join(rng.choices(AMINO_ACIDS, k=rng.randint(1, 120))) for i in range(60)
    }
    path, part = tmp_path / "e.safetensors", tmp_path / ".e.safetensors.part"
    heard, halfway = FORKS.Pipe(duplex=False)
    worker = FORKS.Process(target=embed_counted, args=(records, path, per, halfway))
    worker.start()
    halfway.close()
    heard.recv()
    worker.kill()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    with safe_open(part, "np") as file:
        kept = int(file.get_tensor("done").sum())
    assert 10 <= kept < 60 and not path.exists()
    assert embed_counted(records, path, per) == 60 - kept + 1  # one to learn the width
    embed_counted(records, tmp_path / "whole.safetensors", per)
    resumed, whole = (
        read_embeddings(path),
        read_embeddings(tmp_path / "whole.safetensors"),
    )
    assert resumed.ids == list(records) and resumed.lengths.tolist() == [
        len(s) for s in records.values()
    ]
    np.testing.assert_array_equal(resumed.array(), whole.array())
    assert (np.abs(whole.array()).max(1) > 0).all() and not part.exists()


def test_full_disk_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(OSError, match="GB free; make room"):
        embed(
            random_model("carp_4k", torch.float32),
            ["MKT"],
            tmp_path / "e.safetensors",
            progress=False,
        )
    assert not list(tmp_path.iterdir())
