//! Finds the reason why a broker's certificate is not trusted. librdkafka says only that its verification failed. A second look
//! by rustls, at the same address and with the same authorities, shows the fault.
//!
//! Must never decide anything: librdkafka has refused already, and the findings here are only for the message.

use super::refusal::address;
use crate::config::Kafka;
use crate::platform::advice::Advice;
use crate::platform::tls::{self, Cause};
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for the connection, and for each answer on it.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the fault of the broker's certificate, and the remedy. librdkafka's words in `reason` name the broker.
pub fn advice(reason: &str, kafka: &Kafka) -> Advice {
    let address = address(reason).unwrap_or(&kafka.brokers);
    let (what, cause) = match look(address, kafka.tls.ca_file.as_deref()) {
        Some(error) => (error.to_string(), tls::cause(&error)),
        None => ("its verification failed".to_owned(), Cause::UnknownAuthority),
    };
    let fix = match cause {
        Cause::Expired => "Renew the broker's certificate, or set this machine's clock",
        Cause::WrongName => {
            "Name the brokers in kafka.brokers and in their advertised.listeners as their certificates do, or give them \
             certificates for these names"
        }
        _ => "Set kafka.tls.ca_file to the PEM of the authority that signed it",
    };
    Advice::new(format!("the certificate of the Kafka broker {address} is not trusted: {what}"), fix)
}

/// Returns the fault that rustls finds, if any.
fn look(address: &str, ca_file: Option<&str>) -> Option<rustls::Error> {
    let roots = tls::roots(ca_file.map(Path::new)).ok()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let (host, _) = address.rsplit_once(':')?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).ok()?;
    let mut connection = ClientConnection::new(Arc::new(config), name).ok()?;
    let connect = |at| TcpStream::connect_timeout(&at, LOOK_TIMEOUT).ok();
    let mut stream = address.to_socket_addrs().ok()?.find_map(connect)?;
    stream.set_read_timeout(Some(LOOK_TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(LOOK_TIMEOUT)).ok()?;
    let error = connection.complete_io(&mut stream).err()?;
    error.into_inner()?.downcast::<rustls::Error>().ok().map(|error| *error)
}
