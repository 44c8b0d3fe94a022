"""The service WinRM: listens while it runs, has an HTTPS listener, and the firewall lets its port through.

Nothing listens before a script made the listener, with the certificate it names. The server is the lab's own (labd).
A listener for plain HTTP (what Enable-PSRemoting makes) is on the list and is not served.
"""

import base64
import hashlib
import os
import ssl
import tempfile
import threading

from labd import certificate
from labd.acceptors import Users
from labd.backend_linux import LinuxBackend
from labd.journal import Journal
from labd.rules import Rules
from labd.server import Server
from labd.shells import Quotas


class Options:
    """What the server's parts look up."""


def make_certificate(name):
    """(thumbprint, {certificate, key}) of a new self-signed one, by openssl."""
    with tempfile.TemporaryDirectory() as folder:
        pem, key = certificate.make(folder, name)
        with open(pem, encoding="ascii") as file:
            text = file.read()
        with open(key, encoding="ascii") as file:
            secret = file.read()
    der = ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN") :])
    return hashlib.sha1(der).hexdigest().upper(), {"certificate": text, "key": secret, "raw": base64.b64encode(der).decode()}


class WinRm:
    def __init__(self, guest):
        self.guest = guest
        self.server = None
        self.wanted = None
        self.lock = threading.Lock()

    def _want(self):
        """(port, thumbprint) of what should be listening, or None."""
        state = self.guest.state
        if state["services"]["WinRM"]["Status"] != "Running":
            return None
        for listener in state["listeners"]:
            open_ = any(rule["Enabled"] and rule["Port"] == listener["port"] for rule in state["rules"].values())
            if listener["transport"] == "HTTPS" and open_ and listener["thumbprint"] in state["certificates"]:
                return listener["port"], listener["thumbprint"]
        return None

    def look(self):
        """Makes what is so of what should be."""
        with self.lock:
            wanted = self._want()
            if wanted == self.wanted:
                return
            if self.server is not None:
                self.server.stop()
                self.server = None
            self.wanted = wanted
            if wanted is not None:
                self.server = self._serve(*wanted)
            self.guest.say(f"WinRM listens: {wanted}")

    def _users(self):
        """The accounts as they are now; who is logged in already stays so."""
        guest = self.guest
        users = os.path.join(guest.place, "accounts")
        with open(users, "w", encoding="utf-8") as file:
            file.writelines(f":{name}:{account['password']}\n" for name, account in guest.state["accounts"].items())
        return Users(users, guest.place, guest.name)

    def accounts_changed(self):
        with self.lock:
            if self.server is not None:
                self.server.options.users = self._users()

    def _serve(self, port, thumbprint):
        guest, state = self.guest, self.guest.state
        made = state["certificates"][thumbprint]
        files = [os.path.join(guest.place, name) for name in ("listener.pem", "listener.key")]
        for path, text in zip(files, (made["certificate"], made["key"])):
            with open(path, "w", encoding="ascii") as file:
                file.write(text)
        options = Options()
        options.acceptor, options.basic, options.restart_seconds = "pyspnego", False, 0
        options.quotas = Quotas()
        options.users = self._users()
        options.tls = certificate.context(*files)
        options.certificate = certificate.Certificate(files[0])
        # One machine has one user's folders: those of the build's account.
        user = next((name for name in state["accounts"] if name != "Administrator"), "Administrator")
        options.machine = guest.machine(user)
        server = Server(("0.0.0.0", port), options, Rules(), Journal(None))
        server.backend = LinuxBackend(options.machine, guest.power, guest.engine, guest.variables(user, ""))
        guest.control.server = server
        server.listen()
        threading.Thread(target=server.reap, daemon=True).start()
        return server

    def stop(self):
        with self.lock:
            if self.server is not None:
                self.server.stop()
                self.server = None
            self.wanted = None
