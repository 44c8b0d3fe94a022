//! NTLMv2 (MS-NLMP) as WinRM uses it: two tokens of ours, one of the server's, then sealed messages.
//!
//! The cryptography is the `sspi` crate's: session security with 128-bit keys and key exchange, the message
//! integrity code, and the channel's binding over TLS. A context belongs to one connection, and its messages must be
//! sealed and unsealed in the order in which they travel.

use sspi::{
    AuthIdentityBuffers, BufferType, ClientRequestFlags, DataRepresentation, EncryptionFlags, Ntlm,
    SecurityBuffer, SecurityBufferRef, Sspi as _, SspiImpl as _,
};
use tracing::subscriber::{NoSubscriber, with_default};

use super::sealed::Part;

/// Length of an NTLM signature (MS-NLMP 2.2.2.9).
const SIGNATURE_LENGTH: usize = 16;

pub(crate) struct Negotiation {
    context: Ntlm,
    credentials: Option<AuthIdentityBuffers>,
}

impl Negotiation {
    /// `user`: a local account's name, or `DOMAIN\name`. `binding`: the TLS channel's, when there is one.
    pub(crate) fn new(user: &str, password: &str, binding: Option<&[u8]>) -> Self {
        let (domain, user) = user.split_once('\\').unwrap_or(("", user));
        // The machine itself, in Windows' own short form.
        let domain = if domain == "." { "" } else { domain };
        let mut context = Ntlm::new();
        if let Some(binding) = binding {
            context.set_channel_bindings(binding);
        }
        Self { context, credentials: Some(AuthIdentityBuffers::from_utf8(user, domain, password)) }
    }

    /// The first token, without the server's challenge; then the second, which answers it.
    pub(crate) fn token(&mut self, challenge: Option<&[u8]>) -> Result<Vec<u8>, sspi::Error> {
        quietly(|| {
            let mut output = [SecurityBuffer::new(Vec::new(), BufferType::Token)];
            let mut input = [SecurityBuffer::new(challenge.unwrap_or_default().to_vec(), BufferType::Token)];
            let mut builder = self
                .context
                .initialize_security_context()
                .with_credentials_handle(&mut self.credentials)
                .with_context_requirements(
                    ClientRequestFlags::CONFIDENTIALITY
                        | ClientRequestFlags::INTEGRITY
                        | ClientRequestFlags::SEQUENCE_DETECT
                        | ClientRequestFlags::REPLAY_DETECT,
                )
                .with_target_data_representation(DataRepresentation::Native)
                .with_output(&mut output);
            if challenge.is_some() {
                builder = builder.with_input(&mut input);
            }
            self.context.initialize_security_context_impl(&mut builder)?.resolve_to_result()?;
            let [token] = output;
            Ok(token.buffer)
        })
    }

    pub(crate) fn seal(&mut self, plain: &[u8]) -> Result<Part, sspi::Error> {
        quietly(|| {
            let mut signature = vec![0; SIGNATURE_LENGTH];
            let mut sealed = plain.to_vec();
            let mut message =
                [SecurityBufferRef::token_buf(&mut signature), SecurityBufferRef::data_buf(&mut sealed)];
            self.context.encrypt_message(EncryptionFlags::empty(), &mut message)?;
            Ok(Part { signature, sealed })
        })
    }

    pub(crate) fn unseal(&mut self, mut part: Part) -> Result<Vec<u8>, sspi::Error> {
        quietly(|| {
            let mut message = [
                SecurityBufferRef::token_buf(&mut part.signature),
                SecurityBufferRef::data_buf(&mut part.sealed),
            ];
            self.context.decrypt_message(&mut message)?;
            let [_, data] = &message;
            Ok(data.data().to_vec())
        })
    }
}

/// The crate traces its arguments, which are plain texts of ours on the way in and out: no log gets them.
fn quietly<T>(act: impl FnOnce() -> T) -> T {
    with_default(NoSubscriber::default(), act)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::Acceptor;
    use super::*;

    fn shaken(password: &str) -> Result<(Negotiation, Acceptor), sspi::Error> {
        let mut ours = Negotiation::new("kiln", password, None);
        let mut theirs = Acceptor::new("kiln", "right");
        let challenge = theirs.accept(ours.token(None)?)?;
        theirs.accept(ours.token(Some(&challenge))?)?;
        Ok((ours, theirs))
    }

    /// MS-NLMP 2.2.1.3 and 2.2.2.5: what the last token must carry.
    #[test]
    fn the_answer_asks_for_sealing_and_carries_an_integrity_code() {
        let binding = b"tls-server-end-point:0123456789abcdef0123456789abcdef";
        let mut ours = Negotiation::new(r"HOST\kiln", "secret", Some(binding));
        let mut theirs = Acceptor::new("kiln", "secret");
        let first = ours.token(None).unwrap();
        assert!(first.starts_with(b"NTLMSSP\0\x01\0\0\0"));
        let challenge = theirs.accept(first).unwrap();
        let last = ours.token(Some(&challenge)).unwrap();
        assert!(last.starts_with(b"NTLMSSP\0\x03\0\0\0"));
        let flags = u32::from_le_bytes(last[60..64].try_into().unwrap());
        // Sign, seal, extended session security, 128 bits, key exchange.
        for (name, flag) in
            [("sign", 0x10), ("seal", 0x20), ("ess", 0x8_0000), ("128", 0x2000_0000), ("key", 0x4000_0000)]
        {
            assert_ne!(flags & flag, 0, "{name}");
        }
        assert_ne!(&last[72..88], &[0; 16], "no integrity code");
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let has = |bytes: &[u8]| last.windows(bytes.len()).any(|window| window == bytes);
        assert!(has(&utf16("HOST")) && has(&utf16("kiln")));
        assert!(!has(b"secret") && !has(&utf16("secret")));
        // MsvAvChannelBindings, 16 bytes long.
        assert!(has(&[0x0a, 0, 0x10, 0]));
    }

    #[test]
    fn messages_are_read_on_the_other_side_in_their_order() {
        let (mut ours, mut theirs) = shaken("right").unwrap();
        for plain in [&b"<first/>"[..], b"", b"<third/>"] {
            let part = ours.seal(plain).unwrap();
            assert_eq!(theirs.unseal(part).unwrap(), plain);
            let answer = theirs.seal(plain);
            assert_eq!(ours.unseal(answer).unwrap(), plain);
        }
        // One that comes twice, or was changed, is refused.
        let part = theirs.seal(b"<fourth/>");
        assert_eq!(ours.unseal(part.clone()).unwrap(), b"<fourth/>");
        assert!(ours.unseal(part).is_err());
    }

    #[test]
    fn a_changed_message_is_refused() {
        let (mut ours, mut theirs) = shaken("right").unwrap();
        let mut part = theirs.seal(b"<exit>0</exit>");
        part.sealed[6] ^= 1;
        assert!(ours.unseal(part).is_err());
    }

    #[test]
    fn a_wrong_password_is_refused_by_the_other_side() {
        assert!(shaken("wrong").is_err());
    }

    proptest! {
        #[test]
        fn no_challenge_breaks_us(bytes in proptest::collection::vec(any::<u8>(), 0..120), real in any::<bool>()) {
            let mut ours = Negotiation::new("kiln", "right", None);
            let first = ours.token(None).unwrap();
            let mut challenge = if real { Acceptor::new("kiln", "right").accept(first).unwrap() } else { Vec::new() };
            let keep = challenge.len() * bytes.len() / 120;
            challenge.truncate(keep);
            challenge.extend(bytes);
            let _either_way = ours.token(Some(&challenge));
        }
    }
}
