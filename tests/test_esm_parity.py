"""Our Transformer against the two released codes it stands in for: fair-esm (ESM-1b, ESM-1v)
and sequence-models (Table S2).
"""

import argparse

import esm as fair_esm
import pytest
import torch
from esm.model.esm1 import ProteinBertModel
from sequence_models.esm import ESM1b

from carp_nb.alphabet import AMINO_ACIDS, PROTEIN
from carp_nb.esm import ESM, FAIR_ESM, TABLE_S2, ESMConfig, from_fair_esm, to_fair_esm
from carp_nb.mlm import corrupt_each, evaluate
from carp_nb.pretrained import load_model
from carp_nb.scoring import mutation_scan, score_mutants

SEQUENCES = [
    "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSG",
    "GAVLI",
    "MK#AYIA##R",
    "#",
    "XBUZOMKT",
]
PEER_ALPHABET = fair_esm.Alphabet.from_architecture("roberta_large")
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}


def perturb(model: torch.nn.Module) -> torch.nn.Module:
    "Move every parameter off its start: default biases of zero and gains of one would hide a swap."
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def released(
    norm_before: bool, token_dropout: bool = True, layers: int = 3
) -> tuple[ProteinBertModel, dict]:
    "A small fair-esm model with random weights, and the file that would publish it."
    args = argparse.Namespace(
        arch="roberta_large",
        encoder_layers=layers,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=48,
        encoder_attention_heads=4,
        max_positions=60,
        token_dropout=token_dropout,
    )
    short = {key.removeprefix("encoder_"): value for key, value in vars(args).items()}
    model = perturb(
        ProteinBertModel(
            argparse.Namespace(**short, emb_layer_norm_before=norm_before), PEER_ALPHABET
        )
    )
    with torch.no_grad():
        model.embed_tokens.weight[PEER_ALPHABET.mask_idx] = (
            0  # as fair-esm does when it reads a file
        )
    state = {
        f"encoder.{'' if key.startswith('lm_head') else 'sentence_encoder.'}{key}": value
        for key, value in model.state_dict().items()
        if not key.startswith("contact_head")
    }
    return model, {"args": args, "model": state}


def ours(checkpoint: dict) -> ESM:
    "Our model with the weights of a published file."
    config, state = from_fair_esm(checkpoint)
    model = ESM(config)
    model.load_state_dict(state)
    return model.eval()


def peer_tokens(sequences: list[str]) -> torch.Tensor:
    return PEER_ALPHABET.get_batch_converter()([("", s.replace("#", "<mask>")) for s in sequences])[
        2
    ]


def test_alphabet_is_fair_esms():
    assert torch.equal(FAIR_ESM.batch(SEQUENCES, allow_mask=True)[0], peer_tokens(SEQUENCES))
    assert (len(FAIR_ESM), FAIR_ESM.pad_idx, FAIR_ESM.mask_idx) == (
        len(PEER_ALPHABET),
        PEER_ALPHABET.padding_idx,
        PEER_ALPHABET.mask_idx,
    )
    assert FAIR_ESM.encode("J")[1] == PEER_ALPHABET.unk_idx
    for residue in AMINO_ACIDS:
        assert FAIR_ESM.tokens.index(residue) == PEER_ALPHABET.get_idx(residue)


@pytest.mark.parametrize("norm_before", [True, False], ids=["esm1b", "esm1v"])
@pytest.mark.parametrize("token_dropout", [True, False], ids=["token_dropout", "no_dropout"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_fair_esm(norm_before, token_dropout, dtype):
    peer, checkpoint = released(norm_before, token_dropout)
    model, peer = ours(checkpoint).to(dtype), peer.to(dtype)
    tokens, residues = FAIR_ESM.batch(SEQUENCES, allow_mask=True)
    inside = tokens != FAIR_ESM.pad_idx
    with torch.no_grad():
        expected = peer(tokens, repr_layers=[0, 1, 3])
        for mask in (None, residues):
            torch.testing.assert_close(
                model(tokens, mask)[inside],
                expected["logits"][inside],
                rtol=0,
                atol=TOLERANCE[dtype],
            )
        for layer, values in expected["representations"].items():
            torch.testing.assert_close(
                model.represent(tokens, layer=layer)[inside],
                values[inside],
                rtol=0,
                atol=TOLERANCE[dtype],
            )
        for row, sequence in zip(model(tokens), SEQUENCES):  # a sequence alone
            alone = peer(peer_tokens([sequence]))["logits"][0]
            torch.testing.assert_close(
                row[: len(sequence) + 2], alone, rtol=0, atol=TOLERANCE[dtype]
            )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_the_papers_transformer(dtype):
    """The class that the authors of CARP published for their retrained ESM, in the shape of
    Table S2 that is cheapest to run.
    """
    config = TABLE_S2["esm_41k"]
    peer = perturb(ESM1b(config.d_model, config.d_mlp, config.n_layers, config.n_heads)).to(dtype)
    ours = ESM(config).to(dtype).eval()
    ours.load_state_dict(
        {key: value for key, value in peer.state_dict().items() if key != "lm_head.weight"}
    )
    tokens, mask = PROTEIN.batch(SEQUENCES, allow_mask=True)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(tokens, mask)[mask], peer(tokens)[mask], rtol=0, atol=TOLERANCE[dtype]
        )


def test_sizes_of_table_s2_are_the_papers_transformer():
    for config in TABLE_S2.values():
        with torch.device("meta"):
            ours, peer = (
                ESM(config),
                ESM1b(config.d_model, config.d_mlp, config.n_layers, config.n_heads),
            )
        shapes = {
            key: value.shape for key, value in peer.state_dict().items() if key != "lm_head.weight"
        }
        assert {key: value.shape for key, value in ours.state_dict().items()} == shapes


def test_both_forms_of_attention_agree():
    _, checkpoint = released(norm_before=True)
    fused = ours(checkpoint)
    plain = ESM(fused.config, attention="plain").eval()
    plain.load_state_dict(fused.state_dict())
    tokens, _ = FAIR_ESM.batch(SEQUENCES, allow_mask=True)
    for dtype, tolerance in TOLERANCE.items():
        torch.testing.assert_close(
            plain.to(dtype)(tokens), fused.to(dtype)(tokens), rtol=0, atol=tolerance
        )


def test_files_are_read_in_both_directions(tmp_path):
    _peer, checkpoint = released(norm_before=False)
    torch.save(checkpoint, tmp_path / "esm1v_test.pt")
    model = load_model(tmp_path / "esm1v_test.pt", "cpu")
    assert model.name == "esm1v_test" and model.max_length == 58
    torch.save(
        checkpoint, tmp_path / "old.pt", _use_new_zipfile_serialization=False
    )  # what PyTorch wrote before 1.6
    for same in (ours(checkpoint), load_model(tmp_path / "old.pt", "cpu")):
        assert all(
            torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True)
        )

    written = to_fair_esm(perturb(ESM(ESMConfig(32, 2, 4, 48, 60, "fair_esm", token_dropout=True))))
    with pytest.warns(
        UserWarning, match="Regression weights not found"
    ):  # of the contact head, which we leave out
        theirs, _ = fair_esm.pretrained.load_model_and_alphabet_core("esm1b_test", written)
    tokens, _ = FAIR_ESM.batch(SEQUENCES[:1])
    with torch.no_grad():
        torch.testing.assert_close(
            ours(written)(tokens), theirs.eval()(tokens)["logits"], rtol=0, atol=2e-5
        )


def test_half_precision_file_is_read_as_fp32(tmp_path):
    _, checkpoint = released(norm_before=True)
    checkpoint["model"] = {key: value.half() for key, value in checkpoint["model"].items()}
    torch.save(checkpoint, tmp_path / "half.pt")
    assert {p.dtype for p in load_model(tmp_path / "half.pt", "cpu").parameters()} == {
        torch.float32
    }


def test_untied_output_is_refused():
    _, checkpoint = released(norm_before=True)
    checkpoint["model"]["encoder.lm_head.weight"] = (
        checkpoint["model"]["encoder.lm_head.weight"] + 1
    )
    with pytest.raises(ValueError, match="not the token embedding"):
        from_fair_esm(checkpoint)


def test_scores_are_fair_esms_masked_marginals():
    "Log-odds of a double mutant, both positions masked at once, by fair-esm's own tokens."
    peer, checkpoint = released(norm_before=True)
    (answers,) = ours(checkpoint).log_probs("MKTAYIAKQR", [(3, 8)])
    with torch.no_grad():
        expected = peer(peer_tokens(["MKT#YIAK#R"]))["logits"][0].log_softmax(-1)
    for row, (position, wild, mutant) in zip(answers, [(3, "A", "W"), (8, "Q", "C")]):
        odds = (
            expected[position + 1, PEER_ALPHABET.get_idx(mutant)]
            - expected[position + 1, PEER_ALPHABET.get_idx(wild)]
        )
        torch.testing.assert_close(
            row[AMINO_ACIDS.index(mutant)] - row[AMINO_ACIDS.index(wild)], odds, rtol=0, atol=2e-5
        )


def test_scans_and_methods_are_fair_esms():
    "Scores of equation 1 and of one mask at a time, worked out from fair-esm's logits."
    peer, checkpoint = released(norm_before=False)
    model, wild_type = ours(checkpoint), "MKTAYIAKQR"

    def odds(text: str, position: int, mutant: str) -> float:
        with torch.no_grad():
            logits = peer(peer_tokens([text]))["logits"][0, position + 1]
        return (
            logits[PEER_ALPHABET.get_idx(mutant)]
            - logits[PEER_ALPHABET.get_idx(wild_type[position])]
        ).item()

    expected = {
        "masked": odds("MKT#YIAK#R", 3, "W") + odds("MKT#YIAK#R", 8, "C"),
        "masked-each": odds("MKT#YIAKQR", 3, "W") + odds("MKTAYIAK#R", 8, "C"),
        "wild-type": odds(wild_type, 3, "W") + odds(wild_type, 8, "C"),
    }
    for method, value in expected.items():
        assert score_mutants(model, wild_type, ["A4W:Q9C"], method=method)[0] == pytest.approx(
            value, abs=2e-5
        ), method
    scan = mutation_scan(model, wild_type, [4, 10])
    assert (
        scan.loc[4, "W"] == pytest.approx(odds("MKT#YIAKQR", 3, "W"), abs=2e-5)
        and scan.loc[4, "A"] == 0
    )
    assert scan.loc[10, "D"] == pytest.approx(odds("MKTAYIAKQ#", 9, "D"), abs=2e-5)
    with pytest.raises(ValueError, match="takes at most 58 residues and the wild type has 59"):
        mutation_scan(model, "M" * 59)


def test_held_out_loss_is_fair_esms():
    "The questions of `evaluate`, put to fair-esm one sequence at a time."
    peer, checkpoint = released(norm_before=True)
    generator = torch.Generator().manual_seed(1)
    sequences = [
        "".join(AMINO_ACIDS[i] for i in torch.randint(20, (n,), generator=generator))
        for n in (50, 7, 1, 33)
    ] + ["XMKTBUZOW"]  # fair-esm refuses J
    nats = []
    for tokens, corrupted, selected in corrupt_each(sequences):
        with torch.no_grad():
            answers = peer(peer_tokens([PROTEIN.decode(corrupted)]))["logits"][0].log_softmax(-1)[
                1:-1
            ][selected]
        nats += [
            -row[PEER_ALPHABET.get_idx(letter)].item()
            for row, letter in zip(answers, PROTEIN.decode(tokens[selected]))
        ]
    assert evaluate(ours(checkpoint), sequences).answers.nats.tolist() == pytest.approx(
        nats, abs=2e-5
    )
