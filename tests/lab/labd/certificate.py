"""The server's certificate: made by openssl when asked for, and its digests.

The channel binding `tls-server-end-point` (RFC 5929, section 4.1) hashes the certificate
with its signature's own hash, and with SHA-256 where that is MD5 or SHA-1. Which hash
that is, openssl says; nothing is parsed here.
"""

import hashlib
import re
import ssl
import subprocess


def make(folder, name, bits=2048):
    """A self-signed certificate, as a Windows makes for its listener; paths of both."""
    certificate, key = f"{folder}/certificate.pem", f"{folder}/key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", f"rsa:{bits}", "-sha256", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        + ["-addext", f"subjectAltName=DNS:{name},DNS:localhost,IP:127.0.0.1"]
        + ["-addext", "extendedKeyUsage=serverAuth", "-keyout", key, "-out", certificate],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return certificate, key


class Certificate:
    def __init__(self, path):
        with open(path, encoding="ascii") as file:
            pem = file.read()
        begin = pem.index("-----BEGIN CERTIFICATE-----")
        self.der = ssl.PEM_cert_to_DER_cert(pem[begin : pem.index("-----END CERTIFICATE-----") + 25])
        text = subprocess.run(
            ["openssl", "x509", "-in", path, "-noout", "-text"], check=True, capture_output=True, text=True
        ).stdout
        found = re.search(r"Signature Algorithm:.*?(sha\d{3})", text, re.IGNORECASE)
        name = found[1].lower() if found else "sha256"
        self.hash_name = "sha256" if name == "sha1" else name

    @property
    def sha1(self):
        """What Windows calls the thumbprint."""
        return hashlib.sha1(self.der).hexdigest()

    @property
    def sha256(self):
        return hashlib.sha256(self.der).hexdigest()

    @property
    def binding(self):
        return b"tls-server-end-point:" + hashlib.new(self.hash_name, self.der).digest()


def context(certificate, key):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    return tls
