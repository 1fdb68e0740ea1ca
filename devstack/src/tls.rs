//! TLS in front of a server that has none, as a company puts nginx or stunnel there. The library form of ClickHouse
//! has no HTTPS listener (`SYSTEM START LISTEN HTTPS` is refused: it "supports only TCP and HTTP listeners").
//!
//! Must never change a byte of what it passes on. Must never listen on anything but 127.0.0.1.

use crate::error::{Context, Error, Result};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

/// The files of a terminator: its own certificate, and the authority of its clients.
#[derive(Debug)]
pub struct TerminatorOptions {
    /// PEM files of its certificate and key.
    pub identity: [PathBuf; 2],
    /// PEM file of the authority whose client certificates are demanded, if any are.
    pub client_authority: Option<PathBuf>,
}

/// Takes TLS connections and passes on their content. It ends with its runtime, which it drops.
#[derive(Debug)]
pub struct Terminator {
    port: u16,
    runtime: Option<Runtime>,
}

impl Terminator {
    /// Listens on a free port, in front of `server`.
    ///
    /// Fails when a file cannot be used or no port can be had.
    pub fn start(options: &TerminatorOptions, server: SocketAddr) -> Result<Terminator> {
        let here = Path::new("127.0.0.1");
        let acceptor = TlsAcceptor::from(Arc::new(server_config(options)?));
        // This is not tokio's own bind, since the caller may be in a runtime already.
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on", here)?;
        listener.set_nonblocking(true).context("listen on", here)?;
        let port = listener.local_addr().context("listen on", here)?.port();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.context("start a runtime for", here)?;
        runtime.spawn(accept(listener, acceptor, server));
        Ok(Terminator { port, runtime: Some(runtime) })
    }

    /// Returns its address by the name that certificates are for: `https://localhost:port`.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// Returns its address by number, which no certificate is for.
    pub fn url_by_number(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

impl Drop for Terminator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping it would wait, which an async caller must not.
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: std::net::TcpListener, acceptor: TlsAcceptor, server: SocketAddr) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // A client that is refused or goes away is no failure of the terminator.
            let (Ok(mut client), Ok(mut server)) = (acceptor.accept(stream).await, TcpStream::connect(server).await)
            else {
                return;
            };
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
    }
}

fn server_config(options: &TerminatorOptions) -> Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let [certificate, key] = &options.identity;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| failed(&error))?;
    let builder = match &options.client_authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))? {
                roots.add(authority.map_err(|error| failed(&error))?).map_err(|error| failed(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error: VerifierBuilderError| failed(&error))?)
        }
    };
    let chain: std::result::Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(certificate).map_err(|error| failed(&error))?.collect();
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(&error))?;
    builder.with_single_cert(chain.map_err(|error| failed(&error))?, key).map_err(|error: rustls::Error| failed(&error))
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::Certificate { message: error.to_string() }
}
