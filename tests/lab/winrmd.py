#!/usr/bin/env python3
"""The lab's WinRM server. No Windows, and no test of one: see README.md.

    winrmd.py --users FILE --root DIR [--make-cert | --tls CERT KEY] [--acceptor pyspnego|gss] …

Prints one JSON line when it listens: {"address", "port", "scheme", "pid", "control", "boot_id",
"sha1", "sha256", "certificate"}. Ends by SIGTERM, and when its standard input is closed (unless --stay).
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading

from labd import certificate
from labd.acceptors import ACCEPTORS, Users
from labd.backend_linux import LinuxBackend
from labd.backend_wine import WineBackend, WineMachine
from labd.control import Control
from labd.engine import Engine, read_answers
from labd.interpreter import PROGRAMS
from labd.journal import Journal
from labd.machine import Machine, Power
from labd.rules import Rules
from labd.server import Server
from labd.shells import Quotas


class Options:
    """What the server's parts look up."""


def arguments():
    parser = argparse.ArgumentParser(description="The lab's WinRM server.")
    add = parser.add_argument
    add("--listen", default="127.0.0.1:0", help="address and port; 0 takes a free one")
    add("--users", required=True, help="accounts, lines of domain:user:password (as NTLM_USER_FILE)")
    add("--root", required=True, help="the folder that is the lab's c:\\")
    add("--acceptor", choices=sorted(ACCEPTORS), default="pyspnego")
    add("--backend", choices=["linux", "wine"], default="linux")
    add("--wine", help="for the backend wine: the prefix that is copied around --root, which ends with /drive_c")
    add("--tls", nargs=2, metavar=("CERT", "KEY"), help="PEM files; without it plain HTTP")
    add("--make-cert", action="store_true", help="TLS with a certificate made now")
    add("--basic", action="store_true", help="take Basic too, over TLS only")
    add("--name", default="KILN-LAB", help="the machine's name")
    add(
        "--prelude",
        action="append",
        default=[],
        help="PowerShell run before each script: the doubles of what is Windows' own",
    )
    add("--answers", help="JSON: known scripts and their answers, where there is no PowerShell")
    add("--shutdown-hook", help="program called for `shutdown`, with r, s or a and the delay")
    add("--restart-seconds", type=float, default=2.0, help="how long a restart takes")
    add("--rules", help="JSON list of faults to inject; read again when it is another")
    add("--log", help="JSON lines of what happened")
    add("--control", help="where to make the control socket")
    add("--max-shells", type=int, default=30)
    add("--max-operations", type=int, default=1500)
    add("--max-envelope-kb", type=int, default=500)
    add("--idle-timeout", type=float, default=7200.0, help="seconds")
    add("--stay", action="store_true", help="do not end with standard input")
    return parser.parse_args()


def main():
    given = arguments()
    state = tempfile.mkdtemp(prefix="winrmd-")
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    signal.signal(signal.SIGINT, lambda *_: over.set())
    server = None
    try:
        server, ready = start(given, state, over)
        print(json.dumps(ready), flush=True)
        if not given.stay:
            threading.Thread(target=watch, args=(over,), daemon=True).start()
        # A wait with an end lets signals through.
        while not over.wait(1):
            pass
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(state, ignore_errors=True)


def start(given, state, over):
    options = Options()
    options.acceptor = given.acceptor
    options.basic = given.basic
    options.restart_seconds = given.restart_seconds
    options.quotas = Quotas(given.max_shells, given.max_operations, given.max_envelope_kb, given.idle_timeout)
    options.users = Users(given.users, state, given.name)
    options.tls = options.certificate = None
    if given.make_cert or given.tls:
        pem, key = given.tls or certificate.make(state, given.name)
        options.tls = certificate.context(pem, key)
        options.certificate = certificate.Certificate(pem)
    user = next(iter(options.users.accounts), "administrator")
    wine = given.backend == "wine"
    machine = options.machine = (WineMachine if wine else Machine)(given.root, given.name, user)
    if wine:
        machine.copy(given.wine)
    machine.prepare()

    rules = Rules()
    if given.rules:
        rules.follow(given.rules)
    host, _, port = given.listen.rpartition(":")
    server = Server((host, int(port)), options, rules, Journal(given.log))
    power = Power(given.shutdown_hook, server.restart, over.set)
    control = given.control or os.path.join(state, "control")
    if wine:
        # The engine is a part of the prefix.
        folder = "powershell.exe"
        server.backend = WineBackend(machine, power)
    else:
        folder = os.environ.get("KILN_PWSH", "")
        server.backend = linux(given, state, machine, power, control, folder)
    Control(control, server, power)
    server.backend.up(server.boot)
    server.listen()
    threading.Thread(target=server.reap, daemon=True).start()
    ready = {
        "address": server.address[0], "port": server.address[1], "scheme": "https" if options.tls else "http",
        "pid": os.getpid(), "control": control, "boot_id": server.boot.id, "engine": bool(folder),
    }  # fmt: skip
    if options.certificate:
        ready.update(sha1=options.certificate.sha1, sha256=options.certificate.sha256, certificate=pem)
    return server, ready


def linux(given, state, machine, power, control, folder):
    engine = Engine(
        folder, state, [os.path.abspath(path) for path in given.prelude], control, read_answers(given.answers)
    )
    engine.prepare(machine, PROGRAMS)
    lab = {
        "LAB_ROOT": machine.root, "LAB_NAME": machine.name, "LAB_USER": machine.user, "LAB_STATE": state,
        "LAB_CONTROL": control, "LAB_ENGINE": folder, "LAB_PYTHON": sys.executable,
        "LAB_PROGRAM": os.path.join(os.path.dirname(os.path.abspath(__file__)), "program.py"),
    }  # fmt: skip
    return LinuxBackend(machine, power, engine, lab)


def watch(over):
    while os.read(0, 4096):
        pass
    over.set()


if __name__ == "__main__":
    sys.exit(main())
