"""The control socket: one JSON line in, one JSON line out, for tests and for the lab's programs.

{"do": "rules", "rules": […]}   replaces the rules; {"do": "rules"} reports how often each fired
{"do": "restart", "seconds": 2} as if the machine restarted; answers at once
{"do": "shutdown", "words": […]} shutdown.exe
{"do": "state"}                 boot, shells, commands
"""

import json
import os
import socket
import threading


class Control:
    def __init__(self, path, server, power):
        self.path = path
        self.server = server
        self.power = power
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        os.chmod(path, 0o600)
        self.listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        with sock, sock.makefile("rw", encoding="utf-8") as lines:
            for line in lines:
                try:
                    answer = self._do(json.loads(line))
                except (ValueError, KeyError) as error:
                    answer = {"error": str(error)}
                lines.write(json.dumps(answer) + "\n")
                lines.flush()

    def _do(self, asked):
        what = asked["do"]
        if what == "rules":
            if "rules" in asked:
                self.server.rules.replace(asked["rules"])
            return {"rules": self.server.rules.report()}
        if what == "restart":
            threading.Thread(target=self.server.restart, args=(asked.get("seconds"),), daemon=True).start()
            return {"boot": self.server.boot.number}
        if what == "shutdown":
            code, text = self.power.shutdown(asked["words"])
            return {"code": code, "text": text}
        if what == "state":
            boot = self.server.boot
            with boot.lock:
                shells = list(boot.shells.values())
            return {
                "boot": self.server.boot.number,
                "boot_id": boot.id,
                "shells": len(shells),
                "commands": sum(len(shell.commands) for shell in shells),
            }
        raise ValueError(f"no {what!r}")
