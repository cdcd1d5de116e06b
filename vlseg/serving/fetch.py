"""Images from URLs, where a server allows them: public addresses only, each looked up once and then held to.

The name is resolved here and the connection goes to the very address that was checked, so a name server that answers
differently the second time gains nothing. Redirects go through the same checks.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urljoin, urlsplit

from vlseg.serving.errors import ServiceError
from vlseg.version import __version__

PORTS = {"http": 80, "https": 443}
REDIRECTS = 3
CHUNK = 65536

_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address is one of the public Internet, also after what an IPv6 address wraps is taken out."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None and not is_public(inner):
            return False
    return address.is_global and not address.is_multicast


class Fetcher:
    """Fetches image files.

    max_bytes: of a file. seconds: for the whole fetch. allowed: which addresses may be asked. ports: which ports; both
    are arguments so that tests can fetch from a loopback server.
    """

    def __init__(
        self,
        max_bytes: int,
        seconds: float,
        allowed: Callable[[Address], bool] = is_public,
        ports: frozenset[int] = frozenset(PORTS.values()),
    ):
        self.max_bytes, self.seconds, self.allowed, self.ports = max_bytes, seconds, allowed, ports

    def __call__(self, url: str) -> bytes:
        """The bytes behind a URL. Raises ServiceError url_refused (422)."""
        end = time.monotonic() + self.seconds
        for _ in range(REDIRECTS + 1):
            parts = self._checked(url)
            try:
                data, target = self._get(parts, end)
            except ServiceError:
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise _refused("cannot be fetched", error) from error
            if target is None:
                return data
            url = urljoin(url, target)
        raise _refused(f"more than {REDIRECTS} redirects")

    def _checked(self, url: str) -> SplitResult:
        if not url.isascii() or not url.isprintable() or " " in url:
            raise _refused("the URL holds characters that belong percent-encoded")
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise _refused("not a URL") from error
        if parts.scheme not in PORTS or not parts.hostname:
            raise _refused("only http and https URLs are fetched")
        if parts.username is not None or parts.password is not None:
            raise _refused("URLs with a user name are not fetched")
        if port not in self.ports:
            raise _refused(f"port {port} is not asked")
        return parts

    def _address(self, host: str, port: int) -> str:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _refused("the host is not known") from error
        addresses = [str(entry[4][0]) for entry in found]
        # All of them, not only the one that is taken: a name with one private address is a trap.
        if not addresses or not all(self.allowed(ipaddress.ip_address(a.partition("%")[0])) for a in addresses):
            raise _refused("the host is not on the public Internet")
        return addresses[0]

    def _get(self, parts: SplitResult, end: float) -> tuple[bytes, str | None]:
        host = parts.hostname or ""
        port = parts.port or PORTS[parts.scheme]
        address = self._address(host, port)
        connection = _Pinned(host, port, address, parts.scheme == "https", end)
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"User-Agent": f"vlseg/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"}
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308):
                return b"", response.headers.get("Location") or ""
            if response.status != 200:
                raise _refused(f"its server answers {response.status}")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise _refused("its server sends it compressed")
            return self._read(response, end), None
        finally:
            connection.give_up()

    def _read(self, response: http.client.HTTPResponse, end: float) -> bytes:
        data = bytearray()
        while chunk := response.read1(CHUNK):
            data += chunk
            if len(data) > self.max_bytes:
                raise _refused(f"the file is larger than {self.max_bytes} bytes")
        _left(end)  # a connection that was cut looks like one that is done
        return bytes(data)


class _Pinned(http.client.HTTPConnection):
    """A connection that goes to one address, whatever its host is called; TLS still checks the name of the host.

    It is cut at `end`, whatever the other side sends or how slowly: a timeout of a socket starts anew with every byte.
    """

    def __init__(self, host: str, port: int, address: str, tls: bool, end: float):
        super().__init__(host, port)
        self._address, self._tls, self._end = address, tls, end
        self.default_port = PORTS["https" if tls else "http"]  # so that the Host header leaves it out
        self._wire: socket.socket | None = None
        self._cut = threading.Timer(_left(end), self._shut)
        self._cut.daemon = True

    def connect(self) -> None:
        self._wire = socket.create_connection((self._address, self.port), _left(self._end))
        self._cut.start()
        if self._tls:
            # The handshake comes after the wrapping, which moves the connection to a socket of its own.
            context = ssl.create_default_context()
            wrapped = context.wrap_socket(self._wire, server_hostname=self.host, do_handshake_on_connect=False)
            self._wire = wrapped
            wrapped.do_handshake()
        self.sock = self._wire

    def give_up(self) -> None:
        """Close, and call off the cut."""
        self._cut.cancel()
        if self._wire is not None:
            self._wire.close()
        self.close()

    def _shut(self) -> None:
        with contextlib.suppress(OSError):  # it may be closed already
            if self._wire is not None:
                # of the plain class: that of TLS would forget its state under the feet of a reader
                socket.socket.shutdown(self._wire, socket.SHUT_RDWR)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise _refused("it took too long")
    return left


def _refused(what: str, error: BaseException | None = None) -> ServiceError:
    # Details such as an address would tell a stranger of the network that the server stands in.
    detail = "" if error is None else f" ({type(error).__name__})"
    return ServiceError("url_refused", f"url: {what}{detail}")
