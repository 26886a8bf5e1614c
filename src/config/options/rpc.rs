//! Options of the calls to the app.

use std::time::Duration;

use crate::config::definition::{Unit, options};
use crate::config::setting::{RpcImplementation, Secret};
use crate::model::DisconnectMode;

options! {
    /// Calls to the app: where it is, how many at once, how long they may take.
    Rpc in rpc, "RPC";

    /// Address of the app: `host:port`, `dns:///host:port` or `grpc-list://a:1,b:2` for gRPC, an `http://` or
    /// `https://` URL for HTTP.
    host: String = "localhost:50051", "rpc-host", "rpc.host";

    /// Never call the app. Only tokens, signed streams and public streams work then.
    norpc: bool = "false", "norpc", "" [.implies(&[("rpc-impl", "none")])];

    /// How calls travel: `auto` (by the address), `grpc`, `http` or `none`.
    implementation: RpcImplementation = "auto", "rpc-impl", "rpc.implementation" [.hidden()];

    /// Most calls at once. 0 means the default.
    concurrency: u32 = "28", "rpc-concurrency", "rpc.concurrency";

    /// Calls that may wait for their turn; one more fails as overloaded.
    ///
    /// (AnyCable has no bound.)
    queue_size: usize = "65536", "rpc-queue-size", "rpc.queue_size";

    /// Bytes that calls may take while they wait for their turn. When they would take more, the largest fails as
    /// overloaded. 0: no limit.
    queue_bytes: usize = "64MiB", "rpc-queue-bytes", "rpc.queue_bytes" [.unit(Unit::Bytes)];

    /// Time for one request. 0: no limit over gRPC, 3000 ms over HTTP.
    request_timeout: Duration = "0s", "rpc-request-timeout", "rpc.request_timeout" [.unit(Unit::Milliseconds)];

    /// Time for a call with all its retries, not counting the wait for its turn.
    command_timeout: Duration = "3s", "rpc-command-timeout", "rpc.command_timeout" [.unit(Unit::Milliseconds).hidden()];

    /// Speak TLS to the gRPC server.
    enable_tls: bool = "false", "rpc-enable-tls", "rpc.enable_tls" [.hidden()];

    /// Check the certificate of the app.
    tls_verify: bool = "true", "rpc-tls-verify", "rpc.tls_verify" [.hidden()];

    /// Certificate authority of the app: a path to a PEM file, or the PEM text itself. Turns TLS on.
    tls_root_ca: String = "", "rpc-tls-root-ca", "rpc.tls_root_ca_path" [.hidden()];

    /// Largest gRPC answer. 0: 4 MiB.
    max_recv_size: usize = "0", "rpc-max-call-recv-size", "rpc.max_recv_size" [.unit(Unit::Bytes).hidden()];

    /// Largest gRPC request. 0: no limit.
    max_send_size: usize = "0", "rpc-max-call-send-size", "rpc.max_send_size" [.unit(Unit::Bytes).hidden()];

    /// Headers of the upgrade request that the app gets to see, separated by commas. `none`: no headers.
    headers: Vec<String> = "cookie", "headers", "rpc.proxy_headers";

    /// Cookies that the app gets to see, separated by commas. Empty: all of them.
    cookies: Vec<String> = "", "proxy-cookies", "rpc.proxy_cookies";

    /// Bearer key for HTTP RPC. Unset: derived from the secret; `none`: no key.
    secret: Secret = "", "http-rpc-secret", "rpc.secret" [.live()];

    /// Time for one HTTP request; wins over rpc-request-timeout. 0: not set.
    http_request_timeout: Duration = "0s", "http-rpc-timeout", "rpc.http_request_timeout"
        [.unit(Unit::Milliseconds).discouraged("use rpc-request-timeout")];
}

options! {
    /// Calls that tell the app that a session is over.
    Disconnect in disconnect, "Disconnect calls";

    /// When the app is told: `auto` (when it took part in the session), `always` or `never`.
    mode: DisconnectMode = "auto", "disconnect-mode", "app.disconnect_mode";

    /// Disconnect calls per second.
    rate: u32 = "100", "disconnect-rate", "disconnector.rate" [.unit(Unit::PerSecond).hidden()];

    /// Disconnect calls that may wait; when it is full, the newest is dropped and counted.
    backlog: usize = "4096", "disconnect-backlog-size", "disconnector.backlog" [.hidden()];

    /// Bytes that waiting Disconnect calls may take. When they would take more, the largest is dropped and counted. 0: no
    /// limit.
    backlog_bytes: usize = "64MiB", "disconnect-backlog-bytes", "disconnector.backlog_bytes" [.unit(Unit::Bytes).hidden()];

    /// Never tell the app.
    disabled: bool = "false", "disable-disconnect", ""
        [.implies(&[("disconnect-mode", "never")]).discouraged("use disconnect-mode=never")];
}
