//! TLS to exactly one certificate.
//!
//! The guest's certificate is self-signed and names a machine that Kiln reaches by another name: no chain, no name and
//! no date in it prove anything. Its digest does. The handshake's signature is verified as ever, so whoever shows the
//! certificate also holds its key.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::login::CertificatePin;

/// Why there is no TLS.
#[derive(Debug)]
pub(crate) enum NoTls {
    WrongCertificate { got: CertificatePin },
    Handshake(io::Error),
}

/// Shakes hands over `tcp`. `Ok` has the channel's binding (RFC 5929, `tls-server-end-point`) beside the stream.
pub(crate) async fn connect(
    tcp: TcpStream,
    pin: &CertificatePin,
) -> Result<(TlsStream<TcpStream>, Vec<u8>), NoTls> {
    let stream = shake_hands(tcp, Some(pin)).await?;
    let binding = end_point_binding(shown_by(&stream)?);
    Ok((stream, binding))
}

/// The SHA-256 digest of the certificate that whoever listens shows, and holds the key of. Nothing is said to them:
/// the connection ends with the handshake.
pub(crate) async fn shown(tcp: TcpStream) -> Result<[u8; 32], NoTls> {
    let stream = shake_hands(tcp, None).await?;
    Ok(Sha256::digest(shown_by(&stream)?).into())
}

fn shown_by(stream: &TlsStream<TcpStream>) -> Result<&[u8], NoTls> {
    let certificates = stream.get_ref().1.peer_certificates();
    let first = certificates.and_then(|all| all.first());
    first
        .map(|first| first.as_ref())
        .ok_or_else(|| NoTls::Handshake(io::Error::other("the server showed no certificate")))
}

/// Without a pin any certificate will do.
async fn shake_hands(tcp: TcpStream, pin: Option<&CertificatePin>) -> Result<TlsStream<TcpStream>, NoTls> {
    let provider = Arc::new(ring::default_provider());
    let got = Arc::new(OnceLock::new());
    let verifier = Pinned { pin: pin.cloned(), got: Arc::clone(&got), provider: Arc::clone(&provider) };
    // The address is no name: none is sent, and none is checked.
    let name = tcp.peer_addr().map_err(NoTls::Handshake)?.ip();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| NoTls::Handshake(io::Error::other(error)))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(ServerName::IpAddress(name.into()), tcp).await.map_err(|error| match got.get() {
        Some(got) => NoTls::WrongCertificate { got: CertificatePin::clone(got) },
        None => NoTls::Handshake(error),
    })
}

#[derive(Debug)]
struct Pinned {
    /// `None` only to learn what there is to pin.
    pin: Option<CertificatePin>,
    /// Set when another certificate was shown.
    got: Arc<OnceLock<CertificatePin>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(pin) = self.pin.as_ref().filter(|pin| !pin.fits(end_entity)) else {
            return Ok(ServerCertVerified::assertion());
        };
        self.got.get_or_init(|| pin.of_same_kind(end_entity));
        Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// RFC 5929, 4.1: the digest of the certificate by the hash of its own signature, SHA-256 where that is MD5 or SHA-1.
fn end_point_binding(certificate: &[u8]) -> Vec<u8> {
    let digest = match signature_hash(certificate) {
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    };
    [b"tls-server-end-point:".as_slice(), &digest].concat()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

fn signature_hash(certificate: &[u8]) -> Hash {
    /// sha384WithRSAEncryption and sha512WithRSAEncryption (RFC 4055), ecdsa-with-SHA384 and -SHA512 (RFC 5758).
    const SHA384: [&[u8]; 2] = [
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c],
        &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03],
    ];
    const SHA512: [&[u8]; 2] = [
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d],
        &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04],
    ];
    match signature_algorithm(certificate) {
        Some(oid) if SHA384.contains(&oid) => Hash::Sha384,
        Some(oid) if SHA512.contains(&oid) => Hash::Sha512,
        _ => Hash::Sha256,
    }
}

/// The object identifier in `Certificate.signatureAlgorithm` (RFC 5280, 4.1): the second element of the outer one.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (outer, _) = take_element(certificate, SEQUENCE)?;
    let (_to_be_signed, rest) = take_element(outer, SEQUENCE)?;
    let (algorithm, _) = take_element(rest, SEQUENCE)?;
    take_element(algorithm, OBJECT_IDENTIFIER).map(|(oid, _)| oid)
}

/// The content of one DER element of that tag, and what follows it.
fn take_element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_prefix(&[tag])?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if length.len() > size_of::<u32>() {
            return None;
        }
        (length.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)), rest)
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};

    use super::*;

    fn certificate(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::new(vec!["guest".to_owned()]).unwrap().self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_binding_uses_the_hash_of_the_certificates_signature() {
        for (algorithm, length) in [(&PKCS_ECDSA_P256_SHA256, 32), (&PKCS_ECDSA_P384_SHA384, 48)] {
            let der = certificate(algorithm);
            let binding = end_point_binding(&der);
            let digest = binding.strip_prefix(b"tls-server-end-point:").unwrap();
            assert_eq!(digest.len(), length);
        }
        let der = certificate(&PKCS_ECDSA_P256_SHA256);
        assert!(end_point_binding(&der).ends_with(&Sha256::digest(&der)));
    }

    #[test]
    fn what_is_no_certificate_has_no_algorithm() {
        let der = certificate(&PKCS_ECDSA_P256_SHA256);
        assert!(signature_algorithm(&der).is_some());
        for cut in 0..der.len() {
            assert_eq!(signature_algorithm(&der[..cut]), None, "cut at {cut}");
        }
        assert_eq!(signature_algorithm(&[0x30, 0x88, 1, 2, 3, 4, 5, 6, 7, 8]), None);
    }
}
