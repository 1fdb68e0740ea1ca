//! Certificates for secured servers and their clients, made when they are needed.
//!
//! Must never be trusted outside of a test: keys lie beside what they open, and nothing is ever revoked.

use crate::error::{Context, Error, Result};
use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::symm::Cipher;
use openssl::x509::extension::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509Name};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const DAY_S: i64 = 86_400;

/// An authority that signs certificates.
#[derive(Debug)]
pub struct Authority {
    key: PKey<Private>,
    certificate: X509,
}

/// A certificate with its key, as PEM.
#[derive(Debug)]
pub struct Identity {
    /// The certificate, signed by the authority.
    pub certificate: String,
    /// Its private key, PKCS #8.
    pub key: String,
}

impl Authority {
    /// Makes a new authority of this name. A client that trusts another authority does not trust its signatures.
    pub fn new(name: &str) -> Result<Authority> {
        let make = || -> Result<Authority, ErrorStack> {
            let key = new_key()?;
            let mut builder = begin(name, &key, 1)?;
            let issuer = subject(name)?;
            builder.set_issuer_name(&issuer)?;
            builder.append_extension(BasicConstraints::new().critical().ca().build()?)?;
            builder.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build()?)?;
            builder.sign(&key, MessageDigest::sha256())?;
            Ok(Authority { certificate: builder.build(), key })
        };
        make().map_err(failed)
    }

    /// Returns the certificate that clients and servers trust, as PEM.
    pub fn pem(&self) -> Result<String> {
        pem(self.certificate.to_pem())
    }

    /// Makes a certificate for a server with this DNS name.
    pub fn server(&self, name: &str) -> Result<Identity> {
        self.sign(name, 1)
    }

    /// Makes the same as [`Authority::server`], but expired since yesterday.
    pub fn expired_server(&self, name: &str) -> Result<Identity> {
        self.sign(name, -1)
    }

    /// Makes a certificate for a client whose subject is `CN=name`.
    pub fn client(&self, name: &str) -> Result<Identity> {
        self.sign(name, 1)
    }

    fn sign(&self, name: &str, until_days: i64) -> Result<Identity> {
        let make = || -> Result<(X509, PKey<Private>), ErrorStack> {
            let key = new_key()?;
            let mut builder = begin(name, &key, until_days)?;
            builder.set_issuer_name(self.certificate.subject_name())?;
            builder.append_extension(ExtendedKeyUsage::new().server_auth().client_auth().build()?)?;
            let names = SubjectAlternativeName::new()
                .dns(name)
                .build(&builder.x509v3_context(Some(&self.certificate), None))?;
            builder.append_extension(names)?;
            builder.sign(&self.key, MessageDigest::sha256())?;
            Ok((builder.build(), key))
        };
        let (certificate, key) = make().map_err(failed)?;
        Ok(Identity { certificate: pem(certificate.to_pem())?, key: pem(key.private_key_to_pem_pkcs8())? })
    }
}

impl Identity {
    /// Returns the key, encrypted with this password (PKCS #8, AES-256).
    pub fn encrypted_key(&self, password: &str) -> Result<String> {
        let key = PKey::private_key_from_pem(self.key.as_bytes()).map_err(failed)?;
        pem(key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), password.as_bytes()))
    }

    /// Writes `<name>.pem`, `<name>-cert.pem` and `<name>-key.pem`, and returns the three paths in this order. The
    /// first has key and certificate in one, as Kafka's PEM stores want it.
    pub fn write(&self, folder: &Path, name: &str) -> Result<[PathBuf; 3]> {
        let paths = ["", "-cert", "-key"].map(|kind| folder.join(format!("{name}{kind}.pem")));
        let texts = [self.key.clone() + &self.certificate, self.certificate.clone(), self.key.clone()];
        for (path, text) in paths.iter().zip(texts) {
            fs::write(path, text).context("write", path)?;
        }
        Ok(paths)
    }
}

fn new_key() -> Result<PKey<Private>, ErrorStack> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    PKey::from_ec_key(EcKey::generate(&group)?)
}

/// Begins a certificate, without issuer and signature. It is valid from a month ago until this number of days from
/// now.
fn begin(name: &str, key: &PKey<Private>, until_days: i64) -> Result<X509Builder, ErrorStack> {
    let mut builder = X509::builder()?;
    builder.set_version(2)?;
    let mut serial = BigNum::new()?;
    serial.rand(128, MsbOption::MAYBE_ZERO, false)?;
    let serial = serial.to_asn1_integer()?;
    builder.set_serial_number(&serial)?;
    let subject = subject(name)?;
    builder.set_subject_name(&subject)?;
    builder.set_pubkey(key)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    builder.set_not_before(Asn1Time::from_unix(now - 30 * DAY_S)?.as_ref())?;
    builder.set_not_after(Asn1Time::from_unix(now + until_days * DAY_S)?.as_ref())?;
    Ok(builder)
}

fn subject(name: &str) -> Result<X509Name, ErrorStack> {
    let mut builder = X509Name::builder()?;
    builder.append_entry_by_nid(Nid::COMMONNAME, name)?;
    Ok(builder.build())
}

fn pem(made: Result<Vec<u8>, ErrorStack>) -> Result<String> {
    Ok(String::from_utf8_lossy(&made.map_err(failed)?).into_owned())
}

fn failed(error: ErrorStack) -> Error {
    Error::Certificate { message: error.to_string() }
}
