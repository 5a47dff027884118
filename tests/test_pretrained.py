"""Named models: where their files are looked for, and what is never taken for one. Plus files that are damaged or hostile."""
import os
import pickle
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from carp_nb import pretrained
from carp_nb.carp import CARP, CARPConfig
from carp_nb.fetch import sha256_of
from carp_nb.pretrained import Published, list_models, load_model, save_checkpoint

SMALL = CARPConfig(8, 3, d_embed=4)
SHIPPED = sorted(pretrained._SHIPPED.glob("*.safetensors"))


def small(name: str = "carp_small") -> CARP: return CARP(SMALL, name).eval()


def same(one: CARP, other: CARP) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class Record:
    "A local stand-in for the Zenodo record that holds one file."

    def __init__(self, folder: Path):
        self.model, self.asked = small("carp_600k"), []
        self.file = save_checkpoint(self.model, folder / "carp_600k.pt")
        record = self

        class Handler(SimpleHTTPRequestHandler):
            def log_request(self, *args): record.asked.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.open = True

    def close(self):
        if self.open: self.server.shutdown(); self.server.server_close()
        self.open = False


@pytest.fixture
def record(tmp_path, monkeypatch):
    "carp_600k stands for the local file, the cache is empty, no folder is named, and no model ships."
    record = Record(tmp_path / "record")
    monkeypatch.setattr(pretrained, "ZENODO", f"http://127.0.0.1:{record.server.server_port}/{{}}")
    monkeypatch.setitem(pretrained.PUBLISHED, "carp_600k", Published("carp_600k.pt", sha256_of(record.file)))
    monkeypatch.setattr(pretrained, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(pretrained, "_SHIPPED", tmp_path / "shipped")
    monkeypatch.delenv("CARP_NB_WEIGHTS", raising=False)
    yield record
    record.close()


def cached(name: str) -> bool: return list_models().set_index("name").cached[name]


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
    with pytest.raises(ConnectionError) as error: load_model("carp_600k", progress=False)
    said = str(error.value)
    assert said == (f"carp_600k.pt cannot be downloaded from {pretrained.PUBLISHED['carp_600k'].url}: the server cannot be reached; "
                    "set CARP_NB_WEIGHTS to a folder that holds carp_600k.pt.")


def test_damaged_cache_is_never_loaded(record, tmp_path):
    path = load_model("carp_600k", device="cpu", progress=False).path
    path.write_bytes(path.read_bytes()[:-1])
    record.close()
    with pytest.raises(ConnectionError, match="the copy in the cache has another checksum"): load_model("carp_600k", progress=False)


def test_changed_file_at_the_source_is_refused(record, tmp_path):
    save_checkpoint(small(), record.file)
    with pytest.raises(ValueError, match="carp_600k.pt from .* has sha256 .* it was thrown away"): load_model("carp_600k", progress=False)
    assert not list((tmp_path / "cache" / "weights").iterdir())


@pytest.mark.parametrize("name", ["carp_600k.pt", "CARP_600K.PT", "carp-600k.pt"])
def test_own_copy_is_used_before_the_network(record, tmp_path, monkeypatch, name):
    (tmp_path / "a").mkdir(); (tmp_path / "b").mkdir()
    shutil.copy(record.file, tmp_path / "b" / name)
    monkeypatch.setenv("CARP_NB_WEIGHTS", f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}")
    model = load_model("carp_600k", device="cpu")
    assert model.path == tmp_path / "b" / name and model.name == "carp_600k" and cached("carp_600k") and not record.asked


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_another_file_under_a_published_name_is_refused(record, tmp_path, monkeypatch, suffix):
    impostor = save_checkpoint(small(), tmp_path / "own" / f"carp_600k{suffix}")
    monkeypatch.setenv("CARP_NB_WEIGHTS", str(tmp_path / "own"))
    with pytest.raises(ValueError, match="is not the model that carp_600k stands for: its sha256 is .*; rename it, or load it by its path"):
        load_model("carp_600k")
    assert not record.asked and load_model(impostor, device="cpu").name == "carp_small"


# shipped models

@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_what_ships_loads_by_its_name(path, monkeypatch):
    monkeypatch.delenv("CARP_NB_WEIGHTS", raising=False)
    model = load_model(path.stem.upper(), device="cpu")
    assert model.name == path.stem and model.path == path and pretrained._read(path)[0] == path.stem
    row = list_models().set_index("name").loc[path.stem]
    assert row.origin == "shipped" and row.cached and all(p.isfinite().all() for p in model.parameters())


def test_shipped_model_is_found_and_protected(record, tmp_path, monkeypatch):
    shipped, own = small(), tmp_path / "own"
    path = save_checkpoint(shipped, tmp_path / "shipped" / "carp_tiny_test.safetensors")
    model = load_model("CARP_tiny_test", device="cpu")
    assert model.name == "carp_tiny_test" and same(model, shipped)
    assert list_models().iloc[0][["name", "layers", "origin", "cached"]].tolist() == ["carp_tiny_test", 3, "shipped", True]
    monkeypatch.setenv("CARP_NB_WEIGHTS", str(own))
    own.mkdir(); shutil.copy(path, own)
    assert load_model("carp_tiny_test", device="cpu").path == own / path.name and len(list_models()) == 5
    save_checkpoint(small(), own / path.name)
    with pytest.raises(ValueError, match="is not the model that carp_tiny_test stands for"): load_model("carp_tiny_test")


# files

@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_anywhere_is_one_sentence(tmp_path, suffix):
    whole = save_checkpoint(small(), tmp_path / f"whole{suffix}").read_bytes()
    for length in [0, 1, 4, 7, 8, 9, 60, 500, 2000, len(whole) // 2, len(whole) - 60, len(whole) - 1]:
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"^cut{suffix}: the file is truncated or is no .* get it again.$"): load_model(path)


@pytest.mark.parametrize("content", [b"<html>Too many requests</html>", b"\x80\x02]q\x00.", b"PK\x03\x04", b"\xff" * 64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_content_is_one_sentence(tmp_path, suffix, content):
    path = tmp_path / f"page{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^page{suffix}: the file [^\n]*\.$"): load_model(path)


class Malice:
    "Unpickled by an unrestricted reader, makes a folder."

    def __init__(self, folder: Path): self.folder = folder
    def __reduce__(self): return os.mkdir, (str(self.folder),)


def write_plain(stored: dict, path: Path) -> None:
    "What no one calls a checkpoint: a pickle of the malicious part alone."
    path.write_bytes(pickle.dumps(stored["model_state_dict"]["extra"], protocol=2))


def write_legacy(stored: dict, path: Path) -> None: torch.save(stored, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [torch.save, write_legacy, write_plain])
def test_a_pickle_runs_nothing(tmp_path, write):
    stored = torch.load(save_checkpoint(small(), tmp_path / "good.pt"))
    stored["model_state_dict"] = dict(stored["model_state_dict"], extra=Malice(tmp_path / "ran"))
    write(stored, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"^bad.pt: the file asks for \w+.mkdir while loading.*nothing of it was run"):
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
    path, donor = save_checkpoint(model, tmp_path / f"m{suffix}"), save_checkpoint(other, tmp_path / f"o{suffix}")
    loaded = load_model(path, device="cpu")
    with open(path, "r+b") as file: file.write(donor.read_bytes())  # in place, as a careless copy does
    assert same(loaded, model) and not same(loaded, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_come_as_float32(tmp_path, suffix, dtype):
    model = small().to(dtype)
    loaded = load_model(save_checkpoint(model, tmp_path / f"m{suffix}"), device="cpu")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32} and same(loaded, model.float())


def test_loading_leaves_the_random_numbers_alone(tmp_path):
    path, state = save_checkpoint(small(), tmp_path / "m.pt"), torch.get_rng_state()
    load_model(path, device="cpu"); list_models()
    assert torch.equal(torch.get_rng_state(), state)


def test_loaded_model_trains(tmp_path):
    model = load_model(save_checkpoint(small(), tmp_path / "m.safetensors"), device="cpu")
    model(model.alphabet.encode("MKTAYIAKQR")[None]).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_name_without_carp_gets_it_in_the_published_layout(tmp_path):
    model = small("my_model")
    assert load_model(save_checkpoint(model, tmp_path / "m.pt"), device="cpu").name == "carp_my_model"
    assert load_model(save_checkpoint(model, tmp_path / "m.safetensors"), device="cpu").name == "my_model"


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
        with pytest.raises(ValueError, match="its header does not say which CARP it holds"): load_model(tmp_path / f"{i}.safetensors")


def test_loading_is_quick_to_start(tmp_path):
    "An empty model must not draw in PyTorch's compiler, which takes seconds to import."
    path = save_checkpoint(small(), tmp_path / "m.pt")
    code = f"import sys; from carp_nb.pretrained import load_model; load_model({str(path)!r}, 'cpu'); print('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
