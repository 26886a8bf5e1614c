//! TLS towards the app, for both transports.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::{BackendError, TlsSettings};

/// Makes the connector. Reads files, so it runs at boot only. rustls speaks TLS 1.2 and 1.3 and nothing older.
pub(super) fn connector(settings: &TlsSettings, alpn: &[&[u8]]) -> Result<TlsConnector, BackendError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| BackendError::Tls(error.to_string()))?;
    let verifier: Arc<dyn ServerCertVerifier> = if settings.verify {
        let roots = Arc::new(roots(settings)?);
        WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| BackendError::Tls(error.to_string()))?
    } else {
        Arc::new(Unverified(provider))
    };
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn roots(settings: &TlsSettings) -> Result<RootCertStore, BackendError> {
    let mut store = RootCertStore::empty();
    match settings.root_ca.as_deref().map(str::trim) {
        None => {
            let system = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(system.certs);
            if store.is_empty() {
                let why = system.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
                return Err(BackendError::Tls(format!("the system has no trusted certificates{why}")));
            }
        }
        Some(given) => {
            let text;
            let (pem, name) = if given.contains("-----BEGIN") {
                (given.as_bytes(), "the PEM text")
            } else {
                text =
                    std::fs::read(Path::new(given)).map_err(|error| BackendError::Tls(format!("{given}: {error}")))?;
                (text.as_slice(), given)
            };
            let bad = |error: &dyn std::fmt::Display| BackendError::Tls(format!("{name}: {error}"));
            for certificate in CertificateDer::pem_slice_iter(pem) {
                store.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
            }
            if store.is_empty() {
                return Err(bad(&"no certificate in it"));
            }
        }
    }
    Ok(store)
}

/// `rpc_tls_verify` off: any certificate will do. Signatures are still checked, as the handshake itself needs them.
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
