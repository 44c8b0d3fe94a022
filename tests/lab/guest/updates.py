"""Windows Update of the lab: a scripted list, no more. `c:\\lab\\updates.json` replaces the list (README).

An update is {"id", "kb", "title"} and what becomes of it:
  (nothing more)           it installs
  "restart": true          it installs, and wants a restart before it counts as installed
  "fails": "0x80070643"    each installation fails with this code
  "needs": ["id", …]       it is found only once these are installed
  "eula": true, "optional": true, "input": true, "severity": "Critical"
"""

from hives import UPDATE_RESTART

DEFAULT = [
    {"id": "lab-1", "kb": "900001", "title": "Lab update that installs (KB900001)"},
    {"id": "lab-2", "kb": "900002", "title": "Lab update that wants a restart (KB900002)", "restart": True, "eula": True},
    {"id": "lab-3", "kb": "900003", "title": "Lab update that fails each round (KB900003)", "fails": "0x80070643"},
    {"id": "lab-4", "kb": "900004", "title": "Lab update found after a restart (KB900004)", "needs": ["lab-2"]},
]  # fmt: skip


class Updates:
    def __init__(self, state, registry):
        self.state = state
        self.registry = registry

    @property
    def said(self):
        return self.state["updates"]

    def booted(self):
        """A restart makes what was staged installed."""
        if self.said["staged"]:
            self.said["installed"] += self.said["staged"]
            self.said["staged"] = []
            self.state.save()
        if self.registry.exists(UPDATE_RESTART):
            self.registry.delete(UPDATE_RESTART)

    def pending(self):
        return bool(self.said["staged"])

    def all(self):
        known = self.state.scripted("updates", DEFAULT)
        for each in known:
            each["installed"] = each["id"] in self.said["installed"]
            each["downloaded"] = each["id"] in self.said["downloaded"]
            each["accepted"] = not each.get("eula") or each["id"] in self.said["accepted"]
        return [each for each in known if all(need in self.said["installed"] for need in each.get("needs", []))]

    def _mark(self, what, ids):
        self.said[what] += [each for each in ids if each not in self.said[what]]
        self.state.save()

    def accept(self, ids):
        self._mark("accepted", ids)

    def download(self, ids):
        self._mark("downloaded", ids)

    def install(self, ids):
        """[{code, hresult, restart}] in the order of `ids`: 2 succeeded, 4 failed."""
        results = []
        for each in (next(update for update in self.all() if update["id"] == id_) for id_ in ids):
            if each.get("fails"):
                code = int(each["fails"], 16)
                results.append({"code": 4, "hresult": code - (1 << 32) if code >> 31 else code, "restart": False})
            elif not each["downloaded"] or not each["accepted"]:
                results.append({"code": 4, "hresult": 0x80240044 - (1 << 32), "restart": False})
            else:
                self._mark("staged" if each.get("restart") else "installed", [each["id"]])
                results.append({"code": 2, "hresult": 0, "restart": bool(each.get("restart"))})
        if self.pending():
            self.registry.add(UPDATE_RESTART)
        return results
