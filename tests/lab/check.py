#!/usr/bin/env python3
"""Other people's clients judge the lab: pywinrm, pypsrp and winrm-rs, over each acceptor and transport.

    check.py [WORD…]     only cases whose name holds every WORD

Prints a line for each case and ends with 1 when one failed. Needs requirements.txt; cases
with PowerShell need KILN_PWSH, those of winrm-rs KILN_LAB_PEER (its program); else they are
skipped, with the reason shown.
"""

import base64
import hashlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib3

import winrm
from pypsrp.exceptions import AuthenticationError, WinRMTransportError, WSManFaultError
from pypsrp.shell import Process, SignalCode, WinRS
from pypsrp.wsman import WSMan

HERE = os.path.dirname(os.path.abspath(__file__))
USER, PASSWORD = "kiln", "Tr0ub4dor&3 \u00e4\u00df"
BASIC_USER, BASIC_PASSWORD = "plain", "Hush-hush-1"  # Basic has no encoding of its own
CASES = []
JOBS = 4

urllib3.disable_warnings()


class Lab:
    """A server of its own for a case."""

    def __init__(self, *options, engine=True):
        self.folder = tempfile.TemporaryDirectory(prefix="lab-check-")
        at = self.folder.name
        self.root, self.log = os.path.join(at, "c"), os.path.join(at, "log")
        os.mkdir(self.root)
        with open(os.path.join(at, "users"), "w", encoding="utf-8") as file:
            file.write(f":{USER}:{PASSWORD}\n:{BASIC_USER}:{BASIC_PASSWORD}\n")
        environment = dict(os.environ)
        if not engine:
            environment.pop("KILN_PWSH", None)
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "winrmd.py"), "--users", os.path.join(at, "users"), "--root", self.root]
            + ["--log", self.log, *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        )  # fmt: skip
        self.ready = json.loads(self.process.stdout.readline())
        self.tls = self.ready["scheme"] == "https"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            assert self.process.wait(10) == 0, "the lab ended badly"
        finally:
            self.process.kill()
            self.process.stdout.close()
            self.folder.cleanup()

    @property
    def url(self):
        return f"{self.ready['scheme']}://127.0.0.1:{self.ready['port']}/wsman"

    def control(self, **what):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.ready["control"])
            sock.sendall(json.dumps(what).encode() + b"\n")
            return json.loads(sock.makefile().readline())

    def rules(self, *rules):
        self.control(do="rules", rules=list(rules))

    def fired(self):
        return [rule["fired"] for rule in self.control(do="rules")["rules"]]

    def lines(self, **like):
        with open(self.log, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        return [line for line in lines if all(line.get(key) == value for key, value in like.items())]

    def put(self, path, octets):
        path = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(octets)

    def get(self, path):
        with open(os.path.join(self.root, path), "rb") as file:
            return file.read()

    def pywinrm(self, transport="ntlm", password=PASSWORD, user=USER, **options):
        return winrm.Protocol(
            self.url, transport=transport, username=user, password=password, server_cert_validation="ignore",
            operation_timeout_sec=options.pop("operation_timeout", 5), read_timeout_sec=20, **options,
        )  # fmt: skip

    def wsman(self, auth="ntlm", password=PASSWORD, user=USER, **options):
        options = {"operation_timeout": 5, "read_timeout": 20, "cert_validation": False, **options}
        return WSMan(
            "127.0.0.1", port=self.ready["port"], ssl=self.tls, username=user, password=password, auth=auth, **options
        )


def case(function):
    CASES.append((function.__name__.replace("_", " "), function))
    return function


def each(**axes):
    """A case for each combination."""

    def add(function):
        combinations = [{}]
        for axis, values in axes.items():
            combinations = [{**chosen, axis: value} for chosen in combinations for value in values]
        for chosen in combinations:
            name = f"{function.__name__.replace('_', ' ')} {' '.join(chosen.values())}"
            CASES.append((name, lambda chosen=chosen: function(**chosen)))
        return function

    return add


class Skipped(Exception):
    pass


def engine():
    if not os.environ.get("KILN_PWSH"):
        raise Skipped("KILN_PWSH is not set")


def run(wsman, line, arguments=None, stdin=None, **options):
    with wsman, WinRS(wsman, **options) as shell:
        process = Process(shell, line, arguments or [], no_shell=False)
        if stdin is None:
            process.invoke()
        else:
            process.begin_invoke()
            for octets in stdin:
                process.send(octets, end=octets is stdin[-1])
            process.end_invoke()
        process.signal(SignalCode.TERMINATE)
        return process.stdout, process.stderr, process.rc


def pywinrm_run(protocol, line, arguments=()):
    shell = protocol.open_shell(codepage=65001)
    try:
        command = protocol.run_command(shell, line, arguments)
        try:
            return protocol.get_command_output(shell, command)
        finally:
            protocol.cleanup_command(shell, command)
    finally:
        protocol.close_shell(shell)


def same(found, wanted):
    assert found == wanted, f"{found!r} where {wanted!r} was wanted"


def is_open(lab):
    try:
        socket.create_connection(("127.0.0.1", lab.ready["port"]), 1).close()
    except OSError:
        return False
    return True


def raises(kind, act, code=None):
    try:
        act()
    except kind as error:
        if code is not None:
            same(int(getattr(error, "code", None) or getattr(error, "wsmanfault_code", 0)), code)
        return error
    raise AssertionError(f"no {kind.__name__}")


def tls(transport):
    return ["--make-cert"] if transport == "https" else []


@each(acceptor=["pyspnego", "gss"], transport=["http", "https"], auth=["ntlm", "negotiate"])
def pypsrp_says_hello(acceptor, transport, auth):
    with Lab("--acceptor", acceptor, *tls(transport)) as lab:
        # pypsrp seals over HTTP, and sends the channel binding over TLS.
        same(run(lab.wsman(auth), "echo h\u00e4llo & exit 3"), ("h\u00e4llo \r\n".encode(), b"", 3))
        sealed = {line.get("sealed") for line in lab.lines(event="request") if line["action"] not in ("auth", "none")}
        same(sealed, {True} if transport == "http" else {None})


@each(acceptor=["pyspnego", "gss"], transport=["http", "https"])
def pywinrm_says_hello(acceptor, transport):
    with Lab("--acceptor", acceptor, *tls(transport)) as lab:
        same(pywinrm_run(lab.pywinrm(), "echo out&echo err>&2&exit 5"), (b"out\r\n", b"err\r\n", 5))


@each(acceptor=["pyspnego", "gss"])
def sealed_over_tls(acceptor):
    with Lab("--acceptor", acceptor, "--make-cert") as lab:
        wsman = lab.wsman("ntlm", encryption="always")
        same(run(wsman, "echo x"), (b"x\r\n", b"", 0))
        assert lab.lines(action="Command", sealed=True)


@each(acceptor=["pyspnego", "gss"], auth=["ntlm", "negotiate"])
def wrong_password_is_refused(acceptor, auth):
    with Lab("--acceptor", acceptor) as lab:
        raises(AuthenticationError, lambda: run(lab.wsman(auth, password="wrong"), "echo x"))
        raises(AuthenticationError, lambda: run(lab.wsman(auth, user="nobody"), "echo x"))
        assert lab.lines(event="refused") and not lab.lines(action="Create")


@each(acceptor=["pyspnego", "gss"], auth=["ntlm", "negotiate"])
def a_wrong_channel_binding_is_refused(acceptor, auth):
    from pypsrp.negotiate import HTTPNegotiateAuth

    with Lab("--acceptor", acceptor, "--make-cert") as lab:
        real = HTTPNegotiateAuth._get_cbt_data
        HTTPNegotiateAuth._get_cbt_data = staticmethod(lambda response: real(response)[:-1] + b"!")
        try:
            raises(AuthenticationError, lambda: run(lab.wsman(auth), "echo x"))
        finally:
            HTTPNegotiateAuth._get_cbt_data = real
        # None at all is taken: CbtHardeningLevel=Relaxed.
        same(run(lab.wsman(auth, negotiate_send_cbt=False), "echo x")[2], 0)


@each(acceptor=["pyspnego", "gss"])
def old_ntlm_is_refused(acceptor):
    with Lab("--acceptor", acceptor) as lab:
        os.environ["LM_COMPAT_LEVEL"] = "1"
        try:
            raises(AuthenticationError, lambda: run(lab.wsman("ntlm"), "echo x"))
        finally:
            del os.environ["LM_COMPAT_LEVEL"]
        assert not lab.lines(action="Create")


@each(acceptor=["pyspnego", "gss"])
def users_by_their_machine(acceptor):
    with Lab("--acceptor", acceptor) as lab:
        for user in (f".\\{USER}", f"KILN-LAB\\{USER}"):
            same(run(lab.wsman("ntlm", user=user), "whoami"), (b"kiln-lab\\kiln\r\n", b"", 0))


@case
def basic_over_tls():
    with Lab("--make-cert", "--basic") as lab:
        same(run(lab.wsman("basic", BASIC_PASSWORD, BASIC_USER), "echo x")[2], 0)
        raises(AuthenticationError, lambda: run(lab.wsman("basic", "wrong", BASIC_USER), "echo x"))
    with Lab("--make-cert") as lab:
        raises(AuthenticationError, lambda: run(lab.wsman("basic", BASIC_PASSWORD, BASIC_USER), "echo x"))


@case
def basic_over_http_is_refused():
    with Lab("--basic") as lab:
        raises(
            AuthenticationError,
            lambda: run(lab.wsman("basic", BASIC_PASSWORD, BASIC_USER, encryption="never"), "echo x"),
        )
        assert not lab.lines(action="Create")


@case
def plaintext_over_http_is_refused():
    with Lab() as lab:
        error = raises(WinRMTransportError, lambda: run(lab.wsman("ntlm", encryption="never"), "echo x"))
        same(error.code, 500)
        same(len(lab.lines(action="plaintext")), 1)


@each(acceptor=["pyspnego", "gss"])
def stdin_by_send(acceptor):
    octets = os.urandom(300_000)
    with Lab("--acceptor", acceptor) as lab:
        same(run(lab.wsman(), "more", stdin=[octets[:100_000], octets[100_000:]]), (octets, b"", 0))
        assert len(lab.lines(action="Send")) >= 2


@case
def a_quiet_command():
    with Lab() as lab:
        begun = time.monotonic()
        out, _, code = run(lab.wsman(operation_timeout=1), "ping -n 4 127.0.0.1 >nul & echo done")
        same((out, code), (b"done\r\n", 0))
        assert time.monotonic() - begun > 2.5
        assert lab.lines(action="Receive", fault=2150858793, status=500, sealed=True)
        same(pywinrm_run(lab.pywinrm(operation_timeout=1), "ping -n 3 127.0.0.1 >nul & echo done")[0], b"done\r\n")


@each(acceptor=["pyspnego", "gss"], transport=["http", "https"])
def much_output(acceptor, transport):
    octets = base64.encodebytes(os.urandom(116_000))
    assert len(octets) > 155_000
    with Lab("--acceptor", acceptor, *tls(transport)) as lab:
        lab.put("Windows/Temp/much.txt", octets)
        same(run(lab.wsman(), "type c:\\windows\\temp\\MUCH.txt"), (octets, b"", 0))
        assert len(lab.lines(action="Receive")) >= 2
        same(pywinrm_run(lab.pywinrm(), "type c:\\windows\\temp\\much.txt")[0], octets)


@case
def utf8_cut_anywhere():
    text = "h\u00e4\u20ac\U0001f525\r\n".encode()
    with Lab() as lab:
        lab.put("t.txt", text)
        lab.rules({"on": "Receive", "fault": "split", "size": 1, "times": 0})
        same(run(lab.wsman(), "type c:\\t.txt"), (text, b"", 0))
        # The end may be told by itself.
        assert lab.fired()[0] in (len(text), len(text) + 1), lab.fired()
        lab.rules({"on": "Receive", "fault": "split", "at": [2, 5], "times": 0})
        same(run(lab.wsman(), "type c:\\t.txt"), (text, b"", 0))
        assert lab.fired()[0] in (3, 4), lab.fired()


@case
def ids_that_are_gone():
    with Lab() as lab, lab.wsman() as wsman:
        shell = WinRS(wsman)
        shell.open()
        process = Process(shell, "echo x", no_shell=False)
        process.invoke()
        gone = 2150858843
        raises(WSManFaultError, process.poll_invoke, gone)
        process.signal(SignalCode.TERMINATE)
        raises(WSManFaultError, lambda: process.signal(SignalCode.TERMINATE), gone)
        shell.close()
        raises(WSManFaultError, Process(shell, "echo x", no_shell=False).invoke, gone)


@case
def a_command_is_terminated():
    with Lab() as lab, lab.wsman() as wsman, WinRS(wsman) as shell:
        process = Process(shell, "ping -n 600 127.0.0.1 >nul", no_shell=False)
        process.begin_invoke()
        other = lab.wsman()
        threading.Timer(1, lambda: _signal(other, shell, process, SignalCode.CTRL_C)).start()
        process.end_invoke()
        same(process.rc, 3221225786)
        process = Process(shell, "ping -n 600 127.0.0.1 >nul", no_shell=False)
        process.begin_invoke()
        threading.Timer(1, lambda: _signal(other, shell, process, SignalCode.TERMINATE)).start()
        raises(WSManFaultError, process.end_invoke, 995)


def _signal(wsman, shell, process, code):
    again = WinRS(wsman, id=shell.id)
    again._selector_set = shell._selector_set
    Process(again, "", id=process.id, no_shell=False).signal(code)


@case
def quotas():
    with Lab("--max-shells", "2", "--max-operations", "3", "--max-envelope-kb", "150") as lab, lab.wsman() as wsman:
        shells = [WinRS(wsman), WinRS(wsman)]
        for shell in shells:
            shell.open()
        raises(WSManFaultError, WinRS(wsman).open, 2150859173)
        shells[1].close()
        for _ in range(3):
            process = Process(shells[0], "echo x", no_shell=False)
            process.invoke()
            process.signal(SignalCode.TERMINATE)
        # Terminate gave nothing back; the shell's end does.
        raises(WSManFaultError, Process(shells[0], "echo x", no_shell=False).invoke, 2150859174)
        shells[0].close()
        with WinRS(wsman) as shell:
            raises(WSManFaultError, Process(shell, "echo " + "x" * 8190, no_shell=False).invoke, 2147942606)
            raises(WSManFaultError, Process(shell, "echo x", no_shell=True).invoke, 2147942402)
            raises(WSManFaultError, Process(shell, "echo " + "x" * 160_000, no_shell=False).invoke, 2150858790)
            process = Process(shell, "echo x", no_shell=False)
            process.invoke()
            same(process.stdout, b"x\r\n")


@case
def an_idle_shell_ends():
    with Lab("--idle-timeout", "1") as lab, lab.wsman() as wsman:
        shell = WinRS(wsman)
        shell.open()
        time.sleep(2.2)
        raises(WSManFaultError, Process(shell, "echo x", no_shell=False).invoke, 2150858843)


@case
def a_restart():
    with Lab("--restart-seconds", "1.5") as lab:
        wsman = lab.wsman()
        with wsman, WinRS(wsman) as shell:
            process = Process(shell, 'shutdown /r /f /t 0 /c "restart"', no_shell=False)
            process.invoke()
            same(process.rc, 0)
            refused = False
            for _ in range(200):
                answers = is_open(lab)
                if answers and refused:
                    break
                refused = refused or not answers
                time.sleep(0.05)
            assert refused, "the port was never closed"
            again = lab.wsman()
            old = WinRS(again, id=shell.id)
            old._selector_set, old.opened = shell._selector_set, True
            raises(WSManFaultError, Process(old, "echo x", no_shell=False).invoke, 2150858843)
            same(run(lab.wsman(), "echo x")[2], 0)
            shell.opened = False
        same(lab.control(do="state")["boot"], 2)
        assert lab.control(do="state")["boot_id"] != lab.ready["boot_id"]


@case
def a_scheduled_shutdown():
    with Lab() as lab:
        lines = "shutdown /a", "shutdown /r /t 60", "shutdown /r /t 60", "shutdown /a", "shutdown /a"
        same([run(lab.wsman(), line)[2] for line in lines], [1116, 0, 1190, 0, 1116])
    with Lab() as lab:
        same(run(lab.wsman(), "shutdown /s /t 1")[2], 0)
        same(lab.process.wait(10), 0)


@case
def a_shutdown_that_the_machine_does():
    with tempfile.TemporaryDirectory() as folder:
        hook, told = os.path.join(folder, "hook"), os.path.join(folder, "told")
        with open(hook, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\necho "$@" >>{told}\n[ "$1" != a ]\n')
        os.chmod(hook, 0o755)
        with Lab("--shutdown-hook", hook) as lab:
            codes = [run(lab.wsman(), f"shutdown {words}")[2] for words in ("/r /f /t 0", "/s /t 5", "/a", "/l")]
            same(codes, [0, 0, 1, 250])
            with open(told, encoding="utf-8") as file:
                same(file.read().splitlines(), ["r 0", "s 5", "a 30"])


@case
def a_machine_that_is_booting():
    with Lab() as lab:
        # Services start before the accounts are there. A handshake has a 401 of its own first.
        lab.rules({"on": "auth", "fault": "status", "code": 401, "nth": 2, "times": 3})
        raises(AuthenticationError, lambda: run(lab.wsman(), "echo x"))
        raises(AuthenticationError, lambda: run(lab.wsman(), "echo x"))
        same(run(lab.wsman(), "echo x")[2], 0)
        same(lab.fired(), [3])


@case
def faults_on_order():
    with Lab() as lab:
        lab.rules(
            {"name": "q", "on": "Create", "fault": "fault", "code": 2150859173, "provider": True, "text": "no more"}
        )
        error = raises(WSManFaultError, lambda: run(lab.wsman(), "echo x"), 2150859173)
        assert error.provider_fault, error
        same(lab.fired(), [1])
        same(run(lab.wsman(), "echo x")[2], 0)
        for fault in ({"fault": "status", "code": 503}, {"fault": "status", "code": 400}):
            lab.rules({"on": "Command", **fault})
            same(raises(WinRMTransportError, lambda: run(lab.wsman(), "echo x")).code, fault["code"])
        for fault in ("close", "reset", "truncate", "bad-mic", "corrupt", "wrong-length", "relates-to"):
            lab.rules({"on": "Receive", "fault": fault})
            try:
                run(lab.wsman(reconnection_retries=0), "echo x")
            except Exception:
                same((fault, lab.fired()), (fault, [1]))
            else:
                raise AssertionError(f"{fault}: nothing happened")
        # pypsrp takes an answer that is not sealed.
        lab.rules({"on": "Receive", "fault": "unsealed"})
        same((run(lab.wsman(), "echo x")[2], lab.fired()), (0, [1]))
        for fault in (
            {"fault": "chunked"},
            {"fault": "drip", "bytes": 200, "every_ms": 5},
            {"fault": "delay", "ms": 300},
        ):
            lab.rules({"on": "*", "times": 0, **fault})
            same(run(lab.wsman(), "echo x"), (b"x\r\n", b"", 0))
            assert lab.fired()[0] >= 4
        lab.rules({"on": "Receive", "fault": "no-exit-code"})
        same(run(lab.wsman(), "echo x")[2], None)
        lab.rules({"on": "connect", "fault": "refuse"})
        raises(Exception, lambda: run(lab.wsman(reconnection_retries=0), "echo x"))
        lab.rules({"on": "connect", "fault": "half-open"})
        raises(Exception, lambda: run(lab.wsman(reconnection_retries=0, read_timeout=2), "echo x"))
        same(lab.fired(), [1])
        lab.rules({"on": "Command", "fault": "restart", "seconds": 1})
        raises(Exception, lambda: run(lab.wsman(reconnection_retries=0), "echo x"))
        same(lab.fired(), [1])


@case
def an_answer_is_lost_after_the_act():
    with Lab() as lab:
        lab.rules({"on": "Command", "fault": "close", "after": True})
        raises(Exception, lambda: run(lab.wsman(reconnection_retries=0), "echo x>>c:\\done.txt"))
        for _ in range(50):
            if os.path.exists(os.path.join(lab.root, "done.txt")):
                break
            time.sleep(0.1)
        same(lab.get("done.txt"), b"x\r\n")


@each(transport=["http", "https"])
def who_goes_away_takes_no_output(transport):
    with Lab(*tls(transport)) as lab:
        # pypsrp gives a Receive up after a second, and asks again over a new connection.
        out = run(lab.wsman(read_timeout=1), "ping -n 4 127.0.0.1 >nul & echo kept")
        same(out, (b"kept\r\n", b"", 0))
        assert lab.lines(action="Receive", fault=995)


@case
def a_401_in_mid_session():
    with Lab() as lab:
        lab.rules({"on": "Receive", "fault": "status", "code": 401})
        # pypsrp takes it for a refusal or begins anew; either way the lab said it once.
        try:
            run(lab.wsman(), "echo x")
        except Exception:
            pass
        same(lab.fired(), [1])


@case
def rules_from_a_file():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rules")

        def write(*rules):
            with open(path + ".new", "w", encoding="utf-8") as file:
                json.dump(rules, file)
            os.replace(path + ".new", path)

        write()
        with Lab("--rules", path) as lab:
            same(run(lab.wsman(), "echo x")[2], 0)
            write({"on": "Create", "fault": "fault", "code": 2150859174})
            raises(WSManFaultError, lambda: run(lab.wsman(), "echo x"), 2150859174)
            same(lab.fired(), [1])


@case
def identify_without_authentication():
    with Lab() as lab:
        http = urllib3.PoolManager()
        body = (
            '<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:wsmid='
            '"http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd"><s:Header/><s:Body><wsmid:Identify/>'
            "</s:Body></s:Envelope>"
        )
        kind = "application/soap+xml;charset=UTF-8"
        answer = http.request(
            "POST", lab.url, body=body, headers={"Content-Type": kind, "WSMANIDENTIFY": "unauthenticated"}
        )
        same(answer.status, 200)
        assert b"IdentifyResponse" in answer.data and b"no Windows" in answer.data
        answer = http.request("POST", lab.url, body=body, headers={"Content-Type": kind})
        same((answer.status, answer.headers["WWW-Authenticate"]), (401, "Negotiate"))


@case
def the_labs_cmd():
    with Lab() as lab, lab.wsman() as wsman, WinRS(wsman, environment={"NAME": "v\u00e4l"}) as shell:

        def does(line, out=None, err=b"", code=0):
            process = Process(shell, line, no_shell=False)
            process.invoke()
            process.signal(SignalCode.TERMINATE)
            if out is not None:
                same((line, process.stdout), (line, out))
            if err is not None:
                same((line, process.stderr), (line, err))
            same((line, process.rc), (line, code))

        does("echo %NAME% %nothing%", "v\u00e4l %nothing%\r\n".encode())
        does('echo "a & b" ^& c', b'"a & b" & c\r\n')
        does(
            "mkdir c:\\a\\b && echo one>c:\\a\\b\\f.txt&& echo two>>c:/A/B/F.TXT&type \\a\\b\\f.txt", b"one\r\ntwo\r\n"
        )
        does('if exist "c:\\a\\b\\f.txt" echo yes', b"yes\r\n")
        does("if not exist c:\\zz echo no & exit 7", b"no \r\n", code=7)
        does("cd c:\\a & cd & dir /b", b"C:\\a\r\nb\r\n")
        does('cmd /c "echo in & exit 4" || echo failed', b"in \r\nfailed\r\n")
        does("echo text| sort", b"text\r\n")
        does("echo aGVsbG8=>c:\\e.b64 & certutil -decode c:\\e.b64 c:\\e.bin >nul & type c:\\e.bin", b"hello")
        digest = b"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        does("certutil -hashfile c:\\e.bin SHA256", b"SHA256 hash of c:\\e.bin:\r\n" + digest
             + b"\r\nCertUtil: -hashfile command completed successfully.\r\n")  # fmt: skip
        does("type c:\\none", b"", b"The system cannot find the file specified.\r\n", 1)
        does("echo x>c:\\none\\x", b"", b"The system cannot find the path specified.\r\n", 1)
        does("del c:\\e.bin & type c:\\e.bin", b"", b"The system cannot find the file specified.\r\n", 1)
        does("systeminfo", b"", b"lab: not implemented: systeminfo\r\n", 250)
        does("for %i in (1 b) do if exist c:\\a\\%i echo %i", b"b\r\n")
        does("if exist q:\\x echo yes", b"")
        does("for /f %i in (x) do echo x", b"", None, 250)
        does("type ..\\..\\..\\..\\..\\..\\etc\\hostname", b"", None, 1)
        does("type d:\\x", b"", None, 1)


@case
def powershell():
    engine()
    with Lab() as lab, lab.wsman() as wsman, WinRS(wsman) as shell:

        def does(line, stdin=None):
            process = Process(shell, line, no_shell=False)
            process.begin_invoke()
            if stdin is not None:
                process.send(stdin)
            process.end_invoke()
            return process.stdout.decode(), process.stderr.decode(), process.rc

        same(does("powershell -NoProfile -Command Write-Output hi; exit 5"), ("hi\n", "", 5))
        lab.put("Windows/Temp/s.ps1", b"param($x)\r\nSet-Content c:\\Windows\\Temp\\o.txt $x\r\nGet-Content C:/windows/temp/o.txt\r\n"
                b"[IO.File]::ReadAllText('c:/Windows/Temp/o.txt').Trim()\r\n(Get-Location).Path\r\n"
                b'Test-Path "$env:SystemRoot\\Temp\\o.txt"\r\nexit 9\r\n')  # fmt: skip
        out, err, code = does("powershell.exe -executionpolicy bypass -file C:\\WINDOWS\\temp\\S.ps1 word")
        same((out.splitlines(), err, code), (["word", "word", "C:/Users/kiln", "True"], "", 9))
        script = base64.b64encode("[Console]::Error.WriteLine('bad'); throw 'x'".encode("utf-16-le")).decode()
        out, err, code = does(f"powershell -EncodedCommand {script}")
        assert "#< CLIXML" in err and "bad" in err and code == 1, (out, err, code)
        out, err, code = does("powershell -NoProfile -Command -", b"Write-Output 'from stdin'\nexit 3\n")
        same((out, err, code), ("from stdin\n", "", 3))
        out, err, code = does(
            "powershell -Command \"cmd /c 'echo a & exit 6'; $LASTEXITCODE; shutdown.exe /a; $LASTEXITCODE\""
        )
        same((out.split(), code), (["a", "6", "1116"], 0))
        assert "no shutdown was in progress" in err, err
        process = Process(shell, "powershell -Command Start-Sleep 600", no_shell=False)
        process.begin_invoke()
        process.signal(SignalCode.CTRL_C)
        process.end_invoke()
        same(process.rc, 3221225786)


@case
def the_boot_as_powershell_sees_it():
    engine()
    script = (
        "$key = 'HKLM:\\SYSTEM\\CurrentControlSet\\Control\\Session Manager\\Memory Management\\PrefetchParameters';"
        " (Get-CimInstance -ClassName Win32_OperatingSystem).LastBootUpTime.ToUniversalTime().Ticks;"
        " (Get-ItemProperty -LiteralPath $key -Name BootId).BootId;"
        " Set-Content C:/x.txt y; (Get-ItemProperty -LiteralPath C:/x.txt -Name Length).Length"
    )
    line = "powershell -EncodedCommand " + base64.b64encode(script.encode("utf-16-le")).decode()
    with Lab("--prelude", os.path.join(HERE, "boot.ps1")) as lab:
        first = run(lab.wsman(), line)[0].split()
        lab.control(do="restart", seconds=0.5)
        while lab.control(do="state")["boot"] != 2 or not is_open(lab):
            time.sleep(0.05)
        second = run(lab.wsman(), line)[0].split()
        same((first[1:], second[1:]), ([b"1", b"2"], [b"2", b"2"]))
        assert int(second[0]) > int(first[0]) > 600_000_000_000_000_000, (first, second)
        same(run(lab.wsman(), "powershell -Command Get-CimInstance Win32_Disk")[2], 250)


@case
def an_upload_by_echoes():
    engine()
    octets = os.urandom(1 << 20)
    with Lab() as lab, tempfile.NamedTemporaryFile() as file:
        file.write(octets)
        file.flush()
        words = ["http", str(lab.ready["port"]), USER, file.name, "C:/Windows/Temp/up.bin"]
        environment = {"LAB_PASSWORD": PASSWORD}
        command = [sys.executable, "-B", os.path.join(HERE, "echo_upload.py"), *words]
        said = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
        same(lab.get("Windows/Temp/up.bin"), octets)
        same(said["sha256"], hashlib.sha256(octets).hexdigest())
        # What Packer needs for a MiB: some 180 processes, some 540 round trips.
        assert 170 < len(lab.lines(action="Command")) == said["commands"] < 190
        assert len([line for line in lab.lines(event="request") if line["action"] not in ("auth", "none")]) > 540


@each(acceptor=["pyspnego", "gss"], transport=["http", "https"])
def winrm_rs(acceptor, transport):
    peer = os.environ.get("KILN_LAB_PEER")
    if not peer:
        raise Skipped("KILN_LAB_PEER is not set (scripts/lab DIR peer builds it)")
    octets = base64.encodebytes(os.urandom(116_000))
    with Lab("--acceptor", acceptor, *tls(transport)) as lab:
        lab.put("much.txt", octets)
        environment = {"LAB_PASSWORD": PASSWORD, "LAB_MUCH": str(len(octets))}
        if lab.ready["engine"]:
            environment["LAB_ENGINE"] = "yes"
        words = [peer, str(lab.ready["port"]), USER] + ([lab.ready["sha256"]] if lab.tls else [])
        ended = subprocess.run(words, env=environment, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
        same((ended.returncode, ended.stderr), (0, ""))


@case
def powershell_that_is_not_here():
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([{"script": "Get-Known", "stdout": "known\r\n", "exit": 2}], file)
        file.flush()
        with Lab("--answers", file.name, engine=False) as lab:
            same(run(lab.wsman(), "powershell -Command Get-Known"), (b"known\r\n", b"", 2))
            same(run(lab.wsman(), "powershell -Command Get-Unknown")[2], 250)


@case
def no_secret_in_the_log():
    with Lab("--make-cert", "--basic") as lab:
        run(lab.wsman("basic", BASIC_PASSWORD, BASIC_USER), "echo hush-hush")
        run(lab.wsman("ntlm"), "echo hush-hush")
        with open(lab.log, encoding="utf-8") as file:
            log = file.read()
        assert "hush" not in log.lower() and PASSWORD[:8] not in log
        assert base64.b64encode(f"{BASIC_USER}:{BASIC_PASSWORD}".encode()).decode() not in log
        round_trips = [line["action"] for line in lab.lines(event="request") if line["action"] != "auth"]
        assert {"Create", "Command", "Receive", "Signal", "Delete"} <= set(round_trips), round_trips


def judge(name):
    """One case: its verdict and what it has to say."""
    begun = time.monotonic()
    try:
        dict(CASES)[name]()
        word, said = "ok", ""
    except Skipped as why:
        word, said = f"skipped: {why}:", ""
    except Exception:
        word, said = "FAILED", traceback.format_exc()
    return word, f"{said}{word} {name} ({time.monotonic() - begun:.1f} s)"


def main():
    words = sys.argv[1:]
    chosen = [name for name, _ in CASES if all(word in name for word in words)]
    counts = {"ok": 0, "FAILED": 0, "skipped": 0}
    # They wait more than they work. Each process does one case at a time: some bend a client.
    with multiprocessing.get_context("fork").Pool(JOBS) as pool:
        for word, said in pool.imap_unordered(judge, chosen):
            counts[word.split(":")[0]] += 1
            print(said, flush=True)
    print(f"{counts['ok']} passed, {counts['FAILED']} failed, {counts['skipped']} skipped")
    return 1 if counts["FAILED"] or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
