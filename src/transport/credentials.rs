//! This node's certificate and key, and the TLS configurations for both directions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use crate::files::{self, Guard};

use super::compression::{ALPN_PLAIN, ALPN_ZSTD};
use super::verify::Handshake;

/// Why TLS cannot be set up, or a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A certificate or key cannot be used.
    #[error("{path} cannot be used: {reason}")]
    Identity {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The endpoint is not `host:port`.
    #[error("`{0}` is not `host:port`")]
    Endpoint(String),
    /// The connection failed.
    #[error("{0}")]
    Connect(String),
}

/// This node's certificate and key, reloadable without a restart. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    certificate: PathBuf,
    key: PathBuf,
    current: Arc<ArcSwap<CertifiedKey>>,
}

/// A certificate and key read from files, not yet in use.
pub struct Certified(CertifiedKey);

impl Certified {
    /// Returns the node's certificate.
    #[must_use]
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.0.cert.first()
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads a PEM chain and its PEM key.
    ///
    /// # Errors
    /// A file cannot be read, or key and certificate do not match.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TransportError> {
        let current = Arc::new(ArcSwap::from_pointee(certified(certificate, key)?));
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), current })
    }

    /// Reads both files again, without using them yet.
    ///
    /// # Errors
    /// See [`Self::load`].
    pub fn read(&self) -> Result<Certified, TransportError> {
        certified(&self.certificate, &self.key).map(Certified)
    }

    /// Returns whether `read` is the chain in use.
    #[must_use]
    pub fn is_current(&self, read: &Certified) -> bool {
        self.current.load().cert == read.0.cert
    }

    /// Uses `read` for new connections.
    pub fn put(&self, read: Certified) {
        self.current.store(Arc::new(read.0));
    }

    /// Returns the node's certificate in use.
    #[must_use]
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.current.load().cert.first().cloned()
    }

    /// Returns the path of the chain.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.certificate
    }
}

fn certified(certificate: &Path, key: &Path) -> Result<CertifiedKey, TransportError> {
    let unusable = |path: &Path, reason: String| TransportError::Identity { path: path.to_owned(), reason };
    let read = |path: &Path, guard| files::read_text(path, guard).map_err(|error| unusable(path, error.to_string()));
    let chain: Vec<_> = CertificateDer::pem_slice_iter(read(certificate, Guard::Public)?.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(unusable(certificate, "no PEM certificate in it".into()));
    }
    let private = PrivateKeyDer::from_pem_slice(read(key, Guard::Secret)?.as_bytes())
        .map_err(|error| unusable(key, error.to_string()))?;
    CertifiedKey::from_der(chain, private, &rustls::crypto::aws_lc_rs::default_provider())
        .map_err(|error| unusable(key, error.to_string()))
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], _sigschemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// TLS configuration of accepted connections: TLS 1.3 only, client certificates required, no
/// resumption.
///
/// # Errors
/// TLS cannot be set up.
pub(super) fn server_config(
    verifier: Arc<Handshake>,
    credentials: Credentials,
) -> Result<ServerConfig, TransportError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(verifier.provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(credentials));
    config.alpn_protocols = vec![ALPN_ZSTD.to_vec(), ALPN_PLAIN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// TLS configuration of dialled connections, like [`server_config`].
///
/// # Errors
/// TLS cannot be set up.
pub(super) fn client_config(
    verifier: Arc<Handshake>,
    credentials: Credentials,
) -> Result<ClientConfig, TransportError> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(verifier.provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(credentials));
    config.alpn_protocols = vec![ALPN_PLAIN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}
