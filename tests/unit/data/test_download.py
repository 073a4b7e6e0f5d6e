"""Downloads against real servers on loopback: what is fetched, resumed, retried and refused."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from visionloop.data.addresses import address_fault, url_fault
from visionloop.data.download import Patience, fetch
from visionloop.data.sources.archive import ArchiveSource, Options
from visionloop.errors import DataError
from visionloop.files import sha256_bytes

BODY = os.urandom(3_000_000)
SHA = sha256_bytes(BODY)
QUICK = Patience(
    connect_seconds=2, answer_seconds=2, idle_seconds=2, rate_window_seconds=0.5, attempts=3, backoff_seconds=0.01
)  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        self.server.answer(self, len(self.server.asked))

    do_HEAD = do_GET  # noqa: N815 - the names that http.server looks for

    def log_message(self, *_: Any) -> None:
        """Not on the terminal."""

    def send(self, status: int, data: bytes, *, cut_at: int | None = None, **headers: str) -> None:
        """A whole answer; with `cut_at`, the connection ends after that many bytes of the body."""
        self.send_response(status)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut_at])
        if cut_at is not None:
            self.wfile.flush()
            time.sleep(0.1)  # what a client has not read when a connection breaks is lost
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def send_range(self, data: bytes, tag: str, *, cut_at: int | None = None) -> None:
        """What a server that knows ranges answers."""
        start = 0
        if (wanted := self.headers.get("Range")) and self.headers.get("If-Range", tag) == tag:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        rest = data[start:]
        if start:
            self.send(206, rest, cut_at=cut_at, ETag=tag, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send(200, rest, cut_at=cut_at, ETag=tag)


Answer = Callable[[Handler, int], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is what some tests are about."""


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


Serve = Callable[[Answer], Server]


def get(url: str, folder: Path, sha256: str = SHA, **options: Any) -> Path:
    values: dict[str, Any] = {"most_bytes": 10_000_000, "allow_private_hosts": True, "patience": QUICK}
    return fetch(url, sha256, folder, **(values | options))


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- fetching


def test_a_file_is_kept_under_its_sha256_and_asked_for_once(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda handler, _: handler.send(200, BODY))
    assert get(f"{server.url}/set.zip", tmp_path / "new/folder") == tmp_path / "new/folder" / SHA
    assert (tmp_path / "new/folder" / SHA).read_bytes() == BODY
    assert left(tmp_path / "new/folder") == [SHA]
    get(f"{server.url}/set.zip", tmp_path / "new/folder")
    assert len(server.asked) == 1


def test_progress_is_told_in_megabytes(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve(lambda handler, _: handler.send(200, BODY))
    get(f"{server.url}/a/set.zip?x=1", tmp_path)
    assert "download set.zip, MB 3/3, " in capsys.readouterr().err


def test_a_body_without_a_length_is_read_to_its_end(serve: Serve, tmp_path: Path) -> None:
    def answer(handler: Handler, _: int) -> None:
        handler.close_connection = True
        handler.send(200, BODY, Content_Length="", Connection="close")

    assert get(f"{serve(answer).url}/", tmp_path).read_bytes() == BODY


def test_a_chunked_body_is_read_to_its_end(serve: Serve, tmp_path: Path) -> None:
    def answer(handler: Handler, _: int) -> None:
        pieces = [BODY[start : start + 100_000] for start in range(0, len(BODY), 100_000)] + [b""]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        handler.send(200, chunks, Content_Length="", Transfer_Encoding="chunked")

    assert get(f"{serve(answer).url}/", tmp_path).read_bytes() == BODY


def test_redirects_are_followed(serve: Serve, tmp_path: Path) -> None:
    def answer(handler: Handler, _: int) -> None:
        if handler.path == "/":
            handler.send(302, b"", Location="/next/../set.zip")
        else:
            handler.send(200, BODY)

    server = serve(answer)
    get(f"{server.url}/", tmp_path)
    assert [path for path, _ in server.asked] == ["/", "/set.zip"]


def test_the_bytes_on_the_wire_count_whatever_the_server_calls_them(serve: Serve, tmp_path: Path) -> None:
    """A gzip bomb of a body stays as small as it came."""
    bomb = gzip.compress(bytes(100_000_000))
    server = serve(lambda handler, _: handler.send(200, bomb, Content_Encoding="gzip"))
    path = get(f"{server.url}/", tmp_path, sha256_bytes(bomb), most_bytes=200_000)
    assert path.stat().st_size == len(bomb) < 200_000
    assert server.asked[0][1]["Accept-Encoding"] == "identity"


def test_an_archive_behind_a_url_is_a_source(serve: Serve, tmp_path: Path) -> None:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("cat/a.jpg", b"1")
    server = serve(lambda handler, _: handler.send(200, buffer.getvalue()))
    options = Options(url=f"{server.url}/set.zip", sha256=sha256_bytes(buffer.getvalue()), allow_private_hosts=True)
    source = ArchiveSource(tmp_path, options, tmp_path / "downloads")
    assert [(image.path, image.data) for image in source] == [("cat/a.jpg", b"1")]
    (tmp_path / "downloads" / sha256_bytes(buffer.getvalue())).write_bytes(b"damaged since")
    with pytest.raises(DataError, match="remove it and fetch it again"):
        ArchiveSource(tmp_path, options, tmp_path / "downloads")


# --- resuming and trying again


def test_a_cut_download_goes_on_from_where_it_was(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda handler, count: handler.send_range(BODY, '"v1"', cut_at=1_000_000 if count == 1 else None))
    assert get(f"{server.url}/", tmp_path).read_bytes() == BODY
    (_, first), (_, second) = server.asked
    assert "Range" not in first
    assert second["If-Range"] == '"v1"'
    assert second["Range"] == "bytes=1000000-"
    assert left(tmp_path) == [SHA]


def test_what_a_failed_run_got_is_used_by_the_next(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda handler, count: handler.send_range(BODY, '"v1"', cut_at=400_000 if count <= 3 else None))
    with pytest.raises(DataError, match=r"was tried 3 times in vain .*it goes on from what has come"):
        get(f"{server.url}/", tmp_path)
    assert left(tmp_path) == [f"{SHA}.part", f"{SHA}.part.json"]
    reached = (tmp_path / f"{SHA}.part").stat().st_size
    assert get(f"{server.url}/", tmp_path).read_bytes() == BODY
    assert server.asked[3][1]["Range"] == f"bytes={reached}-"


def test_the_part_of_an_earlier_run_is_used(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda handler, _: handler.send_range(BODY, '"v1"'))
    (tmp_path / f"{SHA}.part").write_bytes(BODY[:2_000_000])
    (tmp_path / f"{SHA}.part.json").write_text(json.dumps({"url": f"{server.url}/", "validator": '"v1"'}))
    assert get(f"{server.url}/", tmp_path).read_bytes() == BODY
    assert server.asked[0][1]["Range"] == "bytes=2000000-"


def test_a_part_that_is_whole_is_kept_without_asking(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda handler, _: handler.send(404, b""))
    (tmp_path / f"{SHA}.part").write_bytes(BODY)
    assert get(f"{server.url}/", tmp_path).read_bytes() == BODY
    assert server.asked == []


@pytest.mark.parametrize("state", ["", "not json", '{"url": "http://other/", "validator": "v1"}'])
def test_a_part_of_another_file_is_not_used(serve: Serve, tmp_path: Path, state: str) -> None:
    server = serve(lambda handler, _: handler.send_range(BODY, '"v1"'))
    (tmp_path / f"{SHA}.part").write_bytes(b"x" * 100)
    (tmp_path / f"{SHA}.part.json").write_text(state)
    assert get(f"{server.url}/", tmp_path).read_bytes() == BODY
    assert "Range" not in server.asked[0][1]


def test_a_file_that_changed_on_the_server_is_fetched_from_its_start(serve: Serve, tmp_path: Path) -> None:
    def answer(handler: Handler, count: int) -> None:
        if count == 1:
            handler.send_range(bytes(3_000_000), '"v1"', cut_at=1_000_000)
        else:
            handler.send_range(BODY, '"v2"')

    server = serve(answer)
    assert get(f"{server.url}/", tmp_path).read_bytes() == BODY
    assert len(server.asked) == 2


def test_a_server_that_ignores_if_range_is_found_out(serve: Serve, tmp_path: Path) -> None:
    def answer(handler: Handler, count: int) -> None:
        if count == 1:
            handler.send_range(bytes(3_000_000), '"v1"', cut_at=1_000_000)
        else:
            del handler.headers["If-Range"]
            handler.send_range(BODY, '"v2"')

    server = serve(answer)
    assert get(f"{server.url}/", tmp_path).read_bytes() == BODY
    assert ["Range" in headers for _, headers in server.asked] == [False, True, False]


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}])
def test_without_ranges_or_a_sure_tag_a_cut_download_starts_anew(
    serve: Serve, tmp_path: Path, headers: dict[str, str]
) -> None:
    server = serve(lambda handler, count: handler.send(200, BODY, cut_at=10 if count == 1 else None, **headers))
    assert get(f"{server.url}/", tmp_path).read_bytes() == BODY
    assert "Range" not in server.asked[1][1]


def test_the_date_of_the_last_change_serves_where_there_is_no_tag(serve: Serve, tmp_path: Path) -> None:
    date = formatdate(1_700_000_000, usegmt=True)

    def answer(handler: Handler, count: int) -> None:
        if count == 1:
            handler.send(200, BODY, cut_at=900_000, Last_Modified=date)
        else:
            start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            handler.send(206, BODY[start:], Content_Range=f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")

    server = serve(answer)
    assert get(f"{server.url}/", tmp_path).read_bytes() == BODY
    assert server.asked[1][1]["If-Range"] == date


def test_a_part_with_damaged_bytes_is_thrown_away(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda handler, _: handler.send_range(BODY, '"v1"'))
    (tmp_path / f"{SHA}.part").write_bytes(bytes(1_000_000))
    (tmp_path / f"{SHA}.part.json").write_text(json.dumps({"url": f"{server.url}/", "validator": '"v1"'}))
    assert get(f"{server.url}/", tmp_path).read_bytes() == BODY
    assert ["Range" in headers for _, headers in server.asked] == [True, False]


@pytest.mark.parametrize("answer", [206, 416])
def test_a_range_that_was_not_asked_for_is_not_used(serve: Serve, tmp_path: Path, answer: int) -> None:
    def wrong(handler: Handler, count: int) -> None:
        if count == 1:
            handler.send(200, BODY, cut_at=500_000, ETag='"v1"')
        elif count == 2:
            handler.send(answer, BODY[:10], ETag='"v1"', Content_Range=f"bytes 7-16/{len(BODY)}")
        else:
            handler.send(200, BODY, ETag='"v1"')

    assert get(f"{serve(wrong).url}/", tmp_path).read_bytes() == BODY


def test_a_busy_server_is_asked_again(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda handler, count: handler.send(200 if count == 3 else 503, BODY if count == 3 else b"busy"))
    assert get(f"{server.url}/", tmp_path).read_bytes() == BODY
    assert len(server.asked) == 3


def test_a_server_that_always_cuts_is_given_up_unless_it_gets_further(serve: Serve, tmp_path: Path) -> None:
    def cut(handler: Handler, _: int) -> None:
        handler.send_range(BODY, '"v1"', cut_at=1_200_000)

    assert get(f"{serve(cut).url}/", tmp_path).read_bytes() == BODY
    never = serve(lambda handler, _: handler.send(200, BODY, cut_at=1_200_000))
    with pytest.raises(DataError, match=r"was tried 3 times in vain \(.*\); run this again when"):
        get(f"{never.url}/", tmp_path / "other")


def test_a_server_that_is_not_there_is_tried_and_then_named(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(DataError, match=rf"http://127.0.0.1:{port}/ was tried 3 times in vain"):
        get(f"http://127.0.0.1:{port}/", tmp_path)
    assert left(tmp_path) == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refusal_is_not_asked_for_again(serve: Serve, tmp_path: Path, status: int) -> None:
    server = serve(lambda handler, _: handler.send(status, b"no"))
    with pytest.raises(DataError, match=rf"answers {status} .*; check the address"):
        get(f"{server.url}/", tmp_path)
    assert len(server.asked) == 1
    assert left(tmp_path) == []


def test_another_run_is_not_disturbed(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda handler, _: handler.send(200, BODY))
    with (tmp_path / f"{SHA}.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="is being downloaded by another run"):
            get(f"{server.url}/", tmp_path)
    assert server.asked == []


# --- what a server may not do


def test_another_file_is_refused_and_not_kept(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda handler, _: handler.send(200, b"other"))
    with pytest.raises(DataError, match=rf"holds a file with the sha256 {sha256_bytes(b'other')}, .* says {SHA}"):
        get(f"{server.url}/", tmp_path)
    assert left(tmp_path) == []


def test_a_web_page_is_refused(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda handler, _: handler.send(200, b"<html>Log in", Content_Type="text/html; charset=utf-8"))
    with pytest.raises(DataError, match="answers with a web page and not with an archive"):
        get(f"{server.url}/set.zip", tmp_path)


def test_a_body_of_10_gb_is_refused_before_it_is_read(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda handler, _: handler.send(200, b"x", cut_at=1, Content_Length=str(10 << 30)))
    with pytest.raises(DataError, match=r"has 10,737.4 MB or more, above collect.options.max_download_megabytes \(10\)"):
        get(f"{server.url}/", tmp_path)
    assert left(tmp_path) == []


def test_a_body_without_a_length_ends_at_the_limit(serve: Serve, tmp_path: Path) -> None:
    def answer(handler: Handler, _: int) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while True:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(BODY), BODY))

    with pytest.raises(DataError, match=r"above collect.options.max_download_megabytes \(10\)"):
        get(f"{serve(answer).url}/", tmp_path)
    assert left(tmp_path) == []


def test_more_than_the_disk_has_is_refused(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda handler, _: handler.send(200, b"x", cut_at=1, Content_Length=str(10**15)))
    with pytest.raises(DataError, match=r"has 1,000,000,000 MB, and .* MB free; make room there"):
        get(f"{server.url}/", tmp_path, most_bytes=10**16)


def drip(handler: Handler, data: bytes) -> None:
    """A byte every 20 ms for as long as someone reads."""
    for start in range(len(data)):
        handler.wfile.write(data[start : start + 1])
        handler.wfile.flush()
        time.sleep(0.02)


def test_a_server_that_sends_byte_by_byte_is_left(serve: Serve, tmp_path: Path) -> None:
    def answer(handler: Handler, _: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        drip(handler, bytes(1000))

    start = time.monotonic()
    with pytest.raises(DataError, match=r"was tried 3 times in vain \(\d+ bytes a second for \d+ s\)"):
        get(f"{serve(answer).url}/", tmp_path)
    assert time.monotonic() - start < 6


def test_headers_byte_by_byte_and_silence_are_left(serve: Serve, tmp_path: Path) -> None:
    waits = Patience(connect_seconds=1, answer_seconds=0.5, idle_seconds=0.4, attempts=1)
    slow = serve(lambda handler, _: drip(handler, b"HTTP/1.1 200 OK\r\nX-Header: " + b"x" * 1000))
    with pytest.raises(DataError, match="was tried 1 times in vain"):
        get(f"{slow.url}/", tmp_path, patience=waits)

    def silent(handler: Handler, _: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        time.sleep(1)

    with pytest.raises(DataError, match="was tried 1 times in vain"):
        get(f"{serve(silent).url}/", tmp_path, patience=waits)


def test_what_speaks_no_http_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
                connection.recv(1000)

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(DataError, match="does not answer as a web server does"):
            get(f"http://127.0.0.1:{listener.getsockname()[1]}/", tmp_path)


def test_a_server_that_signs_for_itself_is_refused(serve: Serve, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "both.pem").write_bytes(certificate.public_bytes(pem) + private)
    server = serve(lambda handler, _: handler.send(200, BODY))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with pytest.raises(DataError, match="does not prove who it is"):
        get(server.url.replace("http:", "https:"), tmp_path / "downloads")
    assert server.asked == []


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("file:///etc/passwd", "redirects: url 'file:///etc/passwd' begins with 'file'"),
        ("ftp://example.org/a.zip", "begins with 'ftp'"),
        ("s3://bucket/key", "redirects to s3://bucket/key; give that address itself"),
        ("http://169.254.169.254/latest/meta-data", "leads to 169.254.169.254"),
        ("http://127.0.0.1:22/", "names port 22"),
        ("/again", "redirects more than 5 times"),
        ("http://[", "does not answer as a web server does"),
    ],
)
def test_where_a_redirect_may_not_lead(serve: Serve, tmp_path: Path, target: str, why: str) -> None:
    server = serve(lambda handler, _: handler.send(302, b"", Location=target))
    with pytest.raises(DataError) as caught:
        get(f"{server.url}/", tmp_path)
    assert why in str(caught.value)
    assert len(server.asked) == (6 if target == "/again" else 1)


# --- addresses

LOOPBACK = [
    "http://127.0.0.1/a.zip", "http://[::1]/a.zip", "http://0.0.0.0/a.zip", "http://2130706433/a.zip", "http://0x7f.1/a.zip",
    "http://017700000001/a.zip", "http://127.1/a.zip", "http://127.0.0.1./a.zip", "http://[::ffff:127.0.0.1]/a.zip",
    "http://localhost/a.zip", "http://localhost./a.zip", "http://LOCALHOST:8080/a.zip", "http://a.localhost/a.zip",
]  # fmt: skip
PRIVATE = [
    "http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.1.1/", "http://100.64.0.1/", "http://[::ffff:10.0.0.1]/",
    "http://[fd00::1]/", "http://[fec0::1]/", "http://[64:ff9b::a00:1]/", "http://[2002:a00:1::]/", "http://168.63.129.16/",
    "http://192.0.0.192/", "http://198.18.0.1/", "http://240.0.0.1/",
]  # fmt: skip
NEVER = [
    "http://169.254.169.254/latest/meta-data", "http://[fe80::1]/", "http://[::ffff:169.254.169.254]/", "http://0.0.0.0/",
    "http://[::]/", "http://224.0.0.1/", "http://255.255.255.255/", "http://user@10.0.0.1/", "http://user:word@example.org/",
    "file:///etc/passwd", "ftp://example.org/a.zip", "gopher://example.org/", "data:application/zip;base64,UEsDBA==",
    "//example.org/a.zip", "a.zip", "http:///a.zip", "http://example.org:22/a.zip", "http://example.org:0/a.zip",
    "http://example.org:99999/", "http://example.org:x/", "http://exаmple.org/", "http://１２７.0.0.1/", "http://[::1/",
    "http://example.org/a b.zip", "http://example.org\\@10.0.0.1/", "http://example.org/\r\nX: y", "http://%31%32%37.0.0.1/",
    "http://[fe80::1%25eth0]/", "http://example.org/" + "x" * 8192, "s3://Bucket/key", "s3://bucket", "s3://user@bucket/key",
]  # fmt: skip


@pytest.mark.parametrize("url", LOOPBACK + PRIVATE)
def test_this_machine_and_its_network_are_refused_unless_allowed(tmp_path: Path, url: str) -> None:
    fault = url_fault(url, allow_private_hosts=False)
    assert fault is not None
    assert "leads to" in fault
    with pytest.raises(DataError) as caught:
        fetch(url, SHA, tmp_path, most_bytes=1)
    assert str(caught.value) == f"{fault}."
    if url != "http://0.0.0.0/a.zip":
        assert "allow_private_hosts" in fault
        assert url_fault(url, allow_private_hosts=True) is None


@pytest.mark.parametrize("url", NEVER)
def test_what_is_refused_in_any_case(url: str) -> None:
    for allow in (False, True):
        fault = url_fault(url, allow_private_hosts=allow)
        assert fault is not None
        assert fault.startswith(f"url {url[:20]!r}"[:-1]) or "\\" in fault


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a.zip", "http://example.org:8080/a.tar.gz?sig=x%20y", "https://8.8.8.8/", "https://[2606:4700::1]/",
        "https://xn--exmple-4uf.org/a.zip", "s3://bucket/folder/key.zip", "https://example.org.:443/", "HTTPS://EXAMPLE.ORG/a.zip",
    ],
)  # fmt: skip
def test_what_may_be_asked(url: str) -> None:
    assert url_fault(url, allow_private_hosts=False) is None


def test_a_letter_that_looks_like_another_is_shown_in_its_coded_form() -> None:
    fault = url_fault("https://exаmple.org/a.zip", allow_private_hosts=False)
    assert fault is not None
    assert "write xn--exmple-4nf.org if that is meant" in fault


def test_every_address_of_a_private_network_is_refused_at_the_socket_too() -> None:
    for address in ("127.8.8.8", "::1", "::ffff:7f00:1", "10.1.2.3", "fd12::1", "fe80::1%eth0", "64:ff9b::7f00:1"):
        assert address_fault(ip_address(address), allow_private_hosts=False) is not None
    assert address_fault(ip_address("1.1.1.1"), allow_private_hosts=False) is None


@dataclass
class Names:
    """A name server that answers differently each time, in the place of `getaddrinfo`, all that a client sees of it."""

    answers: list[list[str]]
    port: int
    asked: list[str] = field(default_factory=list)

    def __call__(self, host: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        addresses = self.answers[min(len(self.asked), len(self.answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, self.port)) for address in addresses]


@pytest.mark.parametrize(
    "answers", [[["127.0.0.1"]], [["127.0.0.1", "10.0.0.1"]], [["169.254.169.254"]]], ids=["loopback", "both", "metadata"]
)
def test_a_public_name_with_a_private_address_is_refused_at_the_socket(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[list[str]]
) -> None:
    server = serve(lambda handler, _: handler.send(200, BODY))
    names = Names(answers, server.server_address[1])
    monkeypatch.setattr(socket, "getaddrinfo", names)
    with pytest.raises(DataError, match=rf"http://images.example.org:\d+/ leads to {answers[0][0]}, an address"):
        get(f"http://images.example.org:{names.port}/", tmp_path, allow_private_hosts=False)
    assert names.asked == ["images.example.org"]
    assert server.asked == []


def test_a_name_that_changes_its_address_gains_nothing(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 stands for a public address, and 127.0.0.2 for the private one that the second look-up gives."""

    def rule(address: Any, **options: Any) -> str | None:
        return None if str(address) == "127.0.0.1" else address_fault(address, **options)

    server = serve(lambda handler, _: handler.send(503, b""))
    names = Names([["127.0.0.1"], ["127.0.0.2"]], server.server_address[1])
    monkeypatch.setattr(socket, "getaddrinfo", names)
    monkeypatch.setattr("visionloop.data.download.address_fault", rule)
    with pytest.raises(DataError, match=r"leads to 127.0.0.2, an address of this machine"):
        get(f"http://images.example.org:{names.port}/", tmp_path, allow_private_hosts=False)
    assert (len(names.asked), len(server.asked)) == (2, 1)


def test_proxies_of_the_environment_are_not_asked(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve(lambda handler, _: handler.send(200, b"from the proxy"))
    server = serve(lambda handler, _: handler.send(200, BODY))
    monkeypatch.setenv("http_proxy", proxy.url)
    get(f"{server.url}/", tmp_path)
    assert proxy.asked == []


# --- S3


@pytest.fixture
def s3(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    """A server that answers GetObject and HeadObject as S3 does, and environment variables that lead there."""

    def start(data: bytes, cut_first_at: int | None = None) -> Server:
        def answer(handler: Handler, _: int) -> None:
            if "AWS4-HMAC-SHA256 Credential=key" not in handler.headers.get("Authorization", ""):
                handler.send(403, b"<Error><Code>AccessDenied</Code></Error>", Content_Type="application/xml")
            elif handler.path.partition("?")[0] != "/bucket/folder/set.zip":
                handler.send(404, b"<Error><Code>NoSuchKey</Code></Error>", Content_Type="application/xml")
            else:
                first, last = handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
                end = min(int(last or len(data) - 1) + 1, len(data))
                piece = data[int(first) : end]
                place = f"bytes {first}-{end - 1}/{len(data)}"
                cut_at = cut_first_at if sum("Range" in headers for _, headers in server.asked) == 1 else None
                status = 206 if "Range" in handler.headers else 200
                modified = formatdate(0, usegmt=True)
                handler.send(status, piece, cut_at=cut_at, ETag='"e1"', Content_Range=place, Last_Modified=modified)

        server = serve(answer)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        return server

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return start


def test_an_object_of_s3_is_fetched_with_the_keys_of_the_environment(s3: Callable[..., Server], tmp_path: Path) -> None:
    server = s3(BODY)
    path = get("s3://bucket/folder/set.zip", tmp_path, allow_private_hosts=False)
    assert path.read_bytes() == BODY
    assert {headers.get("If-Match") for _, headers in server.asked if "Range" in headers} == {'"e1"'}


def test_an_object_of_s3_is_gone_on_with(s3: Callable[..., Server], tmp_path: Path) -> None:
    server = s3(BODY)
    (tmp_path / f"{SHA}.part").write_bytes(BODY[:2_000_000])
    state = {"url": "s3://bucket/folder/set.zip", "validator": '"e1"'}
    (tmp_path / f"{SHA}.part.json").write_text(json.dumps(state))
    assert get("s3://bucket/folder/set.zip", tmp_path).read_bytes() == BODY
    (ranged,) = [headers["Range"] for _, headers in server.asked if "Range" in headers]
    assert ranged.startswith("bytes=2000000-")


def test_a_cut_answer_of_s3_is_asked_for_again(s3: Callable[..., Server], tmp_path: Path) -> None:
    s3(BODY, cut_first_at=1000)
    assert get("s3://bucket/folder/set.zip", tmp_path).read_bytes() == BODY


def test_what_s3_refuses_is_said(s3: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3(BODY)
    with pytest.raises(DataError, match="is no object there; check bucket and key"):
        get("s3://bucket/folder/other.zip", tmp_path)
    with pytest.raises(DataError, match=r"has 3.0 MB or more, above collect.options.max_download_megabytes"):
        get("s3://bucket/folder/set.zip", tmp_path, most_bytes=1_000_000)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    with pytest.raises(DataError, match=r"may not be read .*set AWS_ACCESS_KEY_ID"):
        get("s3://bucket/folder/set.zip", tmp_path)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match=r"may not be read .*set AWS_ACCESS_KEY_ID"):
        get("s3://bucket/folder/set.zip", tmp_path)
