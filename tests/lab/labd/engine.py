"""powershell.exe of the lab: the real engine where there is one, else a table of known scripts.

The engine runs on Linux, so paths are prepared for it:
* `c:` is a drive of PowerShell's made by the prelude, whatever cmdlet asks for it;
* its working directory has a link `c:`, so .NET finds `c:/…` too (forward slashes only);
* `-File` and the variables that hold folders (TEMP, SystemRoot, …) are Linux paths.
Without the engine a script that the table does not hold ends with code 250.
"""

import base64
import binascii
import json
import os

from . import streams as io

NOT_HERE = 250
POLICY = {"executionpolicy"[:length] for length in range(2, 16)} | {"ep"}
ENCODED = {"encodedcommand"[:length] for length in range(1, 15)} | {"ec"}
WITH_VALUE = ("inputformat", "outputformat", "windowstyle", "workingdirectory", "version", "configurationname")
# Not folders for a program on Linux.
UNTRANSLATED = {"PATH", "COMSPEC"}

PRELUDE = r"""
& {
    $files = $ExecutionContext.SessionState.Provider.GetOne('FileSystem')
    $drive = [System.Management.Automation.PSDriveInfo]::new('C', $files, $env:LAB_ROOT, 'the disk of the lab', $null)
    $null = $ExecutionContext.SessionState.Drive.New($drive, 'global')
    Set-Location -LiteralPath $env:LAB_DIRECTORY
}
# Linux keeps eight bits of an exit code, and shutdown's are larger.
function global:shutdown.exe {
    $env:LAB_CODE_FILE = "$env:LAB_STATE/code.$PID"
    & "$env:LAB_STATE/bin/shutdown" @args
    $global:LASTEXITCODE = [int][IO.File]::ReadAllText($env:LAB_CODE_FILE)
    $env:LAB_CODE_FILE = $null
}
function global:shutdown { shutdown.exe @args }
foreach ($double in $env:LAB_PRELUDE -split ':') { if ($double) { . $double } }
"""


class Options:
    """The part of PowerShell's command line that the lab must understand."""

    def __init__(self, words):
        self.words = []  # as the engine on Linux takes them
        self.file = None  # where in `words` the script's path is
        self.script = None  # text to run; none when a file or standard input has it
        at = 0
        while at < len(words):
            word = words[at]
            name = word.lstrip("-/").lower() if word[:1] in ("-", "/") else None
            if name is None:
                self.script = " ".join(words[at:])
            elif name and "file".startswith(name):
                self.file = len(self.words) + 1
            elif name and "command".startswith(name):
                self.script = None if words[at + 1 : at + 2] == ["-"] else " ".join(words[at + 1 :])
            elif name in POLICY:
                # PowerShell has none on Linux: a complete one ignores the option, the engine fails at it.
                at += 2
                continue
            else:
                takes_value = name in ENCODED or any(each.startswith(name) for each in WITH_VALUE if len(name) > 1)
                if name in ENCODED:
                    self.script = decoded(words[at + 1 : at + 2])
                self.words += words[at : at + 1 + takes_value]
                at += 1 + takes_value
                continue
            self.words += words[at:]
            return


def decoded(words):
    try:
        return base64.b64decode("".join(words)).decode("utf-16-le")
    except (binascii.Error, UnicodeDecodeError):
        return ""


class Engine:
    def __init__(self, folder, state, preludes, control, answers):
        self.program = os.path.join(folder, "pwsh") if folder else None
        self.state = state
        self.preludes = preludes
        self.control = control
        self.answers = answers

    def prepare(self, machine, programs):
        """Makes what the engine's processes find: the prelude, the drive's links, the lab's programs."""
        with open(os.path.join(self.state, "prelude.ps1"), "w", encoding="utf-8") as file:
            file.write(PRELUDE)
        place = os.path.join(self.state, "drives")
        os.makedirs(place, exist_ok=True)
        for name in ("c:", "C:"):
            os.symlink(machine.root, os.path.join(place, name))
        folder = os.path.join(self.state, "bin")
        os.makedirs(folder, exist_ok=True)
        for name in programs:
            for ending in ("", ".exe"):
                path = os.path.join(folder, name + ending)
                with open(path, "w", encoding="utf-8") as file:
                    file.write(f'#!/bin/sh\nexec "$LAB_PYTHON" "$LAB_PROGRAM" {name} "$@"\n')
                os.chmod(path, 0o755)

    def run(self, words, interpreter, streams):
        machine = interpreter.machine
        options = Options(words)
        words = options.words
        if options.file is not None and options.file < len(words):
            words[options.file] = interpreter.path(words[options.file])
        if self.program is None:
            return self._known(options, words, interpreter, streams)
        environment = self.environment(machine, interpreter)
        place = os.path.join(self.state, "drives")
        return io.run([self.program, *words], environment, place, streams, interpreter.when_killed)

    def environment(self, machine, interpreter):
        # Only the lab's own programs are on the path: `shutdown` must never be this machine's.
        made = {}
        for name, value in interpreter.variables.items():
            if name.upper() in UNTRANSLATED:
                continue
            if value.startswith("C:\\") and name in machine.environment():
                value = machine.native(value)
            # Windows does not tell `$env:TEMP` from `$env:temp`, Linux does.
            for spelling in {name, name.upper(), name.lower()}:
                made[spelling] = value
        made.update(interpreter.lab)
        made.update(
            PATH=os.path.join(self.state, "bin"),
            HOME=machine.native(machine.home),
            TMPDIR=made.get("TEMP", "/tmp"),
            LABPWSH_AS="powershell",
            # Else .NET keeps a socket open in TEMP, which a disk that is to be unmounted must not have.
            DOTNET_EnableDiagnostics="0",
            DOTNET_TieredPGO="0",
            LABPWSH_PRELUDE=os.path.join(self.state, "prelude.ps1"),
            LAB_PRELUDE=":".join(self.preludes),
            LAB_DIRECTORY=machine.shown(interpreter.native_directory()),
        )
        # A library that lets .NET know `C:\\…` with backslashes and in any case, as the lab's guest has one.
        if paths := interpreter.lab.get("LAB_PATHS"):
            made["LD_PRELOAD"] = paths
        return made

    def _known(self, options, words, interpreter, streams):
        if options.file is not None:
            try:
                with open(words[options.file], encoding="utf-8-sig") as file:
                    script = file.read()
            except (OSError, IndexError):
                script = ""
        else:
            script = options.script
        if script is None:
            octets = b""
            while got := streams.stdin.read():
                octets += got
            script = octets.decode("utf-8", "replace")
        for answer in self.answers:
            if (
                answer.get("script", "").strip() == script.strip()
                and "script" in answer
                or (answer.get("contains") and answer["contains"] in script)
            ):
                streams.stdout.write(answer.get("stdout", "").encode())
                streams.stderr.write(answer.get("stderr", "").encode())
                return int(answer.get("exit", 0))
        streams.stderr.write(
            b"lab: not implemented: no PowerShell here, and the script is not among the known ones\r\n"
        )
        return NOT_HERE


def read_answers(path):
    if path is None:
        return []
    with open(path, encoding="utf-8") as file:
        return json.load(file)
