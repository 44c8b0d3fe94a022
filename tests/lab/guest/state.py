"""What this Windows would keep in places the lab has no format for: accounts, certificates, services, WinRM, tasks.

One JSON file on c:\\, `Windows\\System32\\config\\lab.json`, replaced whole at each change, so that a test can look
offline whether a build left anything in it. Beside it `c:\\lab\\*.json`, written by tests: what is to happen (README).
"""

import json
import os
import threading

PATH = "Windows/System32/config/lab.json"
SID = "S-1-5-21-1004336348-1177238915-682003330"  # of this machine
FRESH = {
    "accounts": {},  # name: {sid, password, groups}
    "next_rid": 1001,
    "certificates": {},  # thumbprint: {certificate, key, stores}
    "services": {
        "WinRM": {"Status": "Stopped", "StartType": "Manual"},
        "wuauserv": {"Status": "Stopped", "StartType": "Manual"},
        "TrustedInstaller": {"Status": "Stopped", "StartType": "Manual"},
    },
    "listeners": [],  # {transport, port, thumbprint}
    "rules": {
        "WINRM-HTTP-In-TCP": {"Enabled": False, "Port": 5985},
        "WINRM-HTTP-In-TCP-PUBLIC": {"Enabled": False, "Port": 5985},
    },
    "wsman": {
        r"Shell\MaxMemoryPerShellMB": "2147483647", r"Shell\MaxProcessesPerShell": "2147483647",
        r"Shell\MaxShellsPerUser": "2147483647", r"Service\MaxConcurrentOperationsPerUser": "1500",
    },
    "network": "Public",
    "tasks": {},  # name: {xml, user, result}
    "updates": {"installed": [], "staged": [], "downloaded": [], "accepted": []},
}  # fmt: skip


class State:
    def __init__(self, root):
        self.root = root
        self.path = os.path.join(root, PATH)
        self.lock = threading.RLock()
        try:
            with open(self.path, encoding="utf-8") as file:
                self.data = json.load(file)
        except FileNotFoundError:
            self.data = json.loads(json.dumps(FRESH))

    def __getitem__(self, name):
        return self.data[name]

    def __setitem__(self, name, value):
        self.data[name] = value

    def save(self):
        with self.lock:
            new = self.path + ".new"
            with open(new, "w", encoding="utf-8") as file:
                json.dump(self.data, file, indent=1, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)

    def scripted(self, name, default):
        """What a test wrote to c:\\lab\\NAME.json."""
        try:
            with open(os.path.join(self.root, "lab", name + ".json"), encoding="utf-8-sig") as file:
                return json.load(file)
        except FileNotFoundError:
            return default
