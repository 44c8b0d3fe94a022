"""Who somebody is: the acceptors, none of them the lab's own work.

    pyspnego   NTLM and SPNEGO in Python (MIT), by the author of pypsrp
    gss        MIT krb5's SPNEGO with gss-ntlmssp (C, Debian), through python-gssapi

Both read the users from the file that NTLM_USER_FILE names. Each context here is one
handshake and afterwards the seal of one connection, as Windows has it.

Channel binding: a Windows in its default (CbtHardeningLevel=Relaxed) refuses a wrong
binding and accepts none. The acceptors would refuse none as well, so the lab looks
into the AUTHENTICATE message and hands them the binding only if the client sent one.
"""

import hmac
import os
import struct

SIGNATURE = 16  # an NTLM signature
AUTHENTICATE = b"NTLMSSP\x00\x03\x00\x00\x00"
AV_END, AV_CHANNEL_BINDINGS = 0, 10


class Refused(Exception):
    """The acceptor does not accept this token."""


class BadSeal(Exception):
    """A sealed message that does not open."""


def sends_binding(token):
    """Whether a token holds an NTLMv2 AUTHENTICATE with a channel binding (MS-NLMP 2.2.1.3, 2.2.2.1)."""
    at = token.find(AUTHENTICATE)
    if at < 0:
        return False
    message = token[at:]
    try:
        length, _, offset = struct.unpack_from("<HHI", message, 20)
        # NTProofStr 16, then the client challenge whose pairs begin at 28.
        pairs = message[offset + 16 + 28 : offset + length]
        while len(pairs) >= 4:
            kind, size = struct.unpack_from("<HH", pairs)
            if kind == AV_END:
                return False
            if kind == AV_CHANNEL_BINDINGS:
                return pairs[4 : 4 + size] != bytes(16)
            pairs = pairs[4 + size :]
    except struct.error:
        pass
    return False


def is_old_ntlm(token):
    """Whether a token holds an AUTHENTICATE with a response older than NTLMv2 (24 octets, MS-NLMP 2.2.2.6).

    A Windows in its default takes it still; the lab does not, as Kiln's guests need not.
    """
    at = token.find(AUTHENTICATE)
    try:
        return at >= 0 and struct.unpack_from("<H", token, at + 20)[0] <= 24
    except struct.error:
        return True


class PyspnegoContext:
    def __init__(self, raw_ntlm, binding):
        import spnego
        from spnego.channel_bindings import GssChannelBindings

        # `use_ntlm`/`use_negotiate`: the Python code, never a system library behind it.
        option = spnego.NegotiateOptions.use_ntlm if raw_ntlm else spnego.NegotiateOptions.use_negotiate
        self.errors = (spnego.exceptions.SpnegoError, ValueError, struct.error, IndexError, UnicodeDecodeError)
        self.bindings = GssChannelBindings(application_data=binding) if binding else None
        self.context = spnego.server(protocol="ntlm" if raw_ntlm else "negotiate", options=option)

    def step(self, token):
        bindings = self.bindings if self.bindings and sends_binding(token) else None
        try:
            return self.context.step(token, channel_bindings=bindings) or b""
        except self.errors as error:
            raise Refused(str(error)) from error

    @property
    def complete(self):
        return self.context.complete

    @property
    def user(self):
        return str(self.context.client_principal)

    def wrap(self, plain):
        sealed = self.context.wrap(plain, encrypt=True).data
        return sealed[:SIGNATURE], sealed[SIGNATURE:]

    def unwrap(self, signature, sealed):
        try:
            return self.context.unwrap(signature + sealed).data
        except self.errors as error:
            raise BadSeal(str(error)) from error


class GssContext:
    def __init__(self, raw_ntlm, binding):
        import gssapi

        self.gssapi = gssapi
        ntlm = gssapi.OID.from_int_seq("1.3.6.1.4.1.311.2.2.10")
        spnego = gssapi.OID.from_int_seq("1.3.6.1.5.5.2")
        credential = gssapi.Credentials(usage="accept", mechs=[ntlm if raw_ntlm else spnego])
        if not raw_ntlm:
            gssapi.raw.set_neg_mechs(credential, [ntlm])
        self.credential = credential
        self.bindings = gssapi.raw.ChannelBindings(application_data=binding) if binding else None
        self.context = None
        self.complete = False
        self.user = ""

    def step(self, token):
        bindings = self.bindings if self.bindings and sends_binding(token) else None
        try:
            made = self.gssapi.raw.accept_sec_context(token, self.credential, self.context, bindings)
        except self.gssapi.exceptions.GSSError as error:
            raise Refused(str(error)) from error
        self.context, self.complete = made.context, not made.more_steps
        if self.complete:
            # gss-ntlmssp counts the closing zero as a part of the name.
            name = self.gssapi.raw.display_name(made.initiator_name, False).name
            self.user = name.decode().rstrip("\0")
        return made.token or b""

    def wrap(self, plain):
        sealed = self.gssapi.raw.wrap(self.context, plain, True).message
        return sealed[:SIGNATURE], sealed[SIGNATURE:]

    def unwrap(self, signature, sealed):
        try:
            return self.gssapi.raw.unwrap(self.context, signature + sealed).message
        except self.gssapi.exceptions.GSSError as error:
            raise BadSeal(str(error)) from error


ACCEPTORS = {"pyspnego": PyspnegoContext, "gss": GssContext}


class Users:
    """The accounts of a workgroup machine: `domain:user:password` lines.

    Windows takes a local account by its bare name, by `.\\name` and by `MACHINE\\name`;
    the acceptors want the very domain that the client sends. So a line without a domain
    is written out for each, into a file of the lab's own that only this user can read.
    """

    def __init__(self, path, folder, machine):
        self.accounts = {}
        lines = []
        with open(path, encoding="utf-8") as file:
            for line in file.read().splitlines():
                if not line.strip():
                    continue
                domain, user, password = line.split(":", 2)
                self.accounts[user.lower()] = password
                domains = [domain] if domain else ["", ".", machine, machine.lower()]
                lines += [f"{each}:{user}:{password}" for each in domains]
        own = os.path.join(folder, "users")
        handle = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        os.environ["NTLM_USER_FILE"] = own
        os.environ["NETBIOS_COMPUTER_NAME"] = machine
        os.environ["NETBIOS_DOMAIN_NAME"] = machine

    def check(self, user, password):
        """For Basic, which needs no acceptor."""
        user = user.rsplit("\\", 1)[-1].lower()
        known = self.accounts.get(user)
        return known is not None and hmac.compare_digest(known.encode(), password.encode())
