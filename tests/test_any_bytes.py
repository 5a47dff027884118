"""Any file gives a value or one sentence: real files, mutated by hypothesis, go through every reader.

Each reader runs in a process of its own, which may take 60 seconds of computing and 2 GB. CI tries a few dozen files
of each kind; CARP_NB_EXAMPLES sets how many.
"""

import errno
import gzip
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import tarfile
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pandas as pd
import pytest
import torch
from biotite.structure.io.pdb import PDBFile
from biotite.structure.io.pdbx import BinaryCIFFile, CIFFile, set_structure
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from carp_nb import cli, errors
from carp_nb.atoms import read_atoms, split_chains
from carp_nb.carp import CARP, CARPConfig
from carp_nb.contents import unpack_tar
from carp_nb.coordinates import chain_sequence
from carp_nb.datasets import read_dms
from carp_nb.editing import Mutant, read_state, write_state
from carp_nb.embedding import embed, read_embeddings
from carp_nb.errors import CarpError, error_sentence
from carp_nb.esm import ESM, ESMConfig
from carp_nb.files import atomic_path
from carp_nb.finetune import FinetuneConfig, FineTuned
from carp_nb.heads import PooledHead
from carp_nb.layouts import read_weights, save_checkpoint
from carp_nb.mutant_tables import read_mutant_table
from carp_nb.mutants import parse_mutant
from carp_nb.pretrain import refuse_other_run
from carp_nb.pretrained import list_models
from carp_nb.protbert import load_protbert
from carp_nb.readers import read_alignment, read_fasta
from carp_nb.restart import last_good_checkpoint, restart
from carp_nb.results import _read_run
from carp_nb.scans import ScanFacts, read_own_scans
from carp_nb.structure import _read_distances
from carp_nb.targets import Targets
from carp_nb.tasks import read_flip, read_labelled, read_netsurfp, read_tape
from carp_nb.training import _load_checkpoint, _save_checkpoint

CASES = Path(__file__).parent / "cases"
DATA = Path(__file__).parents[1] / "data"
EXAMPLES = int(os.environ.get("CARP_NB_EXAMPLES", "15"))
SECONDS = 60  # of computing; a machine that others keep busy may take far longer
BYTES = 2 << 30
WILD_TYPE = "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
TABLE = b"mutant,score\n" + b"".join(
    f"{wt}{i}{mt},{i / 7}\n".encode() for i, (wt, mt) in enumerate(zip(WILD_TYPE, "AC" * 28), 1)
)


def small() -> CARP:
    torch.manual_seed(0)
    return CARP(CARPConfig(8, 2), "carp_small")


# the guard


def _in_child(action: Callable[[], None], told: Path) -> None:
    # what is mapped already, as PyTorch's libraries, does not count
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, mapped + BYTES))
    # a fork begins at zero
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    try:
        action()
    except BaseException:
        told.write_text(traceback.format_exc()[-6000:])
        os._exit(1)
    os._exit(0)


def guarded(action: Callable[[], None], folder: Path) -> None:
    "Run in a process with limits. Fails with what it said, if it took too long or crashed."
    told = folder / "told.txt"
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(action, told))
    child.start()
    # one that waits for a pipe does not compute
    child.join(20 * SECONDS)
    if child.exitcode is None:
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    said = told.read_text() if told.exists() else "nothing"
    assert child.exitcode == 0, f"ended with {child.exitcode} and said: {said}"


def value_or_sentence(read: Callable[[Path], object], path: Path) -> None:
    "Read a file. An error is a CarpError or an OSError of one line that names the file."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(path)
        except (CarpError, OSError) as error:
            # a folder stands for the files in it
            names = [path.name, str(path.name).partition(".")[0]]
            assert any(name in str(error) for name in names), f"{error!r} does not name {path}"
            assert "\n" not in str(error), error


# mutations of real files

PIECES = [b"\0", b"\n", b"\r", b">", b",", b";", b"\t", b'"', b"\xff\xfe", b"\xef\xbb\xbf", b"-"]
PIECES += [b"nan", b"9" * 30, b"-1", b"1e999", b"{", b"[" * 5000, b"*", "ß٣ſ".encode(), b"\x1f\x8b"]
PIECES += [b"null", b"true", b'""', b"[]", b"X", b"=", b"%00", b"99999999", b"0"]


@st.composite
def mutated(draw, seeds: list[bytes]) -> bytes:
    "One of the files with a few edits; now and then text or bytes of their own."
    if draw(st.integers(0, 19)) == 0:
        return draw(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
    content = bytearray(draw(st.sampled_from(seeds)))
    generator = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(generator.choice([1, 1, 2, 4, 30])):
        at = generator.randrange(len(content) + 1)
        kind = generator.randrange(5)
        length = generator.choice([1, 2, 8, 60, 400])
        if kind == 0 and at < len(content):
            content[at] = generator.randrange(256)
        elif kind == 1:
            content[at : at + length] = b""
        elif kind == 2:
            content[at:at] = generator.choice(PIECES)
        elif kind == 3:
            content[at:at] = content[at : at + length]
        elif generator.random() < 0.3:
            content = content[:at]
        else:
            content[at : at + length] = generator.choice(PIECES)
    return bytes(content)


def trials(seeds: list[bytes], read: Callable[[bytes], None]) -> Callable[[], None]:
    "A run of hypothesis over mutated files, the same each time."

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(seeds))
    def run(content: bytes) -> None:
        read(content)

    return run


# the readers: how the file is called, real content, and how it is read


def of_cases(*names: str) -> list[bytes]:
    return [(CASES / name).read_bytes() for name in names]


def weights(suffix: str, folder: Path, old: bool = False) -> bytes:
    path = save_checkpoint(small(), folder / f"seed{suffix}")
    if old:
        torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


def esm_weights(folder: Path) -> bytes:
    torch.manual_seed(0)
    config = ESMConfig(8, 1, 2, 8, max_positions=8, alphabet="fair_esm")
    return save_checkpoint(ESM(config, "esm"), folder / "esm.pt").read_bytes()


def fine_tuned(folder: Path) -> bytes:
    model = FineTuned(small(), PooledHead(8), Targets("regression"), FinetuneConfig("pt-fr"))
    model.save(folder / "fine.safetensors")
    return (folder / "fine.safetensors").read_bytes()


def flip_zip() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("splits/sequences.fasta", ">a\nMKVA\n>b\nMKVC\n")
        packed.writestr("splits/sampled.fasta", ">a SET=train\nHEC?\n>b SET=test\nHECC\n")
        packed.writestr("splits/mask.fasta", ">a\n1111\n>b\n1101\n")
    return content.getvalue()


def tape_lmdb(folder: Path) -> bytes:
    records = [{"primary": "MKV", "ss3": np.array([2, 0, 1]), "id": b"a"}] * 3
    place = str(folder / "seed.lmdb")
    with (
        lmdb.open(place, subdir=False, map_size=1 << 20) as env,
        env.begin(write=True) as writing,
    ):
        writing.put(b"num_examples", pickle.dumps(len(records)))
        for i, record in enumerate(records):
            writing.put(str(i).encode(), pickle.dumps(record))
    return (folder / "seed.lmdb").read_bytes()


def embeddings(folder: Path) -> bytes:
    embed(small(), [("a", "MKV"), ("b", "MKVACD")], folder / "e.safetensors", progress=False)
    return (folder / "e.safetensors").read_bytes()


def parquet(folder: Path) -> bytes:
    rows = pd.DataFrame(
        {"metric": ["spearman"], "value": [0.5], "n": [3], "section": ["zero_shot"]}
    )
    rows.to_parquet(folder / "seed.parquet")
    return (folder / "seed.parquet").read_bytes()


def npz() -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, msa=np.zeros((2, 5), np.uint8), dist6d=np.ones((5, 5)))
    return content.getvalue()


def read_every_embedding(path: Path) -> None:
    stored = read_embeddings(path)
    for i in range(len(stored)):
        stored[i]


def read_run_record(path: Path) -> None:
    shutil.copy(path, path.with_name("config.json"))
    refuse_other_run(path.parent, {"lr": 1e-3})


TEXTS = {
    "fasta": ("a.fasta", of_cases("plain.fa", "cr.fa", "star.fa", "wronggz.fa"), read_fasta),
    "alignment": ("a.a3m", of_cases("a_plain.a3m", "a_hh.a3m", "a_colabfold.a3m"), read_alignment),
    "dms": ("a.csv", [TABLE, gzip.compress(TABLE)], lambda p: read_dms(p, WILD_TYPE)),
    "dms, any offset": ("a.csv", [TABLE], lambda p: read_dms(p, WILD_TYPE, None, skip_bad=True)),
    "mutants": ("a.csv", of_cases("m_plain.csv", "m_hgvs.csv", "m_semi.csv"), read_mutant_table),
    "labelled": ("a.csv", of_cases("f_flip.csv", "f_fold.csv", "f_pg.csv"), read_labelled),
    "flip": ("a.csv", of_cases("f_flip.csv"), read_flip),
    "own scan": ("a.csv", of_cases("d_mave.csv", "f_pg.csv"), lambda p: own_scan(p)),
    "flip zip": ("a.zip", [flip_zip()], read_netsurfp),
    "distances": ("a.npz", [npz()], lambda p: _read_distances(str(p), 5)),
}


def own_scan(path: Path) -> None:
    fasta = path.with_name("a.fasta")
    fasta.write_text(f">a\n{WILD_TYPE}\n")
    read_own_scans([str(path)], ScanFacts(str(fasta)))


def tape_rows(path: Path) -> None:
    read_tape(path, path, path, "ss3")


TAPE = json.dumps([{"primary": "MKV", "ss3": [2, 0, 1], "valid_mask": [1, 1, 0]}] * 3).encode()
BINARY = {
    ".pt": ("a.pt", lambda f: [weights(".pt", f), esm_weights(f)], read_weights),
    "old .pt": ("a.pt", lambda f: [weights(".pt", f, old=True)], read_weights),
    ".safetensors": ("a.safetensors", lambda f: [weights(".safetensors", f)], read_weights),
    "fine-tuned": ("a.safetensors", lambda f: [fine_tuned(f)], lambda p: FineTuned.load(p, "cpu")),
    "embeddings": ("a.safetensors", lambda f: [embeddings(f)], read_every_embedding),
    "tape json": ("a.json", lambda f: [TAPE], tape_rows),
    "tape lmdb": ("a.lmdb", lambda f: [tape_lmdb(f)], tape_rows),
    "results": ("results.parquet", lambda f: [parquet(f)], _read_run),
    "record": ("run.json", lambda f: [b'{"config": {"lr": 0.001}}'], read_run_record),
}


def read_all(read: Callable[[Path], object], path: Path) -> Callable[[bytes], None]:
    "Write a content, and read it to its end."

    def to_the_end(path: Path) -> None:
        value = read(path)
        if hasattr(value, "__next__"):
            for _ in value:
                pass

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        value_or_sentence(to_the_end, path)

    return attempt


@pytest.mark.parametrize("kind", TEXTS)
def test_any_text_gives_a_value_or_a_sentence(kind, tmp_path):
    name, seeds, read = TEXTS[kind]
    guarded(trials(seeds, read_all(read, tmp_path / name)), tmp_path)


@pytest.mark.parametrize("kind", BINARY)
def test_any_bytes_give_a_value_or_a_sentence(kind, tmp_path):
    name, make, read = BINARY[kind]
    place = tmp_path / "place"
    place.mkdir()
    guarded(trials(make(tmp_path), read_all(read, place / name)), tmp_path)


@pytest.mark.parametrize("suffix", [".pdb", ".cif", ".bcif"])
def test_any_structure_gives_a_value_or_a_sentence(suffix, tmp_path):
    with tarfile.open(DATA / "chains" / "pdb_chains_sample.tar.gz") as packed:
        name = min(n for n in packed.getnames() if n.endswith((".pdb", ".cif", ".bcif")))
        (tmp_path / Path(name).name).write_bytes(packed.extractfile(name).read())
    atoms = read_atoms(tmp_path / Path(name).name)[:200]
    files = {".pdb": PDBFile, ".cif": CIFFile, ".bcif": BinaryCIFFile}
    file = files[suffix]()
    if suffix == ".pdb":
        file.set_structure(atoms)
    else:
        set_structure(file, atoms)
    file.write(tmp_path / f"seed{suffix}")
    read = read_all(lambda p: split_chains(read_atoms(p)), tmp_path / f"a{suffix}")
    guarded(trials([(tmp_path / f"seed{suffix}").read_bytes()], read), tmp_path)


def value_or_carp_error(read: Callable[[str], object], content: bytes) -> None:
    try:
        read(content.decode("utf-8", "surrogateescape"))
    except CarpError as error:
        assert str(error)


@pytest.mark.parametrize(
    "seeds, read",
    [
        ([b"A24C", b"p.Ala24Cys", b"p.[(Ala24Cys);(Asp30Glu)]", b"A24C:D30E", b"WT"], parse_mutant),
        (
            [write_state(Mutant(WILD_TYPE, 3), model="m", scan="s", scan_offset="7").encode()],
            read_state,
        ),
    ],
)
def test_any_string_gives_a_value_or_a_sentence(seeds, read, tmp_path):
    guarded(trials(seeds, lambda content: value_or_carp_error(read, content)), tmp_path)


# claims before content


def test_what_is_no_file_in_the_folder_of_weights_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("CARP_NB_WEIGHTS", str(tmp_path))
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "page.safetensors").write_text("<html>")
    save_checkpoint(small(), tmp_path / "mine.safetensors")
    own = list_models().query("origin == 'CARP_NB_WEIGHTS'").name.tolist()
    assert own == ["mine"]


@pytest.mark.parametrize("place", ["/dev/zero", "pipe"])
def test_devices_and_pipes_are_refused(place, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / place
    for read in (read_fasta, read_alignment, read_labelled):
        with pytest.raises(CarpError, match="is a device or a pipe"):
            read(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_mutant_table(path)


def test_views_and_layers_that_a_file_does_not_hold_are_refused(tmp_path):
    stored = torch.load(save_checkpoint(small(), tmp_path / "good.pt"))
    shapes = dict.fromkeys(stored["model_state_dict"], (10**5, 10**5))
    views = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    for changes in ({"n_layers": 10**6}, {"d_model": 2**40}, {"model_state_dict": views}):
        torch.save(stored | changes, tmp_path / "claims.pt")
        assert (tmp_path / "claims.pt").stat().st_size < 50_000
        with pytest.raises(CarpError, match=r"claims\.pt"):
            read_weights(tmp_path / "claims.pt")


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path):
    record = b">a\n" + b"M" * 1000 + b"\n"
    path = tmp_path / "bomb.fasta.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(110):
            file.write(record * 1000)
    with pytest.raises(CarpError, match="unpacks to more than"):
        for _ in read_fasta(path):
            pass


def test_numbers_that_no_residue_has_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(TABLE)
    with pytest.raises(CarpError, match="give the number of the first residue"):
        read_dms(path, WILD_TYPE, offset=2**70)
    path.write_bytes(TABLE + b"M10000000A,1\n")
    with pytest.raises(CarpError, match="no protein has a residue"):
        read_dms(path, WILD_TYPE)
    many = ":".join(f"A{i}C" for i in range(1, 20_001))
    assert len(parse_mutant(many)) == 20_000


# faults of the machine


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE])
def test_a_passing_fault_leaves_a_checkpoint_alone(number, tmp_path, monkeypatch):
    _save_checkpoint(tmp_path, 1, {"step": 1})

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", fail)
        with pytest.raises(OSError, match=os.strerror(number)):
            _load_checkpoint(tmp_path)
    assert _load_checkpoint(tmp_path) == {"step": 1}


WRITERS = {
    "torch": lambda path: torch.save({"w": torch.zeros(10**5)}, path),
    "parquet": lambda path: pd.DataFrame({"x": np.zeros(10**5)}).to_parquet(path),
    "text": lambda path: path.write_text("x" * 10**5),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_names_the_file_whatever_the_library_says(writer, tmp_path, monkeypatch):
    # the device is full, and the folder beside it is not
    monkeypatch.setattr(errors, "_has_room", lambda folder: False)
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "run" / "a.dat") as temporary:
        temporary.symlink_to("/dev/full")
        WRITERS[writer](temporary)
    said = error_sentence(caught.value)
    assert re.match(r"the disk became full while a\.dat was written: .* are free in .*run; ", said)
    assert not list((tmp_path / "run").iterdir())


def test_a_bug_on_a_disk_with_room_stays_a_bug(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"), atomic_path(tmp_path / "a.dat"):
        raise RuntimeError("a bug")


@pytest.mark.parametrize("said", ["could not create a primitive", "not enough memory: 4 bytes"])
def test_the_command_says_what_the_machine_lacks(said, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError(said)

    monkeypatch.setattr("carp_nb.inventory.inventory", fail)
    done = CliRunner().invoke(cli.app, ["verify"])
    assert done.exit_code == 1 and "the memory of this machine does not suffice" in done.output


def test_a_damaged_record_is_no_line_1_column_1_alone(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CarpError, match=r"config\.json: the file is truncated or is no JSON"):
        restart(tmp_path, "lr=1e-4")


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_a_passing_fault_is_no_reason_to_restart_from_an_older_checkpoint(
    number, tmp_path, monkeypatch
):
    for step in (1, 2):
        state = {"model": {"w": torch.ones(1)}, "optimizer": {}}
        _save_checkpoint(tmp_path / "checkpoints", step, state)

    def fail(*_, **__):
        raise RuntimeError(f"PytorchStreamReader: {os.strerror(number)}")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        last_good_checkpoint(tmp_path)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_a_passing_fault_does_not_have_an_archive_deleted(number, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as packed:
        packed.addfile(tarfile.TarInfo("a.txt"))

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        unpack_tar(tmp_path / "a.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("read", [chain_sequence, lambda path: _read_distances(str(path), 5)])
def test_arrays_that_unpack_to_gigabytes_are_refused(read, tmp_path):
    path = tmp_path / "1abcA.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("msa.npy", bytes(110 << 20))
    with pytest.raises(CarpError, match=r"1abcA\.npz unpacks to 115,343,360 bytes"):
        read(path)


def test_a_bert_of_more_layers_than_its_tensors_is_refused(tmp_path):
    pytest.importorskip("transformers")
    torch.save({"w": torch.zeros(9, 9)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 1000000}')
    with pytest.raises(CarpError, match=r"config\.json says .* it can be 1 to"):
        load_protbert(tmp_path)
