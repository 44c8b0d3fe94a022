"""Sysprep.exe: does in the hives what it claims, some seconds after it was started, as Windows' own does.

`c:\\lab\\sysprep.json` scripts it: {"seconds": 3, "result": "generalized" | "undeployable" | "dies" | "hangs"}.
"""

import os
import threading
import time

from hives import LICENSING, STATE

FOLDER = "Windows/System32/Sysprep/Panther"


class Sysprep:
    def __init__(self, guest):
        self.guest = guest
        self.running = False

    def _log(self, name, text):
        with open(os.path.join(self.guest.root, FOLDER, name), "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}, {text}\r\n")

    def start(self, words):
        """(exit code, loud): returns at once, as for any program with a window."""
        words = sorted(word.lower() for word in words)
        if words != ["/generalize", "/oobe", "/quiet", "/quit"]:
            return 250, f"Sysprep.exe {' '.join(words)}"
        self.running = True
        threading.Thread(target=self._run, daemon=True).start()
        return 0, None

    def _run(self):
        script = self.guest.state.scripted("sysprep", {})
        registry = self.guest.registry
        try:
            # As Windows has it: undeployable until Sysprep is through.
            registry.set(STATE, "ImageState", "String", "IMAGE_STATE_UNDEPLOYABLE")
            time.sleep(float(script.get("seconds", 3)))
            result = script.get("result", "generalized")
            if result == "hangs":
                threading.Event().wait()
            if result == "dies":
                return
            left = registry.get(LICENSING, "LabRearmsLeft", 0)
            if left < 1 and registry.get(LICENSING, "SkipRearm") != 1:
                self._log("setuperr.log", "Error      SYSPRP Failed while rearming: no rearm is left [0xc004d307] (lab)")
                return
            if result == "undeployable":
                self._log("setuperr.log", "Error      SYSPRP a provider failed half-way, as c:\\lab\\sysprep.json asked for (lab)")
                return
            if registry.get(LICENSING, "SkipRearm") != 1:
                registry.set(LICENSING, "LabRearmsLeft", "DWord", left - 1)
            # The built-in administrator's password goes with it, as Windows' own Sysprep has it.
            if self.guest.state["accounts"].pop("Administrator", None):
                self.guest.state.save()
            registry.set(STATE, "ImageState", "String", "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE")
            self._log("setupact.log", "Info       SYSPRP generalized (lab)")
        finally:
            self.running = False
