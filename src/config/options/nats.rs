//! Options of the connection to NATS.

use crate::config::definition::options;
use crate::config::setting::NatsServers;

options! {
    /// The connection to NATS.
    Nats in nats, "NATS";

    /// Servers of NATS: `nats://user:password@host:port`, `nats://token@host`, `tls://` with TLS; several separated by commas.
    servers: NatsServers = "nats://127.0.0.1:4222", "nats-servers", "nats.servers";

    /// Try the servers in the order in which they are given.
    dont_randomize: bool = "false", "nats-dont-randomize-servers", "nats.dont_randomize_servers" [.hidden()];

    /// File with the certificates (PEM) that a NATS with TLS is checked against. Empty: those of the system.
    tls_ca: String = "", "nats-tls-ca-cert-path", "nats.tls_ca_cert_path" [.hidden()];

    /// File with the certificate (PEM) that this server shows to NATS.
    tls_client_cert: String = "", "nats-tls-client-cert-path", "nats.tls_client_cert_path" [.hidden()];

    /// File with the key (PEM) of that certificate.
    tls_client_key: String = "", "nats-tls-client-key-path", "nats.tls_client_key_path" [.hidden()];
}

impl Nats {
    /// Whether the configuration says where NATS is, other than at the default.
    pub fn is_given(&self) -> bool {
        self.servers != Nats::default().servers
    }
}
