//! Options about the process, its listeners and their sockets.

use std::time::Duration;

use crate::config::definition::{Unit, options};
use crate::config::setting::{Processes, Reaping, Secret};

options! {
    /// Where and how the server listens.
    Server in server, "Server";

    /// Address that every listener binds.
    ///
    /// `localhost` is 127.0.0.1 only, so a container needs `0.0.0.0` or `::`.
    host: String = "localhost", "host", "server.host";

    /// Port of WebSockets, and of everything else that has no port of its own. 0 picks a free one.
    port: u16 = "8080", "port", "server.port" [.env(&["PORT"])];

    /// Let other processes with this option serve the same port, each with a share of the clients.
    ///
    /// Without it, a port on which anybody listens ends the start. The share is the kernel's choice (SO_REUSEPORT), and a
    /// publication reaches only the clients of the process that it is posted to.
    reuse_port: bool = "false", "reuse-port", "server.reuse_port";

    /// Origins that may connect, without scheme and separated by commas; `*.example.com` is allowed.
    ///
    /// Empty: everybody may. Otherwise a request without a matching Origin gets 403.
    allowed_origins: Vec<String> = "", "allowed-origins", "server.allowed_origins" [.live()];

    /// Most WebSocket clients held at once. 0: as many as the open-file limit allows.
    ///
    /// A client over it is answered 503 with Retry-After; health, metrics and broadcasts still get through.
    /// (AnyCable stops accepting instead, so clients hang.)
    max_conn: usize = "0", "max-conn", "server.max_conn" [.live()];

    /// Path that answers 200 as long as the process lives.
    health_path: String = "/health", "health-path", "server.health_path";

    /// Path that answers 200 when new clients are welcome, else 503 and why. `none` switches it off.
    ready_path: Option<String> = "/ready", "ready-path", "server.ready_path";

    /// Threads that accept and hold connections, each with its own listening socket. 0: one per core.
    acceptors: u16 = "0", "acceptors", "server.acceptors" [.env(&["NUM_ACCEPTORS"])];

    /// Processes that share the port and are one server: a number, or `auto` for as many as --max-conn, or else the machine,
    /// needs under the limit of open files.
    ///
    /// For a limit of open files that nobody can raise, and to lose only a share of the clients when one process crashes. A
    /// process more beside them starts them and holds their broker; docs/processes.md says what it costs. Limits are of all of
    /// them together and divided. 1: one process, as it always was.
    processes: Processes = "1", "processes", "server.processes";

    /// Time a client has to send its whole upgrade request.
    handshake_timeout: Duration = "10s", "handshake-timeout", "server.handshake_timeout" [.live().unit(Unit::Seconds)];

    /// Largest request head: the request line and all headers together. A larger one is answered 431.
    ///
    /// The log names the header that was large: mostly a cookie.
    max_head_size: usize = "64KiB", "max-head-size", "server.max_head_size" [.unit(Unit::Bytes)];

    /// Unfinished handshakes that each acceptor keeps; for one more, the one that began first is answered 503.
    ///
    /// It bounds what clients can hold that connect and say nothing: each unfinished handshake may keep up to
    /// the size of one request head. All acceptors together keep no more than half of the descriptors.
    handshakes_max: usize = "16384", "handshakes-max", "server.handshakes_max" [.live()];
}

options! {
    /// Options of the sockets themselves. A vanished client is found by keepalive while the connection is
    /// silent, and by the user time-out while sent data waits for its acknowledgement; both are needed.
    Tcp in tcp, "TCP";

    /// Completed connections that may wait to be accepted, per acceptor.
    ///
    /// The kernel clamps it to net.core.somaxconn without a word; the boot log says when it does.
    backlog: u32 = "4096", "backlog", "tcp.backlog";

    /// Silence after which the kernel begins to probe a connection. 0: it never does. Whole seconds.
    keepalive_time: Duration = "300s", "tcp-keepalive-time", "tcp.keepalive_time" [.unit(Unit::Seconds)];

    /// Time between two probes. Whole seconds.
    keepalive_interval: Duration = "10s", "tcp-keepalive-interval", "tcp.keepalive_interval" [.unit(Unit::Seconds)];

    /// Unanswered probes after which the connection is closed.
    keepalive_probes: u32 = "5", "tcp-keepalive-probes", "tcp.keepalive_probes";

    /// Time that sent data may stay unacknowledged before the connection is closed. 0: about 15 minutes.
    ///
    /// Keepalive does not run while data is on its way, and with pings it nearly always is. 0 leaves it to
    /// net.ipv4.tcp_retries2.
    user_timeout: Duration = "30s", "tcp-user-timeout", "tcp.user_timeout" [.unit(Unit::Seconds)];
}

options! {
    /// What concerns the server as a whole.
    App in app, "Application";

    /// The secret shared with the app. It turns tokens (JWT) on, signs streams, and derives the keys of
    /// broadcasts, the API and HTTP RPC.
    ///
    /// `none` means no secret, for everything that would fall back to it.
    secret: Secret = "", "secret", "secret" [.live()];

    /// Sets of options for a platform or a purpose, weaker than everything else: `fly`, `heroku`, `broker`, `none`.
    ///
    /// Empty: `fly` and `heroku` are found by the environment of their machines. Both bind 0.0.0.0; `fly` finds the app by
    /// ANYCABLE_FLY_RPC_APP_NAME. What a preset wants and is not there yet is named when the server starts.
    presets: Vec<String> = "", "presets", "presets";

    /// How soon dead clients are found: `relaxed`, `default` or `aggressive`. It sets what concerns that and nobody has set.
    ///
    /// `aggressive` finds a vanished client that is pinged within 10 seconds and one that is not within a minute, and lets all
    /// clients answer pings. `relaxed` waits for clients on bad networks. The boot log says what is in force and what it
    /// costs, and docs/reaping.md what each sets.
    reaping: Reaping = "default", "reaping", "reaping";

    /// No authentication, streams by plain name, broadcasts without a key. For trying things out.
    public: bool = "false", "public", "public" [.implies(&[("noauth", "true"), ("public-streams", "true")])];

    /// Accept every client without asking the app. A token is still read when there is one.
    noauth: bool = "false", "noauth", "noauth";

    /// Time for the whole shutdown; clients are sent away evenly within it.
    shutdown_timeout: Duration = "30s", "shutdown-timeout", "app.shutdown_timeout" [.live().unit(Unit::Seconds)];

    /// Time between the signal and the first step of the shutdown, for load balancers to notice. It counts
    /// towards the shutdown time-out.
    shutdown_delay: Duration = "0s", "shutdown-delay", "app.shutdown_delay" [.live().unit(Unit::Seconds)];

    /// Unix socket through which `cableway upgrade` asks the running server. `none`: there is none; SIGUSR2 is left then.
    ///
    /// `auto`: control.sock in the first of $RUNTIME_DIRECTORY, else the port's own socket in cableway/ in $XDG_RUNTIME_DIR, else in
    /// a directory of this user below the temporary one. It is for the user of the server and root alone.
    control_socket: Option<String> = "auto", "control-socket", "app.control_socket";

    /// Time that a new process has to start and to read its configuration in an upgrade. The old one goes on without it
    /// after that.
    upgrade_timeout: Duration = "30s", "upgrade-timeout", "app.upgrade_timeout" [.live().unit(Unit::Seconds)];

    /// Name of this node: `nodeid` in every line of the log. Empty: six random characters.
    node_id: String = "", "node-id", "node_id" [.hidden()];
}
