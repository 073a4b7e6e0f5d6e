"""Fetch one file whose SHA-256 is known, over http(s) or from S3, to `<folder>/<sha256>`.

The bytes go to `<sha256>.part`, which gets its name once the hash is right; an interrupted download goes on from there where
the server still has the same file. Every address is judged, also at the socket (`data/addresses.py`).

Does not cover: proxies from the environment for http(s), since a proxy would choose the address; logins; and choosing what
to download, which params.yaml does.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from visionloop.data.addresses import address_fault, port_fault, url_fault
from visionloop.errors import DataError
from visionloop.files import sync_folder, write_json
from visionloop.progress import track

if TYPE_CHECKING:  # both are loaded when something is fetched
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

MAX_REDIRECTS = 5

_PIECE_BYTES = 1 << 20
_S3_PIECE_BYTES = 8 << 20  # each is a request of its own
_MEGABYTE = 1_000_000
_REDIRECTS = (301, 302, 303, 307, 308)
# What a busy or restarting server answers.
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)
_CONTENT_RANGE = re.compile(r"^bytes (\d+)-\d+/(\d+|\*)$")


@dataclass(frozen=True)
class Patience:
    """How long a download waits, and how often it tries."""

    connect_seconds: float = 15
    answer_seconds: float = 60  # from the request to the end of the headers
    idle_seconds: float = 30  # without a byte
    # A modem of 1990 was faster; a server this slow is stuck, or wants to hold the line.
    min_bytes_per_second: float = 1024
    rate_window_seconds: float = 30
    attempts: int = 4  # in a row without a megabyte of progress
    backoff_seconds: float = 1  # doubles with each


class _NetworkError(Exception):
    """Something that may be better in a moment."""


@dataclass(frozen=True)
class _Wanted:
    url: str
    sha256: str
    most_bytes: int

    @property
    def file_name(self) -> str:
        """The end of the address, for the progress bar."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1][:40] or "archive"


@dataclass(frozen=True)
class _Reply:
    """An answer whose body begins at byte `start` of the file."""

    start: int
    total_bytes: int | None  # of the whole file
    validator: str  # changes with the file; "" where the server has none, and an interrupted download starts anew
    read: Callable[[], bytes]  # b"" at the end


class _Link(Protocol):
    """A way to one file."""

    def ask(self, start: int, validator: str) -> contextlib.AbstractContextManager[_Reply]:
        """Ask for the bytes from `start` on, if the file still has this validator, else for the whole."""
        ...

    def close(self) -> None: ...


def fetch(
    url: str,
    sha256: str,
    folder: Path,
    *,
    most_bytes: int,
    allow_private_hosts: bool = False,
    patience: Patience = Patience(),
) -> Path:
    """Download `url` to `<folder>/<sha256>` and return that path; a file that stands there is not fetched again.

    `sha256` is 64 hexadecimal digits in lower case. The hash of a file that stood there is not computed: whoever uses the
    file checks the bytes that it uses.

    Raises:
        DataError: the address is refused, the server says no or is not to be reached, or what comes is a web page, too
            large, or another file.
    """
    if fault := url_fault(url, allow_private_hosts=allow_private_hosts):
        raise DataError(f"{fault}.")
    target = folder / sha256
    if target.exists():
        return target
    wanted = _Wanted(url, sha256, most_bytes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        link: _Link = _S3(url, patience) if url.startswith("s3:") else _Http(url, allow_private_hosts, patience)
        with contextlib.closing(link), _Part(folder / f"{sha256}.part", url) as part:
            _download(link, part, wanted, patience)
            part.keep_as(target)
    except OSError as error:  # of this machine's disk; those of the network are translated where they are met
        raise DataError(f"{url} cannot be kept in {folder} ({error.strerror or error}); make room there.") from error
    return target


def _download(link: _Link, part: _Part, wanted: _Wanted, patience: Patience) -> None:
    """Bring `part` to the bytes that have the wanted hash."""
    failures = 0
    reached = part.size_bytes
    may_restart = True
    while part.hash() != wanted.sha256:
        resumed = False
        try:
            with link.ask(part.size_bytes if part.validator else 0, part.validator) as reply:
                resumed = reply.start > 0
                _check_size(reply, wanted, part.path.parent)
                part.begin(reply)
                rest = None if reply.total_bytes is None else -(-(reply.total_bytes - reply.start) // _MEGABYTE)
                for _ in track(_copy(reply, part, wanted, patience), f"download {wanted.file_name}, MB", rest):
                    continue
        except _NetworkError as fault:
            failures = 1 if part.size_bytes >= reached + _MEGABYTE else failures + 1
            reached = max(reached, part.size_bytes)
            if failures >= patience.attempts:
                goes_on = ", and it goes on from what has come" if part.validator and part.size_bytes else ""
                raise DataError(
                    f"{wanted.url} was tried {failures} times in vain ({fault}); run this again when the network or the "
                    f"server is better{goes_on}."
                ) from fault
            time.sleep(patience.backoff_seconds * 2 ** (failures - 1))
            continue
        if (got := part.hash()) != wanted.sha256:
            part.clear()
            if not (resumed and may_restart):
                raise DataError(
                    f"{wanted.url} holds a file with the sha256 {got}, collect.options.sha256 says {wanted.sha256}; it was "
                    "changed, damaged or cut off on the way: compare it with what is published."
                )
            may_restart = False  # once: what a power cut left need not be what had come


def _copy(reply: _Reply, part: _Part, wanted: _Wanted, patience: Patience) -> Iterator[None]:
    """Write the body behind what `part` has; yields once for each megabyte."""
    shown = since_bytes = part.size_bytes
    since = time.monotonic()
    while data := reply.read():
        part.write(data)
        if (size := part.size_bytes) > wanted.most_bytes:
            part.clear()
            raise _too_large(wanted, size)
        seconds = time.monotonic() - since
        if seconds >= patience.rate_window_seconds:
            rate = (size - since_bytes) / seconds
            if rate < patience.min_bytes_per_second:
                raise _NetworkError(f"{rate:,.0f} bytes a second for {seconds:.0f} s")
            since, since_bytes = time.monotonic(), size
        while size - shown >= _MEGABYTE:
            shown += _MEGABYTE
            yield
    if reply.total_bytes is not None and part.size_bytes != reply.total_bytes:
        raise _NetworkError(f"{part.size_bytes:,} of {reply.total_bytes:,} bytes came")
    if part.size_bytes > shown:
        yield


def _check_size(reply: _Reply, wanted: _Wanted, folder: Path) -> None:
    if reply.total_bytes is None:
        return
    if reply.total_bytes > wanted.most_bytes:
        raise _too_large(wanted, reply.total_bytes)
    free = shutil.disk_usage(folder).free
    if reply.total_bytes - reply.start > free:
        raise DataError(
            f"{wanted.url} has {reply.total_bytes / 1e6:,.0f} MB, and {folder} {free / 1e6:,.0f} MB free; make room there."
        )


def _too_large(wanted: _Wanted, size: int) -> DataError:
    return DataError(
        f"{wanted.url} has {size / 1e6:,.1f} MB or more, above collect.options.max_download_megabytes "
        f"({wanted.most_bytes / 1e6:,.0f}); raise it if that is the right file."
    )


class _Part:
    """The file that is being filled, and beside it which file of which server it is."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self._state_path = path.with_name(f"{path.name}.json")
        self._url = url
        self.validator = ""
        self.size_bytes = 0

    def __enter__(self) -> _Part:
        self._file: IO[bytes] = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise DataError(f"{self._url} is being downloaded by another run to {self.path}; wait for it.") from None
        self._digest = hashlib.sha256()
        self._file.seek(0)
        while piece := self._file.read(_PIECE_BYTES):
            self._digest.update(piece)
        self.size_bytes = self._file.tell()
        self.validator = self._kept_validator()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:
            self._sync()
            self._file.close()
            if not self.size_bytes:
                self.path.unlink(missing_ok=True)
                self._state_path.unlink(missing_ok=True)

    def hash(self) -> str:
        """The SHA-256 of what has come."""
        return self._digest.hexdigest()

    def begin(self, reply: _Reply) -> None:
        """Make ready for a body; one that starts at 0 replaces what stands."""
        if reply.start == 0:
            self.clear()
            self.validator = reply.validator
            write_json(self._state_path, {"url": self._url, "validator": reply.validator})

    def clear(self) -> None:
        """Forget what has come."""
        self._file.truncate(0)
        self._file.seek(0)
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size_bytes += len(data)

    def keep_as(self, target: Path) -> None:
        """Give the whole file its name."""
        self._sync()
        self._file.close()
        self.path.rename(target)
        self._state_path.unlink(missing_ok=True)
        sync_folder(target.parent)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _kept_validator(self) -> str:
        try:
            state = json.loads(self._state_path.read_bytes())
            return str(state["validator"]) if state["url"] == self._url else ""
        except (OSError, ValueError, KeyError, TypeError):  # none, or cut off: the download starts anew
            return ""


class _Http:
    """fsspec's HTTP file system, with a client of our own that connects to allowed addresses only.

    The request is made in its session, and not by its file objects: these follow redirects by themselves, wait for headers
    without end, and do not show the headers that tell whether a resumed file is still the same.
    """

    def __init__(self, url: str, allow_private_hosts: bool, patience: Patience) -> None:
        from fsspec.implementations.http import HTTPFileSystem

        self._url, self._allow_private_hosts, self._patience = url, allow_private_hosts, patience
        self._refused: list[str] = []
        self._system: HTTPFileSystem = HTTPFileSystem(get_client=self._client, skip_instance_cache=True)

    def close(self) -> None:
        async def close() -> None:
            await (await self._system.set_session()).close()

        self._run(close)

    @contextlib.contextmanager
    def ask(self, start: int, validator: str) -> Iterator[_Reply]:
        response = self._translated(lambda: self._follow(start, validator))
        try:
            begins, total = _place(response)
            # A server may leave the validator out where If-Range has already compared it.
            if begins not in (0, start) or (begins and _validator(response) not in ("", validator)):
                response.close()
                start = 0
                response = self._translated(lambda: self._follow(0, ""))
                begins, total = _place(response)
            self._check(response, begins in (0, start))
            yield _Reply(begins, total, _validator(response), lambda: self._read(response))
        finally:
            response.close()

    async def _client(self, **_: object) -> aiohttp.ClientSession:
        import aiohttp

        patience = self._patience
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self._socket, force_close=True, use_dns_cache=False),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=patience.connect_seconds, sock_read=patience.idle_seconds
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            # The hash is that of the bytes on the wire: nothing is inflated here, whatever the server calls it.
            headers={"Accept-Encoding": "identity", "User-Agent": "visionloop"},
            auto_decompress=False,
            trust_env=False,
        )

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for one address, after the name was resolved: what is judged here is what gets connected."""
        family, kind, protocol, _, target = info
        address = ipaddress.ip_address(target[0])
        if fault := address_fault(address, allow_private_hosts=self._allow_private_hosts):
            fault = f"leads to {address}, {fault}"
        if fault := fault or port_fault(target[1]):
            self._refused.append(fault)
            raise OSError(fault)
        return socket.socket(family, kind, protocol)

    async def _follow(self, start: int, validator: str) -> aiohttp.ClientResponse:
        """The first answer that is no redirect; each address on the way is judged."""
        import asyncio

        import yarl

        headers = {"Range": f"bytes={start}-", "If-Range": validator} if start else {}
        session = await self._system.set_session()
        url = yarl.URL(self._url)
        for _ in range(MAX_REDIRECTS + 1):
            async with asyncio.timeout(self._patience.answer_seconds):
                response: aiohttp.ClientResponse = await session.get(url, headers=headers, allow_redirects=False)
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return response
            response.close()
            url = url.join(yarl.URL(response.headers["Location"]))
            if url.scheme == "s3":
                raise DataError(f"{self._url} redirects to {url}; give that address itself if it is meant.")
            if fault := url_fault(str(url), allow_private_hosts=self._allow_private_hosts):
                raise DataError(f"{self._url} redirects: {fault}.")
        raise DataError(f"{self._url} redirects more than {MAX_REDIRECTS} times; ask whoever runs the server.")

    def _check(self, response: aiohttp.ClientResponse, is_as_asked: bool) -> None:
        answer = f"{response.status} {response.reason}"
        if response.status in _TRY_AGAIN:
            raise _NetworkError(f"the server answers {answer}")
        if response.status not in (200, 206):
            raise DataError(f"{self._url} answers {answer}; check the address, and whether it opens without a login.")
        if not is_as_asked:
            raise DataError(f"{self._url} answers with a piece that was not asked for; ask whoever runs the server.")
        if response.content_type in ("text/html", "application/xhtml+xml"):
            raise DataError(
                f"{self._url} answers with a web page and not with an archive; give the address of the file itself, as the "
                "page's download link has it."
            )

    def _read(self, response: aiohttp.ClientResponse) -> bytes:
        import aiohttp

        async def piece() -> bytes:
            """What comes within half a second, up to a megabyte; a broken connection's last bytes come before its error."""
            data = bytearray()
            until = time.monotonic() + 0.5
            try:
                while len(data) < _PIECE_BYTES and time.monotonic() < until:
                    if not (more := await response.content.readany()):
                        break
                    data += more
            except (aiohttp.ClientError, TimeoutError):  # the next call meets it again
                if not data:
                    raise
            return bytes(data)

        read: bytes = self._translated(piece)
        return read

    def _translated(self, act: Callable[[], Any]) -> Any:
        """The result of a coroutine; what it raises becomes a `_NetworkError`, worth another try, or a DataError."""
        import aiohttp

        self._refused.clear()
        try:
            return self._run(act)
        except aiohttp.ClientSSLError as error:
            raise DataError(
                f"{self._url} does not prove who it is ({_first_line(error)}); check the address, and this machine's clock."
            ) from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            if self._refused:
                raise DataError(f"{self._url} {self._refused[0]}.") from error
            raise _NetworkError(_first_line(error) or "no answer in time") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise DataError(
                f"{self._url} does not answer as a web server does ({_first_line(error)}); check the address."
            ) from error

    def _run(self, act: Callable[[], Any]) -> Any:
        from fsspec.asyn import sync

        return sync(self._system.loop, act)


def _place(response: aiohttp.ClientResponse) -> tuple[int, int | None]:
    """Where in the file the body begins, -1 where that is not to be told, and how long the whole file is."""
    if response.status == 206 and (match := _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))):
        return int(match[1]), None if match[2] == "*" else int(match[2])
    if response.status in (206, 416):
        return -1, None
    return 0, response.content_length


def _validator(response: aiohttp.ClientResponse) -> str:
    """What `If-Range` takes (RFC 9110, 13.1.5): a strong entity tag, else the date of the last change."""
    tag: str = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


class _S3:
    """An object of S3 or of a server that speaks its protocol, by s3fs.

    Endpoint, region and credentials come from where every S3 tool looks for them (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, the
    profile, ...). These belong to whoever runs this and may name a private host; params.yaml cannot.
    """

    def __init__(self, url: str, patience: Patience) -> None:
        from s3fs import S3FileSystem  # type: ignore[import-untyped]

        self._url, self._path = url, url.removeprefix("s3://")
        config = {
            "connect_timeout": patience.connect_seconds,
            "read_timeout": patience.idle_seconds,
            "retries": {"max_attempts": 0},  # they are made here, with what has come kept
        }
        self._system = S3FileSystem(config_kwargs=config, skip_instance_cache=True, use_listings_cache=False)
        self._system.retries = 1

    def close(self) -> None:
        if (creator := getattr(self._system, "_s3creator", None)) is not None:
            self._system.close_session(self._system.loop, creator)

    @contextlib.contextmanager
    def ask(self, start: int, validator: str) -> Iterator[_Reply]:
        # Without a cache each piece is a request of its own, with If-Match: one download is one version of the object.
        with self._translated(lambda: self._system.open(self._path, cache_type="none")) as file:
            info = file.details
            if info["type"] != "file":
                raise DataError(f"{self._url} is a folder there; give the key of an archive.")
            tag = str(info.get("ETag", ""))
            begins = start if tag and tag == validator and start <= info["size"] else 0
            file.seek(begins)
            yield _Reply(begins, info["size"], tag, lambda: self._translated(lambda: file.read(_S3_PIECE_BYTES)))

    def _translated(self, act: Callable[[], Any]) -> Any:
        import aiohttp
        from botocore.exceptions import (  # type: ignore[import-untyped]
            BotoCoreError,
            NoCredentialsError,
            PartialCredentialsError,
        )

        try:
            return act()
        except (FileNotFoundError, IsADirectoryError) as error:
            raise DataError(f"{self._url} is no object there; check bucket and key.") from error
        except (PermissionError, NoCredentialsError, PartialCredentialsError) as error:
            raise DataError(
                f"{self._url} may not be read ({_first_line(error)}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a "
                "profile, or give the https address of a public object."
            ) from error
        except (OSError, BotoCoreError, aiohttp.ClientError) as error:
            raise _NetworkError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0][:160]
