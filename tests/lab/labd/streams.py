"""Where a command of the lab reads and writes, and other programs joined to it by pipes."""

import os
import signal
import subprocess
import threading

# A program beside the server stays in the group that the server can end.
OWN_GROUP = True
# After a program's end, what its children still hold open is not waited for longer.
DRAIN = 2.0


class Octets:
    """Input that is all there."""

    def __init__(self, octets=b""):
        self.octets = octets

    def read(self, most=1 << 16, stop=None):
        taken, self.octets = self.octets[:most], self.octets[most:]
        return taken


class Descriptor:
    """Input and output of a process of its own."""

    def __init__(self, number):
        self.number = number

    def read(self, most=1 << 16, stop=None):
        return os.read(self.number, most)

    def write(self, octets):
        while octets:
            octets = octets[os.write(self.number, octets) :]


class Sent:
    """A command's standard input, which Send feeds."""

    def __init__(self, stdin):
        self.stdin = stdin

    def read(self, most=1 << 16, stop=None):
        return self.stdin.read(most, stop)


class Stream:
    """A command's standard output or error."""

    def __init__(self, command, name):
        self.command = command
        self.name = name

    def write(self, octets):
        self.command.write(self.name, octets)


class Kept:
    """Output that the next command of a pipe reads."""

    def __init__(self):
        self.octets = b""

    def write(self, octets):
        self.octets += octets


class File:
    def __init__(self, path, append):
        self.file = open(path, "ab" if append else "wb", buffering=0)

    def write(self, octets):
        self.file.write(octets)

    def close(self):
        self.file.close()


class Nothing:
    def read(self, most=1 << 16, stop=None):
        return b""

    def write(self, octets):
        pass


class Streams:
    def __init__(self, stdin, stdout, stderr):
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr


def run(argv, environment, directory, streams, when_killed):
    """Runs a program to its end, in a process group of its own that a kill ends; its exit code."""
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=directory,
        start_new_session=OWN_GROUP, bufsize=0,
    )  # fmt: skip

    def kill():
        if process.poll() is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    when_killed(kill)

    def feed():
        try:
            while octets := streams.stdin.read(1 << 16, lambda: process.poll() is not None):
                Descriptor(process.stdin.fileno()).write(octets)
        except Exception:  # its end, or the command's: either way there is nobody to feed
            pass
        finally:
            process.stdin.close()

    def drain(pipe, sink):
        try:
            while octets := os.read(pipe.fileno(), 1 << 16):
                sink.write(octets)
        except Exception:  # the command was killed
            kill()

    threads = [
        threading.Thread(target=drain, args=(process.stdout, streams.stdout), daemon=True),
        threading.Thread(target=drain, args=(process.stderr, streams.stderr), daemon=True),
    ]
    for thread in [*threads, threading.Thread(target=feed, daemon=True)]:
        thread.start()
    code = process.wait()
    for thread in threads:
        thread.join(DRAIN)
    return code if code >= 0 else 1
