//! A Kafka as a company runs it: TLS with an authority of its own, client certificates, SASL, and ACLs that allow nothing by default.
//!
//! | listener | encryption | who a client is |
//! |---|---|---|
//! | [`SecureKafka::plain`] | none | `User:ANONYMOUS`, who may do everything: for the test itself |
//! | [`SecureKafka::tls`] | TLS | `User:ANONYMOUS` |
//! | [`SecureKafka::mutual`] | TLS, client certificate demanded | `User:CN=…`; [`CLIENT`] may do everything |
//! | [`SecureKafka::sasl`] | TLS, client certificate looked at if there is one | the SASL user, who may do what ACLs allow |
//! | [`SecureKafka::expired`] | TLS with a certificate of yesterday | `User:ANONYMOUS` |
//!
//! All certificates are for `localhost`: a client that comes to 127.0.0.1 finds another name in it.
//!
//! Must never be where real data is: passwords stand in the clear in its configuration.

use super::{Kafka, KafkaOptions, Listener};
use crate::{
    certificates::Authority,
    error::{Context, Result},
    ports::PortBlock,
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// The SASL user, for SCRAM-SHA-512 and PLAIN. Without ACLs it may do nothing.
pub const USER: &str = "writer";
/// Password of [`USER`], easy to find in logs and answers.
pub const PASSWORD: &str = "marked-kafka-password-7f3a";
/// Subject of the client certificate, which may do everything.
pub const CLIENT: &str = "tallyhouse-client";
/// Password of [`SecureKafka::encrypted_key`], easy to find in logs and answers.
pub const KEY_PASSWORD: &str = "marked-key-password-91cd";

const NAME: &str = "localhost";
const LISTENERS: [(&str, &str); 4] = [("TLS", "SSL"), ("MUTUAL", "SSL"), ("SASL", "SASL_SSL"), ("EXPIRED", "SSL")];

/// The secured Kafka with what its clients need. Dropping it kills the node.
#[derive(Debug)]
pub struct SecureKafka {
    kafka: Kafka,
    folder: TempDir,
    ports: PortBlock,
}

impl SecureKafka {
    /// Makes the certificates, starts one node and waits until it is healthy.
    ///
    /// Fails as [`Kafka::start`] does.
    pub fn start() -> Result<SecureKafka> {
        let root = std::env::temp_dir();
        let folder = tempfile::Builder::new()
            .prefix("tallyhouse-secure-")
            .tempdir_in(&root)
            .context("make a folder in", &root)?;
        let ports = PortBlock::reserve()?;
        let properties = make_files(folder.path())?;
        let listener = |(index, (name, protocol)): (u16, (&str, &str))| Listener {
            name: name.to_owned(),
            protocol: protocol.to_owned(),
            port: ports.port(index),
        };
        let kafka = Kafka::start(KafkaOptions {
            properties,
            listeners: (0..).zip(LISTENERS).map(listener).collect(),
            scram_users: vec![(USER.to_owned(), PASSWORD.to_owned())],
            ..KafkaOptions::default()
        })?;
        Ok(SecureKafka { kafka, folder, ports })
    }

    /// Returns the listener for the test itself.
    pub fn plain(&self) -> &str {
        self.kafka.bootstrap()
    }

    /// Returns the encrypted listener.
    pub fn tls(&self) -> String {
        self.at(0)
    }

    /// Returns the encrypted listener that demands a client certificate of [`SecureKafka::authority`].
    pub fn mutual(&self) -> String {
        self.at(1)
    }

    /// Returns the encrypted listener that demands a password.
    pub fn sasl(&self) -> String {
        self.at(2)
    }

    /// Returns the encrypted listener whose certificate has expired.
    pub fn expired(&self) -> String {
        self.at(3)
    }

    /// Returns the PEM of the authority that signed all of it.
    pub fn authority(&self) -> PathBuf {
        self.file("authority.pem")
    }

    /// Returns the PEM of an authority that signed nothing here.
    pub fn other_authority(&self) -> PathBuf {
        self.file("other-authority.pem")
    }

    /// Returns certificate and key of [`CLIENT`].
    pub fn client(&self) -> [PathBuf; 2] {
        ["client-cert.pem", "client-key.pem"].map(|name| self.file(name))
    }

    /// Returns the key of [`CLIENT`], encrypted with [`KEY_PASSWORD`].
    pub fn encrypted_key(&self) -> PathBuf {
        self.file("client-key-encrypted.pem")
    }

    /// Returns certificate and key of a client that another authority signed.
    pub fn stranger(&self) -> [PathBuf; 2] {
        ["stranger-cert.pem", "stranger-key.pem"].map(|name| self.file(name))
    }

    /// Returns certificate and key of a server named localhost, valid or expired, for a [`crate::tls::Terminator`].
    pub fn server(&self, expired: bool) -> [PathBuf; 2] {
        let name = if expired { "expired" } else { "server" };
        ["cert", "key"].map(|kind| self.file(&format!("{name}-{kind}.pem")))
    }

    pub(crate) fn dispose(&self) {
        self.kafka.dispose();
        // Failing here leaves a few small files in the temporary folder.
        let _ = fs::remove_dir_all(self.folder.path());
    }

    fn at(&self, index: u16) -> String {
        format!("{NAME}:{}", self.ports.port(index))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Writes certificates and keys. Returns the broker's properties that use them.
fn make_files(folder: &Path) -> Result<BTreeMap<String, String>> {
    let write = |name: &str, text: &str| -> Result<PathBuf> {
        let path = folder.join(name);
        fs::write(&path, text).context("write", &path)?;
        Ok(path)
    };
    let (authority, other) = (Authority::new("Tallyhouse test")?, Authority::new("somebody else")?);
    let trusted = write("authority.pem", &authority.pem()?)?;
    write("other-authority.pem", &other.pem()?)?;
    let client = authority.client(CLIENT)?;
    client.write(folder, "client")?;
    write("client-key-encrypted.pem", &client.encrypted_key(KEY_PASSWORD)?)?;
    other.client(CLIENT)?.write(folder, "stranger")?;
    let [server, ..] = authority.server(NAME)?.write(folder, "server")?;
    let [expired, ..] = authority.expired_server(NAME)?.write(folder, "expired")?;

    let mut properties = BTreeMap::new();
    let mut set = |name: &str, value: String| properties.insert(name.to_owned(), value);
    for (listener, ..) in LISTENERS {
        let listener = listener.to_lowercase();
        let keystore = if listener == "expired" { &expired } else { &server };
        let client_auth = match listener.as_str() {
            "mutual" => "required",
            "sasl" => "requested",
            _ => "none",
        };
        for (name, value) in [
            ("ssl.keystore.type", "PEM".to_owned()),
            ("ssl.keystore.location", keystore.display().to_string()),
            ("ssl.truststore.type", "PEM".to_owned()),
            ("ssl.truststore.location", trusted.display().to_string()),
            ("ssl.client.auth", client_auth.to_owned()),
        ] {
            set(&format!("listener.name.{listener}.{name}"), value);
        }
    }
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;".to_owned();
    let plain = "org.apache.kafka.common.security.plain.PlainLoginModule required";
    set("listener.name.sasl.sasl.enabled.mechanisms", "SCRAM-SHA-512,PLAIN".to_owned());
    set("listener.name.sasl.scram-sha-512.sasl.jaas.config", scram);
    set("listener.name.sasl.plain.sasl.jaas.config", format!("{plain} user_{USER}=\"{PASSWORD}\";"));
    set("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned());
    set("super.users", format!("User:ANONYMOUS;User:CN={CLIENT}"));
    Ok(properties)
}
