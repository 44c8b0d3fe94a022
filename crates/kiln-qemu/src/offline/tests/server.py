"""An NBD server up to the first read; what it does then is put in for the last word."""
import os
import socket
import struct
import sys
import time

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[sys.argv.index("--socket") + 1])
listener.listen(1)
peer, _ = listener.accept()


def reply(kind, data):
    return struct.pack(">QIII", 0x3E889045565A9, 7, kind, len(data)) + data


peer.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
peer.recv(4 + 16 + 6, socket.MSG_WAITALL)
peer.sendall(reply(3, struct.pack(">HQH", 0, 1 << 20, 3)) + reply(1, b""))
peer.recv(28, socket.MSG_WAITALL)
open(os.path.join(os.path.dirname(__file__), "asked"), "w").close()
THEN
