//! The server's own certificate authority, and the leaf it signs.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_host::publish;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::TlsError;
use crate::config::Names;

pub(super) const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";
const LEAF: &str = "server.pem";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const AUTHORITY_LIFE: Duration = DAY.saturating_mul(20 * 365);
/// Some clients refuse longer ones (Apple: 825 days).
const LEAF_LIFE: Duration = DAY.saturating_mul(365);
const RENEW_BEFORE: Duration = DAY.saturating_mul(120);
/// A client's clock may be behind ours.
const CLOCK_SKEW: Duration = DAY;

pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    path: PathBuf,
    ends: SystemTime,
}

/// A certificate of the server's, and its key, in memory only.
pub(super) struct Leaf {
    pub certified: Arc<CertifiedKey>,
    hosts: Vec<String>,
    renew_at: SystemTime,
}

impl Authority {
    /// Reads or makes it in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self, TlsError> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("make", dir))?;
        let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
        match (read(&certificate)?, read(&key)?) {
            (Some(pem), Some(key)) => {
                let damaged = || TlsError::Authority { dir: dir.to_owned() };
                let authority = Self::load(&pem, &key, &certificate).ok_or_else(damaged)?;
                if authority.ends > SystemTime::now() + LEAF_LIFE {
                    return Ok(authority);
                }
                tracing::warn!(
                    "the own certificate authority comes to its end and is replaced: clients must trust the new {}",
                    certificate.display()
                );
            }
            // A key alone is left of a start that was cut off below: nobody trusts it yet.
            (None, _) => {}
            (Some(_), None) => return Err(TlsError::Authority { dir: dir.to_owned() }),
        }
        let (pem, key_pem) = make()?;
        publish::write_file(&key, key_pem.as_bytes(), 0o600).map_err(failed("write", &key))?;
        publish::write_file(&certificate, pem.as_bytes(), 0o644).map_err(failed("write", &certificate))?;
        Self::load(&pem, &key_pem, &certificate).ok_or_else(|| TlsError::Authority { dir: dir.to_owned() })
    }

    /// Nothing where the two are no pair.
    fn load(pem: &str, key_pem: &str, path: &Path) -> Option<Self> {
        let key = KeyPair::from_pem(key_pem).ok()?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).ok()?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return None;
        }
        let ends = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).ok()?;
        Some(Self {
            issuer,
            path: path.to_owned(),
            ends: SystemTime::UNIX_EPOCH + Duration::from_secs(ends),
            certificate,
        })
    }

    pub(super) fn certificate_file(&self) -> &Path {
        &self.path
    }

    /// A fresh key and a certificate for every name there is now.
    pub(super) fn leaf(&self, names: &Names) -> Result<Leaf, TlsError> {
        let hosts = names.hosts();
        let now = SystemTime::now();
        let ends = (now + LEAF_LIFE).min(self.ends);
        let mut params = CertificateParams::default();
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = ends.into();
        // A name that cannot be in a certificate (non-ASCII) is none that a client could check.
        params.subject_alt_names = hosts
            .iter()
            .filter_map(|host| match host.parse::<IpAddr>() {
                Ok(address) => Some(SanType::IpAddress(address)),
                Err(_) => host.as_str().try_into().ok().map(SanType::DnsName),
            })
            .collect();
        params.distinguished_name = name("Kiln");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = rustls::crypto::ring::sign::any_supported_type(&private)?;
        // To be looked at: `openssl verify -CAfile ca.pem server.pem`. Nothing here reads it.
        let shown = self.path.with_file_name(LEAF);
        if let Err(error) = publish::write_file(&shown, certificate.pem().as_bytes(), 0o644) {
            tracing::warn!("cannot write {}: {error}", shown.display());
        }
        // The authority goes along: some clients show it, none trusts it for that.
        let chain = vec![certificate.into(), self.certificate.clone()];
        Ok(Leaf {
            certified: Arc::new(CertifiedKey::new(chain, signing)),
            hosts,
            renew_at: ends.checked_sub(RENEW_BEFORE).unwrap_or(now),
        })
    }
}

impl Leaf {
    pub(super) fn is_stale(&self, names: &Names) -> bool {
        SystemTime::now() >= self.renew_at || self.hosts != names.hosts()
    }

    #[cfg(test)]
    pub(super) fn let_it_age(&mut self) {
        self.renew_at = SystemTime::UNIX_EPOCH;
    }
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// PEM of a new authority and of its key.
fn make() -> Result<(String, Zeroizing<String>), TlsError> {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + AUTHORITY_LIFE).into();
    // Two authorities of one name confuse those who look them up by it: each has a name of its own.
    let id = Uuid::new_v4().simple().to_string();
    params.distinguished_name =
        name(&format!("Kiln authority {} of {}", &id[..8], short(&Names::host_name())));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem().into()))
}

/// X.520 limits a common name to 64 characters; what stands before it has 26.
fn short(host: &str) -> String {
    host.chars().filter(char::is_ascii_graphic).take(38).collect()
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TlsError {
    let path = path.to_owned();
    move |source| TlsError::File { act, path, source }
}

fn read(path: &Path) -> Result<Option<Zeroizing<String>>, TlsError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}
