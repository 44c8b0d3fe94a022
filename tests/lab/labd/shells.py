"""Shells and commands of one boot, with Windows' quotas.

    Boot ── shells ──► Shell ── commands ──► Command ◄── a backend writes, ends, is killed
                                                 └── Receive waits here (a long poll)

A restart ends a `Boot` and with it every id. What Windows does and the lab follows:
* operations: each command of a text shell counts until its *shell* is deleted, Terminate
  gives nothing back;
* a command's id is gone once its end was told, and after Terminate;
* a Receive that waits when its command is terminated or its shell deleted ends with 995;
* a process whose output nobody fetches waits.
"""

import base64
import threading
import time

from . import soap
from .soap import Fault, over_quota

PIECE = 32 << 10  # octets of one Stream element
UNFETCHED = 1 << 20  # octets after which a process waits
CTRL_C_EXIT = 3221225786  # 0xC000013A, STATUS_CONTROL_C_EXIT
TERMINATED_EXIT = 1


class Killed(Exception):
    """The command was ended from outside; its thread is to return."""


class Stdin:
    """What Send brought and the command has not read."""

    def __init__(self, killed):
        self.condition = threading.Condition()
        self.data = bytearray()
        self.ended = False
        self.killed = killed

    def feed(self, octets, end):
        with self.condition:
            if not self.ended:
                self.data += octets
                self.ended = end
            self.condition.notify_all()

    def read(self, most=1 << 16, stop=None):
        """At least one octet, or none at the end or once `stop` says so."""
        with self.condition:
            while not self.data and not self.ended:
                if self.killed.is_set():
                    raise Killed
                if stop is not None and stop():
                    return b""
                self.condition.wait(0.5)
            octets = bytes(self.data[:most])
            del self.data[:most]
            return octets

    def wake(self):
        with self.condition:
            self.condition.notify_all()


class Command:
    def __init__(self, shell, line, skip_cmd):
        self.id = soap.new_id()
        self.shell = shell
        self.line = line
        self.skip_cmd = skip_cmd
        self.condition = threading.Condition()
        self.killed = threading.Event()
        self.stdin = Stdin(self.killed)
        self.pieces = []  # (stream, octets), in order
        self.offsets = {"stdout": 0, "stderr": 0}
        self.unfetched = 0
        self.exit_code = None
        self.signalled = None  # the exit code a signal gave
        self.told = False  # its end was
        self.gone = False
        self.on_kill = []

    def write(self, stream, octets):
        if not octets:
            return
        with self.condition:
            while self.unfetched >= UNFETCHED and not self.killed.is_set():
                self.condition.wait(0.5)
            if self.killed.is_set():
                raise Killed
            self.pieces += [(stream, octets[at : at + PIECE]) for at in range(0, len(octets), PIECE)]
            self.unfetched += len(octets)
            self.condition.notify_all()

    def finish(self, code):
        with self.condition:
            if self.exit_code is None:
                self.exit_code = self.signalled if self.signalled is not None else code & 0xFFFFFFFF
            self.condition.notify_all()

    def when_killed(self, act):
        """Runs `act` when the command is killed; at once if it was."""
        with self.condition:
            if not self.killed.is_set():
                self.on_kill.append(act)
                return
        act()

    def kill(self, code):
        with self.condition:
            if self.exit_code is None:
                self.signalled = code
            self.killed.set()
            acts, self.on_kill = self.on_kill, []
            self.condition.notify_all()
        self.stdin.wake()
        for act in acts:
            act()
        self.finish(code)

    def forget(self):
        """No operation finds it any more; who waits gets 995."""
        self.kill(TERMINATED_EXIT)
        with self.condition:
            self.gone = True
            self.condition.notify_all()

    def receive(self, request, limit, rule, is_gone):
        """One Receive: waits for output or the end. Raises `Fault`.

        Who has gone away meanwhile (`is_gone`) takes no output with him.
        """
        wanted = self._wanted(request)
        deadline = time.monotonic() + limit
        room = max(4096, min(request.max_envelope, self.shell.boot.quotas.max_envelope)) - 2500
        with self.condition:
            while True:
                if self.gone:
                    raise Fault(soap.ABORTED)
                if self.told:
                    raise Fault(soap.NO_SUCH, message=soap.NO_COMMAND)
                if any(stream in wanted for stream, _ in self.pieces) or self.exit_code is not None:
                    break
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Fault(soap.TIMED_OUT)
                self.condition.wait(min(left, 0.25))
                if is_gone():
                    raise Fault(soap.ABORTED)
            sent = self._take(wanted, room, rule)
            out = [(stream, base64.b64encode(octets).decode()) for stream, octets in sent]
            self.condition.notify_all()
            if self.exit_code is None or any(stream in wanted for stream, _ in self.pieces):
                return soap.received(request, self.id, out, "Running", None)
            self.told = True
        out += [(stream, None) for stream in ("stdout", "stderr") if stream in wanted]
        code = None if rule is not None and rule.fault == "no-exit-code" else self.exit_code
        return soap.received(request, self.id, out, "Done", code)

    def _wanted(self, request):
        desired = request.payload("Receive")
        desired = None if desired is None else desired.find(f"{{{soap.RSP}}}DesiredStream")
        names = ((desired.text if desired is not None else "") or "").split()
        if not names or any(name not in self.offsets for name in names):
            raise Fault(soap.INVALID_PARAMETER)
        return names

    def _take(self, wanted, room, rule):
        split = rule if rule is not None and rule.fault == "split" else None
        sent, kept = [], []
        for place, (stream, octets) in enumerate(self.pieces):
            if stream not in wanted:
                kept.append((stream, octets))
                continue
            most = max(0, (room - 130) * 3 // 4)
            if split is not None:
                most = min(most, self._until_cut(split, stream))
            if most <= 0:
                kept += self.pieces[place:]
                break
            taken, rest = octets[:most], octets[most:]
            sent.append((stream, taken))
            self.offsets[stream] += len(taken)
            self.unfetched -= len(taken)
            room -= len(taken) * 4 // 3 + 130
            if rest or split is not None:
                kept += ([(stream, rest)] if rest else []) + self.pieces[place + 1 :]
                break
        self.pieces = kept
        return sent

    def _until_cut(self, split, stream):
        """Octets up to the next place where the rule cuts this stream."""
        if split.option("at", None) is None:
            return max(1, int(split.option("size", 1)))
        ahead = [at - self.offsets[stream] for at in split.option("at", []) if at > self.offsets[stream]]
        return min(ahead, default=PIECE)


class Shell:
    def __init__(self, boot, owner, variables, directory, idle_timeout):
        self.id = soap.new_id()
        self.boot = boot
        self.owner = owner
        self.variables = variables
        self.directory = directory
        self.idle_timeout = idle_timeout
        self.lock = threading.Lock()
        self.commands = {}
        self.operations = 0  # commands ever started: given back with the shell
        self.busy = 0  # requests being answered
        self.used = time.monotonic()

    def __enter__(self):
        with self.lock:
            self.busy += 1
        return self

    def __exit__(self, *_):
        with self.lock:
            self.busy -= 1
            self.used = time.monotonic()

    def idle(self):
        with self.lock:
            return not self.busy and time.monotonic() - self.used > self.idle_timeout

    def add(self, command):
        with self.lock:
            self.commands[command.id] = command
            self.operations += 1

    def command(self, command_id):
        with self.lock:
            found = self.commands.get(command_id)
        if found is None:
            raise Fault(soap.NO_SUCH, message=soap.NO_COMMAND)
        return found

    def remove(self, command):
        with self.lock:
            self.commands.pop(command.id, None)
        command.forget()

    def end(self):
        with self.lock:
            commands, self.commands = list(self.commands.values()), {}
        for command in commands:
            command.forget()


class Quotas:
    """What `winrm get winrm/config` shows; the lab's defaults are MS-WSMV's and a 2016's."""

    def __init__(self, max_shells=30, max_operations=1500, max_envelope_kb=500, idle_timeout=7200.0):
        self.max_shells = max_shells
        self.max_operations = max_operations
        self.max_envelope = max_envelope_kb * 1024
        self.idle_timeout = idle_timeout
        self.max_timeout = 60.0  # MaxTimeoutms


class Boot:
    """Everything that a restart ends."""

    def __init__(self, quotas, number):
        self.id = soap.new_id()
        self.number = number  # counted from 1
        self.time = time.time()
        self.quotas = quotas
        self.lock = threading.Lock()
        self.shells = {}
        self.over = False

    def create(self, owner, variables, directory, idle_timeout):
        idle_timeout = min(idle_timeout or self.quotas.idle_timeout, self.quotas.idle_timeout)
        with self.lock:
            mine = [shell for shell in self.shells.values() if shell.owner == owner]
            if len(mine) >= self.quotas.max_shells:
                raise over_quota(soap.TOO_MANY_SHELLS, self.quotas.max_shells)
            shell = Shell(self, owner, variables, directory, idle_timeout)
            self.shells[shell.id] = shell
        return shell

    def shell(self, shell_id):
        with self.lock:
            found = self.shells.get(shell_id)
        if found is None:
            raise Fault(soap.NO_SUCH)
        return found

    def operation(self, owner):
        """Whether `owner` may start one more command; raises the quota's fault."""
        with self.lock:
            used = sum(shell.operations for shell in self.shells.values() if shell.owner == owner)
        if used >= self.quotas.max_operations:
            raise over_quota(soap.TOO_MANY_OPERATIONS, self.quotas.max_operations)

    def delete(self, shell):
        with self.lock:
            self.shells.pop(shell.id, None)
        shell.end()

    def reap(self):
        """Deletes shells that were idle for too long; answers how many."""
        with self.lock:
            idle = [shell for shell in self.shells.values() if shell.idle()]
        for shell in idle:
            self.delete(shell)
        return len(idle)

    def end(self):
        with self.lock:
            self.over = True
            shells, self.shells = list(self.shells.values()), {}
        for shell in shells:
            shell.end()
