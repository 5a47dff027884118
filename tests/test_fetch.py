"""Downloads that are interrupted or run side by side, and what a server can do wrong."""

import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import carp_nb.fetch
import carp_nb.pretrained
from carp_nb.catalogue import SOURCES
from carp_nb.errors import CarpError
from carp_nb.fetch import fetch
from carp_nb.pretrained import PUBLISHED, find_weights

CONTENT = bytes(range(256)) * 8000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Site:
    """A local server that knows ranges; while `hold` is set it stops in the middle of a file,
    and says so through `halfway`; while `cut` is set it breaks off there.
    """

    def __init__(self):
        self.hold, self.cut, self.begins, self.halfway, self.closing = (
            False,
            False,
            [],
            threading.Event(),
            threading.Event(),
        )
        self.pages = {}  # path -> text that is sent as it is
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path.endswith("/missing"):
                    return self.send_error(404)
                if self.path in site.pages:
                    self.send_response(200)
                    self.end_headers()
                    return self.wfile.write(site.pages[self.path].encode())
                wanted = self.headers.get("Range")
                start = int(wanted[6:-1]) if wanted else 0
                site.begins.append(start)
                self.send_response(206 if wanted else 200)
                if wanted:
                    self.send_header(
                        "Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
                    )
                self.send_header("Content-Length", str(len(CONTENT) - start))
                self.end_headers()
                self.wfile.write(CONTENT[start:1_000_000])
                if site.cut:
                    return
                if site.hold:
                    site.halfway.set()
                    site.closing.wait()
                self.wfile.write(CONTENT[max(start, 1_000_000) :])

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                pass  # a client that was killed is the point

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/weights.bin"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site():
    site = Site()
    yield site
    site.close()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_download_leaves_no_file_and_goes_on(site, tmp_path, sign):
    site.hold = True
    # a job started in the background has Ctrl-C switched off, and its children inherit that
    code = (
        "import signal\nsignal.signal(signal.SIGINT, "
        "signal.default_int_handler)\nfrom carp_nb.fetch import "
        f"fetch\nfetch({site.url!r}, folder={str(tmp_path)!r}, timeout=600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    assert site.halfway.wait(300)
    for _ in range(3000):  # what was sent is on disk only a little later
        if (part := tmp_path / ".weights.bin.part").exists() and part.stat().st_size > 900_000:
            break
        time.sleep(0.1)
    process.send_signal(sign)
    process.communicate(timeout=300)
    assert process.returncode != 0 and not (tmp_path / "weights.bin").exists()
    site.hold = False
    assert fetch(site.url, SHA256, folder=tmp_path, progress=False).read_bytes() == CONTENT
    assert site.begins[0] == 0 and 900_000 < site.begins[1] <= 1_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["weights.bin"]


def test_side_by_side_downloads_do_not_disturb_each_other(site, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(
            pool.map(lambda _: fetch(site.url, SHA256, folder=tmp_path, progress=False), range(8))
        )
    assert {path.read_bytes() == CONTENT for path in paths} == {True}
    assert [path.name for path in tmp_path.iterdir()] == ["weights.bin"]


def test_progress_counts_bytes(site, tmp_path, capsys):
    fetch(site.url, SHA256, folder=tmp_path)
    bar = capsys.readouterr().err
    assert "weights.bin" in bar and "100%" in bar and "2.05M/2.05M" in bar
    fetch(site.url, SHA256, folder=tmp_path, filename="quiet.bin", progress=False)
    assert capsys.readouterr().err == ""


PAGE = b"<!DOCTYPE html><html><head><title>Sign in to Example</title></head></html>"


class Answers:
    "A server whose answers are functions of a test, one for each path; it keeps the headers it was sent."

    def __init__(self):
        self.answers, self.asked, self.closing = {}, [], threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.close_connection = True
                site.asked.append(dict(self.headers))
                site.answers[self.path.partition("?")[0]](self)

            def say(self, status, body=b"", **headers):
                "Send an answer; its length is stated unless told otherwise."
                self.send_response(status)
                self.send_header("Connection", "close")
                headers.setdefault("Content_Length", str(len(body)))
                for name, value in headers.items():
                    if value is not None:
                        self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                pass  # a client that gives up is the point

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server():
    server = Answers()
    yield server
    server.close()


def refused(url, folder, sentence, kind=ValueError, **options):
    "A fetch that fails in one sentence, and leaves nothing that could be taken for the file."
    with pytest.raises(kind) as error:
        fetch(url, folder=folder, progress=False, **options)
    text = " ".join(str(error.value).split())
    assert sentence in text and url.partition("?")[0] in text
    assert not [path for path in folder.iterdir() if not path.name.startswith(".")]
    return text


def packed(content):
    "A tar.gz with one member."
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo("a.csv")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    "name", ["w.pt", "w.safetensors", "t.csv", "s.fasta.gz", "a.zip", "a.tar.gz", "t.parquet", "x"]
)
@pytest.mark.parametrize("options", [{}, {"sha256": SHA256}])
def test_a_login_page_becomes_no_file(server, tmp_path, name, options):
    server.answers[f"/{name}"] = lambda ask: ask.say(200, PAGE, Content_Type="text/html")
    text = refused(
        f"{server.url}/{name}", tmp_path, "is a web page titled 'Sign in to E", **options
    )
    assert "it was thrown away" in text and str(tmp_path / name) in text
    assert not list(tmp_path.iterdir())


def test_a_login_page_that_was_kept_earlier_is_replaced(server, tmp_path):
    (tmp_path / "t.csv").write_bytes(PAGE)
    server.answers["/t.csv"] = lambda ask: ask.say(500)
    with pytest.raises(ConnectionError, match=r"t.csv is a web page titled 'Sign in to Example'"):
        fetch(f"{server.url}/t.csv", folder=tmp_path, progress=False)
    server.answers["/t.csv"] = lambda ask: ask.say(200, b"mutant,score\n")
    with pytest.warns(UserWarning, match="t.csv is not verified.*lies at"):
        assert fetch(f"{server.url}/t.csv", folder=tmp_path).read_bytes() == b"mutant,score\n"


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b'{"message": "API rate limit exceeded"}', "is no table"),
        ("s.fasta", b"Not found", "is no FASTA file"),
        ("s.fasta.gz", gzip.compress(CONTENT)[:-30], "is cut off or damaged"),
        ("s.fasta.gz", gzip.compress(PAGE), "is a web page"),
        ("a.tar.gz", packed(CONTENT)[:-30], "cannot be unpacked: Compressed file ended"),
        ("a.tar.gz", lambda: packed(bytes(1 << 27)), "unpacks to more than 104,857,600 bytes"),
        ("a.tar.gz", gzip.compress(CONTENT), "cannot be unpacked"),
        ("w.pt", b"PK\x03\x04 and no more", "is no zip file, or is cut off"),
        ("w.safetensors", (10**9).to_bytes(8, "little") + b"{}", "is no safetensors file"),
        ("t.parquet", b"PAR1 and no more", "is no Parquet file, or is cut off"),
    ],
    # not the content, which holds the time of its packing
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_what_its_name_says_is_removed(server, tmp_path, name, content, fault):
    sent = content() if callable(content) else content
    server.answers[f"/{name}"] = lambda ask: ask.say(200, sent)
    refused(f"{server.url}/{name}", tmp_path, fault)
    assert not list(tmp_path.iterdir())


def test_a_reader_has_the_last_word_before_a_file_gets_its_name(server, tmp_path):
    server.answers["/w.csv"] = lambda ask: ask.say(200, b"mutant,score\n")
    seen = []

    def check(path):
        seen.append((path.name, path.read_bytes(), (tmp_path / "w.csv").exists()))
        raise CarpError(f"{path}: holds another model; rename it.")

    text = refused(f"{server.url}/w.csv", tmp_path, "w.csv: holds another model", check=check)
    assert seen == [("w.csv", b"mutant,score\n", False)] and "rename it" not in text
    assert not list(tmp_path.iterdir())


def pin(monkeypatch, url, content=CONTENT, **changes):
    "State size and MD5 of a file."
    known = {"bytes": len(content), "md5": hashlib.md5(content).hexdigest(), **changes}
    monkeypatch.setitem(carp_nb.fetch._PINS, url, carp_nb.fetch.Pin(**known))


def test_stated_size_and_md5_are_compared(server, tmp_path, monkeypatch):
    url = f"{server.url}/w.bin"
    server.answers["/w.bin"] = lambda ask: ask.say(200, CONTENT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pin(monkeypatch, url)
        assert fetch(url, folder=tmp_path, progress=False).read_bytes() == CONTENT
    (tmp_path / "w.bin").unlink()
    pin(monkeypatch, url, md5="0" * 32)
    refused(url, tmp_path, "has md5 ")
    pin(monkeypatch, url, bytes=10**9, md5="")
    refused(url, tmp_path, "has 2,048,000 bytes (of no stated kind) where 1,000,000,000 are exp")
    server.answers["/w.bin"] = lambda ask: ask.say(200, PAGE, Content_Type="text/html")
    refused(url, tmp_path, "bytes (text/html) where 1,000,000,000 are expected")
    # a server that states no length sends what it likes
    pin(monkeypatch, url, md5="")
    server.answers["/w.bin"] = lambda ask: ask.say(200, 2 * CONTENT, Content_Length=None)
    refused(url, tmp_path, "goes on beyond the 2,048,000 bytes")
    server.answers["/w.bin"] = lambda ask: ask.say(200, CONTENT[:-1], Content_Length=None)
    refused(url, tmp_path, "broke off before the end", ConnectionError)


def half(ask, content, tag):
    "Send the first half of a file and break off."
    ask.say(200, content[: len(content) // 2], Content_Length=str(len(content)), ETag=tag)


def rest(content, tag, heeds=True):
    "Answer as a server with ranges; one that does not heed If-Range sends the rest of any version."

    def answer(ask):
        wanted = ask.headers.get("Range")
        if not wanted or (heeds and ask.headers.get("If-Range", tag) != tag):
            return ask.say(200, content, ETag=tag)
        start = int(wanted[6:-1])
        place = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return ask.say(206, content[start:], ETag=tag, Content_Range=place)

    return answer


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize(
    ("before", "after", "goes_on"),
    [
        ('"a"', '"a"', True),
        ('"a"', '"b"', False),
        ('W/"a"', 'W/"a"', False),
        (None, None, False),
        ('"a"', None, False),
        ("a", "a", False),  # not in quotes
    ],
)
def test_halves_of_different_files_are_never_joined(
    server, tmp_path, before, after, goes_on, heeds
):
    "Only a strong tag that stayed the same lets a download without a checksum go on."
    old, new = (b">a\n" + letter * 100_000 for letter in (b"A", b"C"))
    now = old if goes_on else new
    server.answers["/s.fasta"] = lambda ask: half(ask, old, before)
    kept = refused(f"{server.url}/s.fasta", tmp_path, "broke off", ConnectionError)
    assert ("are kept" in kept) == (before == '"a"') == bool(list(tmp_path.iterdir()))
    server.answers["/s.fasta"] = rest(now, after, heeds)
    with pytest.warns(UserWarning, match="not verified"):
        path = fetch(f"{server.url}/s.fasta", folder=tmp_path, progress=False)
    assert path.read_bytes() == now
    assert ("Range" in server.asked[1]) == (before == '"a"')
    assert len(server.asked) == (3 if before == '"a"' and not goes_on and not heeds else 2)
    assert [path.name for path in tmp_path.iterdir()] == ["s.fasta"]


def test_with_a_checksum_halves_of_different_files_are_noticed(server, tmp_path):
    new = CONTENT[::-1]
    server.answers["/w.bin"] = lambda ask: half(ask, new, None)
    refused(f"{server.url}/w.bin", tmp_path, "are kept", ConnectionError, sha256=SHA256)
    server.answers["/w.bin"] = rest(CONTENT, None)
    path = fetch(f"{server.url}/w.bin", SHA256, folder=tmp_path, progress=False)
    assert path.read_bytes() == CONTENT
    assert ["Range" in asked for asked in server.asked] == [False, True, False]


@pytest.mark.parametrize("status", [200, 416])
def test_servers_without_ranges_send_everything_again(server, tmp_path, status):
    server.answers["/w.bin"] = lambda ask: half(ask, CONTENT, '"a"')
    refused(f"{server.url}/w.bin", tmp_path, "are kept", ConnectionError)

    def answer(ask):
        if "Range" in ask.headers and status == 416:
            return ask.say(416)
        return ask.say(200, CONTENT)

    server.answers["/w.bin"] = answer
    with pytest.warns(UserWarning, match="not verified"):
        assert fetch(f"{server.url}/w.bin", folder=tmp_path).read_bytes() == CONTENT


def test_a_slow_drip_ends_at_the_deadline(server, tmp_path):
    "Each byte comes long before the time for silence is over."

    def drip(ask):
        ask.say(200, b"M", Content_Length="1000000", ETag='"a"')
        server.closing.wait()

    server.answers["/w.bin"] = drip
    text = refused(f"{server.url}/w.bin", tmp_path, "after 0 s", ConnectionError, deadline=0)
    assert "the 1 bytes that came are kept" in text


def test_an_endless_body_ends_at_the_limit(server, tmp_path):
    def pour(ask):
        ask.say(200, Content_Length=None, Transfer_Encoding="chunked")
        while not server.closing.is_set():
            ask.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")

    server.answers["/w.bin"] = pour
    refused(f"{server.url}/w.bin", tmp_path, "beyond the 1,000,000 bytes", limit=1_000_000)
    server.answers["/w.bin"] = lambda ask: ask.say(200, b"M", Content_Length="2000000")
    text = refused(f"{server.url}/w.bin", tmp_path, "has 2,000,000 bytes", limit=1_000_000)
    assert "1,000,000 are the limit" in text
    assert not list(tmp_path.iterdir())


def test_a_chunked_body_that_breaks_off_is_noticed(server, tmp_path):
    def answer(ask):
        ask.say(200, Content_Length=None, Transfer_Encoding="chunked")
        ask.wfile.write(b"10\r\nmutant,score\nA1\r\n")

    server.answers["/t.csv"] = answer
    refused(f"{server.url}/t.csv", tmp_path, "broke off", ConnectionError)


def test_redirects_without_end_are_one_sentence(server, tmp_path):
    server.answers["/w.bin"] = lambda ask: ask.say(302, Location="/w.bin")
    refused(f"{server.url}/w.bin", tmp_path, "one address to the next", ConnectionError)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(server, tmp_path, monkeypatch, status):
    waits = []
    monkeypatch.setattr("carp_nb.fetch.time.sleep", waits.append)
    answers = [{"Retry_After": "7"}, {"Retry_After": "Tue, 01 Jun 2021 10:00:00 GMT"}]

    def answer(ask):
        if answers:
            return ask.say(status, **answers.pop(0))
        return ask.say(200, CONTENT)

    server.answers["/w.bin"] = answer
    fetch(f"{server.url}/w.bin", SHA256, folder=tmp_path, progress=False)
    assert waits == [7, 0]
    # hours are left to the user, and so is a server that never has time
    server.answers["/v.bin"] = lambda ask: ask.say(status, Retry_After="3600")
    refused(f"{server.url}/v.bin", tmp_path / "v", "asks to wait 3,600 s", ConnectionError)
    waits.clear()
    server.answers["/v.bin"] = lambda ask: ask.say(status, Retry_After="1")
    refused(f"{server.url}/v.bin", tmp_path / "v", f"answered {status}", ConnectionError)
    assert waits == [1, 1, 1]


def test_a_full_disk_is_one_sentence(server, tmp_path, monkeypatch):
    "Before the download, by the announced size; during it, by the error of the system."
    url = f"{server.url}/w.bin"
    server.answers["/w.bin"] = lambda ask: ask.say(200, CONTENT, ETag='"a"')
    with monkeypatch.context() as m:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        m.setattr("carp_nb.fetch.shutil.disk_usage", lambda folder: usage)
        with pytest.raises(OSError, match=r"w.bin cannot be written to .* 0.0 GB are free"):
            fetch(url, folder=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())

    class Full(io.FileIO):
        "A file on a disk with room for a megabyte."

        def write(self, data):
            if self.tell() > 1_000_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    with monkeypatch.context() as m:
        m.setattr("carp_nb.fetch.open", Full, raising=False)
        with pytest.raises(OSError, match=r"No space left on device; the [\d,]+ bytes .* are kept"):
            fetch(url, folder=tmp_path, progress=False)
    server.answers["/w.bin"] = rest(CONTENT, '"a"')
    assert fetch(url, SHA256, folder=tmp_path, progress=False).read_bytes() == CONTENT
    assert server.asked[-1]["If-Range"] == '"a"'


def test_content_that_is_compressed_on_the_way_is_unpacked_and_not_resumed(server, tmp_path):
    "A server that compresses although it was asked not to; its positions are not those of the file."
    sent = gzip.compress(CONTENT)
    server.answers["/w.bin"] = lambda ask: ask.say(200, sent, Content_Encoding="gzip", ETag='"a"')
    path = fetch(f"{server.url}/w.bin", SHA256, folder=tmp_path, progress=False)
    assert path.read_bytes() == CONTENT and server.asked[0]["Accept-Encoding"] == "identity"
    server.answers["/v.bin"] = lambda ask: ask.say(
        200, sent[:-20], Content_Encoding="gzip", ETag='"a"', Content_Length=str(len(sent))
    )
    refused(f"{server.url}/v.bin", tmp_path / "v", "broke off", ConnectionError)
    bomb = gzip.compress(bytes(1 << 24))
    server.answers["/v.bin"] = lambda ask: ask.say(200, bomb, Content_Encoding="gzip")
    refused(f"{server.url}/v.bin", tmp_path / "v", "beyond the 1,000,000", limit=1_000_000)
    assert not list((tmp_path / "v").iterdir())


def test_a_second_process_says_for_what_it_waits(site, tmp_path, capsys):
    site.hold = True
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch, site.url, SHA256, None, tmp_path, False)
        assert site.halfway.wait(60)
        second = pool.submit(fetch, site.url, SHA256, None, tmp_path, True)
        said = ""
        while "waiting for" not in said and not second.done():
            said += capsys.readouterr().err
            time.sleep(0.01)
        site.closing.set()
        assert first.result() == second.result() == tmp_path / "weights.bin"
    assert len(site.begins) == 1
    holder = f"waiting for {tmp_path / 'weights.bin'}: process {os.getpid()} on "
    assert holder in said


def test_every_stated_sum_is_of_an_address_that_is_used():
    urls = {model.url for model in PUBLISHED.values()} | {source.url for source in SOURCES}
    for url, known in carp_nb.fetch._PINS.items():
        assert url in urls and (known.bytes or known.md5), url
        assert not known.md5 or re.fullmatch("[0-9a-f]{32}", known.md5)


def test_an_unverified_model_of_another_shape_gets_no_name(server, tmp_path, monkeypatch):
    "ESM-1v's second file: no source states its sum, so its content has to fit."
    torch.save({"model": {}, "args": None}, tmp_path / "w.pt")
    content = (tmp_path / "w.pt").read_bytes()
    server.answers["/w.pt"] = lambda ask: ask.say(200, content)
    monkeypatch.setitem(carp_nb.pretrained.ORIGINS, "fair-esm", f"{server.url}/w.pt?{{}}")
    monkeypatch.setattr("carp_nb.pretrained.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.delenv("CARP_NB_WEIGHTS", raising=False)
    name = "esm1v_t33_650M_UR90S_2.pt"
    with pytest.raises(CarpError, match=f"{name} from .* cannot be used: {name}") as error:
        find_weights("esm1v_2", progress=False)
    assert "it was thrown away" in str(error.value)
    assert not list((tmp_path / "cache/weights").iterdir())
