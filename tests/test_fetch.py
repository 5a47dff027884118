"""Downloads that are interrupted, or run side by side. What a server can do wrong is shown in the notebook."""

import hashlib
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from carp_nb.fetch import fetch

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
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

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
    fetch(site.url, folder=tmp_path)
    bar = capsys.readouterr().err
    assert "weights.bin" in bar and "100%" in bar and "2.05M/2.05M" in bar
    fetch(site.url, folder=tmp_path, filename="quiet.bin", progress=False)
    assert capsys.readouterr().err == ""
