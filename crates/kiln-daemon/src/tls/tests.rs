use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};

use super::*;
use crate::config::HostName;

fn config(names: &[&str]) -> Config {
    let mut config = Config::default();
    config.tls.names = names.iter().map(|name| HostName::try_from((*name).to_owned()).unwrap()).collect();
    config
}

fn given(dir: &Path) -> Config {
    let mut config = Config::default();
    config.tls.certificate = Some(dir.join("server.pem"));
    config.tls.key = Some(dir.join("server.key"));
    config
}

fn write_pair(dir: &Path, name: &str) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    std::fs::write(dir.join("server.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("server.key"), made.signing_key.serialize_pem()).unwrap();
    made.cert.into()
}

/// The certificate a client is shown, by a handshake in memory; verified against `ca`.
fn shown(tls: &Tls, ca: &CertificateDer<'_>, name: &str) -> Result<CertificateDer<'static>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned()).unwrap();
    let client =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = rustls::ServerConnection::new(tls.server()).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(client.peer_certificates().unwrap()[0].clone().into_owned())
}

fn ca_of(tls: &Tls) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(tls.ca_file().unwrap()).unwrap()
}

#[test]
fn clients_that_trust_the_authority_trust_every_name() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&["kiln.example.org", "192.0.2.7"]);
    let names = Names::new(&config, "box");
    let tls = Tls::open(dir.path(), &config, &names).unwrap();
    let ca = ca_of(&tls);
    for name in ["localhost", "127.0.0.1", "::1", "box", "kiln.example.org", "192.0.2.7"] {
        shown(&tls, &ca, name).unwrap();
    }
    for name in ["example.org", "192.0.2.8"] {
        shown(&tls, &ca, name).unwrap_err();
    }
    let mode =
        |name: &str| std::fs::metadata(dir.path().join("tls").join(name)).unwrap().permissions().mode();
    assert_eq!((mode("ca.key") & 0o777, mode("") & 0o777), (0o600, 0o700));

    // A restart keeps the authority and shows another leaf of it.
    let first = shown(&tls, &ca, "localhost").unwrap();
    let again = Tls::open(dir.path(), &config, &names).unwrap();
    assert_eq!(ca_of(&again), ca);
    assert_ne!(shown(&again, &ca, "localhost").unwrap(), first);
}

#[test]
fn the_leaf_is_renewed_in_time_and_when_names_change() {
    let dir = tempfile::tempdir().unwrap();
    let names = Names::new(&Config::default(), "box");
    let mut own = {
        let authority = Authority::open(dir.path()).unwrap();
        let leaf = authority.leaf(&names).unwrap();
        Own { authority, names: names.clone(), leaf }
    };
    let first = own.current().cert[0].clone();
    assert_eq!(own.current().cert[0], first);
    own.leaf.let_it_age();
    let second = own.current().cert[0].clone();
    assert_ne!(second, first);
    assert_eq!(own.current().cert[0], second);
    let alternatives = |der: &CertificateDer<'_>| -> BTreeSet<String> {
        let (_, parsed) = x509_parser::parse_x509_certificate(der).unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        names.value.general_names.iter().map(|name| format!("{name:?}")).collect()
    };
    names.reload(&config(&["new.example.org"]));
    let third = own.current().cert[0].clone();
    assert!(alternatives(&third).iter().any(|name| name.contains("new.example.org")));
    assert!(!alternatives(&second).iter().any(|name| name.contains("new.example.org")));
}

#[test]
fn half_an_authority_is_not_replaced_behind_anybodys_back() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Authority::open(dir.path()).map(|_| ());
    open().unwrap();
    let certificate = std::fs::read(dir.path().join("ca.pem")).unwrap();
    let key = std::fs::read(dir.path().join("ca.key")).unwrap();

    std::fs::remove_file(dir.path().join("ca.key")).unwrap();
    assert!(matches!(open(), Err(TlsError::Authority { .. })));
    std::fs::write(dir.path().join("ca.key"), "canary").unwrap();
    let error = open().unwrap_err();
    assert!(matches!(error, TlsError::Authority { .. }) && !format!("{error:?}").contains("canary"));
    // Another's key.
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(dir.path().join("ca.key"), other).unwrap();
    assert!(matches!(open(), Err(TlsError::Authority { .. })));
    assert_eq!(std::fs::read(dir.path().join("ca.pem")).unwrap(), certificate);

    std::fs::write(dir.path().join("ca.key"), &key).unwrap();
    open().unwrap();
    // A first start that was cut off: nobody has the certificate yet.
    std::fs::remove_file(dir.path().join("ca.pem")).unwrap();
    open().unwrap();
    assert_ne!(std::fs::read(dir.path().join("ca.key")).unwrap(), key);
}

#[test]
fn a_given_certificate_is_read_again_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let first = write_pair(dir.path(), "localhost");
    let config = given(dir.path());
    let tls = Tls::open(dir.path(), &config, &Names::new(&config, "box")).unwrap();
    assert_eq!(tls.ca_file(), None);
    assert_eq!(shown(&tls, &first, "localhost").unwrap(), first);
    assert!(!dir.path().join("tls").exists(), "no authority is made that nobody uses");

    let mut given = Given::read(&dir.path().join("server.pem"), &dir.path().join("server.key")).unwrap();
    std::fs::write(dir.path().join("server.key"), "half a key").unwrap();
    given.refresh();
    assert_eq!(given.current().cert[0], first, "what cannot be used changes nothing");
    let second = write_pair(dir.path(), "localhost");
    given.refresh();
    assert_eq!(given.current().cert[0], second);
}

#[test]
fn a_given_pair_that_cannot_be_used_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = given(dir.path());
    let open = || Tls::open(dir.path(), &config, &Names::new(&config, "box")).err().unwrap();
    assert!(matches!(open(), TlsError::File { .. }));
    write_pair(dir.path(), "localhost");
    let key = std::fs::read(dir.path().join("server.key")).unwrap();
    write_pair(dir.path(), "localhost");
    std::fs::write(dir.path().join("server.key"), &key).unwrap();
    assert!(matches!(open(), TlsError::Pair { .. }));
    std::fs::write(dir.path().join("server.pem"), "").unwrap();
    assert!(matches!(open(), TlsError::Pem { what: "certificate", .. }));
    write_pair(dir.path(), "localhost");
    std::fs::write(dir.path().join("server.key"), "").unwrap();
    assert!(matches!(open(), TlsError::Pem { what: "private key", .. }));
}

/// RFC 5280, as `-x509_strict` and Python's VERIFY_X509_STRICT hold it against a chain. The programs themselves are
/// asked in the clients' suite.
#[test]
fn the_chain_is_strict() {
    use x509_parser::extensions::ParsedExtension;

    let dir = tempfile::tempdir().unwrap();
    let config = config(&[]);
    let tls = Tls::open(dir.path(), &config, &Names::new(&config, "box")).unwrap();
    let ca = ca_of(&tls);
    let leaf = shown(&tls, &ca, "localhost").unwrap();
    let (_, ca) = x509_parser::parse_x509_certificate(&ca).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let key_id = |certificate: &x509_parser::certificate::X509Certificate<'_>| {
        certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
    };
    let authority_id = leaf.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    });
    assert!(authority_id.is_some() && authority_id == key_id(&ca));
    assert!(key_id(&leaf).is_some() && key_id(&leaf) != key_id(&ca));
    let constraints = ca.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    let usage = ca.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign());
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
    assert!(leaf.extended_key_usage().unwrap().unwrap().value.server_auth);
    assert!(leaf.raw_serial().len() <= 20 && leaf.tbs_certificate.serial.bits() > 64);
    let days = |certificate: &x509_parser::certificate::X509Certificate<'_>| {
        let validity = certificate.validity();
        (validity.not_after.timestamp() - validity.not_before.timestamp()) / (24 * 60 * 60)
    };
    assert!(days(&leaf) <= 398 && days(&ca) > 7000);
}
