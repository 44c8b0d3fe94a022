"""The listener, its connections, and what each request does.

    accept ─► rules(connect) ─► TLS ─► per connection: handshake legs, then sealed requests
                                          │
              request ─► who is it? ─► open the seal ─► rules(action) ─► WS-Management ─► seal ─► answer

Authentication belongs to the connection, as Windows has it: the legs of Negotiate on one
keep-alive connection, then requests without Authorization until it ends.
"""

import base64
import binascii
import socket
import ssl
import threading
import time

from . import soap
from .acceptors import ACCEPTORS, BadSeal, Refused, is_old_ntlm
from .sealing import CONTENT_TYPE, SOAP_TYPE, Malformed, is_sealed, open_message, seal_message
from .shells import Boot, Command, CTRL_C_EXIT
from .soap import Envelope, Fault, Invalid
from .wire import Connection, Gone

SIGNALS = soap.RSP + "/signal/"


class Session:
    """Who a connection is."""

    def __init__(self):
        self.forget()

    def forget(self):
        self.context = None  # a handshake, later the seal
        self.user = None

    @property
    def seals(self):
        return self.user is not None and self.context is not None


class Server:
    def __init__(self, address, options, rules, journal):
        self.address = address
        self.options = options  # .acceptor .users .basic .machine .quotas .tls .certificate .restart_seconds
        self.rules = rules
        self.journal = journal
        self.backend = None
        self.boot = Boot(options.quotas, 1)
        self.lock = threading.Lock()
        self.connections = {}
        self.count = 0
        self.over = threading.Event()
        self.restarting = False
        self.listener = None

    # Lifetime

    def listen(self):
        listener = socket.create_server(self.address, backlog=64, reuse_port=False)
        self.address = listener.getsockname()[:2]
        self.listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener):
        while True:
            try:
                sock, peer = listener.accept()
            except OSError:
                return
            with self.lock:
                self.count += 1
                connection = Connection(sock, peer, self.count)
                down = self.restarting or self.over.is_set()
                if not down:
                    self.connections[self.count] = connection
            if down:
                connection.reset()
            else:
                threading.Thread(target=self._connection, args=(connection,), daemon=True).start()

    def reap(self):
        while not self.over.wait(0.5):
            if gone := self.boot.reap():
                self.journal.write(event="idle shells ended", shells=gone)

    def restart(self, seconds=None):
        """The machine restarts: port closed, shells and commands dead, then a new boot."""
        with self.lock:
            if self.restarting:
                return
            self.restarting = True
        self._down()
        self.journal.write(event="restart", boot=self.boot.number)
        self.over.wait(self.options.restart_seconds if seconds is None else seconds)
        if self.over.is_set():
            return
        with self.lock:
            self.boot = Boot(self.options.quotas, self.boot.number + 1)
        self.backend.up(self.boot)
        if self.over.is_set():
            self.backend.down(self.boot)
            return
        with self.lock:
            self.restarting = False
        self.listen()
        self.journal.write(event="up", boot=self.boot.number)

    def _down(self):
        # Closing alone leaves a thread in accept(), and with it the port open.
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        with self.lock:
            connections, self.connections = list(self.connections.values()), {}
        for connection in connections:
            connection.close()
        self.boot.end()
        self.backend.down(self.boot)

    def stop(self):
        self.over.set()
        self._down()

    # One connection

    def _connection(self, connection):
        sock, number = connection.sock, connection.number
        try:
            rule = self._fire("connect", number)
            if rule is not None and rule.fault == "refuse":
                connection.reset()
                return
            if rule is not None:
                self._hold(connection)
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.options.tls is not None:
                sock.settimeout(30)
                connection.sock = self.options.tls.wrap_socket(sock, server_side=True)
                connection.sock.settimeout(None)
            session = Session()
            while not self.over.is_set():
                self._request(connection, session)
        except (Gone, ssl.SSLError, OSError):
            pass
        finally:
            connection.close()
            with self.lock:
                self.connections.pop(number, None)

    def _hold(self, connection):
        """Half-open: reads, never answers, until the other side gives up."""
        while not self.over.is_set():
            if not connection.sock.recv(65536):
                return

    def _fire(self, event, number):
        rule = self.rules.fire(event, number)
        if rule is not None:
            self.journal.write(
                event="rule", rule=rule.name, fault=rule.fault, on=event, connection=number, fired=rule.fired
            )
        return rule

    def _request(self, connection, session):
        request = connection.read()
        answer = Answer(self, connection, session, request)
        try:
            self._answer(connection, session, request, answer)
        finally:
            answer.log()
        if request.header("connection").lower() == "close":
            raise Gone("closed as asked")

    def _answer(self, connection, session, request, answer):
        if request.target.split("?")[0] != "/wsman":
            return answer.plain(404)
        if request.method != "POST":
            return answer.plain(405)
        if request.header("authorization"):
            if not self._authenticate(connection, session, request, answer):
                return None
            if not request.body:
                return answer.plain(200, answer.token)
        elif session.user is None:
            if request.header("wsmanidentify").lower() == "unauthenticated":
                return self._identify(answer)
            if self._spoiled(answer, "auth"):
                return None
            return self._unauthorized(answer)
        return self._message(connection, session, request, answer)

    def _identify(self, answer):
        answer.action = "Identify"
        rule = answer.rule = self._fire("Identify", answer.connection.number)
        if rule is not None and self._spoil(answer, rule):
            return None
        return answer.soap(200, soap.identified())

    # Who is it?

    def _unauthorized(self, answer, token=b""):
        """A 401, with what the server offers; `token` continues a handshake."""
        if token:
            return answer.plain(401, [("WWW-Authenticate", "Negotiate " + base64.b64encode(token).decode())])
        offers = [("WWW-Authenticate", "Negotiate")]
        if self.options.basic and self.options.tls is not None:
            offers.append(("WWW-Authenticate", 'Basic realm="WSMAN"'))
        return answer.plain(401, offers)

    def _authenticate(self, connection, session, request, answer):
        """Whether the request goes on; else it is answered."""
        answer.action = "auth"
        if self._spoiled(answer, "auth"):
            return False
        scheme, _, given = request.header("authorization").partition(" ")
        try:
            token = base64.b64decode(given.strip(), validate=True)
        except binascii.Error:
            token = b""
        if scheme.lower() == "basic":
            user, _, password = token.decode("utf-8", "replace").partition(":")
            # Over plain HTTP Windows takes it for a request without any (AllowUnencrypted=false).
            if not (self.options.basic and self.options.tls is not None and self.options.users.check(user, password)):
                session.forget()
                self._unauthorized(answer)
                return False
            session.context, session.user = None, user.rsplit("\\", 1)[-1]
            return True
        if scheme.lower() != "negotiate" or not token:
            session.forget()
            self._unauthorized(answer)
            return False
        if session.context is None or session.context.complete:
            session.forget()
            binding = self.options.certificate.binding if self.options.tls is not None else None
            session.context = ACCEPTORS[self.options.acceptor](token.startswith(b"NTLMSSP\0"), binding)
        try:
            if is_old_ntlm(token):
                raise Refused("not NTLMv2")
            back = session.context.step(token)
        except Refused as refused:
            self.journal.write(event="refused", connection=connection.number, why=str(refused)[:200])
            session.forget()
            self._unauthorized(answer)
            return False
        if not session.context.complete:
            self._unauthorized(answer, back)
            return False
        session.user = session.context.user.rsplit("\\", 1)[-1].lower()
        answer.token = [("WWW-Authenticate", "Negotiate " + base64.b64encode(back).decode())] if back else []
        return True

    # What does it want?

    def _message(self, connection, session, request, answer):
        content_type = request.header("content-type")
        if is_sealed(content_type):
            if not session.seals:
                return answer.plain(400)
            try:
                plain = open_message(request.body, session.context)
            except (Malformed, BadSeal) as error:
                # The seal's state is lost with it: only a new connection helps.
                self.journal.write(event="bad seal", connection=connection.number, why=str(error)[:200])
                answer.plain(400)
                raise Gone("a seal that does not open") from error
            answer.sealed = True
        else:
            if self.options.tls is None:
                # AllowUnencrypted=false: a 500 with nothing in it.
                answer.action = "plaintext"
                return answer.plain(500)
            plain = request.body
        envelope = None
        try:
            envelope = Envelope(plain)
            answer.action = envelope.action
            rule = answer.rule = self._fire(envelope.action, connection.number)
            if rule is not None and self._spoil(answer, rule):
                return None
            status, body = 200, self._do(connection, session, envelope, len(plain), rule)
        except Invalid as invalid:
            self.journal.write(event="invalid", connection=connection.number, why=str(invalid)[:200])
            return answer.plain(400)
        except Fault as fault:
            answer.fault = fault.code
            status, body = 500, fault.envelope(envelope, self.options.machine.name)
        return self._finish(answer, status, body)

    def _finish(self, answer, status, body):
        rule = answer.rule
        if rule is not None and rule.option("after", None) is True:
            if rule.fault == "half-open":
                self._hold(answer.connection)
                raise Gone("half-open by a rule")
            if rule.fault == "reset":
                answer.connection.reset()
            if rule.fault in ("close", "reset"):
                raise Gone("closed by a rule")
        if rule is not None and rule.fault == "relates-to":
            body = body.replace(b"<a:RelatesTo>uuid:", b"<a:RelatesTo>uuid:0000", 1)
        return answer.soap(status, body)

    def _spoiled(self, answer, event):
        """Fires at a handshake's leg; whether the request is over."""
        rule = answer.rule = self._fire(event, answer.connection.number)
        return rule is not None and self._spoil(answer, rule)

    def _spoil(self, answer, rule):
        """What a rule does before the request is done; whether that is all."""
        if rule.option("after", None) is True:
            return False
        connection, fault = answer.connection, rule.fault
        if fault == "close":
            raise Gone("closed by a rule")
        if fault == "reset":
            connection.reset()
            raise Gone("reset by a rule")
        if fault == "half-open":
            self._hold(connection)
            raise Gone("half-open by a rule")
        if fault == "restart":
            threading.Thread(target=self.restart, args=(rule.option("seconds", None),), daemon=True).start()
            self._hold(connection)
            raise Gone("restarted by a rule")
        if fault == "delay":
            self.over.wait(float(rule.option("ms", 500)) / 1000)
        elif fault == "status":
            code = int(rule.option("code", 503))
            if code == 401:
                answer.session.forget()
                self._unauthorized(answer)
            else:
                answer.plain(code)
            return True
        elif fault == "fault":
            raise Fault(int(rule.option("code", 0)), rule.option("text", ""), rule.option("provider", None))
        return False

    def _do(self, connection, session, request, size, rule):
        """One WS-Management operation; the answer's octets. Raises `Fault`."""
        boot, owner = self.boot, session.user
        if size > self.options.quotas.max_envelope:
            raise Fault(soap.TOO_LARGE)
        if request.timeout is None:
            raise Fault(soap.INVALID_TIMEOUT)
        if request.action == "Identify":
            return soap.identified()
        if request.resource != soap.CMD or request.action in ("Other", "Get"):
            raise Fault(soap.NOT_FOUND)
        if request.action == "Create":
            return self._create(connection, boot, owner, request)
        shell = boot.shell(request.shell_id)
        if shell.owner != owner:
            raise Fault(soap.NO_SUCH)
        with shell:
            if request.action == "Delete":
                boot.delete(shell)
                return soap.done(request)
            if request.action == "Command":
                return self._start(boot, shell, owner, request)
            if request.action == "Receive":
                wanted = request.payload("Receive")
                stream = None if wanted is None else wanted.find(f"{{{soap.RSP}}}DesiredStream")
                command = shell.command("" if stream is None else stream.get("CommandId", ""))
                limit = min(request.timeout, self.options.quotas.max_timeout)
                return command.receive(request, limit, rule, connection.is_gone)
            if request.action == "Send":
                return self._send(shell, request)
            return self._signal(shell, request)

    def _create(self, connection, boot, owner, request):
        shell = request.payload("Shell")
        if shell is None:
            raise Fault(soap.INVALID_PARAMETER)
        names = {f"{{{soap.RSP}}}{name}": name for name in ("IdleTimeOut", "WorkingDirectory")}
        given = {names[each.tag]: (each.text or "").strip() for each in shell if each.tag in names}
        variables = {
            each.get("Name", ""): each.text or ""
            for each in shell.iterfind(f"{{{soap.RSP}}}Environment/{{{soap.RSP}}}Variable")
        }
        idle = soap.seconds(given["IdleTimeOut"]) if given.get("IdleTimeOut") else None
        made = boot.create(owner, variables, given.get("WorkingDirectory", ""), idle)
        return soap.created(request, made, connection.peer[0])

    def _start(self, boot, shell, owner, request):
        line = request.payload("CommandLine")
        if line is None:
            raise Fault(soap.INVALID_PARAMETER)
        words = [each.text or "" for each in line if each.tag in (f"{{{soap.RSP}}}Command", f"{{{soap.RSP}}}Arguments")]
        text = " ".join(word for word in words if word)
        skip_cmd = request.is_set("WINRS_SKIP_CMD_SHELL")
        self.backend.check(text, skip_cmd)
        boot.operation(owner)
        command = Command(shell, text, skip_cmd)
        shell.add(command)
        self.backend.start(command)
        return soap.started(request, command.id)

    def _send(self, shell, request):
        send = request.payload("Send")
        streams = [] if send is None else send.findall(f"{{{soap.RSP}}}Stream")
        if not streams:
            raise Fault(soap.INVALID_PARAMETER)
        for stream in streams:
            command = shell.command(stream.get("CommandId", ""))
            try:
                octets = base64.b64decode("".join((stream.text or "").split()), validate=True)
            except binascii.Error as error:
                raise Fault(soap.INVALID_PARAMETER) from error
            command.stdin.feed(octets, stream.get("End", "").lower() in ("true", "1"))
        return soap.done(request)

    def _signal(self, shell, request):
        signal = request.payload("Signal")
        code = None if signal is None else signal.find(f"{{{soap.RSP}}}Code")
        what = ((code.text if code is not None else "") or "").strip().lower()
        command = shell.command("" if signal is None else signal.get("CommandId", ""))
        if what in (SIGNALS + "ctrl_c", SIGNALS + "ctrl_break"):
            command.kill(CTRL_C_EXIT)
        elif what == SIGNALS + "terminate":
            shell.remove(command)
        else:
            raise Fault(soap.INVALID_PARAMETER)
        return soap.done(request)


class Answer:
    """One answer on its way, and what the log says of it: before the answer goes, so that who has it finds it there."""

    def __init__(self, server, connection, session, request):
        self.server = server
        self.connection = connection
        self.session = session
        self.request = request
        self.begun = time.monotonic()
        self.logged = False
        self.action = "none"
        self.rule = None
        self.sealed = None
        self.status = None
        self.fault = None
        self.token = []

    def log(self, written=0):
        if self.logged:
            return
        self.logged = True
        self.server.journal.write(
            event="request", action=self.action, connection=self.connection.number, boot=self.server.boot.number,
            read=self.request.size, written=written, status=self.status, fault=self.fault, sealed=self.sealed,
            rule=self.rule.name if self.rule else None, ms=round((time.monotonic() - self.begun) * 1000, 1),
        )  # fmt: skip

    def plain(self, status, headers=()):
        self.status = status
        self.connection.write(status, list(headers), b"", self.rule, self.log)

    def soap(self, status, body):
        self.status = status
        kind = SOAP_TYPE
        if self.sealed and not (self.rule is not None and self.rule.fault == "unsealed"):
            body, kind = seal_message(body, self.session.context, self.rule), CONTENT_TYPE
        self.connection.write(status, [*self.token, ("Content-Type", kind)], body, self.rule, self.log)
