"""The lab's programs for PowerShell: `shutdown`, `cmd`, … as processes beside the server.

Started by the small scripts that `Engine.prepare` writes, with the lab's variables.
"""

import os
import sys
import threading

from . import streams
from .engine import Engine
from .interpreter import Interpreter
from .machine import Machine, RemotePower
from .streams import Descriptor, Streams


def main(name, words):
    streams.OWN_GROUP = False
    given = os.environ
    machine = Machine(given["LAB_ROOT"], given["LAB_NAME"], given["LAB_USER"])
    lab = {key: value for key, value in given.items() if key.startswith("LAB_")}
    # Back to what Windows' own variables hold; the others are the script's.
    skipped = ("LAB_", "LABPWSH_", "PATH", "HOME", "TMPDIR")
    known = machine.environment()
    spellings = {spelling for name in known for spelling in (name, name.upper(), name.lower())}
    others = {k: v for k, v in given.items() if not k.startswith(skipped) and k not in spellings}
    engine = Engine(
        given.get("LAB_ENGINE"), given["LAB_STATE"], given.get("LAB_PRELUDE", "").split(":"), given["LAB_CONTROL"], []
    )
    directory = os.getcwd()
    directory = machine.shown(directory) if directory.startswith(machine.root) else machine.home
    interpreter = Interpreter(
        machine, RemotePower(given["LAB_CONTROL"]), engine, {**known, **others}, directory, lambda act: None,
        threading.Event(), lab,
    )  # fmt: skip
    code = interpreter.program(name, words, Streams(Descriptor(0), Descriptor(1), Descriptor(2)))
    if path := given.get("LAB_CODE_FILE"):
        with open(path, "w", encoding="ascii") as file:
            file.write(str(code))
    # What does not fit must not look like success.
    return code & 0xFF or (1 if code else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
