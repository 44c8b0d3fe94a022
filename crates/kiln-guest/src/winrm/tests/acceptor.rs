//! The server's side of NTLM, by the acceptor of the `sspi` crate.

use sspi::{
    AuthIdentity, AuthIdentityBuffers, BufferType, CredentialUse, DataRepresentation, EncryptionFlags, Ntlm,
    SecurityBuffer, SecurityBufferRef, SecurityStatus, ServerRequestFlags, Sspi as _, SspiImpl as _,
    Username,
};

use crate::winrm::sealed::Part;

pub(crate) struct Acceptor {
    context: Ntlm,
    credentials: Option<AuthIdentityBuffers>,
}

impl Acceptor {
    pub(crate) fn new(user: &str, password: &str) -> Self {
        let mut context = Ntlm::new();
        let identity = AuthIdentity {
            username: Username::new(user, None).unwrap(),
            password: password.to_owned().into(),
        };
        let handle = context
            .acquire_credentials_handle()
            .with_credential_use(CredentialUse::Inbound)
            .with_auth_data(&identity)
            .execute(&mut context)
            .unwrap();
        Self { context, credentials: handle.credentials_handle }
    }

    /// Takes a token and gives the next one; the last one is empty.
    pub(crate) fn accept(&mut self, token: Vec<u8>) -> Result<Vec<u8>, sspi::Error> {
        let mut input = [SecurityBuffer::new(token, BufferType::Token)];
        let mut output = [SecurityBuffer::new(Vec::new(), BufferType::Token)];
        let builder = self
            .context
            .accept_security_context()
            .with_credentials_handle(&mut self.credentials)
            .with_context_requirements(ServerRequestFlags::ALLOCATE_MEMORY)
            .with_target_data_representation(DataRepresentation::Native)
            .with_input(&mut input)
            .with_output(&mut output);
        let result = self.context.accept_security_context_impl(builder)?.resolve_to_result()?;
        if matches!(result.status, SecurityStatus::CompleteNeeded | SecurityStatus::CompleteAndContinue) {
            self.context.complete_auth_token(&mut output)?;
        }
        let [token] = output;
        Ok(token.buffer)
    }

    pub(crate) fn unseal(&mut self, mut part: Part) -> Result<Vec<u8>, sspi::Error> {
        let mut message = [
            SecurityBufferRef::token_buf(&mut part.signature),
            SecurityBufferRef::data_buf(&mut part.sealed),
        ];
        self.context.decrypt_message(&mut message)?;
        Ok(message[1].data().to_vec())
    }

    pub(crate) fn seal(&mut self, plain: &[u8]) -> Part {
        let (mut signature, mut sealed) = (vec![0; 16], plain.to_vec());
        let mut message =
            [SecurityBufferRef::token_buf(&mut signature), SecurityBufferRef::data_buf(&mut sealed)];
        self.context.encrypt_message(EncryptionFlags::empty(), &mut message).unwrap();
        Part { signature, sealed }
    }
}
