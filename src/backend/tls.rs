//! TLS towards the app, for both transports.

use std::sync::Arc;

use tokio_rustls::TlsConnector;

use super::{BackendError, TlsSettings};
use crate::link::tls;

/// Makes the connector. Reads files, so it runs at boot only.
pub(super) fn connector(settings: &TlsSettings, alpn: &[&[u8]]) -> Result<TlsConnector, BackendError> {
    let TlsSettings { verify, root_ca, .. } = settings.clone();
    let settings = tls::TlsSettings { verify, root_ca, client: None };
    let mut config = tls::client_config(&settings).map_err(|error| BackendError::Tls(error.to_string()))?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(TlsConnector::from(Arc::new(config)))
}
