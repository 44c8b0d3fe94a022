"""What happened, as JSON lines: for tests that count round trips. Never a secret, never a command's text."""

import json
import threading
import time


class Journal:
    def __init__(self, path):
        self.lock = threading.Lock()
        self.file = open(path, "a", encoding="utf-8") if path else None
        self.begun = time.monotonic()

    def write(self, **what):
        if self.file is None:
            return
        what = {"at": round(time.monotonic() - self.begun, 4), **{k: v for k, v in what.items() if v is not None}}
        with self.lock:
            self.file.write(json.dumps(what) + "\n")
            self.file.flush()
