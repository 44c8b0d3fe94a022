"""What PowerShell's doubles and the programs of c:\\ ask: one JSON line in, one out.

The answer is an object: {"error": text, "code": HRESULT?} is an error of the command, {"loud": text} ends the script
with 250 (the lab does not have it), anything else is the command's result. Each request says who asks ("task": empty
for a WinRM shell, else whom the task or the logon runs as).
"""

import json
import os
import shutil
import signal
import socket
import threading
import time
import traceback

import disk
import hives
from hives import NoKey
from tasks import Refused
from winrm import make_certificate

ACCESS_DENIED = 0x80070005 - (1 << 32)
NOT_ALLOWED = 0x80240016 - (1 << 32)
LISTENER = "WSMan:\\localhost\\Listener\\Listener_lab_"


class Error(Exception):
    def __init__(self, text, code=None):
        super().__init__(text)
        self.code = code


class Loud(Exception):
    """The lab does not have this."""


class Calls:
    def __init__(self, guest):
        self.guest = guest
        self.state = guest.state
        self.registry = guest.registry
        self.lock = threading.Lock()

    def listen(self, path):
        if os.path.exists(path):
            os.remove(path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(16)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener):
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        with sock, sock.makefile("rw", encoding="utf-8") as lines:
            for line in lines:
                lines.write(json.dumps(self.answer(line)) + "\n")
                try:
                    lines.flush()
                except OSError:
                    return

    def answer(self, line):
        try:
            asked = json.loads(line)
            act = getattr(self, "do_" + asked["do"].replace("-", "_"), None)
            if act is None:
                raise Loud(asked["do"])
            # One at a time: a change and what follows from it.
            with self.lock:
                return act(asked) or {}
        except Loud as loud:
            self.guest.say(f"not implemented: {loud}")
            return {"loud": str(loud)}
        except Error as error:
            return {"error": str(error), "code": error.code}
        except (Refused, disk.Failed) as refused:
            return {"error": str(refused)}
        except NoKey as key:
            return {"error": f"Cannot find path '{key}' because it does not exist."}
        except Exception as error:  # a defect of the lab must not look like an answer
            traceback.print_exc()
            return {"loud": f"failed: {type(error).__name__}: {error}"}

    # Registry

    def do_key_exists(self, asked):
        return {"there": self.registry.exists(asked["path"])}

    def do_key_values(self, asked):
        names = {1: "String", 2: "String", 3: "Binary", 4: "DWord", 7: "MultiString", 11: "QWord"}
        values = self.registry.values(asked["path"])
        return {"values": [{"name": n, "type": names.get(kind, "Binary"), "value": v} for n, (kind, v) in values.items()]}

    def do_key_children(self, asked):
        return {"names": self.registry.children(asked["path"])}

    def do_key_add(self, asked):
        self.registry.add(asked["path"])

    def do_key_delete(self, asked):
        self.registry.delete(asked["path"])

    def do_value_set(self, asked):
        kind, value = asked.get("type") or None, asked["value"]
        if kind is None:
            old = {n.lower(): t for n, (t, _) in self.registry.values(asked["path"]).items()}
            kind = old.get(asked["name"].lower(), 4 if isinstance(value, int) else 7 if isinstance(value, list) else 1)
        elif kind not in hives.TYPES:
            raise Loud(f"a value of type {kind}")
        self.registry.set(asked["path"], asked["name"], kind, value, make=False)

    def do_value_remove(self, asked):
        self.registry.remove(asked["path"], asked["name"])

    # Services

    def _services(self):
        return {**self.state["services"], **self.state.scripted("services", {})}

    def do_services(self, asked):
        name = asked.get("name")
        found = self._services()
        return {"services": [{"Name": n, **s} for n, s in found.items() if name is None or n.lower() == name.lower()]}

    def _service(self, asked):
        for name, service in self.state["services"].items():
            if name.lower() == asked["name"].lower():
                return name, service
        raise Error(f"Cannot find any service with service name '{asked['name']}'.")

    def do_service_set(self, asked):
        name, service = self._service(asked)
        if asked.get("start") is not None:
            starts = {"automatic": ("Automatic", 2), "manual": ("Manual", 3), "disabled": ("Disabled", 4)}
            if asked["start"].lower() not in starts:
                raise Loud(f"a service's start {asked['start']}")
            service["StartType"], number = starts[asked["start"].lower()]
            self.registry.set(rf"SYSTEM\CurrentControlSet\Services\{name}", "Start", "DWord", number)
        if asked.get("status") is not None:
            service["Status"] = asked["status"]
        self.state.save()
        self.guest.winrm.look()

    # WinRM

    def do_remoting(self, asked):
        service = self.state["services"]["WinRM"]
        service["Status"] = "Running"
        if not any(each["transport"] == "HTTP" for each in self.state["listeners"]):
            self.state["listeners"].append({"transport": "HTTP", "port": 5985, "thumbprint": ""})
        for rule in self.state["rules"].values():
            if rule["Port"] == 5985:
                rule["Enabled"] = True
        self.state.save()
        self.guest.winrm.look()

    def do_listeners(self, asked):
        if self.state["services"]["WinRM"]["Status"] != "Running":
            raise Error("The client cannot connect to the destination specified in the request.")
        return {
            "listeners": [
                {"path": LISTENER + each["transport"], "keys": [f"Transport={each['transport']}", "Address=*"]}
                for each in self.state["listeners"]
            ]
        }

    def do_listener_add(self, asked):
        if self.state["services"]["WinRM"]["Status"] != "Running":
            raise Error("The client cannot connect to the destination specified in the request.")
        thumbprint = asked["thumbprint"].upper()
        if asked["transport"] != "HTTPS":
            raise Loud(f"a listener for {asked['transport']}")
        if "My" not in self.state["certificates"].get(thumbprint, {"stores": []})["stores"]:
            raise Error("The WS-Management service cannot find the certificate that was requested.")
        kept = [each for each in self.state["listeners"] if each["transport"] != "HTTPS"]
        self.state["listeners"][:] = [*kept, {"transport": "HTTPS", "port": int(asked["port"]), "thumbprint": thumbprint}]
        self.state.save()
        self.guest.winrm.look()

    def do_listener_remove(self, asked):
        kept = [each for each in self.state["listeners"] if LISTENER + each["transport"] != asked["path"]]
        if len(kept) == len(self.state["listeners"]):
            raise Error(f"Cannot find path '{asked['path']}' because it does not exist.")
        self.state["listeners"][:] = kept
        self.state.save()
        # A moment, so that who asked over the connection may hear of it.
        threading.Timer(0.2, self.guest.winrm.look).start()

    def _quota(self, asked):
        name = asked["path"].split("\\", 2)[-1]
        if name not in self.state["wsman"]:
            raise Error(f"Cannot find path '{asked['path']}' because it does not exist.")
        return name

    def do_quota(self, asked):
        return {"value": self.state["wsman"][self._quota(asked)]}

    def do_quota_set(self, asked):
        self.state["wsman"][self._quota(asked)] = str(asked["value"])
        self.state.save()

    # Certificates

    def do_certificate_make(self, asked):
        if asked["store"].lower() != "cert:\\localmachine\\my":
            raise Loud(f"a certificate in {asked['store']}")
        thumbprint, made = make_certificate(asked["name"])
        # Windows puts a copy among the certificates of authorities.
        self.state["certificates"][thumbprint] = {**made, "stores": ["My", "CA"]}
        self.state.save()
        return {"thumbprint": thumbprint, "raw": made["raw"]}

    def _certificate(self, path):
        parts = path.split("\\")
        if len(parts) != 4 or parts[1].lower() != "localmachine" or parts[2] not in ("My", "CA", "Root"):
            raise Loud(f"certificates at {path}")
        return parts[3].upper(), parts[2]

    def do_certificate_exists(self, asked):
        thumbprint, store = self._certificate(asked["path"])
        return {"there": store in self.state["certificates"].get(thumbprint, {"stores": []})["stores"]}

    def do_certificate_remove(self, asked):
        thumbprint, store = self._certificate(asked["path"])
        stores = self.state["certificates"].get(thumbprint, {"stores": []})["stores"]
        if store not in stores:
            raise Error(f"Cannot find path '{asked['path']}' because it does not exist.")
        stores.remove(store)
        if store == "My" and asked.get("key"):
            self.state["certificates"][thumbprint]["key"] = ""
        # A key that nobody deletes stays, as it does in a Windows.
        if not stores and not self.state["certificates"][thumbprint]["key"]:
            del self.state["certificates"][thumbprint]
        self.state.save()

    # Network

    def do_networks(self, asked):
        up = any(
            open(f"/sys/class/net/{name}/operstate", encoding="ascii").read().strip() == "up"
            for name in os.listdir("/sys/class/net") if name != "lo"
        )  # fmt: skip
        return {"networks": [{"Name": "Network", "Category": self.state["network"]}] if up else []}

    def do_network_set(self, asked):
        self.state["network"] = asked["category"]
        self.state.save()

    def do_rules(self, asked):
        return {"rules": [{"Name": name, **rule} for name, rule in self.state["rules"].items()]}

    def do_rule_add(self, asked):
        if asked["name"] in self.state["rules"]:
            raise Error("Cannot create a file when that file already exists.")
        self.state["rules"][asked["name"]] = {"Enabled": True, "Port": int(asked["port"])}
        self.state.save()
        self.guest.winrm.look()

    def do_rule_set(self, asked):
        if asked["name"] not in self.state["rules"]:
            raise Error(f"No MSFT_NetFirewallRule objects found with property 'InstanceID' equal to '{asked['name']}'.")
        self.state["rules"][asked["name"]]["Enabled"] = asked["enabled"]
        self.state.save()
        self.guest.winrm.look()

    def do_rule_remove(self, asked):
        self.state["rules"].pop(asked["name"], None)
        self.state.save()
        threading.Timer(0.2, self.guest.winrm.look).start()

    # Accounts and profiles

    def do_account(self, asked):
        account = self.guest.account(asked["name"])
        if account is None:
            raise Error(f"User {asked['name']} was not found.")
        return {"sid": account["sid"]}

    def do_accounts(self, asked):
        return {"accounts": [{"name": name, "sid": of["sid"]} for name, of in self.state["accounts"].items()]}

    def do_account_password(self, asked):
        """With the old one a change, without it a reset by who may; this guest's processes all may."""
        self.do_account(asked)
        account = self.guest.account(asked["name"])
        if asked.get("old") is not None and asked["old"] != account["password"]:
            raise Error("The specified network password is not correct.")
        account["password"] = asked["new"]
        self.state.save()
        self.guest.winrm.accounts_changed()

    def do_account_remove(self, asked):
        self.do_account(asked)
        for name in list(self.state["accounts"]):
            if name.lower() == asked["name"].lower():
                del self.state["accounts"][name]
        self.state.save()

    def do_profiles(self, asked):
        found = []
        for sid in self.registry.children(hives.PROFILES):
            path = self.registry.get(rf"{hives.PROFILES}\{sid}", "ProfileImagePath", "")
            found.append({"SID": sid, "LocalPath": path, "Loaded": self.guest.in_use(path.rsplit("\\", 1)[-1])})
        return {"profiles": [each for each in found if asked.get("sid") in (None, each["SID"])]}

    def do_profile_remove(self, asked):
        path = self.registry.get(rf"{hives.PROFILES}\{asked['sid']}", "ProfileImagePath", "")
        if not path or self.guest.in_use(path.rsplit("\\", 1)[-1]):
            raise Error("The profile is in use.")
        shutil.rmtree(self.guest.machine("SYSTEM").native(path))
        self.registry.delete(rf"{hives.PROFILES}\{asked['sid']}")

    # Tasks

    def do_task_register(self, asked):
        self.guest.tasks.register(asked["name"], asked["xml"], asked.get("user"), asked.get("password"), asked["force"])

    def do_task_start(self, asked):
        self.guest.tasks.start(asked["name"])

    def do_task_stop(self, asked):
        self.guest.tasks.stop(asked["name"])

    def do_task_remove(self, asked):
        self.guest.tasks.unregister(asked["name"])

    def do_tasks(self, asked):
        return {"tasks": self.guest.tasks.look(asked.get("name"))}

    # Windows Update

    def do_updates(self, asked):
        error = self.state.scripted("search", {}).get("fails")
        if error:
            raise Error(f"Exception from HRESULT: {error}", int(error, 16) - (1 << 32))
        return {"updates": self.guest.updates.all()}

    def do_updates_pending(self, asked):
        return {"pending": self.guest.updates.pending()}

    def _system_only(self, asked):
        if asked.get("task") != "SYSTEM":
            raise Error("Access is denied. (Exception from HRESULT: 0x80070005 (E_ACCESSDENIED))", ACCESS_DENIED)

    def do_update_agent(self, asked):
        """A downloader or an installer: refused over a remote logon."""
        self._system_only(asked)

    def do_updates_accept(self, asked):
        self._system_only(asked)
        self.guest.updates.accept(asked["ids"])

    def do_updates_download(self, asked):
        self.guest.updates.download(asked["ids"])

    def do_updates_install(self, asked):
        # c:\lab\busy.json {"until": seconds since 1970}: another installation is under way.
        if self.do_updates_busy(asked)["busy"]:
            raise Error("Exception from HRESULT: 0x80240016", NOT_ALLOWED)
        return {"results": self.guest.updates.install(asked["ids"]), "restart": self.guest.updates.pending()}

    def do_updates_busy(self, asked):
        return {"busy": time.time() < self.state.scripted("busy", {}).get("until", 0)}

    # Programs and processes

    def do_processes(self, asked):
        """The Windows processes that scripts ask for; a desktop is its shell."""
        found = [{"Name": "explorer", "Id": 4000 + n, "SessionId": n, "UserName": f"{self.guest.name}\\{u}"} for n, u in self.guest.sessions.items()]
        server = self.guest.winrm.server
        owners = {shell.owner for shell in list(server.boot.shells.values())} if server else set()
        found += [{"Name": "winrshost", "Id": 3000, "SessionId": 0, "UserName": f"{self.guest.name}\\{u}"} for u in owners]
        if self.guest.sysprep.running:
            found.append({"Name": "sysprep", "Id": 5000, "SessionId": 0, "UserName": f"{self.guest.name}\\SYSTEM"})
        if time.time() < self.state.scripted("servicing", {}).get("until", 0):
            found.append({"Name": "TiWorker", "Id": 5001, "SessionId": 0, "UserName": "NT AUTHORITY\\SYSTEM"})
        return {"processes": found}

    def do_program(self, asked):
        name, words = asked["name"].removesuffix(".exe"), asked["words"]
        if name == "shutdown":
            code, text = self.guest.power.shutdown(words)
            return {"code": code, "text": text and text + "\n"}
        if name == "sysprep":
            code, loud = self.guest.sysprep.start(words)
            if loud:
                raise Loud(loud)
            return {"code": code}
        if name == "logoff" and len(words) == 1 and words[0].isdigit():
            gone = self.guest.sessions.pop(int(words[0]), None)
            return {"code": 0 if gone else 1, "text": "" if gone else f"Could not find session {words[0]}\n"}
        if name == "taskkill" and [word.lower() for word in words[:3]] == ["/t", "/f", "/pid"] and len(words) == 4:
            return {"code": self._kill(int(words[3]))}
        raise Loud(f"{name} {' '.join(words)}")

    @staticmethod
    def _kill(top):
        """Ends a process with all below it; 128 when it is not there, as taskkill has it."""
        below = {}
        for entry in os.listdir("/proc"):
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8") as file:
                    below.setdefault(int(file.read().rsplit(")", 1)[1].split()[1]), []).append(int(entry))
            except (OSError, ValueError):
                continue
        wanted = [top]
        for each in wanted:
            wanted += below.get(each, [])
        code = 128
        for each in wanted:
            try:
                os.kill(each, signal.SIGKILL)
                code = 0
            except ProcessLookupError:
                pass
        return code

    # The rest

    def do_serial(self, asked):
        if asked["port"] != "COM1":
            raise Error(f"The port '{asked['port']}' does not exist.")
        self.guest.write_serial(asked["text"])

    def do_system(self, asked):
        room = os.statvfs(self.guest.root)
        return {
            "boot_time": self.guest.boot_time, "free": room.f_bavail * room.f_frsize,
            "rearms": self.registry.get(hives.LICENSING, "LabRearmsLeft", 0),
        }  # fmt: skip

    def do_clock_set(self, asked):
        time.clock_settime(time.CLOCK_REALTIME, asked["ms"] / 1000)

    def do_flush(self, asked):
        os.sync()

    def do_disk(self, asked):
        return disk.look()

    def do_disk_grow(self, asked):
        disk.grow(int(asked["size"]))
