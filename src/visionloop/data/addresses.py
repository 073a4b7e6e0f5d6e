"""Which addresses may be asked for a file: those that a stranger's line in params.yaml may name without reaching inside.

Hosts are judged twice: as they are written (`url_fault`), and as the address that a socket is about to connect to
(`address_fault`), since a name may mean one address when it is checked and another when it is used.

Does not cover: asking them (`data/download.py`), and filters by host name; any public host may be named.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

MAX_URL_CHARACTERS = 2048  # servers and proxies refuse longer ones, and no archive needs them
# Ports below 1024 belong to mail, shells and the like, some of which take a request's text for commands.
WEB_PORTS = (80, 443)
FIRST_FREE_PORT = 1024

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_ALLOW = "set collect.options.allow_private_hosts if that is meant"
_BUCKET = re.compile(r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
_NEVER = (ipaddress.ip_network("255.255.255.255/32"), ipaddress.ip_network("0.0.0.0/8"))
# Public by the tables of Python 3.11, and yet within a provider's or an organisation's own network.
_INTERNAL = (
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's host, which answers for a machine's own settings
    ipaddress.ip_network("192.0.0.0/24"),  # RFC 6890; a cloud keeps machine metadata here
    ipaddress.ip_network("192.88.99.0/24"),  # RFC 7526, the relays of 6to4
    ipaddress.ip_network("fec0::/10"),  # RFC 3879, the old site-local addresses
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address


def url_fault(url: str, *, allow_private_hosts: bool) -> str | None:
    """Why an address is refused, as a sentence without a full stop; None where it may be asked.

    Looks at the text alone: no name is resolved.

    >>> url_fault("http://[::1]/a.zip", allow_private_hosts=False)
    "url 'http://[::1]/a.zip' leads to ::1, an address of this machine or its own network; set ..."
    """
    why = next(_faults(url, allow_private_hosts), None)
    shown = url if len(url) <= 120 else f"{url[:100]}…"
    return None if why is None else f"url {shown!r} {why}"


def address_fault(address: Address, *, allow_private_hosts: bool) -> str | None:
    """Why no connection is made to this address; None where it may be."""
    address = _embedded(address)
    # Clouds hand out a machine's credentials at link-local addresses; no archive lies there, whatever is allowed.
    if address.is_link_local or address.is_multicast or address.is_unspecified or any(address in net for net in _NEVER):
        return "an address that no archive is fetched from"
    if not allow_private_hosts and (not address.is_global or any(address in net for net in _INTERNAL)):
        return f"an address of this machine or its own network; {_ALLOW}"
    return None


def port_fault(port: int) -> str | None:
    """Why no connection is made to this port; None where it may be."""
    if port in WEB_PORTS or port >= FIRST_FREE_PORT:
        return None
    return f"names port {port}; files are read from ports 80, 443 and those from {FIRST_FREE_PORT} on"


def _faults(url: str, allow_private_hosts: bool) -> Iterator[str]:
    if len(url) > MAX_URL_CHARACTERS:
        yield f"has {len(url):,} characters; at most {MAX_URL_CHARACTERS:,} are taken"
    if not url.isprintable() or re.search(r"[\s\\]", url):
        yield "has a space, a backslash or a control character; write it as %20 or the like"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        yield f"is no address ({error})"
        return
    if parts.scheme == "s3":
        if not _BUCKET.match(parts.netloc) or len(parts.path) < 2:
            yield "is not of the form s3://bucket/key, with a bucket of 3 to 63 small letters, digits, dots and dashes"
        return
    if parts.scheme not in ("http", "https"):
        scheme = f"begins with {parts.scheme!r}" if parts.scheme else "has no scheme"
        yield f"{scheme}; https, http and s3 are read, and a file of this machine by the option `file`"
    if "@" in parts.netloc:
        yield "carries a name or password before the host; leave it out"
    if port is not None and (fault := port_fault(port)):
        yield fault
    yield from _host_faults(host, allow_private_hosts)


def _host_faults(host: str, allow_private_hosts: bool) -> Iterator[str]:
    if not host.isascii():
        # A letter of another script can look like a Latin one; its coded form cannot.
        with contextlib.suppress(UnicodeError):
            yield f"has letters in its host that may look like others; write {host.encode('idna').decode()} if that is meant"
        yield "has letters in its host that may look like others; write it in its coded form (xn--...)"
    name = host.rstrip(".")
    if not name or "%" in name:
        yield "names no host"
    address = _written_address(name)
    if address is not None and (fault := address_fault(address, allow_private_hosts=allow_private_hosts)):
        yield f"leads to {address}, {fault}"
    if not allow_private_hosts and (name == "localhost" or name.endswith(".localhost")):
        yield f"leads to {name}, this machine; {_ALLOW}"


def _written_address(name: str) -> Address | None:
    """The address that a host is, in any form that a resolver takes: 127.0.0.1, 127.1, 2130706433, 0x7f.1, ::1."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name)
    with contextlib.suppress(OSError):
        return ipaddress.ip_address(socket.inet_aton(name))
    return None


def _embedded(address: Address) -> Address:
    """The IPv4 address within an IPv6 address that leads to one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or address
