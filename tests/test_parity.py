"""Ours against the released code (PyPI `sequence-models` 1.8.0): the same weights give the same
numbers, in both directions.

Every weight is random, layer norms, biases and the mask token's embedding included: at their
initial values (one and zero) two of them could be swapped without a trace. The 640M model is
compared at full depth in float32, with its weights shared between the two; in float64 it keeps
its width but has nine blocks, which is every dilation and the return to one. The depth changes
only how often a block repeats.
"""

from dataclasses import asdict, replace

import pytest
import torch
from sequence_models.convolutional import ByteNetLM
from sequence_models.pretrained import CARP as ReferenceCARP
from sequence_models.pretrained import load_carp, load_model_and_alphabet

from carp_nb.alphabet import PROTEIN
from carp_nb.carp import CARP, TABLE_S1, CARPConfig
from carp_nb.indels import pseudo_log_likelihood
from carp_nb.layouts import save_checkpoint, to_published
from carp_nb.pretrained import load_model

ONES_ON_DISK = [
    name for name in TABLE_S1 if name != "carp_640m"
]  # its file and three copies would take ten gigabytes
SHALLOW_640M = replace(TABLE_S1["carp_640m"], n_layers=9)
RELU = CARPConfig(
    24, 9, slim=False, d_embed=6, kernel_size=3, r=16, activation="relu"
)  # what no size of Table S1 has


def tolerance(name: str) -> float:
    "Largest allowed difference of logits in float32; the narrow layer norms of the 4k model amplify rounding."
    return 2e-3 if name == "carp_4k" else 2e-5


@torch.no_grad()
def perturbed(config: CARPConfig, name: str) -> CARP:
    """A model all of whose weights are random: layer norms around one, biases around zero,
    linear layers at their usual scale.
    """
    model, generator = CARP(config, name), torch.Generator().manual_seed(0)
    for key, value in model.named_parameters():
        if key.endswith("bias"):
            value.normal_(0, 0.1, generator=generator)
        elif "norm" in key:
            value.normal_(1, 0.1, generator=generator)
        elif key.startswith("embed"):
            value.normal_(0, 1, generator=generator)
        else:
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)
    return model.eval()


def reference_sharing(model: CARP) -> ReferenceCARP:
    "The released code on the very memory of our weights, so that the largest model is held once."
    config = asdict(model.config)
    with torch.device("meta"):
        bare = ByteNetLM(
            30,
            config["d_embed"],
            config["d_model"],
            config["n_layers"],
            config["kernel_size"],
            config["r"],
            padding_idx=PROTEIN.mask_idx,
            final_ln=True,
            slim=config["slim"],
            activation=config["activation"],
        )
    bare.load_state_dict(to_published(model.state_dict()), strict=True, assign=True)
    return ReferenceCARP(bare.eval(), PROTEIN.pad_idx)


def some_tokens(lengths: list[int]) -> torch.Tensor:
    "Right-padded rows of random tokens, special ones included, each row with masks."
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(30, (length,), generator=generator) for length in lengths]
    for row in rows:
        row[row == PROTEIN.pad_idx] = 0
        row[len(row) // 2] = PROTEIN.mask_idx
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PROTEIN.pad_idx)


@torch.inference_mode()
def assert_same(model: CARP, reference: ReferenceCARP, lengths: list[int], atol: float) -> None:
    "Logits and the last block's output, of a padded batch and of each sequence alone."
    tokens = some_tokens(lengths)
    theirs = reference(tokens, logits=True)
    hidden = model.represent(tokens, norm=False)
    ours = model.decoder(model.norm(hidden))
    for row, length in enumerate(lengths):
        last = theirs["representations"][model.config.n_layers][row, :length]
        torch.testing.assert_close(
            hidden[row, :length], last, rtol=0, atol=atol * last.abs().max().item()
        )  # not of order one
        torch.testing.assert_close(
            ours[row, :length], theirs["logits"][row, :length], rtol=0, atol=atol
        )
        torch.testing.assert_close(
            ours[row, :length], model(tokens[row : row + 1, :length])[0], rtol=0, atol=atol
        )
    assert ours.std() > 0.1  # logits that differ from each other


@pytest.mark.parametrize("name", ONES_ON_DISK)
def test_their_loader_reads_our_file(name, tmp_path):
    model = perturbed(TABLE_S1[name], name)
    reference, _ = load_model_and_alphabet(str(save_checkpoint(model, tmp_path / f"{name}.pt")))
    assert_same(model, reference, [300, 12, 40], tolerance(name))
    assert_same(model.double(), reference.double(), [300, 12, 40], 1e-10)


@pytest.mark.parametrize("name", ONES_ON_DISK)
def test_we_read_their_file(name, tmp_path):
    shape = asdict(TABLE_S1[name])
    stored = {
        "model": name,
        **shape,
        "model_state_dict": to_published(perturbed(TABLE_S1[name], name).state_dict()),
    }
    reference = load_carp(stored)
    torch.save(
        {**stored, "model_state_dict": reference.model.state_dict()}, tmp_path / f"{name}.pt"
    )
    assert_same(
        load_model(tmp_path / f"{name}.pt", device="cpu"), reference, [40, 12], tolerance(name)
    )


def test_640m_at_full_depth():
    model = perturbed(TABLE_S1["carp_640m"], "carp_640m")
    assert_same(model, reference_sharing(model), [40, 12], tolerance("carp_640m"))


@pytest.mark.parametrize("config", [SHALLOW_640M, RELU], ids=["carp_640m with nine blocks", "relu"])
def test_other_shapes_in_both_directions(config, tmp_path):
    model = perturbed(config, "carp")
    reference, _ = load_model_and_alphabet(str(save_checkpoint(model, tmp_path / "carp.pt")))
    assert_same(load_model(tmp_path / "carp.pt", device="cpu"), reference, [300, 12], 2e-5)
    assert_same(model.double(), reference.double(), [300, 12], 1e-10)


def test_the_comparison_notices_a_swap():
    "Two layer norms exchanged must not pass; nor must a lost mask row."
    model = perturbed(TABLE_S1["carp_40k"], "carp")
    for change in ("norm", "mask"):
        reference = reference_sharing(perturbed(TABLE_S1["carp_40k"], "carp"))
        block = reference.model.embedder.layers[3]
        with torch.no_grad():
            if change == "norm":
                block.sequence1[3].bias, block.sequence2[0].bias = (
                    block.sequence2[0].bias,
                    block.sequence1[3].bias,
                )
            else:
                reference.model.embedder.embedder.weight[PROTEIN.mask_idx] = 0
        with pytest.raises(AssertionError):
            assert_same(model, reference, [40, 12], tolerance("carp_40k"))


@torch.no_grad()
def test_pseudo_likelihood_is_that_of_the_released_code(tmp_path):
    model = perturbed(TABLE_S1["carp_40k"], "carp_40k")
    reference, alphabet = load_model_and_alphabet(str(save_checkpoint(model, tmp_path / "m.pt")))
    sequence = "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
    rows = [sequence[:i] + "#" + sequence[i + 1 :] for i in range(len(sequence))]
    tokens = alphabet([[row] for row in rows])[0]
    log_probs = reference(tokens, logits=True)["logits"].log_softmax(-1)
    true = PROTEIN.encode(sequence)
    expected = log_probs[range(len(true)), range(len(true)), true].sum()
    assert abs(pseudo_log_likelihood(model, sequence) - float(expected)) < 1e-5 * len(sequence)
