"""Faults on order: which request is treated badly, and how.

A rule is a JSON object:

    {"name": "lost answer",    for the log; its number when absent
     "on": "Receive",          connect, auth, Identify, Create, Command, Receive, Send, Signal, Delete, Get,
                               or * (any request that is one of WS-Management)
     "nth": 2,                 the first matching event that it spoils; 1 when absent
     "times": 1,               how many events in a row; 0 for all that follow
     "connection": 3,          only on this connection (they are counted from 1 since the start)
     "fault": "close", …}      what happens, with the options below

    at connect   refuse (reset at once), half-open (accepted, never answered)
    any request  close      the connection ends; {"after": true}: once the request was done
                 reset      the same with a TCP reset
                 half-open  no answer, the connection stays; {"after": true} likewise
                 status     {"code": 503}, without a body; 401 forgets who the connection is
                 delay      {"ms": 500} before the request is done
                 restart    {"seconds": 2}: as if the machine restarted now
    its answer   truncate   {"after": bytes of the body sent}, half of it when absent
                 drip       {"bytes": 64, "every_ms": 20}
                 chunked    {"size": 7}: Transfer-Encoding: chunked with extensions
                 bad-mic, corrupt, wrong-length {"delta": 1}   what is sealed, spoiled
                 unsealed   the answer in plain text though the request was sealed
                 relates-to the answer to another request
                 fault      {"code": 2150859173, "provider": true, "text": "…"}, the request is not done
                 split      {"size": 1} or {"at": [1, 3]}: a Receive's streams cut there, one piece per answer
                 no-exit-code   Done without its ExitCode

At most one rule fires for one event: the first that matches, and those after it do not see the event.
Each firing is counted and logged.
"""

import json
import os
import threading

AT_CONNECT = {"refuse", "half-open"}
AT_REQUEST = {
    "close", "reset", "half-open", "status", "delay", "restart", "truncate", "drip", "chunked", "bad-mic", "corrupt",
    "wrong-length", "unsealed", "relates-to", "fault", "split", "no-exit-code",
}  # fmt: skip
EVENTS = {"connect", "auth", "Identify", "Create", "Command", "Receive", "Send", "Signal", "Delete", "Get", "*"}
FIELDS = {"name", "on", "nth", "times", "connection", "fault"}
OPTIONS = {"after", "code", "ms", "seconds", "bytes", "every_ms", "size", "delta", "provider", "text", "at"}


class Rule:
    def __init__(self, number, given):
        unknown = set(given) - FIELDS - OPTIONS
        if unknown:
            raise ValueError(f"rule {number}: unknown {sorted(unknown)}")
        self.name = str(given.get("name", number))
        self.on = given["on"]
        self.fault = given["fault"]
        if self.on not in EVENTS:
            raise ValueError(f"rule {self.name}: no event {self.on!r}")
        if self.fault not in (AT_CONNECT if self.on == "connect" else AT_REQUEST):
            raise ValueError(f"rule {self.name}: no fault {self.fault!r} at {self.on}")
        self.nth = int(given.get("nth", 1))
        self.times = int(given.get("times", 1))
        self.connection = given.get("connection")
        self.given = given
        self.seen = 0
        self.fired = 0

    def option(self, name, default):
        return self.given.get(name, default)

    def matches(self, event, connection):
        if self.on != event and not (self.on == "*" and event not in ("connect", "auth")):
            return False
        if self.connection is not None and self.connection != connection:
            return False
        self.seen += 1
        if self.seen < self.nth or (self.times and self.seen >= self.nth + self.times):
            return False
        self.fired += 1
        return True


class Rules:
    def __init__(self):
        self.lock = threading.Lock()
        self.rules = []
        self.path = None
        self.version = None

    def replace(self, given):
        """Counts begin anew. Raises `ValueError` and leaves the old rules when one is wrong."""
        made = [Rule(number, each) for number, each in enumerate(given)]
        with self.lock:
            self.rules = made

    def follow(self, path):
        """Takes the rules from a file, now and whenever it is another (replace it by a rename)."""
        self.path = path
        self._reread()

    def _reread(self):
        if self.path is None:
            return
        stat = os.stat(self.path)
        version = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if version != self.version:
            with open(self.path, encoding="utf-8") as file:
                self.replace(json.load(file))
            self.version = version

    def fire(self, event, connection):
        """The rule that spoils this event, or None."""
        self._reread()
        with self.lock:
            for rule in self.rules:
                if rule.matches(event, connection):
                    return rule
        return None

    def report(self):
        with self.lock:
            return [{"name": rule.name, "seen": rule.seen, "fired": rule.fired} for rule in self.rules]
