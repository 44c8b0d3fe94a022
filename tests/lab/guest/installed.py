"""An installed system: what somebody's own Windows has before a build sees it.

An account with a profile, who was logged on here; a certificate, a listener for it and the firewall's leave; the policy
that lets a local administrator in from outside; an answer file that was followed long ago. No answer file is read of
this one (`ImageState` says that it is complete), and a build must leave every one of these as it is.
"""

import base64
import copy
import json
import os

import hives
from labd import certificate
from state import FRESH, SID

USER = "golden"
PORT = 5986
RULE = "Own-WinRM"
POLICIES = r"SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System"
NAMES = r"SAM\SAM\Domains\Account\Users\Names"
LISTENERS = r"SOFTWARE\Microsoft\Windows\CurrentVersion\WSMAN\Listener"
FOLDERS = [f"Users/{USER}{below}" for below in ("", "/AppData", "/AppData/Local", "/AppData/Local/Temp", "/AppData/Roaming", "/Documents")]
ANSWERS = "Windows/Panther/unattend-original.xml"


def fill(registry):
    """On top of what every Windows has in its hives."""
    sid = f"{SID}-1001"
    registry.set(hives.STATE, "ImageState", "String", "IMAGE_STATE_COMPLETE")
    registry.set(rf"{hives.PROFILES}\{sid}", "ProfileImagePath", "ExpandString", rf"C:\Users\{USER}")
    registry.set(hives.LOGON_UI, "LastLoggedOnUser", "String", rf".\{USER}")
    registry.set(hives.WINLOGON, "DefaultUserName", "String", USER)
    registry.set(POLICIES, "LocalAccountTokenFilterPolicy", "DWord", 1)
    registry.add(rf"{NAMES}\{USER}")
    registry.add(rf"{LISTENERS}\*+HTTPS")


def state(password, name, scratch):
    """(lab.json's text, SHA-256 digest of the listener's certificate)."""
    pem, key = certificate.make(scratch, name)
    shown = certificate.Certificate(pem)
    with open(pem, encoding="ascii") as file:
        text = file.read()
    with open(key, encoding="ascii") as file:
        secret = file.read()
    thumbprint = shown.sha1.upper()
    made = {"certificate": text, "key": secret, "raw": base64.b64encode(shown.der).decode(), "stores": ["My", "Root"]}
    data = copy.deepcopy(FRESH)
    data["accounts"][USER] = {"sid": f"{SID}-1001", "password": password, "groups": ["Administrators"]}
    data["next_rid"] = 1002
    data["certificates"][thumbprint] = made
    data["services"]["WinRM"] = {"Status": "Running", "StartType": "Automatic"}
    data["listeners"].append({"transport": "HTTPS", "port": PORT, "thumbprint": thumbprint})
    data["rules"][RULE] = {"Enabled": True, "Port": PORT}
    data["network"] = "Private"
    return json.dumps(data, indent=1, sort_keys=True), shown.sha256


def read_password(path):
    with open(path, encoding="utf-8") as file:
        return file.read().rstrip("\n")


def write_digest(path, digest):
    with open(os.path.splitext(path)[0] + ".sha256", "w", encoding="ascii") as file:
        file.write(digest + "\n")
