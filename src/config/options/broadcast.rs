//! Options of the ways in for the app: broadcasts and the HTTP API.

use crate::config::definition::{Unit, options};
use crate::config::setting::Secret;

options! {
    /// Broadcasts from the app.
    Broadcast in broadcast, "Broadcasts";

    /// How broadcasts arrive. Only `http` is there yet, and it is the default (AnyCable's is `http,redis`).
    adapters: Vec<String> = "http", "broadcast-adapter", "broadcast_adapters";

    /// Bearer key for HTTP broadcasts. Unset: derived from the secret; `none`: no key.
    key: Secret = "", "broadcast-key", "broadcast_key" [.live()];

    /// Port of HTTP broadcasts. 0: the main port when there is a secret or a key, else 8090.
    http_port: u16 = "0", "http-broadcast-port", "http_broadcast.port";

    /// Path of HTTP broadcasts.
    http_path: String = "/_broadcast", "http-broadcast-path", "http_broadcast.path";

    /// Let browsers broadcast: answer OPTIONS, add CORS headers for the allowed origins.
    http_cors: bool = "false", "http-broadcast-cors", "http_broadcast.cors_headers" [.hidden()];

    /// Largest body of a broadcast or API request; a larger one is answered 413. (AnyCable takes 20 MB.)
    ///
    /// All bodies that are held at once have 256 MiB together; more is answered 503.
    max_size: usize = "8MiB", "broadcast-max-size", "http_broadcast.max_size" [.unit(Unit::Bytes)];
}

options! {
    /// The HTTP API. It is on when there is a secret, an API secret, an API port, or in public mode.
    Api in api, "HTTP API";

    /// Port of the API. 0: the main port.
    port: u16 = "0", "api-port", "api.port";

    /// Path below which the API is.
    path: String = "/api", "api-path", "api.path";

    /// Bearer key of the API. Unset: derived from the secret; `none`: the API is off.
    secret: Secret = "", "api-secret", "api.secret" [.live()];
}
