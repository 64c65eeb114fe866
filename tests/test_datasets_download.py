"""Downloads against a local server that breaks off, changes, refuses, or lies."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from normalis.errors import DataError
from normalis.research.datasets import download_archive
from normalis.research.datasets.download import download, verify

CONTENT = bytes(range(256)) * 4000  # 1 MB
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server:
    """What the server does next; each request takes one entry, the last one stays."""

    def __init__(self):
        self.content, self.etag, self.ranges = CONTENT, '"v1"', True
        self.plan: list[object] = ["send"]
        self.requests: list[tuple[str | None, str | None]] = []
        self.url = ""

    def next(self) -> object:
        return self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]


def handler(state: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
            state.requests.append((asked, condition))
            step = state.next()
            if isinstance(step, int) and step >= 400:
                self.send_error(step)
                return
            start = 0
            if asked and state.ranges and condition in (None, state.etag):
                start = int(asked.removeprefix("bytes=").rstrip("-"))
            size = len(state.content)
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            if state.etag:
                self.send_header("ETag", state.etag)
            self.send_header("Content-Length", str(size - start))
            self.end_headers()
            # A number below 400 is the percentage of the file after which the line breaks.
            stop = size if step == "send" else int(size * int(str(step)) / 100)
            self.wfile.write(state.content[start:stop])
            self.close_connection = True

        def log_message(self, *args):
            pass

    return Handler


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(state)) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.url = f"http://127.0.0.1:{http.server_port}/set.zip"
        yield state
        http.shutdown()
        thread.join()


def test_plain(server, tmp_path):
    seen = []
    target = tmp_path / "new" / "set.zip"
    download(server.url, target, checksum=SHA, progress=lambda *now: seen.append(now))
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in target.parent.iterdir()] == ["set.zip"]


def test_broken_transfers_are_resumed_where_they_broke(server, tmp_path):
    server.plan = [10, 35, 80, "send"]
    download(server.url, tmp_path / "a", checksum=SHA, wait_s=0)
    assert (tmp_path / "a").read_bytes() == CONTENT
    starts = [asked for asked, _ in server.requests]
    assert starts == [None, "bytes=102400-", "bytes=358400-", "bytes=819200-"]
    assert {condition for _, condition in server.requests[1:]} == {'"v1"'}


def test_a_later_process_goes_on(server, tmp_path):
    server.plan = [50, 500]
    with pytest.raises(DataError, match="512000 bytes are kept"):
        download(server.url, tmp_path / "a", checksum=SHA, attempts=2, wait_s=0)
    assert not (tmp_path / "a").exists()
    server.plan, server.requests = ["send"], []
    download(server.url, tmp_path / "a", checksum=SHA)
    assert server.requests == [("bytes=512000-", '"v1"')]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_starts_over(server, tmp_path):
    server.plan = [50, 503]
    with pytest.raises(DataError):
        download(server.url, tmp_path / "a", attempts=1, wait_s=0)
    server.plan, server.content, server.etag = ["send"], CONTENT[::-1], '"v2"'
    download(server.url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.plan, server.ranges = [50, "send"], False
    download(server.url, tmp_path / "a", checksum=SHA, wait_s=0)
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("checksum", [SHA, None])
def test_without_a_mark_parts_are_joined_only_under_a_checksum(server, tmp_path, checksum):
    server.plan, server.etag = [50, "send"], ""
    download(server.url, tmp_path / "a", checksum=checksum, wait_s=0)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.requests[1][0] == ("bytes=512000-" if checksum else None)


def test_everything_is_there_but_the_name(server, tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT)
    (tmp_path / "a.part.json").write_text('{"mark": "\\"v1\\""}')
    download(server.url, tmp_path / "a", checksum=SHA)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_what_was_left_is_damaged(server, tmp_path):
    (tmp_path / "a.part").write_bytes(b"x" * 1000)
    (tmp_path / "a.part.json").write_text('{"mark": "\\"v1\\""}')
    download(server.url, tmp_path / "a", checksum=SHA)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_wrong_checksum_is_an_error_and_nothing_is_kept(server, tmp_path):
    wrong = "md5:" + "0" * 32
    with pytest.raises(DataError, match=f"md5 must be {'0' * 32}, got"):
        download(server.url, tmp_path / "a", checksum=wrong)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_verified_and_kept(server, tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    download(server.url, tmp_path / "a", checksum=SHA)
    assert server.requests == []
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(DataError, match="remove it and download again"):
        download(server.url, tmp_path / "a", checksum=SHA)
    assert (tmp_path / "a").read_bytes() == b"mine"


@pytest.mark.parametrize("code", [403, 404])
def test_refusals_are_not_repeated(server, tmp_path, code):
    server.plan = [code]
    with pytest.raises(DataError, match=f"the server refuses: {code}"):
        download(server.url, tmp_path / "a", wait_s=0)
    assert len(server.requests) == 1


def test_overload_is_repeated(server, tmp_path):
    server.plan = [503, 429, "send"]
    download(server.url, tmp_path / "a", checksum=SHA, wait_s=0)
    assert len(server.requests) == 3


def test_nobody_listens(tmp_path):
    with pytest.raises(DataError, match="failed 2 times in a row"):
        download("http://127.0.0.1:9/x", tmp_path / "a", attempts=2, wait_s=0, timeout_s=1)


def test_wrong_arguments(tmp_path):
    with pytest.raises(DataError, match="must start with http"):
        download("file:///etc/hostname", tmp_path / "a")
    (tmp_path / "a").touch()
    with pytest.raises(DataError, match="must start with md5"):
        verify(tmp_path / "a", "crc32:0")
    with pytest.raises(DataError, match="has no public archive"):
        download_archive("isic2018", tmp_path)
