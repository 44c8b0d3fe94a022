//! What a server refuses with, and what to do then.
//!
//! A WinRM fault (MS-WSMV 2.2.4.43) has a code; the code decides. [`FaultCode::remedy`] is the one place that says
//! what each of them asks for; those who talk to the guest carry that out, and add nothing of their own.

use std::fmt;

use super::xml::Element;
use crate::error::excerpt;

/// A fault as the server sent it, its texts made printable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub code: FaultCode,
    /// SOAP's own word for it, such as `w:TimedOut`.
    pub subcode: Option<String>,
    pub reason: String,
    /// What the shell's plug-in said, which is nearer to the cause.
    pub provider: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = self.provider.as_ref().unwrap_or(&self.reason);
        write!(f, "WinRM fault {}", self.code)?;
        if let Some(subcode) = &self.subcode {
            write!(f, " ({subcode})")?;
        }
        write!(f, ": {said}")
    }
}

impl std::error::Error for Fault {}

impl Fault {
    /// From a SOAP `Fault` element.
    pub(crate) fn read(fault: &Element) -> Self {
        let subcode = fault
            .child("Code")
            .and_then(|code| code.child("Subcode"))
            .and_then(|subcode| subcode.child("Value"))
            .map(|value| excerpt(value.text.as_bytes()));
        let details = fault.find("WSManFault");
        let number = details
            .and_then(|details| details.attribute("Code"))
            .or_else(|| {
                fault.find("MSFT_WmiError").and_then(|e| e.child("error_Code")).map(|c| c.text.as_str())
            })
            .and_then(read_number);
        let code = match (number, subcode.as_deref()) {
            (Some(number), _) => FaultCode::from_number(number),
            // Other servers of WS-Management give the subcode only (DSP0226, 14.6).
            (None, Some(subcode)) if subcode.ends_with("TimedOut") => FaultCode::OperationTimedOut,
            (None, Some(subcode)) if subcode.ends_with("EncodingLimit") => FaultCode::EnvelopeTooLarge,
            (None, _) => FaultCode::Other(0),
        };
        let reason = fault
            .child("Reason")
            .map(Element::all_text)
            .filter(|text| !text.trim().is_empty())
            .or_else(|| details.and_then(|details| details.child("Message")).map(Element::all_text));
        Self {
            code,
            subcode,
            reason: excerpt(reason.unwrap_or_default().as_bytes()),
            provider: details
                .and_then(|details| details.find("ProviderFault"))
                .map(Element::all_text)
                .filter(|text| !text.trim().is_empty())
                .map(|text| excerpt(text.as_bytes())),
        }
    }
}

/// Servers write the code as an unsigned number; some as a signed one.
fn read_number(text: &str) -> Option<u32> {
    let text = text.trim();
    text.parse::<u32>().ok().or_else(|| text.parse::<i32>().ok().map(i32::cast_unsigned))
}

macro_rules! fault_codes {
    ($($(#[$note:meta])* $name:ident = $number:literal,)*) => {
        /// The faults that mean something to a client of the text shell. Numbers: `ERROR_WSMAN_*`, `ERROR_WINRS_*`
        /// and Win32 codes, as the Windows SDK has them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum FaultCode {
            $($(#[$note])* $name,)*
            /// Any other; 0 when the server gave none.
            Other(u32),
        }

        impl FaultCode {
            /// All that have a name.
            #[cfg(test)]
            const NAMED: &[Self] = &[$(Self::$name,)*];

            pub fn from_number(number: u32) -> Self {
                match number {
                    $($number => Self::$name,)*
                    other => Self::Other(other),
                }
            }

            pub fn number(self) -> u32 {
                match self {
                    $(Self::$name => $number,)*
                    Self::Other(number) => number,
                }
            }
        }
    };
}

fault_codes! {
    /// No output within the OperationTimeout.
    OperationTimedOut = 2_150_858_793,
    /// The shell or command id is unknown.
    UnexpectedSelectors = 2_150_858_843,
    QuotaMaxShells = 2_150_859_173,
    QuotaMaxOperations = 2_150_859_174,
    QuotaUser = 2_150_859_175,
    QuotaSystem = 2_150_859_176,
    QuotaMaxShellUsers = 2_150_859_179,
    /// The quotas of the shell's plug-in (`…_PPQ`), seven in a row.
    PluginMaxShells = 2_150_859_236,
    PluginMaxUsers = 2_150_859_237,
    PluginMaxPluginShells = 2_150_859_238,
    PluginMaxPluginOperations = 2_150_859_239,
    PluginMaxOperationsUser = 2_150_859_240,
    PluginMaxCommandsPerShell = 2_150_859_241,
    PluginMinimumNotAvailable = 2_150_859_242,
    EnvelopeTooLarge = 2_150_858_790,
    MaxEnvelopeSize = 2_150_858_823,
    MaxEnvelopeSizeExceeded = 2_150_858_824,
    FailedAuthentication = 2_150_858_806,
    CannotDecrypt = 2_150_859_001,
    DestinationUnreachable = 2_150_858_770,
    NetworkTimedOut = 2_150_859_046,
    ResourceNotFound = 2_150_858_752,
    CommandTerminated = 2_150_859_212,
    /// ERROR_OPERATION_ABORTED.
    Aborted = 995,
    AccessDenied = 5,
    InvalidParameter = 87,
    /// ERROR_KEY_DELETED: the account's profile was unloaded.
    KeyDeleted = 2_147_943_418,
    /// ERROR_FILENAME_EXCED_RANGE: the command line is too long.
    LineTooLong = 2_147_942_606,
    FileNotFound = 2_147_942_402,
}

impl fmt::Display for FaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(0) => f.write_str("without a code"),
            code => write!(f, "{} (0x{:08X})", code.number(), code.number()),
        }
    }
}

/// What a fault asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Remedy {
    /// Nothing is wrong: ask again.
    PollAgain,
    /// The shell or command is gone, by a restart or by the server's own clock. A command not yet started gets a new
    /// shell; one that ran is lost.
    ShellGone,
    /// Close the shells of ours that are idle, then as [`Remedy::BackOff`].
    CloseOursAndBackOff,
    /// Delete this shell, make another, try once more; a server that still has none is busy.
    RenewShell,
    /// The server is busy: pause, then try again.
    BackOff,
    /// Send less at once.
    HalveChunk,
    /// The user or password is wrong; trying again does not help, and may lock the account.
    WrongCredential,
    /// The security context is out of step: a new connection with a new handshake, then once more.
    NewConnection,
    /// As a broken connection.
    RetryTransport,
    /// The machine has no text shell.
    NoShell,
    /// The command was ended by a signal, ours or another's.
    Terminated,
    /// Report it as it is.
    Report,
}

impl FaultCode {
    /// What to do about it: the only place that knows.
    pub fn remedy(self) -> Remedy {
        match self {
            Self::OperationTimedOut => Remedy::PollAgain,
            Self::UnexpectedSelectors => Remedy::ShellGone,
            Self::QuotaMaxShells => Remedy::CloseOursAndBackOff,
            // A text shell does not give its operations back when a command is terminated; only its end does.
            // The same when the profile under the shell was unloaded.
            Self::QuotaMaxOperations | Self::PluginMaxCommandsPerShell | Self::KeyDeleted => {
                Remedy::RenewShell
            }
            Self::QuotaUser
            | Self::QuotaSystem
            | Self::QuotaMaxShellUsers
            | Self::PluginMaxShells
            | Self::PluginMaxUsers
            | Self::PluginMaxPluginShells
            | Self::PluginMaxPluginOperations
            | Self::PluginMaxOperationsUser
            | Self::PluginMinimumNotAvailable => Remedy::BackOff,
            Self::EnvelopeTooLarge | Self::MaxEnvelopeSize | Self::MaxEnvelopeSizeExceeded => {
                Remedy::HalveChunk
            }
            Self::FailedAuthentication => Remedy::WrongCredential,
            Self::CannotDecrypt => Remedy::NewConnection,
            Self::DestinationUnreachable | Self::NetworkTimedOut => Remedy::RetryTransport,
            Self::ResourceNotFound => Remedy::NoShell,
            Self::CommandTerminated | Self::Aborted => Remedy::Terminated,
            Self::AccessDenied
            | Self::InvalidParameter
            | Self::LineTooLong
            | Self::FileNotFound
            | Self::Other(_) => Remedy::Report,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Code as WinRM prints it in hexadecimal, and what the row of the table asks for.
    const ROWS: &[(u32, FaultCode, Remedy)] = &[
        (0x8033_8029, FaultCode::OperationTimedOut, Remedy::PollAgain),
        (0x8033_805B, FaultCode::UnexpectedSelectors, Remedy::ShellGone),
        (0x8033_81A5, FaultCode::QuotaMaxShells, Remedy::CloseOursAndBackOff),
        (0x8033_81A6, FaultCode::QuotaMaxOperations, Remedy::RenewShell),
        (0x8033_81A7, FaultCode::QuotaUser, Remedy::BackOff),
        (0x8033_81A8, FaultCode::QuotaSystem, Remedy::BackOff),
        (0x8033_81AB, FaultCode::QuotaMaxShellUsers, Remedy::BackOff),
        (0x8033_81E4, FaultCode::PluginMaxShells, Remedy::BackOff),
        (0x8033_81E5, FaultCode::PluginMaxUsers, Remedy::BackOff),
        (0x8033_81E6, FaultCode::PluginMaxPluginShells, Remedy::BackOff),
        (0x8033_81E7, FaultCode::PluginMaxPluginOperations, Remedy::BackOff),
        (0x8033_81E8, FaultCode::PluginMaxOperationsUser, Remedy::BackOff),
        (0x8033_81E9, FaultCode::PluginMaxCommandsPerShell, Remedy::RenewShell),
        (0x8033_81EA, FaultCode::PluginMinimumNotAvailable, Remedy::BackOff),
        (0x8033_8026, FaultCode::EnvelopeTooLarge, Remedy::HalveChunk),
        (0x8033_8047, FaultCode::MaxEnvelopeSize, Remedy::HalveChunk),
        (0x8033_8048, FaultCode::MaxEnvelopeSizeExceeded, Remedy::HalveChunk),
        (0x8033_8036, FaultCode::FailedAuthentication, Remedy::WrongCredential),
        (0x8033_80F9, FaultCode::CannotDecrypt, Remedy::NewConnection),
        (0x8033_8012, FaultCode::DestinationUnreachable, Remedy::RetryTransport),
        (0x8033_8126, FaultCode::NetworkTimedOut, Remedy::RetryTransport),
        (0x8033_8000, FaultCode::ResourceNotFound, Remedy::NoShell),
        (0x8033_81CC, FaultCode::CommandTerminated, Remedy::Terminated),
        (995, FaultCode::Aborted, Remedy::Terminated),
        (5, FaultCode::AccessDenied, Remedy::Report),
        (87, FaultCode::InvalidParameter, Remedy::Report),
        (0x8007_03FA, FaultCode::KeyDeleted, Remedy::RenewShell),
        (0x8007_00CE, FaultCode::LineTooLong, Remedy::Report),
        (0x8007_0002, FaultCode::FileNotFound, Remedy::Report),
        (0x8033_FFFF, FaultCode::Other(0x8033_FFFF), Remedy::Report),
    ];

    #[test]
    fn each_row_of_the_table_asks_for_its_remedy() {
        for &(number, code, remedy) in ROWS {
            assert_eq!(FaultCode::from_number(number), code, "0x{number:08X}");
            assert_eq!(code.number(), number, "{code:?}");
            assert_eq!(code.remedy(), remedy, "{code:?}");
        }
    }

    #[test]
    fn no_code_is_without_its_row() {
        for code in FaultCode::NAMED {
            assert!(ROWS.iter().any(|row| row.1 == *code), "{code:?}");
        }
    }

    #[test]
    fn a_code_is_read_however_it_is_written() {
        assert_eq!(read_number("2150858793"), Some(0x8033_8029));
        assert_eq!(read_number("-2144108503"), Some(0x8033_8029));
        assert_eq!(read_number(" 5 "), Some(5));
        assert_eq!(read_number("five"), None);
    }

    #[test]
    fn a_fault_without_a_number_is_known_by_its_subcode() {
        let fault = |subcode: &str| {
            let text = format!(
                "<s:Fault><s:Code><s:Value>s:Receiver</s:Value><s:Subcode><s:Value>{subcode}</s:Value></s:Subcode>\
                 </s:Code><s:Reason><s:Text>why\u{7}</s:Text></s:Reason></s:Fault>"
            );
            Fault::read(&Element::parse(&text.replace('\u{7}', "&#7;")).unwrap())
        };
        assert_eq!(fault("w:TimedOut").code, FaultCode::OperationTimedOut);
        assert_eq!(fault("wsman:EncodingLimit").code, FaultCode::EnvelopeTooLarge);
        let other = fault("w:InternalError");
        assert_eq!(other.code, FaultCode::Other(0));
        assert_eq!(other.to_string(), "WinRM fault without a code (w:InternalError): why\\x07");
    }
}
