"""What is compared: one function per line of the table, in the order of the table.

A line returns the ways to do one job as callables, and what one call of each is worth in units
of that job (residues, positions, forward passes). `ours` and `peer` are the stated setting;
`fp32` is ours in float32 where `ours` is bf16, `fp32 peer` the peer in float32 where `peer` is
not; every way named `peer, ...` is a setting in which the peer may be better than in the stated
one. A `probe` measures one number instead. Weights are random and equal in number; the time of
a forward pass does not depend on them. `operations` are those of our matrix products, two per
multiplication: the time that they take alone, at the rate of large products, is a reference for
ours, not a bound: products of other shapes run at other rates.
"""

import copy
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks.memory import TITIN, long_protein
from carp_nb.alphabet import AMINO_ACIDS, PROTEIN
from carp_nb.carp import CARP, TABLE_S1, CARPConfig
from carp_nb.devices import as_dtype, resolve_dtype
from carp_nb.timing import measured, peak_tflops, random_model, training_memory


@dataclass
class Ways:
    "One job, done in several ways."

    ways: dict[str, Callable[[], object]]
    worth: dict[str, float]  # units of the job in one call
    note: str = ""  # what of the job is timed, if not all of it
    threads: dict[str, int] = field(default_factory=dict)  # 1 unless given
    operations: float = 0.0  # of our matrix products, per unit; 0: not counted
    probe: Callable[[], tuple[float, float]] | None = (
        None  # a number in the line's unit, and seconds, where no times are compared
    )


@dataclass
class Line:
    "One line of the table."

    name: str
    work: str  # what is done
    peer: str  # by whom else
    build: Callable[..., Ways]  # of a line for a GPU: takes the device
    floor: float | None = None
    aim: float | None = None
    repeats: int = 3
    unit: str = "times faster"  # of the ratio peer / ours; for a line that is no such ratio, what its number is
    lower_is_better: bool = False
    gpu: bool = False  # needs one, and is measured by the wall clock
    warm: bool = True  # one turn beforehand that does not count
    seconds: float = 0.0  # guess of what it takes, for a kind of processor that has not said yet


LINES: dict[str, Line] = {}


def line(
    name: str, work: str, peer: str, floor: float | None = None, aim: float | None = None, **kwargs
):
    def add(build):
        LINES[name] = Line(name, work, peer, build, floor, aim, **kwargs)
        return build

    return add


# models


def ours(size: str, n_layers: int | None = None) -> CARP:
    config = TABLE_S1[size]
    return CARP(config if n_layers is None else replace(config, n_layers=n_layers), size).eval()


def operations(config: CARPConfig) -> float:
    "Of the matrix products of a forward pass, per residue."
    d, h = config.d_model, config.d_hidden
    return 2.0 * config.n_layers * (2 * d * h + config.kernel_size * h * h)


def reference(model: CARP) -> nn.Module:
    "The released implementation with our weights in PyTorch's order of memory: logits = f(tokens, mask)."
    from sequence_models.convolutional import ByteNetLM

    from carp_nb.layouts import to_published

    c = model.config
    with torch.device("meta"):
        bare = ByteNetLM(
            len(PROTEIN),
            c.d_embed,
            c.d_model,
            c.n_layers,
            c.kernel_size,
            c.r,
            padding_idx=PROTEIN.mask_idx,
            final_ln=True,
            slim=c.slim,
            activation=c.activation,
        )
    bare.load_state_dict(
        {k: v.contiguous() for k, v in to_published(model.state_dict()).items()},
        strict=True,
        assign=True,
    )
    return bare.eval()


def call_reference(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens, input_mask=(tokens != PROTEIN.pad_idx).unsqueeze(-1))


def huggingface(d: int, n_layers: int, heads: int, d_mlp: int, longest: int) -> nn.Module:
    from transformers import EsmConfig, EsmForMaskedLM

    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=d,
        num_hidden_layers=n_layers,
        num_attention_heads=heads,
        intermediate_size=d_mlp,
        max_position_embeddings=longest + 2,
        position_embedding_type="rotary",
        token_dropout=False,
        attn_implementation="sdpa",
    )
    return EsmForMaskedLM(config).eval()


def sequences(lengths: list[int]) -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list(AMINO_ACIDS), length)) for length in lengths]


def real_sequences(n: int = 16) -> list[str]:
    "Held-out sequences that ship with the repository, in the order of their file."
    from carp_nb.pretrain import read_records

    return [s for _, s in read_records("sprot_heldout_sample") if len(s) <= 1022][:n]


def tokens_of(batch: int, length: int) -> torch.Tensor:
    return PROTEIN.batch(sequences([length] * batch))[0]


def quiet(call: Callable, *arguments) -> Callable[[], object]:
    "A call without gradients."

    def compute():
        with torch.inference_mode():
            return call(*arguments)

    return compute


def matrix_product(dtype: str) -> tuple[Callable[[], object], float]:
    "A product large enough to run at the full rate of the processor, and its operations."
    n = 1024
    a, b = (
        torch.randn(n, n, generator=torch.Generator().manual_seed(0)).to(resolve_dtype(dtype))
        for _ in range(2)
    )
    return quiet(torch.mm, a, b), 2.0 * n**3


# forward passes

CYCLE = 8  # blocks in one cycle of dilations; more of them repeat it


def forward_against_reference(size: str, length: int, dtype: str) -> Ways:
    model = ours(size, CYCLE)
    peer, one, eight = reference(model), tokens_of(1, length), tokens_of(8, length)
    work = {"ours": quiet(as_dtype(model, dtype), one), "peer": quiet(call_reference, peer, one)}
    if dtype != "float32":
        work["fp32"] = quiet(model, one)
    work |= {
        "peer, batch 8": quiet(call_reference, peer, eight),
        "peer, 2 threads": work["peer"],
        "peer, batch 8, 2 threads": quiet(call_reference, peer, eight),
        "ours, 2 threads": work["ours"],
    }
    n = TABLE_S1[size].n_layers
    return Ways(
        work,
        {name: length * (8 if "batch 8" in name else 1) for name in work},
        f"{CYCLE} of {n} blocks, one cycle of dilations",
        {name: 2 for name in work if "2 threads" in name},
        operations(model.config),
    )


for size, length, target in [("carp_76m", 256, (1.3, 1.9)), ("carp_76m", 1024, (1.3, 1.9))]:
    line(
        f"forward-{size}-{length}",
        f"forward pass, {size}, {length} residues, fp32",
        "sequence-models, fp32",
        *target,
    )(lambda size=size, length=length: forward_against_reference(size, length, "float32"))
for size in ("carp_76m", "carp_640m"):
    line(
        f"forward-{size}-1024-bf16",
        f"forward pass, {size}, 1024 residues, bf16",
        "sequence-models, fp32",
        6,
        9,
    )(lambda size=size: forward_against_reference(size, 1024, "bfloat16"))


def against_650m(peer_dtype: torch.dtype, dtype: str, peer_kind: str) -> Ways:
    length, layers = 1024, 3
    if peer_kind == "fair-esm":
        import argparse

        import esm

        arguments = argparse.Namespace(
            arch="roberta_large",
            layers=layers,
            embed_dim=1280,
            ffn_embed_dim=5120,
            attention_heads=20,
            max_positions=length + 2,
            emb_layer_norm_before=True,
            token_dropout=True,
            final_bias=True,
            logit_bias=True,
        )
        peer = esm.ProteinBertModel(
            arguments, esm.Alphabet.from_architecture("roberta_large")
        ).eval()

        def ask(t):
            return peer(t)["logits"]
    else:
        exact = huggingface(1280, layers, 20, 5120, length)
        peer = exact if peer_dtype == torch.float32 else copy.deepcopy(exact).to(peer_dtype)

        def ask(t):
            return peer(input_ids=t).logits

    model = ours("carp_640m", CYCLE)

    def theirs(batch):
        return torch.randint(4, 24, (batch, length), generator=torch.Generator().manual_seed(0))

    work = {
        "ours": quiet(as_dtype(model, dtype), tokens_of(1, length)),
        "peer": quiet(ask, theirs(1)),
    }
    if dtype != "float32":
        work["fp32"] = quiet(model, tokens_of(1, length))
    if peer_dtype != torch.float32:
        work["fp32 peer"] = quiet(lambda t: exact(input_ids=t).logits, theirs(1))
    work |= {
        "peer, batch 8": quiet(ask, theirs(8)),
        "peer, 2 threads": work["peer"],
        "ours, 2 threads": work["ours"],
    }
    full = {
        "ours": 56 / CYCLE,
        "fp32": 56 / CYCLE,
        "peer": 33 / layers,
        "fp32 peer": 33 / layers,
    }  # calls that make a whole model
    worth = {
        name: length * (8 if "batch 8" in name else 1) / full[name.split(",")[0]] for name in work
    }
    return Ways(
        work,
        worth,
        f"{CYCLE} of 56 blocks and {layers} of 33 layers, each scaled to its whole",
        {name: 2 for name in work if "2 threads" in name},
        operations(TABLE_S1["carp_640m"]),
    )


line(
    "carp_640m-hf-fp32",
    "forward pass, carp_640m, 1024 residues, bf16",
    "Hugging Face ESM of 650M, fp32",
    6,
    8,
)(lambda: against_650m(torch.float32, "bfloat16", "hf"))
line(
    "carp_640m-hf-bf16",
    "forward pass, carp_640m, 1024 residues, bf16",
    "Hugging Face ESM of 650M, bf16",
    1.8,
    2.3,
)(lambda: against_650m(torch.bfloat16, "bfloat16", "hf"))
line(
    "carp_640m-fair-esm", "forward pass, carp_640m, 1024 residues, fp32", "fair-esm, ESM-1b, fp32"
)(lambda: against_650m(torch.float32, "float32", "fair-esm"))


@line(
    "mixed-lengths",
    "16 Swiss-Prot sequences of mixed length, carp_38m, bf16",
    "Hugging Face ESM of 38M, fp32, batch 8 padded",
    9,
    15,
    repeats=2,
)
def mixed_lengths() -> Ways:
    from carp_nb.batching import bucketed_batches

    found = real_sequences()
    model, peer = ours("carp_38m", CYCLE), huggingface(768, 2, 12, 3392, 1024)
    lengths = np.array([len(s) for s in found])
    batches = [
        PROTEIN.batch([found[i] for i in chosen])[0]
        for chosen in bucketed_batches(lengths, 2048, np.random.default_rng(0))
    ]
    fast = as_dtype(model, "bfloat16")

    def padded(size: int):
        rows = [
            torch.randint(4, 24, (len(s),), generator=torch.Generator().manual_seed(0))
            for s in found
        ]
        groups = [
            nn.utils.rnn.pad_sequence(rows[i : i + size], batch_first=True, padding_value=1)
            for i in range(0, len(rows), size)
        ]
        return lambda: [peer(input_ids=g, attention_mask=(g != 1).long()).logits for g in groups]

    def through(m):
        return lambda: [m(b) for b in batches]

    work = {
        "ours": quiet(through(fast)),
        "peer": quiet(padded(8)),
        "fp32": quiet(through(model)),
        "peer, batch 1": quiet(padded(1)),
    }
    full = {"ours": 16 / CYCLE, "fp32": 16 / CYCLE, "peer": 5 / 2}
    return Ways(
        work,
        {name: float(lengths.sum()) / full[name.split(",")[0]] for name in work},
        f"{CYCLE} of 16 blocks and 2 of 5 layers, each scaled to its whole",
        operations=operations(TABLE_S1["carp_38m"]),
    )


def packed(size: str, train: bool) -> Ways:
    """Sequences end to end in rows, each as full as it gets, against length-bucketed batches
    with padding, of as many residues.
    """
    from carp_nb.batching import bucketed_batches

    found, model, room = real_sequences(48), ours(size), 4096
    batches = [
        PROTEIN.batch([found[i] for i in chosen])
        for chosen in bucketed_batches(
            np.array([len(s) for s in found]), room, np.random.default_rng(0)
        )
    ]
    rows: list[list[str]] = []
    for sequence in sorted(found, key=len, reverse=True):  # into the first row that has room for it
        row = next((row for row in rows if sum(map(len, row)) + len(sequence) <= room), None)
        if row is None:
            rows.append(row := [])
        row.append(sequence)
    end_to_end = [PROTEIN.pack(row) for row in rows]

    def through(inputs):
        if not train:
            return quiet(lambda: [model(*given) for given in inputs])
        return lambda: [
            nn.functional.cross_entropy(model(*given).flatten(0, 1), given[0].flatten()).backward()
            for given in inputs
        ]

    residues = sum(map(len, found))
    share = residues / sum(tokens.numel() for tokens, _ in batches)
    return Ways(
        {"ours": through(end_to_end), "peer": through(batches)},
        {"ours": residues, "peer": residues},
        f"{len(found)} sequences, {1 - share:.0%} padding in the batches",
    )


for size, train in [("carp_38m", False), ("carp_600k", True)]:
    line(
        f"packed-{size}{'-train' if train else ''}",
        (
            f"{'forward and backward pass' if train else 'forward pass'}, {size}, 48 "
            "Swiss-Prot sequences end to end in rows, fp32"
        ),
        "our own length-bucketed, padded batches",
        repeats=3 if train else 2,
    )(lambda size=size, train=train: packed(size, train))


# scans


def scan(size: str, length: int, dtype: str, positions: int, peer_positions: int) -> Ways:
    from carp_nb.incremental import masked_log_probs, plan

    model = ours(size)
    (wild,) = sequences([length])

    def spread(n):
        return [(int(p),) for p in np.linspace(0, length - 1, n)]

    peer, tokens = reference(model), PROTEIN.batch([wild])[0]

    def one_by_one():
        for (p,) in spread(peer_positions):
            masked = tokens.clone()
            masked[0, p] = PROTEIN.mask_idx
            call_reference(peer, masked)[0, p].log_softmax(-1)

    work = {
        "ours": quiet(masked_log_probs, as_dtype(model, dtype), wild, spread(positions)),
        "peer": quiet(one_by_one),
    }
    if dtype != "float32":
        work["fp32"] = quiet(masked_log_probs, model, wild, spread(positions))
    work["peer, batch 8"] = quiet(call_reference, peer, tokens.repeat(8, 1))
    return Ways(
        work,
        {"ours": positions, "fp32": positions, "peer": peer_positions, "peer, batch 8": 8},
        (
            f"{positions} of {length} positions, the peer {peer_positions}, per "
            "position; the pass over the wild type counts in full"
        ),
        operations=2 * plan(model.config, length, spread(positions)).incremental / positions,
    )


for size, dtype, positions, theirs, target in [
    ("carp_38m", "float32", 250, 5, (3.5, 5.5)),
    ("carp_38m", "bfloat16", 64, 5, (10, 20)),
    ("carp_76m", "bfloat16", 24, 3, (6, 9)),
    ("carp_640m", "bfloat16", 4, 1, (6, 9)),
]:
    line(
        f"scan-{size}-250-{'fp32' if dtype == 'float32' else 'bf16'}",
        f"masked scan, {size}, 250 residues, {dtype}",
        "sequence-models, fp32, one forward pass per position",
        *target,
        repeats=2 if size == "carp_640m" else 3,
        warm=size != "carp_640m",
    )(
        lambda size=size, dtype=dtype, positions=positions, theirs=theirs: scan(
            size, 250, dtype, positions, theirs
        )
    )


@line(
    "scan-carp_38m-1000-dense",
    "masked scan, carp_38m, 1000 residues, fp32",
    "our own dense batched scorer",
    4,
    7,
)
def scan_dense() -> Ways:
    from carp_nb.incremental import masked_log_probs, plan

    model, (wild,), n, dense = ours("carp_38m"), sequences([1000]), 128, 8

    def spread(n):
        return [(int(p),) for p in np.linspace(0, 999, n)]

    def way(n, path):
        return quiet(lambda: masked_log_probs(model, wild, spread(n), path=path))

    return Ways(
        {"ours": way(n, "incremental"), "peer": way(dense, "dense")},
        {"ours": n, "peer": dense},
        f"{n} of 1000 positions, dense {dense} in one batch, per position; the pass over the wild type counts in full",
        operations=2 * plan(model.config, 1000, spread(n)).incremental / n,
    )


@line(
    "linearity",
    "time at 4096 residues over time at 1024, carp_76m, fp32",
    "4.0, a straight line",
    4.3,
    4.05,
    unit="time ratio",
    lower_is_better=True,
    repeats=5,
)
def linearity() -> Ways:
    model = ours("carp_76m", CYCLE)
    return Ways(
        {"ours": quiet(model, tokens_of(1, 1024)), "peer": quiet(model, tokens_of(1, 4096))},
        {"ours": 1, "peer": 1},
        f"{CYCLE} of 32 blocks, one cycle of dilations",
    )


# training

LR = 1e-4


def training_batches(step_tokens: int):
    "What the masked loss is trained on: sequences that ship, corrupted."
    from carp_nb.batching import Batches
    from carp_nb.pretrain import CorruptedBatches, as_corpus

    return CorruptedBatches(Batches(as_corpus("sprot_train_sample"), step_tokens, 1022, 0), 0)


def whole_train(
    model: CARP,
    batches,
    steps: int,
    dtype: str = "float32",
    accumulate: int = 1,
    log_every: int = 50,
) -> Callable[[], pd.DataFrame]:
    "The whole of `train`: it makes its batches, and writes metrics, which it gives, and a checkpoint."
    import tempfile
    from pathlib import Path

    from carp_nb.pretrain import mlm_step
    from carp_nb.training import TrainConfig, train

    def run():
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(steps, LR, dtype=dtype, accumulate=accumulate, log_every=log_every)
            return train(model, batches, mlm_step, config, Path(folder), progress=False)

    return run


def train_600k(dtype: str) -> Ways:  # float32 or bfloat16, of ours
    from sequence_models.losses import MaskedCrossEntropyLoss

    steps, batches, lossf = 3, training_batches(8192), MaskedCrossEntropyLoss()
    data = [batches[i] for i in range(steps)]

    def mine(dtype):
        return whole_train(ours("carp_600k"), batches, steps, dtype)

    def theirs(rows: int | None = None):
        model = reference(ours("carp_600k")).train().requires_grad_(True)
        optimizer = torch.optim.Adam(model.parameters(), lr=LR)

        def run():
            for batch in data:
                optimizer.zero_grad()
                for part in (
                    [batch] if rows is None else zip(*(tensor.split(rows) for tensor in batch))
                ):
                    (
                        lossf(call_reference(model, part[0]), part[1], part[3])
                        * (part[3].sum() / batch[3].sum())
                    ).backward()
                optimizer.step()

        return run

    work = {
        "ours": mine(dtype),
        "peer": theirs(),
        "peer, batch 8": theirs(8),
        "peer, batch 1": theirs(1),
    }
    if dtype != "float32":
        work["fp32"] = mine("float32")
    work |= {"peer, 2 threads": work["peer"], "ours, 2 threads": work["ours"]}
    return Ways(
        work,
        dict.fromkeys(work, sum(int(mask.sum()) for _, _, mask, _ in data)),
        f"{steps} updates; ours is the whole of `train`: it makes its batches, "
        "and writes metrics and a checkpoint; the peer's loop takes the same "
        "batches made beforehand and plain Adam; "
        "a batch of 8 or 1 is a part of an update, gradients added up",
        {"peer, 2 threads": 2, "ours, 2 threads": 2},
        3 * operations(TABLE_S1["carp_600k"]),
    )


# bf16 has to pay on a processor with AMX
for dtype, name, floor, aim in [("float32", "fp32", 2.5, 3.3), ("bfloat16", "bf16", 4, 5)]:
    line(
        "train-carp_600k" if dtype == "float32" else "train-carp_600k-bf16",
        f"pretraining, carp_600k, updates of 8192 tokens, {name}",
        "a loop with sequence-models' model and loss, fp32",
        floor,
        aim,
    )(lambda dtype=dtype: train_600k(dtype))


@line(
    "embed-carp_38m",
    "mean representations of 16 Swiss-Prot sequences, carp_38m, fp32",
    "a loop with sequence-models, batch 8 in the order given, fp32",
    repeats=2,
)
def embedding() -> Ways:
    import tempfile
    from pathlib import Path

    from carp_nb.embedding import embed

    found = real_sequences()
    model = ours("carp_38m", CYCLE)
    peer, names = reference(model).embedder, {f"s{i}": s for i, s in enumerate(found)}

    def to_disk():
        with tempfile.TemporaryDirectory() as folder:
            embed(model, names, Path(folder) / "all.safetensors", progress=False)

    def loop(size: int):
        def embed_all():
            for i in range(0, len(found), size):
                tokens, mask = PROTEIN.batch(found[i : i + size])
                x = peer(tokens, input_mask=mask.unsqueeze(-1)) * mask.unsqueeze(-1)
                x.sum(1) / mask.sum(1, keepdim=True)

        return embed_all

    work = {"ours": quiet(to_disk), "peer": quiet(loop(8)), "peer, batch 1": quiet(loop(1))}
    return Ways(
        work,
        dict.fromkeys(work, sum(map(len, found))),
        f"{CYCLE} of 16 blocks; ours also writes the file",
        operations=operations(model.config),
    )


# on a GPU: measured where there is one, against the rate that its maker states; on a CPU the same
# lines are rehearsed with a tiny model

REHEARSAL = "carp_4k"  # stands for every size where the device is a CPU


def is_cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def peak_rate(device: str) -> float:  # operations per second
    "Raises ValueError for a GPU whose peak is not known."
    if not is_cuda(device):
        multiply, count = matrix_product("float32")
        return count / measured(multiply)[0]
    name = torch.cuda.get_device_name(device)
    if np.isnan(rate := peak_tflops(name)):
        raise ValueError(
            f"the peak rate of {name} is not known here; add it to PEAK_TFLOPS of carp_nb.timing."
        )
    return 1e12 * rate


def block_weights(model: nn.Module) -> int:
    blocks = model.get_submodule("blocks")
    return sum(p.numel() for p in blocks.parameters())


def gpu_model(size: str, device: str) -> CARP:  # fp32, random weights
    "A model of a size of Table S1, or the tiny one of the rehearsal, made on its device."
    model = random_model(size if is_cuda(device) else REHEARSAL, 1, device)
    assert isinstance(model, CARP)
    return model


def gpu_forward(size: str, device: str, compiled: bool = False) -> Ways:
    "A call is worth its share of a second at the peak rate, in percent; two operations per weight and residue."
    model = gpu_model(size, device)
    batch, length = (16, 1024) if is_cuda(device) else (2, 128)
    tokens = tokens_of(batch, length).to(device)
    worth = 100 * 2 * block_weights(model) * tokens.numel() / peak_rate(device)
    half = as_dtype(model, "bfloat16")
    if compiled:
        # in place, so that the name and the weights stay those of the model
        half.compile(dynamic=False)
    return Ways(
        {"ours": quiet(half, tokens)},
        {"ours": worth},
        f"{model.name}, batch {batch} of {length} residues",
    )


def gpu_scan(size: str, device: str) -> Ways:
    "Every position of one protein masked in turn; a call is worth its positions."
    from carp_nb.incremental import masked_log_probs

    length = 250 if is_cuda(device) else 40
    model, (wild,) = gpu_model(size, device), sequences([length])
    masked = [(i,) for i in range(length)]
    return Ways(
        {"ours": quiet(masked_log_probs, as_dtype(model, "bfloat16"), wild, masked)},
        {"ours": length},
        f"{model.name}, all of {length} positions; the pass over the wild type counts in full",
    )


@dataclass(frozen=True)
class TrainingRun:
    "What one run of `train` on a GPU says."

    rates: tuple[float, ...]  # residues per second, one for each stretch of updates
    weights: int  # of the blocks
    memory: float  # kB per residue above weights and optimizer
    seconds: float  # of the whole run
    note: str


# one run answers three lines: the share of the peak, the rate, and the memory
@functools.cache
def gpu_training(
    size: str, updates: int, accumulate: int, device: str, compiled: bool
) -> TrainingRun:
    "Train from random weights on real batches; the first stretch warms up and does not count."
    tokens, stretches = (32768, 6) if is_cuda(device) else (1024, 3)
    updates = updates if is_cuda(device) else 2
    part, metrics, model = tokens // accumulate, [], []

    def run() -> nn.Module:
        model.append(gpu_model(size, device))
        if compiled:
            # rows and lengths differ from batch to batch
            model[0].compile(dynamic=True)
        batches = training_batches(tokens)
        metrics.append(
            whole_train(
                model[0], batches, stretches * updates, "bfloat16", accumulate, log_every=updates
            )()
        )
        return model[0]

    memory = []
    seconds, _ = measured(lambda: memory.append(training_memory(run, part, device)), device)
    note = (
        f"{model[0].name}, medians over {stretches - 1} times {updates} updates of {tokens} tokens in "
        f"parts of {part}, bf16 autocast; the whole of `train` but its checkpoint"
    )
    rates = tuple(metrics[0].tokens_per_second[1:])
    return TrainingRun(rates, block_weights(model[0]), memory[0] / 1000, seconds, note)


def gpu_train(
    size: str, wanted: str, updates: int, accumulate: int, device: str, compiled: bool = False
) -> Ways:
    """The rate of `train`: its share of the peak in percent (six operations per weight and
    residue), thousands of residues a second, or the memory of activations and gradients.
    """
    run = gpu_training(size, updates, accumulate, device, compiled)
    worth = {"rate": 1 / 1000}
    if wanted == "peak":
        worth["peak"] = 100 * 6 * run.weights / peak_rate(device)
    values = [run.memory] * len(run.rates)
    if wanted != "memory":
        values = [worth[wanted] * rate for rate in run.rates]
    coming = itertools.cycle(values)
    return Ways({}, {}, run.note, probe=lambda: (next(coming), run.seconds))


# in the order of their worth, for a GPU that is there for a few minutes only
GPU_SIZES = {"carp_640m": (10, 4), "carp_76m": (20, 1), "carp_38m": (30, 1)}  # updates, parts
TARGETS = {
    "gpu-carp_640m-train": (37.5, 45),  # what BioNeMo's ESM2-650M reaches on an H100, and more
    "gpu-carp_640m-train-rate": (96, 115),
    "gpu-carp_640m-forward": (35, 60),
    "gpu-carp_76m-train": (25, 45),
}


def gpu_line(name: str, work: str, peer: str, unit: str, build, seconds: float, **kwargs):
    line(
        name,
        work,
        peer,
        *TARGETS.get(name, (None, None)),
        unit=unit,
        gpu=True,
        seconds=seconds,
        **kwargs,
    )(build)


for compiled in (False, True):
    said, ending = ("bf16, torch.compile", "-compiled") if compiled else ("bf16", "")
    for size, (updates, accumulate) in GPU_SIZES.items():
        for wanted, more, unit, against in [
            ("peak", "", "% of the peak", "peak bf16 rate of the GPU"),
            ("rate", "-rate", "thousand residues/s", "in thousand residues/s"),
            (
                "memory",
                "-memory",
                "kB per residue",
                "in kB per residue, above weights and optimizer",
            ),
        ]:
            gpu_line(
                f"gpu-{size}-train{more}{ending}",
                f"pretraining, {size}, {said}",
                against,
                unit,
                functools.partial(gpu_train, size, wanted, updates, accumulate, compiled=compiled),
                seconds=(90 if compiled else 50) if wanted == "peak" else 1,
                repeats=5,
                lower_is_better=wanted == "memory",
            )
        gpu_line(
            f"gpu-{size}-forward{ending}",
            f"forward pass, {size}, {said}",
            "peak bf16 rate of the GPU",
            "% of the peak",
            functools.partial(gpu_forward, size, compiled=compiled),
            seconds=60 if compiled else 10,
            repeats=20,
        )
        if not compiled:
            gpu_line(
                f"gpu-{size}-scan",
                f"masked scan, {size}, 250 residues, bf16",
                "in positions/s",
                "positions/s",
                functools.partial(gpu_scan, size),
                seconds=15,
                repeats=5,
            )


# very long proteins

for work, said in [
    ("sequence", "mean representation"),
    ("masked", "masked scores of four mutants"),
]:
    line(
        f"titin-carp_38m-{'embed' if work == 'sequence' else 'scores'}",
        f"{said}, {TITIN:,} residues as in titin, carp_38m, fp32",
        "2000 MB",
        2000,
        2000,
        unit="MB above the weights",
        lower_is_better=True,
    )(
        lambda work=work: Ways(
            {},
            {},
            "a random sequence, a process for each repeat",
            probe=lambda: long_protein("carp_38m", sequences([TITIN])[0], work),
        )
    )


# fine-tuning


@line(
    "finetune-carp_600k",
    (
        "fine-tuning all weights, carp_600k with a pooled head, updates of 16 "
        "sequences of 265 residues (GB1 in FLIP), fp32"
    ),
    "a loop with sequence-models' model and the same head, fp32",
    2.5,
    3.3,
)
def finetune_600k() -> Ways:
    from carp_nb.finetune import EncoderWithHead
    from carp_nb.heads import PooledHead

    tokens, mask = PROTEIN.batch(sequences([265] * 16))
    target = torch.randn(len(tokens), 1, generator=torch.Generator().manual_seed(0))

    class Plainly(nn.Module):
        "The released encoder with our head."

        def __init__(self):
            super().__init__()
            self.encoder, self.head = reference(ours("carp_600k")).train().embedder, PooledHead(128)
            for p in self.parameters():
                p.requires_grad_(True)

        def forward(self, tokens, mask):
            return self.head(self.encoder(tokens, input_mask=mask.unsqueeze(-1)), mask)

    def update(model, rows: int = 16):
        optimizer = torch.optim.Adam(
            (p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True
        )

        def train():
            optimizer.zero_grad()
            for part in zip(*(t.split(rows) for t in (tokens, mask, target))):
                (
                    nn.functional.mse_loss(model(*part[:2]), part[2]) * (len(part[0]) / len(tokens))
                ).backward()
            optimizer.step()

        return train

    work = {
        "ours": update(EncoderWithHead(ours("carp_600k"), PooledHead(128)).train()),
        "peer": update(Plainly()),
    }
    work |= {f"peer, batch {rows}": update(Plainly(), rows) for rows in (4, 1)}
    work |= {"peer, 2 threads": work["peer"], "ours, 2 threads": work["ours"]}
    return Ways(
        work,
        dict.fromkeys(work, int(mask.sum())),
        (
            "one update, the same batch for both; backward pass and Adam included; a "
            "batch of 4 or 1 is a part of an update, gradients added up"
        ),
        {"peer, 2 threads": 2, "ours, 2 threads": 2},
        3 * operations(TABLE_S1["carp_600k"]),
    )
