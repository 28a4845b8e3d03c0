"""Makes raw requests at random: well-formed ones, malformed ones, and ones of which a few bytes are changed.

Each has a body that is a request for `/smuggled`. Whatever is wrong with the head or the framing, by every reading
under which these bytes are a body they must not be answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import h11

HOST = b"Host: localhost\r\n"
UPGRADES = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    b"Connection: upgrade\r\nUpgrade: foo/2\r\n",
    b"UPGRADE: H2C\r\nConnection: keep-alive, UPGRADE\r\nUpgrade: websocket\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
    b"Upgrade: websocket\r\n",
    b"Connection: upgrade\r\nUpgrade:\r\n",
]
SOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n"
KEYS = [b"AAAAAAAAAAAAAAAAAAAAAA==", b"none"]
EXTENSIONS = [b"", b"", b";a", b";a=b", b';a="b; c"', b";" + b"a" * 300]
TRAILERS = [b"", b"", b"X-A: b\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Host: elsewhere\r\n"]
LINES = [b"", b"", b"X-A:\r\n", b"Expect: 100-continue\r\n", b"X-A: \xff\t b\r\n", b"X: y\r\n" * 300]
SEPARATORS = [b"\r", b"\n", b" ", b":", b"0", b"\x00"]

MALFORMED_LENGTHS = [
    b"Content-Length: %(n)d\r\nContent-Length: 0\r\n",
    b"Content-Length: 0\r\nContent-Length: %(n)d\r\n",
    b"Content-Length: %(n)d\r\nContent-Length: %(n)d\r\n",
    b"Content-Length: 0, %(n)d\r\n",
    b"Content-Length: +%(n)d\r\n",
    b"Content-Length: -%(n)d\r\n",
    b"Content-Length: 0x%(n)x\r\n",
    b"Content-Length: %(n)d.0\r\n",
    b"Content-Length: 1 %(n)d\r\n",
    b"Content-Length: 99999999999999999999%(n)d\r\n",
    b"Content-Length:\r\n %(n)d\r\n",
    b"Content-Length :%(n)d\r\n",
    b"Content-Length\x00: %(n)d\r\n",
    b"Content-Length: \x00%(n)d\r\n",
    b"X-A: b\nContent-Length: %(n)d\r\n",
    b"X-A: b\rContent-Length: %(n)d\r\n",
    b"X-A: b\r\n Content-Length: %(n)d\r\n",
    b"Content-Length: %(n)d\n",
    b" Content-Length: %(n)d\r\n",
    b": b\r\nContent-Length: %(n)d\r\n",
    b"Content-Length: %(n)d\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: %(n)d\r\n",
    b"Transfer-Encoding: identity\r\nContent-Length: %(n)d\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    b"Transfer-Encoding:\r\n chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n",
    b"Transfer-Encoding: chunked\n",
    b'Transfer-Encoding: "chunked"\r\n',
]
MALFORMED_CHUNKS = [
    b"0x%(n)x\r\n%(body)b\r\n0\r\n\r\n",
    b"-%(n)x\r\n%(body)b\r\n0\r\n\r\n",
    b" %(n)x\r\n%(body)b\r\n0\r\n\r\n",
    b"%(n)x \r\n%(body)b\r\n0\r\n\r\n",
    b"%(n)x\n%(body)b\n0\n\n",
    b"%(n)x\r%(body)b\r0\r\r",
    b"%(n)x;a\n%(body)b\r\n0\r\n\r\n",
    b"%(n)x;a\x00\r\n%(body)b\r\n0\r\n\r\n",
    b"%(n)x\r\n%(body)bXX0\r\n\r\n",
    b"1000000000000000%(n)x\r\n%(body)b\r\n0\r\n\r\n",
    b"\r\n%(body)b\r\n0\r\n\r\n",
    b"1\r\na\r\nzz\r\n%(body)b",
    b"1\r\na\r\n%(body)b",
    b"%(n)x\r\n%(body)b\r\n0\r\nContent-Length: 0\r\n\r\n",
    b"%(n)x\r\n%(body)b\r\n0\r\nX A: b\r\n\r\n",
]


@dataclass
class Sent:
    """One request. answered: the path that is answered with 200; None for a request that is not well-formed."""

    data: bytes
    answered: str | None = None


def smuggled(number: int) -> bytes:
    return b"GET /smuggled/%d HTTP/1.1\r\n%b\r\n" % (number, HOST)


def well_formed(random: Random, number: int) -> Sent:
    """Return a request that any server must answer, whatever protocol it asks for."""
    framing, content = _framed(random, smuggled(number) * random.choice([1, 1, 3]))
    head = _head(random, number, HOST, framing, random.choice(LINES), random.choice([b"", *UPGRADES]))
    return Sent(head + content, f"/asked/{number}")


def malformed(random: Random, number: int) -> Sent:
    """Return a request with a framing that some servers read in one way, and others in another."""
    body = smuggled(number)
    if random.randrange(2):
        framing = random.choice(MALFORMED_LENGTHS) % {b"n": len(body)}
        content = random.choice([body, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)])
    else:
        framing = b"Transfer-Encoding: chunked\r\n"
        content = random.choice(MALFORMED_CHUNKS) % {b"n": len(body), b"body": body}
    return Sent(_head(random, number, HOST, framing, random.choice([b"", *UPGRADES])) + content)


def socket_with_body(random: Random, number: int) -> Sent:
    """Return a request for a socket, perhaps an incomplete one, with a body."""
    framing, content = _framed(random, smuggled(number))
    return Sent(_head(random, number, HOST, SOCKET % random.choice(KEYS), framing) + content)


def changed(random: Random, number: int) -> Sent:
    """Return a request of which one byte is changed, left out or added."""
    framing, content = _framed(random, smuggled(number))
    data = b"POST /asked/%d HTTP/1.1\r\n%b%b\r\n%b" % (number, HOST, framing, content)
    place = random.randrange(len(data))
    added = random.choice([b"", bytes([random.randrange(256)]), random.choice(SEPARATORS)])
    return Sent(data[:place] + added + data[place + random.randrange(2) :])


def requests_in(data: bytes) -> list[str]:
    """Return the paths of the requests that another parser, h11, finds in what a client sent."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    found = []
    try:
        while True:
            match connection.next_event():
                case h11.Request(target=target):
                    found.append(target.decode())
                case h11.EndOfMessage():
                    _answer(connection)
                case h11.NEED_DATA | h11.PAUSED:
                    return found
                case _:
                    pass
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return found


def _head(random: Random, number: int, *lines: bytes) -> bytes:
    shuffled = b"".join(random.sample(lines, len(lines)))
    return b"%b /asked/%d HTTP/1.1\r\n%b\r\n" % (random.choice([b"POST", b"GET", b"PUT"]), number, shuffled)


def _answer(connection: h11.Connection) -> None:
    connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.start_next_cycle()


def _framed(random: Random, body: bytes) -> tuple[bytes, bytes]:
    """Return the line of the head that frames a body, and the body in that framing."""
    if random.randrange(2):
        return b"Content-Length: %d\r\n" % len(body), body
    cuts = sorted(random.randrange(1, len(body)) for _ in range(random.randrange(4)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True) if start < end]
    chunks = [b"%x%b\r\n%b\r\n" % (len(each), random.choice(EXTENSIONS), each) for each in pieces]
    return b"Transfer-Encoding: chunked\r\n", b"".join(chunks) + b"0\r\n" + random.choice(TRAILERS) + b"\r\n"
