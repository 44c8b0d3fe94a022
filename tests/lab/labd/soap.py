"""WS-Management envelopes: requests read, answers and faults written.

The shapes, prefixes and texts of answers and faults are those that real Windows gave to
pypsrp's author (the recorded exchanges in pypsrp's source package); the fault texts that
no recording holds are marked so. The lab adds no header of its own.
"""

import re
import uuid
import xml.etree.ElementTree as tree
from xml.sax.saxutils import escape, quoteattr

S = "http://www.w3.org/2003/05/soap-envelope"
A = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
W = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
X = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
P = "http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd"
RSP = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell"
WSMID = "http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd"
FAULT_NS = "http://schemas.microsoft.com/wbem/wsman/1/wsmanfault"
FAULT_ACTION = "http://schemas.dmtf.org/wbem/wsman/1/wsman/fault"
DETAIL = "http://schemas.dmtf.org/wbem/wsman/1/wsman/faultDetail/"
ANONYMOUS = A + "/role/anonymous"
CMD = RSP + "/cmd"

ACTIONS = {
    X + "/Create": "Create",
    X + "/Delete": "Delete",
    X + "/Get": "Get",
    RSP + "/Command": "Command",
    RSP + "/Receive": "Receive",
    RSP + "/Send": "Send",
    RSP + "/Signal": "Signal",
}


class Invalid(Exception):
    """No envelope, or one without what every request has."""


def seconds(text):
    """An xs:duration of hours, minutes and seconds; None when it is none."""
    found = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?", text.strip())
    if not found:
        return None
    days, hours, minutes, rest = (float(part or 0) for part in found.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + rest


class Envelope:
    """One request."""

    def __init__(self, octets):
        try:
            root = tree.fromstring(octets)
        except tree.ParseError as error:
            raise Invalid(str(error)) from error
        if root.tag != f"{{{S}}}Envelope":
            raise Invalid("no envelope")
        self.header, self.body = root.find(f"{{{S}}}Header"), root.find(f"{{{S}}}Body")
        if self.body is None:
            raise Invalid("no body")
        self.identify = self.body.find(f"{{{WSMID}}}Identify") is not None
        self.action_uri = self._text(A, "Action")
        self.action = "Identify" if self.identify else ACTIONS.get(self.action_uri, "Other")
        self.message_id = self._text(A, "MessageID")
        self.to = self._text(A, "To")
        self.resource = self._text(W, "ResourceURI")
        self.timeout_text = self._text(W, "OperationTimeout")
        self.timeout = seconds(self.timeout_text) if self.timeout_text else 60.0
        size = self._text(W, "MaxEnvelopeSize")
        self.max_envelope = int(size) if size.isdigit() else 153600
        self.options = {}
        self.selectors = {}
        if self.header is not None:
            for option in self.header.iterfind(f"{{{W}}}OptionSet/{{{W}}}Option"):
                self.options[option.get("Name", "").upper()] = (option.text or "").strip()
            for selector in self.header.iterfind(f"{{{W}}}SelectorSet/{{{W}}}Selector"):
                self.selectors[selector.get("Name", "")] = (selector.text or "").strip()

    def _text(self, space, name):
        found = None if self.header is None else self.header.find(f"{{{space}}}{name}")
        return (found.text or "").strip() if found is not None else ""

    @property
    def shell_id(self):
        return self.selectors.get("ShellId", "")

    def is_set(self, option):
        return self.options.get(option, "").upper() in ("TRUE", "1")

    def payload(self, name):
        return self.body.find(f"{{{RSP}}}{name}")


def new_id():
    return str(uuid.uuid4()).upper()


def _envelope(action, relates_to, body):
    relates = f"<a:RelatesTo>{escape(relates_to)}</a:RelatesTo>" if relates_to else ""
    return (
        f'<s:Envelope xml:lang="en-US" xmlns:s="{S}" xmlns:a="{A}" xmlns:x="{X}" xmlns:w="{W}" '
        f'xmlns:rsp="{RSP}" xmlns:p="{P}"><s:Header><a:Action>{action}</a:Action>'
        f"<a:MessageID>uuid:{new_id()}</a:MessageID><a:To>{ANONYMOUS}</a:To>{relates}</s:Header>"
        f"<s:Body>{body}</s:Body></s:Envelope>"
    ).encode()


def identified():
    """Says what it is: a client that wants a Windows can see that this is none."""
    return (
        f'<s:Envelope xml:lang="en-US" xmlns:s="{S}"><s:Header/><s:Body>'
        f'<wsmid:IdentifyResponse xmlns:wsmid="{WSMID}"><wsmid:ProtocolVersion>{W}</wsmid:ProtocolVersion>'
        "<wsmid:ProductVendor>Kiln lab (no Windows)</wsmid:ProductVendor>"
        "<wsmid:ProductVersion>OS: 0.0.0 SP: 0.0 Stack: 3.0</wsmid:ProductVersion>"
        "</wsmid:IdentifyResponse></s:Body></s:Envelope>"
    ).encode()


def created(request, shell, client):
    variables = "".join(
        f"<rsp:Variable Name={quoteattr(name)}>{escape(value)}</rsp:Variable>"
        for name, value in shell.variables.items()
    )
    body = (
        f"<x:ResourceCreated><a:Address>{escape(request.to)}</a:Address><a:ReferenceParameters>"
        f"<w:ResourceURI>{CMD}</w:ResourceURI><w:SelectorSet>"
        f'<w:Selector Name="ShellId">{shell.id}</w:Selector></w:SelectorSet></a:ReferenceParameters>'
        f'</x:ResourceCreated><rsp:Shell xmlns:rsp="{RSP}"><rsp:ShellId>{shell.id}</rsp:ShellId>'
        f"<rsp:ResourceUri>{CMD}</rsp:ResourceUri><rsp:Owner>{escape(shell.owner)}</rsp:Owner>"
        f"<rsp:ClientIP>{client}</rsp:ClientIP>"
        + (f"<rsp:Environment>{variables}</rsp:Environment>" if variables else "")
        + (f"<rsp:WorkingDirectory>{escape(shell.directory)}</rsp:WorkingDirectory>" if shell.directory else "")
        + f"<rsp:IdleTimeOut>PT{shell.idle_timeout:.3f}S</rsp:IdleTimeOut><rsp:InputStreams>stdin</rsp:InputStreams>"
        "<rsp:OutputStreams>stdout stderr</rsp:OutputStreams><rsp:ShellRunTime>P0DT0H0M0S</rsp:ShellRunTime>"
        "<rsp:ShellInactivity>P0DT0H0M0S</rsp:ShellInactivity></rsp:Shell>"
    )
    return _envelope(X + "/CreateResponse", request.message_id, body)


def started(request, command_id):
    body = f"<rsp:CommandResponse><rsp:CommandId>{command_id}</rsp:CommandId></rsp:CommandResponse>"
    return _envelope(RSP + "/CommandResponse", request.message_id, body)


def received(request, command_id, pieces, state, exit_code):
    """`pieces`: (stream name, base64 text or None at the stream's end); `exit_code` may be None."""
    body = ["<rsp:ReceiveResponse>"]
    for name, text in pieces:
        end = ' End="true"' if text is None else ""
        body.append(f'<rsp:Stream Name="{name}" CommandId="{command_id}"{end}>{text or ""}</rsp:Stream>')
    code = f"<rsp:ExitCode>{exit_code}</rsp:ExitCode>" if exit_code is not None else ""
    body.append(
        f'<rsp:CommandState CommandId="{command_id}" State="{RSP}/CommandState/{state}">{code}</rsp:CommandState>'
        "</rsp:ReceiveResponse>"
    )
    return _envelope(RSP + "/ReceiveResponse", request.message_id, "".join(body))


def done(request):
    """The answer to Send, Signal and Delete."""
    if request.action == "Delete":
        return _envelope(X + "/DeleteResponse", request.message_id, "")
    return _envelope(f"{RSP}/{request.action}Response", request.message_id, f"<rsp:{request.action}Response/>")


class Fault(Exception):
    """A WS-Management fault; answered with status 500, sealed like any answer."""

    def __init__(self, code, text="", provider=None, message=None):
        kind = KINDS.get(code, ("s:Receiver", "w:InternalError", None, f"The lab was told to answer fault {code}."))
        self.code = code
        self.who, self.subcode, self.detail, known = kind
        self.text = text or known
        self.message = message or self.text
        self.provider = code in FROM_PROVIDER if provider is None else provider
        super().__init__(f"fault {code}")

    def envelope(self, request, machine):
        message = escape(self.message)
        if self.provider:
            message = (
                '<f:ProviderFault provider="Shell cmd plugin" path="%systemroot%\\system32\\winrscmd.dll">'
                f"{message}</f:ProviderFault>"
            )
        detail = f"<w:FaultDetail>{DETAIL}{self.detail}</w:FaultDetail>" if self.detail else ""
        body = (
            f"<s:Fault><s:Code><s:Value>{self.who}</s:Value><s:Subcode><s:Value>{self.subcode}</s:Value></s:Subcode>"
            f'</s:Code><s:Reason><s:Text xml:lang="en-US">{escape(self.text)}</s:Text></s:Reason><s:Detail>{detail}'
            f'<f:WSManFault xmlns:f="{FAULT_NS}" Code="{self.code}" Machine="{escape(machine)}">'
            f"<f:Message>{message}</f:Message></f:WSManFault></s:Detail></s:Fault>"
        )
        return _envelope(FAULT_ACTION, request.message_id if request else "", body)


TIMED_OUT = 2150858793
NO_SUCH = 2150858843
TOO_MANY_SHELLS = 2150859173
TOO_MANY_OPERATIONS = 2150859174
TOO_LARGE = 2150858790
INVALID_TIMEOUT = 2150858767
NOT_FOUND = 2150858752
INVALID_PARAMETER = 87
ABORTED = 995
LINE_TOO_LONG = 2147942606
FILE_NOT_FOUND = 2147942402

# [R] recorded from a Windows, [I] the text as people's reports quote it, [K] no source at hand.
KINDS = {
    TIMED_OUT: (  # [R]
        "s:Receiver",
        "w:TimedOut",
        None,
        "The WS-Management service cannot complete the operation within the time specified in OperationTimeout.  ",
    ),
    NO_SUCH: (  # [R]
        "s:Sender",
        "w:InvalidSelectors",
        "UnexpectedSelectors",
        "The WS-Management service cannot process the request because the request contained invalid selectors"
        " for the resource. ",
    ),
    INVALID_PARAMETER: ("s:Sender", "w:InvalidParameter", "InvalidValue", "The parameter is incorrect. "),  # [R]
    INVALID_TIMEOUT: (  # [R]
        "s:Sender",
        "a:InvalidMessageInformationHeader",
        None,
        "The WS-Management service cannot process the request. The request contains one or more invalid SOAP headers. ",
    ),
    FILE_NOT_FOUND: ("s:Receiver", "w:InternalError", None, "The system cannot find the file specified. "),  # [R]
    LINE_TOO_LONG: ("s:Receiver", "w:InternalError", None, "The filename or extension is too long. "),  # [R]
    TOO_MANY_SHELLS: (  # [I]
        "s:Receiver",
        "w:QuotaLimit",
        None,
        "The WS-Management service cannot process the request. This user is allowed a maximum number of {limit}"
        " concurrent shells, which has been exceeded. Close existing shells or raise the quota for this user. ",
    ),
    TOO_MANY_OPERATIONS: (  # [I]
        "s:Receiver",
        "w:QuotaLimit",
        None,
        "The WS-Management service cannot process the request. This user is allowed a maximum number of {limit}"
        " concurrent operations, which has been exceeded. Close existing operations for this user, or raise the"
        " quota for this user. ",
    ),
    TOO_LARGE: (
        "s:Sender",
        "w:EncodingLimit",
        "MaxEnvelopeSize",
        "The request is larger than MaxEnvelopeSize. ",
    ),  # [K]
    NOT_FOUND: (  # [K]
        "s:Sender",
        "a:DestinationUnreachable",
        "InvalidResourceURI",
        "The WS-Management service cannot process the request: no such resource. ",
    ),
    ABORTED: (  # [K]
        "s:Receiver",
        "w:InternalError",
        None,
        "The I/O operation has been aborted because of either a thread exit or an application request. ",
    ),
}
FROM_PROVIDER = {INVALID_PARAMETER, LINE_TOO_LONG, FILE_NOT_FOUND, ABORTED}
NO_COMMAND = (  # [R]
    "The Windows Remote Shell received a request to perform an operation on a command identifier that does not exist."
    " Either the command has completed execution or the client specified an invalid command identifier. "
)


def over_quota(code, limit):
    return Fault(code, KINDS[code][3].format(limit=limit))
