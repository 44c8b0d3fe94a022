#!/usr/bin/env python3
"""The yardstick of uploads: a file sent as Packer's WinRM uploader sends it.

    echo_upload.py http|https PORT USER LOCAL REMOTE       password in LAB_PASSWORD; REMOTE as C:/folder/name

Base64 is echoed line by line into a file in %TEMP%, 8000 characters a command and 15 commands a shell, then PowerShell
decodes it to its place. Prints one JSON line: {"seconds", "commands", "sha256"}. The client is pypsrp; the digest is what
the guest finds in the end.
"""

import base64
import json
import os
import sys
import time
import uuid
import warnings

from pypsrp.shell import Process, SignalCode, WinRS
from pypsrp.wsman import WSMan

LINE = 8000
PER_SHELL = 15


def run(shell, line):
    process = Process(shell, line, no_shell=False)
    process.invoke()
    process.signal(SignalCode.TERMINATE)
    if process.rc != 0:
        raise SystemExit(f"echo_upload: {process.rc}: {process.stderr.decode(errors='replace')}")
    return process.stdout


def main():
    scheme, port, user, local, remote = sys.argv[1:]
    warnings.simplefilter("ignore")
    with open(local, "rb") as file:
        octets = file.read()
    name = f"upload-{uuid.uuid4()}.tmp"
    room = LINE - len(f'echo >>"%TEMP%\\{name}"')
    step = room // 4 * 3
    lines = [base64.b64encode(octets[at : at + step]).decode() for at in range(0, len(octets), step)]
    script = (
        "$ErrorActionPreference = 'Stop'; $from = Join-Path $env:TEMP '%s'; $to = [IO.File]::Create('%s');"
        " foreach ($line in [IO.File]::ReadAllLines($from)) {"
        " $bytes = [Convert]::FromBase64String($line.Trim()); $to.Write($bytes, 0, $bytes.Length) };"
        " $to.Close(); Remove-Item -LiteralPath $from; (Get-FileHash -Algorithm SHA256 -LiteralPath '%s').Hash.ToLower()"
    ) % (name, remote, remote)
    begun = time.monotonic()
    wsman = WSMan(
        "127.0.0.1", port=int(port), ssl=scheme == "https", username=user, password=os.environ["LAB_PASSWORD"],
        auth="ntlm", cert_validation=False,
    )  # fmt: skip
    with wsman:
        for at in range(0, len(lines), PER_SHELL):
            with WinRS(wsman) as shell:
                for line in lines[at : at + PER_SHELL]:
                    run(shell, f'echo {line}>>"%TEMP%\\{name}"')
        with WinRS(wsman) as shell:
            encoded = base64.b64encode(script.encode("utf-16-le")).decode()
            digest = run(shell, f"powershell -NoProfile -EncodedCommand {encoded}").decode().strip()
    print(json.dumps({"seconds": round(time.monotonic() - begun, 3), "commands": len(lines) + 1, "sha256": digest}))


if __name__ == "__main__":
    main()
