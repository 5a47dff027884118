"""Any name or file of a network where one is taken; and embeddings in files of other programs."""

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_pretrained import save_protbert, small
from typer.testing import CliRunner

from carp_nb import arrays
from carp_nb.carp import CARP, TABLE_S1
from carp_nb.cli import app
from carp_nb.defaults import DEFAULT_MODEL
from carp_nb.devices import device_name, pick_device
from carp_nb.embedding import embed, read_embeddings
from carp_nb.errors import CarpError
from carp_nb.esm import ESM, TABLE_S2, ESMConfig
from carp_nb.explorer import explore
from carp_nb.layouts import save_checkpoint, to_published
from carp_nb.pretrained import load_model, load_models
from carp_nb.scorers import load_scorer, load_scorers
from carp_nb.scoring import score_mutants

SHIPPED = "carp_600k_sprot50"
WILD_TYPE = "MKTAYIAKQR"
QUESTION = WILD_TYPE, ["K2A", "T3C:Y5D"]


def typed(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def refusal(*words: object) -> str:
    "The one line that a refused command prints."
    done = typed(*words)
    assert done.exit_code == 1 and not done.stdout, done.output
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# devices

ABSENT = ["mps", "xpu", "nonsense", "cuda:99", "meta", "hpu", "", "cuda:-1", "CUDA"]


@pytest.mark.parametrize("device", ABSENT)
def test_a_device_that_is_not_here_is_one_sentence(device, tmp_path):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    if device == "xpu" and torch.xpu.is_available():
        pytest.skip("this machine has one")
    (tmp_path / "one.fasta").write_text(f">one\n{WILD_TYPE}\n")
    for take in (pick_device, device_name, lambda d: load_model(SHIPPED, d)):
        with pytest.raises(CarpError, match=f"^device {device!r} (is unknown|does not exist here)"):
            take(device)
    for model in (SHIPPED, "blosum62"):
        assert f"device {device!r}" in refusal(
            "score", WILD_TYPE, "--model", model, "--device", device
        )
    out = tmp_path / "e.npz"
    assert f"device {device!r}" in refusal("embed", tmp_path / "one.fasta", out, "--device", device)
    assert f"device {device!r}" in refusal("pretrain", tmp_path / "run", "--device", device)
    assert not out.exists() and not (tmp_path / "run").exists()


# names


@pytest.mark.parametrize("name", ["blosum62", "BLOSUM62", "blosum-62"])
def test_blosum62_is_a_name_wherever_mutants_are_scored(name):
    scores = score_mutants(load_scorer(name), *QUESTION)
    # half-bits: K to A is -1 against 5 for K, T to C -1 against 5, Y to D -3 against 7
    np.testing.assert_allclose(scores / (np.log(2) / 2), [-1 - 5, -1 - 5 - 3 - 7], rtol=1e-6)
    said = typed("score", WILD_TYPE, "--mutants", "K2A", "--model", name)
    assert said.exit_code == 0 and "K2A,-2.07" in said.stdout
    assert explore(WILD_TYPE, name).source == "blosum62"
    assert [s.name for s in load_scorers(f"{SHIPPED},{name}", "cpu")] == [SHIPPED, "blosum62"]
    with pytest.raises(CarpError, match="is a substitution matrix: it scores mutants"):
        load_model(name)


def test_what_has_no_representations_is_not_embedded(tmp_path):
    (tmp_path / "one.fasta").write_text(f">one\n{WILD_TYPE}\n")
    said = refusal("embed", tmp_path / "one.fasta", tmp_path / "e.npz", "--model", "blosum62")
    assert "has neither weights nor representations" in said
    model = torch.nn.Linear(1, 1)
    model.name = "any"
    with pytest.raises(CarpError, match="any has no representations"):
        embed(model, {"a": "MK"}, tmp_path / "x.npz")


def test_unknown_names_suggest_near_ones():
    for word, near in (("blosum26", "blosum62"), ("carp_641m", "carp_640m"), ("esm2v", "esm1v")):
        said = refusal("score", WILD_TYPE, "--model", word)
        assert re.search(rf"no model is named {word!r}; did you mean [\w ]*\b{near}\b", said), said


def test_a_folder_stands_for_the_weights_in_it(tmp_path, monkeypatch):
    model = small()
    save_checkpoint(model, tmp_path / "run" / "mine.safetensors")
    monkeypatch.chdir(tmp_path)
    expected = score_mutants(model, *QUESTION)
    for name in ("run", "run/", "run/mine.safetensors", str(tmp_path / "run")):
        assert (score_mutants(load_scorer(name, "cpu"), *QUESTION) == expected).all()
    save_checkpoint(model, tmp_path / "run" / "other.pt")
    assert "is a folder with 2 files of weights, mine.safetensors, other.pt" in refusal(
        "score", WILD_TYPE, "--model", "run"
    )
    # what others call pytorch_model.bin or .pth is a .pt
    for name in ("a.pth", "a.bin", "a.ckpt"):
        shutil.copy(tmp_path / "run" / "other.pt", tmp_path / name)
        assert (score_mutants(load_scorer(name, "cpu"), *QUESTION) == expected).all()
    assert [m.name for m in load_models("a.pth,run/mine.safetensors", "cpu")] == ["a", "mine"]


# files of weights


def old_numpy(path: Path) -> None:
    "Write the names of NumPy 1, which has the same functions in other modules."
    replaced = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(replaced)


@pytest.mark.parametrize("is_old", [False, True], ids=["numpy 2", "numpy 1"])
def test_harmless_values_in_a_pt_are_read(tmp_path, is_old):
    model = small()
    stored = torch.load(save_checkpoint(model, tmp_path / "good.pt"))
    stored |= {
        "d_model": np.int64(stored["d_model"]),
        "loss": np.float64(2.5),
        "half": np.float16(0.5),
        "best": np.bool_(True),
        "name": np.str_("any"),
        "kind": np.dtype("float32"),
        "curve": np.arange(6.0).reshape(2, 3),
        "folder": Path("a/b"),
        "more": SimpleNamespace(step=np.int32(7)),
    }
    # the old layout is one pickle, in which names can be replaced
    torch.save(stored, tmp_path / "n.pt", _use_new_zipfile_serialization=not is_old)
    if is_old:
        old_numpy(tmp_path / "n.pt")
        assert b"numpy._core" not in (tmp_path / "n.pt").read_bytes()
    loaded = load_model(tmp_path / "n.pt", "cpu")
    assert type(loaded.config.d_model) is int
    assert (score_mutants(loaded, *QUESTION) == score_mutants(model, *QUESTION)).all()


class Foreign:
    "Stands for a class of a package that wrote the file."


class Runs:
    "Unpickled by an unrestricted reader, calls a function."

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_other_objects_are_refused_without_being_called_an_attack(tmp_path):
    for value in (Foreign(), np.array([{}]), np.zeros(2, [("a", "f8")])):
        torch.save({"model": value}, tmp_path / "x.pt")
        with pytest.raises(CarpError, match=r"^x.pt: the file holds .* was not read; save the"):
            load_model(tmp_path / "x.pt")
    torch.save({"model": "carp"}, tmp_path / "x.pt", pickle_protocol=4)
    with pytest.raises(CarpError, match=r"^x.pt: the file has a pickle protocol above 2"):
        load_model(tmp_path / "x.pt")


@pytest.mark.parametrize("is_new", [True, False])
def test_malice_is_refused_and_never_runs(tmp_path, is_new):
    marker = tmp_path / "ran"
    for function, *arguments in (
        (os.system, f"touch {marker}"),
        (os.mkdir, str(marker)),
        (eval, f"__import__('os').mkdir({str(marker)!r})"),
        (exec, f"__import__('os').mkdir({str(marker)!r})"),
        (subprocess.check_output, ["touch", str(marker)]),
        (getattr, Path(marker), "mkdir"),
    ):
        # beside a harmless number, which must not open the door
        stored = {"model": "carp", "n": np.float64(1), "x": Runs(function, *arguments)}
        torch.save(stored, tmp_path / "bad.pt", _use_new_zipfile_serialization=is_new)
        with pytest.raises(CarpError, match="which is code and not weights; nothing of it was run"):
            load_model(tmp_path / "bad.pt")
        assert not marker.exists()
    pickle.loads(pickle.dumps(Runs(os.mkdir, str(marker))))
    assert marker.exists()  # it would have


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("layout", ["ours", "published"])
def test_tensors_alone_are_a_carp_where_the_shapes_tell(tmp_path, suffix, layout):
    model = CARP(TABLE_S1["carp_4k"]).eval()
    state = model.state_dict()
    if layout == "published":
        state = to_published(state)
    path = tmp_path / f"bare{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    loaded = load_model(path, "cpu")
    assert (loaded.name, loaded.config) == ("bare", TABLE_S1["carp_4k"])
    assert (score_mutants(loaded, *QUESTION) == score_mutants(model, *QUESTION)).all()


def test_tensors_alone_are_refused_where_the_shapes_do_not_tell(tmp_path):
    for model, why in (
        (small(), "does not say its largest dilation"),
        (ESM(ESMConfig(16, 2, 4, 24, 50)), "does not say how many heads"),
    ):
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(state, tmp_path / "m.safetensors")
        with pytest.raises(CarpError, match=rf"^m.safetensors: it holds .*{why}"):
            load_model(tmp_path / "m.safetensors")
    save_file(ESM(TABLE_S2["esm_4_9k"]).state_dict(), tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors", "cpu").config == TABLE_S2["esm_4_9k"]


def test_esm_of_hugging_face(tmp_path):
    "Our ESM gives what transformers' own code gives; without config.json the heads are missing."
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = hf.EsmConfig(
        vocab_size=33,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=130,
        position_embedding_type="absolute",
        token_dropout=True,
        emb_layer_norm_before=True,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        mask_token_id=32,
    )
    theirs = hf.EsmForMaskedLM(config).eval()
    theirs.save_pretrained(tmp_path / "esm_little")
    ours = load_model(tmp_path / "esm_little", "cpu")
    assert (ours.name, ours.max_length) == ("esm_little", 126)
    tokens, _ = ours.alphabet.batch([WILD_TYPE])
    tokens[0, 4] = ours.alphabet.mask_idx
    with torch.inference_mode():
        expected = theirs(tokens, attention_mask=torch.ones_like(tokens)).logits
        # the mask token is never an answer; its row is zero here, as in fair-esm
        torch.testing.assert_close(ours(tokens)[..., :32], expected[..., :32], rtol=0, atol=1e-5)
    (tmp_path / "esm_little" / "config.json").unlink()
    with pytest.raises(CarpError, match="d_model 32 and 2 layers and does not say how many heads"):
        load_model(tmp_path / "esm_little")
    config.position_embedding_type = "rotary"
    hf.EsmForMaskedLM(config).save_pretrained(tmp_path / "esm2")
    with pytest.raises(CarpError, match="such as ESM-2; only those two and our own"):
        load_model(tmp_path / "esm2")


def test_protbert_in_safetensors_alone(tmp_path, monkeypatch):
    hf = pytest.importorskip("transformers")
    save_protbert(tmp_path / "prot_bert_bfd")
    old = load_model(tmp_path / "prot_bert_bfd", "cpu")
    expected = score_mutants(old, *QUESTION)
    new = tmp_path / "new" / "prot_bert_bfd"
    old.bert.save_pretrained(new)
    # without vocab.txt; as a folder, as a file, and by name
    monkeypatch.setenv("CARP_NB_WEIGHTS", str(new.parent))
    for name in (new, new / "model.safetensors", "prot_bert_bfd"):
        loaded = load_model(name, "cpu")
        assert loaded.name == "prot_bert_bfd"
        assert (score_mutants(loaded, *QUESTION) == expected).all()
    (new / "config.json").unlink()
    with pytest.raises(CarpError, match="a BERT of width 16 and does not say how many heads"):
        load_model(new)
    # at the published width nothing but the weights is needed
    config = hf.BertConfig(
        vocab_size=30,
        hidden_size=1024,
        num_hidden_layers=1,
        num_attention_heads=16,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    torch.manual_seed(1)
    wide = hf.BertForMaskedLM(config).eval()
    wide.save_pretrained(tmp_path / "wide")
    stated = load_model(tmp_path / "wide", "cpu")
    (tmp_path / "wide" / "config.json").unlink()
    bare = load_model(tmp_path / "wide" / "model.safetensors", "cpu")
    assert bare.bert.config.num_attention_heads == 16 and bare.max_length == 38
    assert (score_mutants(bare, *QUESTION) == score_mutants(stated, *QUESTION)).all()


# embeddings in files of other programs

RECORDS = {"P1": WILD_TYPE, "a/b": "MKV", "a_b": "MK", ".": "M", "é|x y": "AC", "b.npy": "WWW"}


@pytest.mark.parametrize("per", ["sequence", "residue"])
def test_all_formats_hold_the_same(per, tmp_path):
    h5py = pytest.importorskip("h5py")
    model = small()
    made = {}
    for suffix in (".safetensors", ".npz", ".h5"):
        made[suffix] = embed(model, RECORDS, tmp_path / f"e{suffix}", per, progress=False)
    expected = dict(made[".safetensors"])
    with safe_open(tmp_path / "e.safetensors", "np") as file:
        assert (
            np.concatenate([np.atleast_2d(v) for v in expected.values()])
            == file.get_tensor("embeddings")
        ).all()
    with np.load(tmp_path / "e.npz") as npz, h5py.File(tmp_path / "e.h5") as h5:
        assert list(npz) == list(RECORDS)
        assert [h5[name].attrs["original_id"] for name in h5] == list(RECORDS)
        assert list(h5) == ["P1", "a_b_2", "a_b", "_", "é|x y", "b.npy"]
        by_id = {h5[name].attrs["original_id"]: h5[name][()] for name in h5}
        for name, value in expected.items():
            assert value.dtype == by_id[name].dtype == npz[name].dtype == np.float32
            assert (by_id[name] == value).all() and (npz[name] == value).all()
        assert h5.attrs["model"] == "carp_small"
    for suffix in (".npz", ".h5"):
        again = read_embeddings(tmp_path / f"e{suffix}")
        assert again.ids == list(RECORDS) and again.metadata == made[".safetensors"].metadata
        assert (again.offsets == made[".safetensors"].offsets).all()
        assert (again.array() == made[".safetensors"].array()).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.h5", "e.npz", "e.safetensors"]


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_an_interrupted_conversion_goes_on_and_computes_nothing_again(
    suffix, tmp_path, monkeypatch
):
    path = tmp_path / f"e{suffix}"
    write = arrays._WRITERS[suffix]

    def fails(temporary, all_arrays):
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(arrays._WRITERS, suffix, fails)
    model = small()
    with pytest.raises(KeyboardInterrupt):
        embed(model, RECORDS, path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [f".e{suffix}.part"]
    monkeypatch.setitem(arrays._WRITERS, suffix, write)
    with pytest.raises(CarpError, match="holds something else: its weights_sha is"):
        embed(small(), RECORDS, path, progress=False)
    # one residue is computed to learn the width, nothing else
    monkeypatch.setattr(model, "tiles", None)
    made = embed(model, RECORDS, path, progress=False)
    before = path.read_bytes()
    assert (embed(model, RECORDS, path, progress=False).array() == made.array()).all()
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(CarpError, match="holds something else: its layer is"):
        embed(model, RECORDS, path, layer=0, progress=False)


def test_an_ending_that_is_not_written_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "one.fasta").write_text(f">one\n{WILD_TYPE}\n")
    for name in ("e.csv", "e", "e.npy", "e.h5.gz"):
        # the model does not exist, and is not looked for
        said = refusal("embed", tmp_path / "one.fasta", "-o", tmp_path / name, "--model", "none")
        assert "are written as .safetensors, .npz, .h5; give one of these endings" in said
    monkeypatch.setitem(sys.modules, "h5py", None)
    said = refusal("embed", tmp_path / "one.fasta", "-o", tmp_path / "e.h5", "--model", "none")
    assert 'pip install "carp_nb[h5]"' in said
    assert "give one file to write" in refusal("embed", tmp_path / "one.fasta")
    assert [p.name for p in tmp_path.iterdir()] == ["one.fasta"]


def test_command_writes_each_format(tmp_path):
    (tmp_path / "two.fasta").write_text(f">a/b\n{WILD_TYPE}\n>a_b\nMKV\n")
    for words in (["e.h5"], ["-o", "e.npz"], ["--output", "e.safetensors"]):
        words[-1] = str(tmp_path / words[-1])
        said = typed("embed", tmp_path / "two.fasta", *words, "--per", "residue")
        assert said.exit_code == 0 and f"2 sequences by {DEFAULT_MODEL}" in said.stdout
        assert [len(v) for _, v in read_embeddings(words[-1])] == [10, 3]


def test_ids_that_numpy_cannot_tell_apart_are_refused(tmp_path):
    two = {"a": "MK", "a.npy": "MKV"}
    with pytest.raises(CarpError, match=r"cannot tell the ids 'a' and 'a.npy' apart"):
        embed(small(), two, tmp_path / "e.npz", progress=False)
    assert not list(tmp_path.iterdir())
    assert len(embed(small(), two, tmp_path / "e.h5", progress=False)) == 2


def test_damaged_and_foreign_files_are_one_sentence(tmp_path):
    h5py = pytest.importorskip("h5py")
    for suffix in (".npz", ".h5"):
        path = tmp_path / f"e{suffix}"
        path.write_bytes(b"<html>")
        with pytest.raises(
            CarpError, match=f"e{suffix}: the file is truncated or is no {suffix} file"
        ):
            read_embeddings(path)
    np.savez(tmp_path / "e.npz", a=np.zeros(3))
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a"] = np.zeros(3)
    for name in ("e.npz", "f.h5"):
        with pytest.raises(CarpError, match=f"{name} holds no embeddings of carp_nb"):
            read_embeddings(tmp_path / name)
