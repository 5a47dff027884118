"""Named models: where their files are looked for, and what is never taken for one. Plus files
that are damaged or hostile.
"""

import os
import pickle
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import torch

from carp_nb import pretrained
from carp_nb.carp import CARP, CARPConfig
from carp_nb.errors import CarpError
from carp_nb.esm import ESM, ESMConfig
from carp_nb.files import file_sha256
from carp_nb.layouts import read_weights, save_checkpoint
from carp_nb.pretrained import (
    ENSEMBLES,
    PUBLISHED,
    Published,
    list_models,
    load_model,
    load_models,
    weights_sha256,
)
from carp_nb.protbert import PROTBERT_FILES
from carp_nb.scoring import score_mutants

SMALL = CARPConfig(8, 3, d_embed=4)
SHIPPED = sorted(pretrained._SHIPPED.glob("*.safetensors"))


def small(name: str = "carp_small") -> CARP:
    return CARP(SMALL, name).eval()


def same(one: CARP, other: CARP) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


class Record:
    "A local stand-in for the Zenodo record that holds one file."

    def __init__(self, folder: Path):
        self.model, self.asked = small("carp_600k"), []
        self.file = save_checkpoint(self.model, folder / "carp_600k.pt")
        record = self

        class Handler(SimpleHTTPRequestHandler):
            def log_request(self, *args):
                record.asked.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.open = True

    def close(self):
        if self.open:
            self.server.shutdown()
            self.server.server_close()
        self.open = False


@pytest.fixture
def record(tmp_path, monkeypatch):
    "carp_600k stands for the local file, the cache is empty, no folder is named, and no model ships."
    record = Record(tmp_path / "record")
    monkeypatch.setitem(
        pretrained.ORIGINS, "Zenodo 6564798", f"http://127.0.0.1:{record.server.server_port}/{{}}"
    )
    monkeypatch.setitem(
        pretrained.PUBLISHED, "carp_600k", Published("carp_600k.pt", file_sha256(record.file))
    )
    monkeypatch.setattr(pretrained, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(pretrained, "_SHIPPED", tmp_path / "shipped")
    monkeypatch.delenv("CARP_NB_WEIGHTS", raising=False)
    yield record
    record.close()


def cached(name: str) -> bool:
    return list_models().set_index("name").cached[name]


# published models


def test_published_model_is_downloaded_once(record):
    assert not cached("carp_600k")
    model = load_model("CARP-600K", device="cpu", progress=False)
    assert model.name == "carp_600k" and same(model, record.model) and cached("carp_600k")
    record.close()
    assert same(load_model("carp_600k", device="cpu"), record.model)
    assert len(record.asked) == 1


def test_offline_and_not_cached_is_one_sentence(record):
    record.close()
    with pytest.raises(ConnectionError) as error:
        load_model("carp_600k", progress=False)
    said = str(error.value)
    assert said == (
        "carp_600k.pt cannot be downloaded from "
        f"{pretrained.PUBLISHED['carp_600k'].url}: the server cannot be reached; "
        "set CARP_NB_WEIGHTS to a folder that holds carp_600k.pt."
    )


def test_damaged_cache_is_never_loaded(record, tmp_path):
    path = load_model("carp_600k", device="cpu", progress=False).path
    path.write_bytes(path.read_bytes()[:-1])
    record.close()
    with pytest.raises(
        ConnectionError, match=r"the copy at \S+ has sha256 \w{64} where \w{64} is expected"
    ):
        load_model("carp_600k", progress=False)


def test_changed_file_at_the_source_is_refused(record, tmp_path):
    save_checkpoint(small(), record.file)
    with pytest.raises(ValueError, match=r"carp_600k.pt from .* has sha256 .* it was thrown away"):
        load_model("carp_600k", progress=False)
    assert not list((tmp_path / "cache" / "weights").iterdir())


@pytest.mark.parametrize("name", ["carp_600k.pt", "CARP_600K.PT", "carp-600k.pt"])
def test_own_copy_is_used_before_the_network(record, tmp_path, monkeypatch, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    shutil.copy(record.file, tmp_path / "b" / name)
    monkeypatch.setenv("CARP_NB_WEIGHTS", f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}")
    model = load_model("carp_600k", device="cpu")
    assert (
        model.path == tmp_path / "b" / name
        and model.name == "carp_600k"
        and cached("carp_600k")
        and not record.asked
    )


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_another_file_under_a_published_name_is_refused(record, tmp_path, monkeypatch, suffix):
    impostor = save_checkpoint(small(), tmp_path / "own" / f"carp_600k{suffix}")
    monkeypatch.setenv("CARP_NB_WEIGHTS", str(tmp_path / "own"))
    with pytest.raises(
        ValueError,
        match=r"is not the model that carp_600k stands for: its sha256 is .*; rename it, or load it by its path",
    ):
        load_model("carp_600k")
    assert not record.asked and load_model(impostor, device="cpu").name == "carp_small"


# the Transformers of Figure 2

LITTLE = ESMConfig(16, 2, 4, 24, 300, "fair_esm", token_dropout=True, norm_before=False)


def save_esm1v(folder: Path) -> None:
    "Five small models with random weights, in the published layout under the published file names."
    for i, name in enumerate(ENSEMBLES["esm1v"]):
        torch.manual_seed(i)
        save_checkpoint(ESM(LITTLE), folder / PUBLISHED[name].file)


def save_protbert(folder: Path) -> None:
    "A small ProtBERT with random weights, in the published layout."
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=300,
    )
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO"])
        + "\n"
    )
    torch.save(transformers.BertForMaskedLM(config).state_dict(), folder / "pytorch_model.bin")
    config.save_pretrained(folder)


@pytest.fixture
def little(monkeypatch):
    "The names of ESM-1v stand for models of a small shape."
    for name in ENSEMBLES["esm1v"]:
        monkeypatch.setitem(pretrained._SHAPES, name, LITTLE)


def test_what_cannot_be_verified_says_so_and_must_have_the_right_shape(
    record, tmp_path, monkeypatch, little
):
    save_esm1v(tmp_path / "record")
    save_checkpoint(ESM(LITTLE), tmp_path / "record" / PUBLISHED["esm1b"].file)
    monkeypatch.setitem(
        pretrained.ORIGINS, "fair-esm", f"http://127.0.0.1:{record.server.server_port}/{{}}"
    )
    with pytest.warns(
        UserWarning,
        match=r"esm1v_t33_650M_UR90S_3.pt is not verified: no source states a checksum.* sha256 \w{64}, and lies at",
    ):
        third = load_model("ESM-1v-3", "cpu", progress=False)
    assert third.name == "esm1v_3" and third.path.parent == tmp_path / "cache" / "weights"
    table = list_models().set_index("name")
    assert table.loc["esm1v_3", ["family", "verified", "cached"]].tolist() == ["ESM", False, True]
    assert (
        table.loc["carp_640m", ["family", "verified", "cached"]].tolist() == ["CARP", True, False]
        and not table.cached["esm1v"]
    )
    with pytest.raises(
        ValueError, match="is not the model that esm1b stands for: it holds ESMConfig"
    ):
        load_model("esm1b", progress=False)


def test_esm1v_is_the_mean_of_its_five(tmp_path, monkeypatch, little):
    save_esm1v(tmp_path)
    monkeypatch.setenv("CARP_NB_WEIGHTS", str(tmp_path))
    five, *members = load_models(",".join(["esm1v", *ENSEMBLES["esm1v"]]), "cpu")
    question = "MKTAYIAKQR", ["A4W:Q9C", "M1L"]
    scores = [score_mutants(m, *question) for m in members]
    mean = sum(scores) / 5
    torch.testing.assert_close(
        torch.tensor(score_mutants(five, *question)), torch.tensor(mean), rtol=0, atol=1e-6
    )
    assert (
        len({tuple(s) for s in scores}) == 5
        and five.max_length == 298
        and list_models().set_index("name").cached["esm1v"]
    )
    half = score_mutants(five, *question, dtype="bfloat16")
    torch.testing.assert_close(torch.tensor(half), torch.tensor(mean), rtol=0, atol=0.1)
    before = weights_sha256(five)
    save_checkpoint(ESM(LITTLE), tmp_path / PUBLISHED["esm1v_5"].file)
    assert weights_sha256(load_model("esm1v", "cpu")) != before


def test_protbert_by_name_and_by_folder(tmp_path, monkeypatch):
    save_protbert(tmp_path / "prot_bert_bfd")
    monkeypatch.setenv("CARP_NB_WEIGHTS", str(tmp_path))
    named, by_path = (
        load_model("Rostlab/prot_bert_bfd", "cpu"),
        load_model(tmp_path / "prot_bert_bfd", "cpu"),
    )
    assert (
        named.name == "prot_bert_bfd"
        and named.max_length == 298
        and weights_sha256(named) == file_sha256(by_path.path)
    )
    question = "MKTUYIAKQR", ["Y5W:Q9C", "M1L"]
    scores = score_mutants(named, *question)
    assert (scores == score_mutants(by_path, *question)).all() and (scores != 0).all()
    torch.testing.assert_close(
        torch.tensor(score_mutants(named, *question, dtype="bfloat16")),
        torch.tensor(scores),
        rtol=0,
        atol=0.1,
    )
    assert list_models().set_index("name").cached["prot_bert_bfd"]


def test_protbert_without_its_package_or_a_connection(record, monkeypatch):
    pytest.importorskip("transformers")
    record.close()
    monkeypatch.setattr(
        pretrained, "PROTBERT_URL", f"http://127.0.0.1:{record.server.server_port}/{{}}"
    )
    with pytest.raises(
        ConnectionError,
        match=f"{PROTBERT_FILES[0]} cannot be downloaded .* set CARP_NB_WEIGHTS to a folder that holds prot_bert_bfd/",
    ):
        load_model("prot_bert_bfd", progress=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        CarpError,
        match=r"^ProtBERT needs the package transformers; pip install 'carp-nb\[transformers\]'.$",
    ):
        load_model("prot_bert_bfd")


def test_zero_shot_takes_every_family(papermill, tmp_path, monkeypatch):
    """The section notebook, on small random models: one of the published ESM layout, one of
    ours, a ProtBERT, beside the one that ships.
    """
    save_protbert(tmp_path / "prot_bert_bfd")
    monkeypatch.setenv("CARP_NB_WEIGHTS", str(tmp_path))
    published = save_checkpoint(ESM(LITTLE), tmp_path / "esm1v_small.pt")
    ours = save_checkpoint(ESM(ESMConfig(8, 2, 2, 8), "esm_8"), tmp_path / "esm_ours.safetensors")
    names = f"{ours},{published},prot_bert_bfd,carp_600k_sprot50"
    done = papermill("zero_shot", model=names, datasets="abeta42")
    assert done.status == 0, done.shown
    rows = (
        pd.read_parquet(done.out / "results.parquet")
        .query("metric == 'spearman'")
        .set_index(["model", "method"])
    )
    models = ["esm_ours", "esm1v_small", "prot_bert_bfd", "carp_600k_sprot50"]
    assert set(rows.index) == {(m, way) for m in models for way in ("masked", "wild-type")} | {
        ("blosum62", "wild-type")
    }
    assert rows.value.between(-1, 1).all() and rows.weights_sha[
        "esm_ours", "masked"
    ] == file_sha256(ours)


# shipped models


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_what_ships_loads_by_its_name(path, monkeypatch):
    monkeypatch.delenv("CARP_NB_WEIGHTS", raising=False)
    model = load_model(path.stem.upper(), device="cpu")
    assert model.name == path.stem and model.path == path and read_weights(path)[0] == path.stem
    row = list_models().set_index("name").loc[path.stem]
    assert (
        row.origin == "shipped"
        and row.cached
        and all(p.isfinite().all() for p in model.parameters())
    )


def test_shipped_model_is_found_and_protected(record, tmp_path, monkeypatch):
    shipped, own = small(), tmp_path / "own"
    path = save_checkpoint(shipped, tmp_path / "shipped" / "carp_tiny_test.safetensors")
    model = load_model("CARP_tiny_test", device="cpu")
    assert model.name == "carp_tiny_test" and same(model, shipped)
    assert list_models().iloc[0][["name", "layers", "origin", "cached"]].tolist() == [
        "carp_tiny_test",
        3,
        "shipped",
        True,
    ]
    monkeypatch.setenv("CARP_NB_WEIGHTS", str(own))
    own.mkdir()
    shutil.copy(path, own)
    assert (
        load_model("carp_tiny_test", device="cpu").path == own / path.name
        and list_models().name.tolist().count("carp_tiny_test") == 1
    )
    save_checkpoint(small(), own / path.name)
    with pytest.raises(ValueError, match="is not the model that carp_tiny_test stands for"):
        load_model("carp_tiny_test")


# files


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_anywhere_is_one_sentence(tmp_path, suffix):
    whole = save_checkpoint(small(), tmp_path / f"whole{suffix}").read_bytes()
    for length in [
        0,
        1,
        4,
        7,
        8,
        9,
        60,
        500,
        2000,
        len(whole) // 2,
        len(whole) - 60,
        len(whole) - 1,
    ]:
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=f"^cut{suffix}: the file is truncated or is no .* get it again.$"
        ):
            load_model(path)


@pytest.mark.parametrize(
    "content", [b"<html>Too many requests</html>", b"\x80\x02]q\x00.", b"PK\x03\x04", b"\xff" * 64]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_content_is_one_sentence(tmp_path, suffix, content):
    path = tmp_path / f"page{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^page{suffix}: the file [^\n]*\.$"):
        load_model(path)


class Malice:
    "Unpickled by an unrestricted reader, makes a folder."

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def write_plain(stored: dict, path: Path) -> None:
    "What no one calls a checkpoint: a pickle of the malicious part alone."
    path.write_bytes(pickle.dumps(stored["model_state_dict"]["extra"], protocol=2))


def write_legacy(stored: dict, path: Path) -> None:
    torch.save(stored, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [torch.save, write_legacy, write_plain])
def test_a_pickle_runs_nothing(tmp_path, write):
    stored = torch.load(save_checkpoint(small(), tmp_path / "good.pt"))
    stored["model_state_dict"] = dict(stored["model_state_dict"], extra=Malice(tmp_path / "ran"))
    write(stored, tmp_path / "bad.pt")
    with pytest.raises(
        ValueError,
        match=r"^bad.pt: the file asks for \w+.mkdir while loading.*nothing of it was run",
    ):
        load_model(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Malice(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # it would have


def test_old_style_files_load(tmp_path):
    model = small()
    write_legacy(torch.load(save_checkpoint(model, tmp_path / "new.pt")), tmp_path / "old.pt")
    assert same(load_model(tmp_path / "old.pt", device="cpu"), model)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_loaded_model_does_not_hang_on_the_file(tmp_path, suffix):
    "Files are mapped into memory; the model must be a copy."
    model, other = small(), small()
    path, donor = (
        save_checkpoint(model, tmp_path / f"m{suffix}"),
        save_checkpoint(other, tmp_path / f"o{suffix}"),
    )
    loaded = load_model(path, device="cpu")
    with open(path, "r+b") as file:
        file.write(donor.read_bytes())  # in place, as a careless copy does
    assert same(loaded, model) and not same(loaded, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_come_as_float32(tmp_path, suffix, dtype):
    model = small().to(dtype)
    loaded = load_model(save_checkpoint(model, tmp_path / f"m{suffix}"), device="cpu")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32} and same(loaded, model.float())


def test_loading_leaves_the_random_numbers_alone(tmp_path):
    path, state = save_checkpoint(small(), tmp_path / "m.pt"), torch.get_rng_state()
    load_model(path, device="cpu")
    list_models()
    assert torch.equal(torch.get_rng_state(), state)


def test_loaded_model_trains(tmp_path):
    model = load_model(save_checkpoint(small(), tmp_path / "m.safetensors"), device="cpu")
    model(model.alphabet.encode("MKTAYIAKQR")[None]).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_name_without_carp_gets_it_in_the_published_layout(tmp_path):
    model = small("my_model")
    assert (
        load_model(save_checkpoint(model, tmp_path / "m.pt"), device="cpu").name == "carp_my_model"
    )
    assert (
        load_model(save_checkpoint(model, tmp_path / "m.safetensors"), device="cpu").name
        == "my_model"
    )


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_others_may_read_what_is_written(tmp_path, suffix):
    plain = tmp_path / "plain"
    plain.touch()
    assert save_checkpoint(small(), tmp_path / f"m{suffix}").stat().st_mode == plain.stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f"m{suffix}", "plain"])


def test_foreign_safetensors_is_one_sentence(tmp_path):
    from safetensors.torch import save_file

    for i, header in enumerate([None, {"format": "pt"}, {"model": "x", "config": "[]"}]):
        save_file({"w": torch.zeros(1)}, tmp_path / f"{i}.safetensors", metadata=header)
        with pytest.raises(ValueError, match="its header does not say which CARP or ESM it holds"):
            load_model(tmp_path / f"{i}.safetensors")


def test_loading_is_quick_to_start(tmp_path):
    "An empty model must not draw in PyTorch's compiler, which takes seconds to import."
    path = save_checkpoint(small(), tmp_path / "m.pt")
    code = (
        "import sys; from carp_nb.pretrained import load_model; "
        f"load_model({str(path)!r}, 'cpu'); print('torch._dynamo' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "False\n"
    )
