"""
A TCP proxy that breaks connections: all at once, in the middle of a frame, or right after a COMMIT was sent.

Every break happens on purpose and is counted, so that a run can say that it has done what it claims.
"""

import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

Address = tuple[str, int]

_CHUNK_BYTES = 65_536
_CONNECT_SECONDS = 2.0
_PROTOCOL_3 = 3 << 16
_ENCRYPTION_REQUESTS = {80877103, 80877104}  # SSLRequest and GSSENCRequest, which the server refuses
_TYPED_HEADER_BYTES = 5
_STARTUP_HEADER_BYTES = 8


class CommitSpotter:
    """
    Finds COMMIT in what a PostgreSQL client sends (protocol 3.0, not encrypted).

    A message is its type in one byte, its length in four including themselves, and its content; those before
    the session has begun have no type. COMMIT comes as a simple query, or parsed and then executed up to the
    next Sync.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._begun = False
        self._parsed = False

    def feed(self, data: bytes) -> int | None:
        """Return after how many of these bytes a COMMIT is complete, or None when there is none."""
        before = len(self._buffer)
        self._buffer += data
        used, found = 0, None
        while (size := self._size_of_message(used)) is not None:
            message = self._buffer[used : used + size]
            used += size
            if self._is_commit(message) and found is None:
                found = used - before
        self._buffer = self._buffer[used:]
        return found

    def _size_of_message(self, start: int) -> int | None:
        left = len(self._buffer) - start
        header = _TYPED_HEADER_BYTES if self._begun else _STARTUP_HEADER_BYTES
        if left < header:
            return None
        at = start + 1 if self._begun else start
        (length,) = struct.unpack_from("!I", self._buffer, at)
        size = int(length) + (1 if self._begun else 0)
        return size if left >= size else None

    def _is_commit(self, message: bytes) -> bool:
        if not self._begun:
            (code,) = struct.unpack_from("!I", message, 4)
            self._begun = code not in _ENCRYPTION_REQUESTS and code >= _PROTOCOL_3
            return False
        kind, content = message[:1], message[_TYPED_HEADER_BYTES:]
        if kind == b"Q":
            return _is_commit_statement(content.rstrip(b"\0"))
        if kind == b"P":
            self._parsed = self._parsed or _is_commit_statement(content.split(b"\0")[1])
        elif kind == b"S" and self._parsed:
            self._parsed = False
            return True
        return False


def _is_commit_statement(statement: bytes) -> bool:
    return statement.strip().rstrip(b";").upper() == b"COMMIT"


class Cable:
    """
    Between clients and a server with several addresses, the first reachable of which is taken in turn.

    Args:
        targets: where the server is now; asked at each connection.
        draw: decides where in a chunk it is cut, and on which side of a COMMIT.
        database: whether PostgreSQL is spoken here.
    """

    def __init__(
        self, targets: Callable[[], Sequence[Address]], draw: random.Random, *, database: bool = False
    ) -> None:
        self._targets = targets
        self._draw = draw
        self._database = database
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._address: Address = self._listener.getsockname()[:2]
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._turn = 0
        self._frames_to_cut = 0
        self._commits_to_cut = 0
        self._plugged = True
        self.cuts: Counter[str] = Counter()
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, url: str) -> str:
        """Return a URL of the server's that leads through this cable."""
        parts = urlsplit(url)
        host, port = self._address
        return parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{host}:{port}").geturl()

    def cut(self) -> None:
        """Break every connection now; new ones come through."""
        with self._lock:
            links, self._links = self._links, set()
        self.cuts["connections"] += len(links)
        for link in links:
            link.close()

    def cut_in_mid_frame(self, count: int) -> None:
        """Let only a part of the next few chunks through, and break their connections there."""
        with self._lock:
            self._frames_to_cut = count

    def cut_at_commits(self, count: int) -> None:
        """Break the next few connections over which a COMMIT is sent, before the answer comes."""
        with self._lock:
            self._commits_to_cut = count

    @property
    def commits_cut(self) -> int:
        return self.cuts["after COMMIT"] + self.cuts["within COMMIT"]

    def unplug(self) -> None:
        """Break every connection and let none come through."""
        self._plugged = False
        self.cut()

    def plug(self) -> None:
        self._plugged = True

    def disarm(self) -> None:
        """Cut nothing more."""
        with self._lock:
            self._frames_to_cut = self._commits_to_cut = 0
        self.plug()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def takes_frame(self, size: int) -> int | None:
        """Return after how many bytes of a chunk to cut, or None to let it pass."""
        with self._lock:
            if not self._frames_to_cut or size < 2:
                return None
            self._frames_to_cut -= 1
            self.cuts["in mid-frame"] += 1
            return self._draw.randrange(1, size)

    def takes_commit(self) -> bool | None:
        """Return whether the server hears the COMMIT that is being cut, or None to let it pass."""
        with self._lock:
            if not self._commits_to_cut:
                return None
            self._commits_to_cut -= 1
            heard = self._draw.random() < 0.7
            self.cuts["after COMMIT" if heard else "within COMMIT"] += 1
            return heard

    def forget(self, link: "_Link") -> None:
        with self._lock:
            self._links.discard(link)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        far = self._reach() if self._plugged else None
        if far is None:
            near.close()
            return
        link = _Link(self, near, far, CommitSpotter() if self._database else None)
        with self._lock:
            self._links.add(link)
        link.start()

    def _reach(self) -> socket.socket | None:
        targets = self._targets()
        for _ in targets:
            self._turn += 1
            with contextlib.suppress(OSError):
                return socket.create_connection(targets[self._turn % len(targets)], _CONNECT_SECONDS)
        return None


class _Link:
    """One connection through a cable; a thread for each direction."""

    def __init__(
        self, cable: Cable, near: socket.socket, far: socket.socket, spotter: CommitSpotter | None
    ) -> None:
        self._cable = cable
        self._near, self._far = near, far
        self._spotter = spotter
        self._swallow_answer = False
        far.settimeout(None)
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        for source, sink in ((self._near, self._far), (self._far, self._near)):
            threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def close(self) -> None:
        self._cable.forget(self)
        for end in (self._near, self._far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(_CHUNK_BYTES):
                if source is self._far and self._swallow_answer:
                    return
                if source is self._near and self._cut_commit(data):
                    continue
                upto = self._cable.takes_frame(len(data))
                sink.sendall(data[:upto])
                if upto is not None:
                    return
        except OSError:
            return
        finally:
            self.close()

    def _cut_commit(self, data: bytes) -> bool:
        """Whether this was a COMMIT to cut: the server gets it whole and nobody its answer, or a part."""
        end = self._spotter.feed(data) if self._spotter is not None else None
        heard = self._cable.takes_commit() if end is not None else None
        if heard is None:
            return False
        if not heard:
            assert end is not None
            self._far.sendall(data[: max(0, end - 1)])
            self.close()
            return True
        # The thread of the other direction closes the connection when the answer comes.
        self._swallow_answer = True
        self._far.sendall(data)
        return True
