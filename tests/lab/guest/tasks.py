"""The task scheduler: tasks come as XML and really run, as processes of the lab.

A task is registered in three places, as in a Windows: the scheduler's own, a file below `System32\\Tasks`, a key of
TaskCache. It runs with `LAB_TASK` set to who it runs as; its output goes nowhere. Nothing runs by a trigger.
"""

import os
import threading
import xml.etree.ElementTree as tree

from hives import TASKS
from labd.cmdline import split_arguments
from labd.streams import Nothing, Streams

NS = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
SYSTEM = "S-1-5-18"
NEVER_RUN, RUNNING, ENDED = 0x41303, 0x41301, 0x41306


class Refused(Exception):
    """The scheduler's no, in Windows' words where they are known."""


def parsed(xml):
    """Python refuses a string whose declaration says UTF-16: it is a string here, so the declaration goes."""
    return tree.fromstring(xml.split("?>", 1)[-1].strip() if xml.lstrip().startswith("<?xml") else xml)


class Scheduler:
    def __init__(self, guest):
        self.guest = guest
        self.state = guest.state
        self.lock = threading.RLock()
        self.running = {}  # name: kills

    def _file(self, name):
        return os.path.join(self.guest.root, "Windows/System32/Tasks", name)

    def _known(self, name):
        found = next((each for each in self.state["tasks"] if each.lower() == name.lower()), None)
        if found is None:
            raise Refused("The system cannot find the file specified.")
        return found

    def register(self, name, xml, user, password, force):
        if any(letter in name for letter in '\\/:*?"<>|'):
            raise Refused(f"lab: no folders of tasks: {name}")
        if any(each.lower() == name.lower() for each in self.state["tasks"]) and not force:
            raise Refused("Cannot create a file when that file already exists.")
        try:
            root = parsed(xml)
        except tree.ParseError as error:
            raise Refused(f"The task XML is malformed. ({error})") from error
        principal = root.findtext(f"{NS}Principals/{NS}Principal/{NS}UserId") or ""
        if root.find(f"{NS}Actions/{NS}Exec/{NS}Command") is None:
            raise Refused("The task XML is missing a required element or attribute. (Command)")
        if user:
            account = self.guest.account(user)
            if account is None or account["password"] != password:
                raise Refused("The user name or password is incorrect.")
        elif principal.upper() not in (SYSTEM, "SYSTEM"):
            raise Refused(f"lab: a task of {principal!r} without its password")
        with self.lock:
            self.state["tasks"][name] = {"xml": xml, "user": user or "SYSTEM", "result": NEVER_RUN}
            self.state.save()
        with open(self._file(name), "wb") as file:
            file.write(xml.encode("utf-16"))
        self.guest.registry.set(rf"{TASKS}\{name}", "Index", "DWord", 3)

    def start(self, name):
        with self.lock:
            name = self._known(name)
            if name in self.running:
                return
            task = self.state["tasks"][name]
            kills = self.running[name] = []
            task["result"] = RUNNING
            self.state.save()
        threading.Thread(target=self._run, args=(name, task, kills), daemon=True).start()

    def _run(self, name, task, kills):
        action = parsed(task["xml"]).find(f"{NS}Actions/{NS}Exec")
        line = action.findtext(NS + "Command").strip()
        arguments = (action.findtext(NS + "Arguments") or "").strip()
        nothing = Nothing()
        interpreter = self.guest.interpreter(task["user"], kills.append, task=task["user"])
        code = 250
        try:
            code = interpreter.program(line, split_arguments(arguments), Streams(nothing, nothing, nothing))
        finally:
            with self.lock:
                self.running.pop(name, None)
                if task["result"] == RUNNING:
                    task["result"] = code
                self.state.save()
            self.guest.say(f"task {name} ended with {code}")

    def stop(self, name):
        with self.lock:
            name = self._known(name)
            kills = self.running.get(name, [])
            if name in self.running:
                self.state["tasks"][name]["result"] = ENDED
        for kill in list(kills):
            kill()

    def look(self, name):
        """[{name, state, result}], of one or of all; empty when there is none."""
        with self.lock:
            return [
                {"name": each, "state": "Running" if each in self.running else "Ready", "result": task["result"]}
                for each, task in self.state["tasks"].items()
                if name is None or each.lower() == name.lower()
            ]

    def unregister(self, name):
        with self.lock:
            name = self._known(name)
            del self.state["tasks"][name]
            self.state.save()
        os.remove(self._file(name))
        self.guest.registry.delete(rf"{TASKS}\{name}")
