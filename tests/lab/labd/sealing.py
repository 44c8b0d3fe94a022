"""Sealed messages over HTTP (MS-WSMV 2.2.9.1): `multipart/encrypted` with two parts.

Read by the announced length of the signature and to the closing boundary at the very
end, never by searching for the boundary in sealed octets. Part headers may begin with a
tab or not; all clients and Windows send it.
"""

import re
import struct

PROTOCOL = "application/HTTP-SPNEGO-session-encrypted"
BOUNDARY = b"--Encrypted Boundary"
CONTENT_TYPE = f'multipart/encrypted;protocol="{PROTOCOL}";boundary="Encrypted Boundary"'
SOAP_TYPE = "application/soap+xml;charset=UTF-8"

HEAD = re.compile(
    rb"--\s?Encrypted Boundary\r\n"
    rb"(?P<head>(?:[^\r\n]+\r\n)+)"
    rb"--\s?Encrypted Boundary\r\n"
    rb"[ \t]*Content-Type: ?application/octet-stream\r\n",
    re.IGNORECASE,
)
TAIL = re.compile(rb"--\s?Encrypted Boundary--(\r\n)?\Z")
LENGTH = re.compile(rb"Length=(\d+)")


class Malformed(Exception):
    """Not a sealed message."""


def is_sealed(content_type):
    return content_type.lower().startswith("multipart/encrypted")


def open_message(body, context):
    """The plain text. Raises `Malformed`, or the context's `BadSeal`."""
    head = HEAD.match(body)
    tail = TAIL.search(body)
    if not head or not tail:
        raise Malformed("no two parts")
    length = LENGTH.search(head["head"])
    if not length:
        raise Malformed("no length")
    sealed = body[head.end() : tail.start()]
    if len(sealed) < 4:
        raise Malformed("no signature length")
    (size,) = struct.unpack_from("<I", sealed)
    if size != 16 or len(sealed) < 4 + size:
        raise Malformed(f"a signature of {size} octets")
    plain = context.unwrap(sealed[4 : 4 + size], sealed[4 + size :])
    if len(plain) != int(length[1]):
        raise Malformed(f"{len(plain)} octets where {int(length[1])} are announced")
    return plain


def seal_message(plain, context, rule=None):
    """The body of a sealed answer, spoiled as `rule` says."""
    signature, sealed = context.wrap(plain)
    length = len(plain)
    fault = rule.fault if rule else None
    if fault == "bad-mic":
        # Octets 4..12 of an NTLM signature are the checksum.
        signature = signature[:4] + bytes(octet ^ 0xFF for octet in signature[4:12]) + signature[12:]
    elif fault == "corrupt":
        middle = len(sealed) // 2
        sealed = sealed[:middle] + bytes([sealed[middle] ^ 0x01]) + sealed[middle + 1 :]
    elif fault == "wrong-length":
        length += int(rule.option("delta", 1))
    return b"".join(
        [
            BOUNDARY + b"\r\n",
            f"\tContent-Type: {PROTOCOL}\r\n".encode(),
            f"\tOriginalContent: type={SOAP_TYPE};Length={length}\r\n".encode(),
            BOUNDARY + b"\r\n",
            b"\tContent-Type: application/octet-stream\r\n",
            struct.pack("<I", len(signature)),
            signature,
            sealed,
            BOUNDARY + b"--\r\n",
        ]
    )
