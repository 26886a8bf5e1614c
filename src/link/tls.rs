//! TLS towards servers that this node calls: the app, NATS.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// What a server is believed by, and what it is shown.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// Check the server's certificate and name. Off, any certificate will do.
    pub verify: bool,
    /// Certificates that are trusted: the path of a PEM file, or PEM text. None: those of the system.
    pub root_ca: Option<String>,
    /// What we show: the paths of PEM files with a certificate and its key.
    pub client: Option<(String, String)>,
}

/// Something about certificates that cannot be used. Says which file, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

fn error(error: impl std::fmt::Display) -> TlsError {
    TlsError(error.to_string())
}

/// Makes the configuration. Reads files, so it runs at boot only. rustls speaks TLS 1.2 and 1.3 and nothing older.
///
/// # Errors
/// A file cannot be read or used, or the system has no trusted certificates.
pub fn client_config(settings: &TlsSettings) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(error)?;
    let verifier: Arc<dyn ServerCertVerifier> = if settings.verify {
        let roots = Arc::new(roots(settings.root_ca.as_deref())?);
        WebPkiServerVerifier::builder_with_provider(roots, provider).build().map_err(error)?
    } else {
        Arc::new(Unverified(provider))
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let Some((certificate, key)) = &settings.client else { return Ok(builder.with_no_client_auth()) };
    let certificates = certificates(&read(certificate)?, certificate)?;
    let key_of = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|why| TlsError(format!("{key}: {why}")))?;
    builder.with_client_auth_cert(certificates, key_of).map_err(|why| TlsError(format!("{certificate}, {key}: {why}")))
}

fn read(path: &str) -> Result<Vec<u8>, TlsError> {
    std::fs::read(Path::new(path)).map_err(|why| TlsError(format!("{path}: {why}")))
}

/// The certificates in a PEM text, one at least; `name` is for messages.
fn certificates(pem: &[u8], name: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|why| TlsError(format!("{name}: {why}")))?;
    if certificates.is_empty() { Err(TlsError(format!("{name}: no certificate in it"))) } else { Ok(certificates) }
}

fn roots(root_ca: Option<&str>) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    match root_ca.map(str::trim) {
        None => {
            let system = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(system.certs);
            if store.is_empty() {
                let why = system.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
                return Err(TlsError(format!("the system has no trusted certificates{why}")));
            }
        }
        Some(given) => {
            let is_text = given.contains("-----BEGIN");
            let name = if is_text { "the PEM text" } else { given };
            let pem = if is_text { given.as_bytes().to_vec() } else { read(given)? };
            for certificate in certificates(&pem, name)? {
                store.add(certificate).map_err(|why| TlsError(format!("{name}: {why}")))?;
            }
        }
    }
    Ok(store)
}

/// `verify` off: any certificate will do. Signatures are still checked, as the handshake itself needs them.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
