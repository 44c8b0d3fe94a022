"""The backend `linux`: commands are done by the lab's own cmd and the PowerShell engine.

A backend is a class with `check` (may this line be started?), `start` (begin it, and write to, end or be
killed through its `Command`), and `up` and `down`, between which a boot lasts. The other is backend_wine.
"""

import threading

from . import cmdline, soap
from .interpreter import PROGRAMS, Interpreter, stem
from .shells import Killed
from .soap import Fault
from .streams import Sent, Stream, Streams

CMD_LINE = 8191  # characters that cmd.exe takes
PROCESS_LINE = 32767  # characters that CreateProcess takes


class LinuxBackend:
    def __init__(self, machine, power, engine, lab):
        self.machine = machine
        self.power = power
        self.engine = engine
        self.lab = lab

    def up(self, boot):
        """Commands are processes of their own: a boot has nothing else."""

    def down(self, boot):
        """Its commands were ended one by one."""

    def check(self, line, skip_cmd):
        """Raises the fault of a command that cannot be started."""
        if len(line) > (PROCESS_LINE if skip_cmd else CMD_LINE):
            raise Fault(soap.LINE_TOO_LONG)
        # Without cmd there is nobody who knows `echo`: Windows looks for a program.
        if skip_cmd and stem(cmdline.split_name(line)[0]) not in PROGRAMS:
            raise Fault(soap.FILE_NOT_FOUND)

    def start(self, command):
        threading.Thread(target=self._run, args=(command,), daemon=True).start()

    def _run(self, command):
        shell = command.shell
        boot = {"ID": shell.boot.id, "TIME": f"{shell.boot.time:.3f}", "COUNT": str(shell.boot.number)}
        boot = {f"LAB_BOOT_{name}": value for name, value in boot.items()}
        interpreter = Interpreter(
            self.machine, self.power, self.engine, {**self.machine.environment(), **shell.variables}, shell.directory,
            command.when_killed, command.killed, {**self.lab, **boot},
        )  # fmt: skip
        streams = Streams(Sent(command.stdin), Stream(command, "stdout"), Stream(command, "stderr"))
        code = 250
        try:
            if command.skip_cmd:
                name, rest = cmdline.split_name(command.line)
                code = interpreter.program(name, cmdline.split_arguments(rest), streams)
            else:
                code = interpreter.line(command.line, streams)
        except Killed:
            pass
        except Exception as error:  # a defect of the lab must not look like a quiet command
            try:
                streams.stderr.write(f"lab: failed: {type(error).__name__}: {error}\r\n".encode())
            except Killed:
                pass
        finally:
            command.finish(code)
