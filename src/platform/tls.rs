//! TLS with rustls: trusted authorities, Tallyhouse's identity, and the reasons why a certificate was not accepted.
//!
//! Must never skip the check of a certificate, and never repeat the content of a key file.

use rustls::{AlertDescription, CertificateError, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt::Display;
use std::path::Path;

/// A client certificate with its chain, and its key.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The reason why a TLS connection cannot be made, classified by its remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No trusted authority has signed the server's certificate.
    UnknownAuthority,
    /// The server's certificate is not valid any more, or not yet.
    Expired,
    /// The server's certificate is for another name.
    WrongName,
    /// The server does not accept Tallyhouse's client certificate, or requires one that is not there.
    ClientCertificate,
    /// Any other reason, such as a server that does not speak TLS.
    Other,
}

/// Returns the cause of an error of rustls.
pub fn cause(error: &rustls::Error) -> Cause {
    use AlertDescription as Alert;
    use CertificateError as Certificate;
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            Certificate::Expired
            | Certificate::ExpiredContext { .. }
            | Certificate::NotValidYet
            | Certificate::NotValidYetContext { .. } => Cause::Expired,
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => Cause::WrongName,
            Certificate::UnknownIssuer | Certificate::BadSignature => Cause::UnknownAuthority,
            _ => Cause::Other,
        },
        rustls::Error::AlertReceived(
            Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied,
        ) => Cause::ClientCertificate,
        _ => Cause::Other,
    }
}

/// Returns the authorities in a PEM file, or the system's if there is no file. It leaves out those of the system that cannot be
/// read.
///
/// # Errors
/// Returns the reason why the file cannot be used, or that the system trusts nobody.
pub fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca_file else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let missing = || "this system has no trusted authorities".to_owned();
        return if roots.is_empty() { Err(missing()) } else { Ok(roots) };
    };
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| unusable(path, &error))?;
    }
    Ok(roots)
}

/// Returns a client certificate and its key, which must not be encrypted, from their PEM files.
///
/// # Errors
/// Returns the reason why a file cannot be used.
pub fn identity(cert_file: &Path, key_file: &Path) -> Result<Identity, String> {
    let key = PrivateKeyDer::from_pem_file(key_file)
        .map_err(|error| unusable(key_file, &format!("{error}; it must hold a private key that is not encrypted")))?;
    Ok((certificates(cert_file)?, key))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pems = CertificateDer::pem_file_iter(path).map_err(|error| unusable(path, &error))?;
    let certificates: Result<Vec<_>, _> = pems.collect();
    let certificates = certificates.map_err(|error| unusable(path, &error))?;
    if certificates.is_empty() { Err(unusable(path, &"it holds no certificate")) } else { Ok(certificates) }
}

fn unusable(path: &Path, error: &dyn Display) -> String {
    format!("{} cannot be used: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_holds_something_else_is_refused_without_being_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0!\n-----END PRIVATE KEY-----\n").unwrap();
        for error in [roots(Some(&path)).unwrap_err(), identity(&path, &path).unwrap_err()] {
            assert!(error.contains("key.pem cannot be used") && !error.contains("c2Vj"), "{error}");
        }
        assert!(roots(Some(Path::new("no-such-file.pem"))).unwrap_err().contains("no-such-file.pem"));
        assert!(roots(Some(Path::new("Cargo.toml"))).unwrap_err().contains("no certificate"));
    }

    #[test]
    fn errors_are_sorted_by_what_mends_them() {
        use rustls::Error;
        assert_eq!(cause(&Error::InvalidCertificate(CertificateError::UnknownIssuer)), Cause::UnknownAuthority);
        assert_eq!(cause(&Error::InvalidCertificate(CertificateError::Expired)), Cause::Expired);
        assert_eq!(cause(&Error::InvalidCertificate(CertificateError::NotValidForName)), Cause::WrongName);
        assert_eq!(cause(&Error::AlertReceived(AlertDescription::CertificateRequired)), Cause::ClientCertificate);
        assert_eq!(cause(&Error::AlertReceived(AlertDescription::ProtocolVersion)), Cause::Other);
    }
}
