//! Options of logs and metrics.

use std::time::Duration;

use crate::config::definition::{Unit, options};
use crate::config::setting::{LogFormat, LogLevel, Secret, Tags};

options! {
    /// Logs.
    Log in log, "Logs";

    /// The least important lines to log: `debug`, `info`, `warn` or `error`.
    level: LogLevel = "info", "log-level", "logging.level" [.live()];

    /// `text` for people, `json` for machines.
    format: LogFormat = "text", "log-format", "logging.format";

    /// Log everything.
    debug: bool = "false", "debug", "logging.debug" [.live().implies(&[("log-level", "debug")])];
}

options! {
    /// Metrics.
    Metrics in metrics, "Metrics";

    /// Path of metrics for Prometheus. `none` switches it off. (AnyCable's default is off.)
    http_path: Option<String> = "/metrics", "metrics-http", "metrics.http_path";

    /// Address of the metrics. Empty: the main one.
    host: String = "", "metrics-host", "metrics.host";

    /// Port of the metrics. 0: the main one.
    port: u16 = "0", "metrics-port", "metrics.port";

    /// Begins every metric's name; `anycable_go_` for dashboards made for AnyCable.
    prefix: String = "cableway_", "metrics-prefix", "metrics.prefix";

    /// Labels for every metric: `name:value,name2:value2`.
    tags: Tags = "", "metrics-tags", "metrics.tags";

    /// Time between two measurements of what metrics say of the process and the machine: memory, descriptors,
    /// dropped connections. 0: once, at boot.
    stats_refresh_interval: Duration = "5s", "stats-refresh-interval", "app.stats_refresh_interval" [.unit(Unit::Seconds)];
}

options! {
    /// What only operators may ask.
    Admin in admin, "Admin";

    /// Port of the admin pages and of `/debug/closes` and `/debug/connections`. `none`: there are none; 0 picks a
    /// free one.
    ///
    /// It is a port of its own. The metrics are there too.
    port: Option<u16> = "none", "admin-port", "admin.port";

    /// Address of the admin port. One that others can reach needs `--admin-key`.
    host: String = "127.0.0.1", "admin-host", "admin.host";

    /// Key of the admin port: as a bearer token, or as the password of any user. Unset: none is needed.
    key: Secret = "", "admin-key", "admin.key" [.live()];

    /// Let `/debug/closes` and `/debug/connections` show who the clients are: their connection identifiers and whole
    /// addresses.
    debug_identifiers: bool = "false", "debug-identifiers", "admin.debug_identifiers";
}
