"""HTTP/1.1 on one connection: reading requests, writing answers, and writing them badly.

Nothing here knows what a request means. An answer is written by `write`, which takes the
distortions a rule asks for: a body that stops, a body that drips, a body in chunks.
"""

import select
import socket
import ssl
import struct
import time

# More than any envelope a client may send; what is larger is no request.
BODY_LIMIT = 64 << 20
HEAD_LIMIT = 64 << 10

REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class Gone(Exception):
    """The other side closed the connection, or sent no HTTP."""


class Request:
    def __init__(self, method, target, headers, body, size):
        self.method = method
        self.target = target
        self.headers = headers  # names in lower case
        self.body = body
        self.size = size  # bytes on the wire, head and body

    def header(self, name):
        return self.headers.get(name.lower(), "")


class Connection:
    """One accepted connection; `sock` may be a TLS socket."""

    def __init__(self, sock, peer, number):
        self.sock = sock
        self.peer = peer
        self.number = number
        self.buffer = b""

    def _more(self):
        try:
            got = self.sock.recv(65536)
        except OSError as error:
            raise Gone(str(error)) from error
        if not got:
            raise Gone("closed")
        self.buffer += got

    def _take(self, count):
        parts, have = [self.buffer], len(self.buffer)
        self.buffer = b""
        while have < count:
            try:
                got = self.sock.recv(min(1 << 20, max(65536, count - have)))
            except OSError as error:
                raise Gone(str(error)) from error
            if not got:
                raise Gone("closed in a body")
            parts.append(got)
            have += len(got)
        whole = b"".join(parts)
        self.buffer = whole[count:]
        return whole[:count]

    def _line(self):
        while b"\r\n" not in self.buffer:
            if len(self.buffer) > HEAD_LIMIT:
                raise Gone("a line without an end")
            self._more()
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line

    def read(self):
        """The next request. Raises `Gone`."""
        while b"\r\n\r\n" not in self.buffer:
            if len(self.buffer) > HEAD_LIMIT:
                raise Gone("a head without an end")
            self._more()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise Gone("no request line")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while True:
                size = int(self._line().split(b";")[0], 16)
                if len(body) + size > BODY_LIMIT:
                    raise Gone("a body beyond every limit")
                body += self._take(size)
                self._line()
                if size == 0:
                    break
        else:
            try:
                size = int(headers.get("content-length", "0"))
            except ValueError as error:
                raise Gone("no length") from error
            if not 0 <= size <= BODY_LIMIT:
                raise Gone("a body beyond every limit")
            body = self._take(size)
        return Request(words[0], words[1], headers, body, len(head) + 4 + len(body))

    def send(self, octets):
        try:
            self.sock.sendall(octets)
        except OSError as error:
            raise Gone(str(error)) from error

    def write(self, status, headers, body, rule=None, before=lambda size: None):
        """Writes one answer, distorted as `rule` says; tells its size before the first byte goes."""
        chunked = rule is not None and rule.fault == "chunked"
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Other')}", "Server: kiln-lab"]
        lines += [f"{name}: {value}" for name, value in headers]
        lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if not chunked:
            before(len(head) + len(body))
        if rule is None or rule.fault not in ("chunked", "drip", "truncate"):
            self.send(head + body)
            return
        if chunked:
            size = max(1, int(rule.option("size", 7)))
            out = head
            for at in range(0, len(body), size):
                piece = body[at : at + size]
                out += b"%x;lab=1\r\n" % len(piece) + piece + b"\r\n"
            out += b"0\r\n\r\n"
            before(len(out))
            self.send(out)
            return
        if rule.fault == "truncate":
            keep = int(rule.option("after", len(body) // 2))
            self.send(head + body[:keep])
            raise Gone("truncated by a rule")
        count, pause = max(1, int(rule.option("bytes", 64))), float(rule.option("every_ms", 20)) / 1000
        for at in range(0, len(head + body), count):
            self.send((head + body)[at : at + count])
            time.sleep(pause)

    def is_gone(self):
        """Whether the other side has closed, while nothing of it is waited for."""
        try:
            if not select.select([self.sock], [], [], 0)[0]:
                return False
            # Past TLS, where an end is announced by octets: nothing else comes while an answer is due.
            return not socket.socket.recv(self.sock, 1, socket.MSG_PEEK) or isinstance(self.sock, ssl.SSLSocket)
        except (OSError, ValueError):
            return True

    def reset(self):
        """Closes so that the other side sees a reset, not an end. Only by the thread that reads."""
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.close()
        except OSError:
            pass

    def close(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        try:
            self.sock.close()
        except OSError:
            pass
