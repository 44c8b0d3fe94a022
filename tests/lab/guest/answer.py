"""The answer file, as the first boot of a generalized Windows reads it, and where it is looked for.

Windows' order among what the lab has: `Panther\\Unattend`, `Panther`, then the roots of removable drives.
"""

import os
import xml.etree.ElementTree as tree

NS = "{urn:schemas-microsoft-com:unattend}"
NAMES = ("unattend.xml", "autounattend.xml")
PASSWORDS = {NS + "Password", NS + "AdministratorPassword"}
BLANKED = "*SENSITIVE*DATA*DELETED*"


class Bad(Exception):
    """Not an answer file, or one the lab cannot follow."""


class Answer:
    def __init__(self, octets):
        try:
            self.root = tree.fromstring(octets)
        except tree.ParseError as error:
            raise Bad(f"no XML: {error}") from error
        if self.root.tag != NS + "unattend":
            raise Bad(f"the root element is {self.root.tag}")
        self.shell = self._component("oobeSystem", "Microsoft-Windows-Shell-Setup")
        if self.shell is None:
            raise Bad("no Microsoft-Windows-Shell-Setup in the pass oobeSystem")
        self.accounts = {}
        for account in self.shell.iterfind(f"{NS}UserAccounts/{NS}LocalAccounts/{NS}LocalAccount"):
            name = self._text(account, "Name")
            groups = [group for group in self._text(account, "Group").split(";") if group]
            self.accounts[name] = (self._password(account.find(NS + "Password")), groups)
        administrator = self.shell.find(f"{NS}UserAccounts/{NS}AdministratorPassword")
        self.administrator = None if administrator is None else self._password(administrator)
        commands = self.shell.iterfind(f"{NS}FirstLogonCommands/{NS}SynchronousCommand")
        self.commands = [
            line for _, line in sorted((int(self._text(each, "Order")), self._text(each, "CommandLine")) for each in commands)
        ]
        logon = self.shell.find(NS + "AutoLogon")
        self.logon = None
        if logon is not None and self._text(logon, "Enabled") == "true":
            user, password = self._text(logon, "Username"), self._password(logon.find(NS + "Password"))
            if user not in self.accounts or self.accounts[user][0] != password:
                raise Bad(f"the automatic logon of {user!r} has no account with its password")
            self.logon = (user, password)
        if self.commands and self.logon is None:
            raise Bad("FirstLogonCommands, and nobody logs on")

    def _component(self, name, component):
        for settings in self.root.iterfind(NS + "settings"):
            if settings.get("pass") == name:
                for each in settings.iterfind(NS + "component"):
                    if each.get("name") == component:
                        if each.get("processorArchitecture") != "amd64":
                            raise Bad(f"{component} is for {each.get('processorArchitecture')}")
                        return each
        return None

    @staticmethod
    def _text(node, name):
        found = node.find(NS + name)
        if found is None or not (found.text or "").strip():
            raise Bad(f"{node.tag.removeprefix(NS)} without {name}")
        return found.text

    def _password(self, node):
        if node is None:
            raise Bad("an account without a password")
        if self._text(node, "PlainText") != "true":
            raise Bad("a password that is not plain text")
        return self._text(node, "Value")

    def blanked(self):
        """Windows' own copy: without the passwords."""
        for node in self.root.iter():
            if node.tag in PASSWORDS:
                for value in node.iterfind(NS + "Value"):
                    value.text = BLANKED
        return tree.tostring(self.root, encoding="utf-8", xml_declaration=True)


def search(root, drives):
    """(path, octets) of the first answer file, or None. `drives` are the roots of removable drives, in order."""
    panther = os.path.join(root, "Windows", "Panther")
    for folder, names in [(os.path.join(panther, "Unattend"), NAMES[:1]), (panther, NAMES[:1]), *((d, NAMES) for d in drives)]:
        try:
            found = {name.lower(): name for name in os.listdir(folder)}
        except OSError:
            continue
        for name in names:
            if name in found:
                path = os.path.join(folder, found[name])
                with open(path, "rb") as file:
                    return path, file.read()
    return None
