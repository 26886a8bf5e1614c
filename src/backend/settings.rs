//! Where the app server is and how hard it may be asked.

use std::fmt;
use std::time::Duration;

use super::BackendError;
use crate::config;

/// Port of an AnyCable RPC server when a target names none.
const DEFAULT_PORT: u16 = 50051;

/// Most entries of a `grpc-list://` target, and most addresses taken from one DNS answer.
pub(super) const ADDRESSES_MAX: usize = 64;

/// How long connecting to the app may take, TLS included. Less than a call lasts by default, so that one that waits for it
/// says why it failed and not only that it took too long.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_millis(2500);

/// How the backend calls the app. Options of `contracts/ops.md` under "RPC"; the defaults are those of the options.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the app is.
    pub target: Target,
    /// Calls that may run at the same time, over all methods; a call keeps its place while it waits for a retry. Not 0:
    /// nothing would ever run.
    pub concurrency: usize,
    /// Calls that may wait for a place. One more is answered with `Overloaded` at once.
    pub queue_max: usize,
    /// Bytes that waiting calls may take. With one more, the largest is answered with `Overloaded`.
    pub queue_bytes_max: usize,
    /// Limit of one attempt. `None`: only the command time-out holds (HTTP: 3 s too).
    pub request_timeout: Option<Duration>,
    /// Limit of one call with all retries and the time between them.
    pub command_timeout: Duration,
    /// Largest answer in bytes. Default 4 MiB, as gRPC has it. A larger one fails the call.
    pub receive_bytes_max: usize,
    /// Largest call in bytes. Default: no limit but gRPC's own of 4 GiB. A larger one fails the call.
    pub send_bytes_max: usize,
    /// Encryption. HTTP: `https://` turns it on.
    pub tls: TlsSettings,
    /// HTTP: sent as `Authorization: Bearer`, given or derived from the app's secret.
    pub http_secret: Option<String>,
    /// Disconnect calls started per second. 0 means as fast as the app takes them, a few at a time.
    pub disconnect_rate: u32,
    /// Disconnect calls that may wait. One more is dropped and counted.
    pub disconnect_backlog: usize,
    /// Bytes that they may take. With one more, the largest is dropped and counted.
    pub disconnect_backlog_bytes: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        let (rpc, disconnect) = (config::Rpc::default(), config::Disconnect::default());
        Settings {
            target: Target::None,
            concurrency: rpc.concurrency as usize,
            queue_max: rpc.queue_size,
            queue_bytes_max: rpc.queue_bytes,
            request_timeout: None,
            command_timeout: rpc.command_timeout,
            receive_bytes_max: 4 << 20,
            send_bytes_max: u32::MAX as usize,
            tls: TlsSettings::default(),
            http_secret: None,
            disconnect_rate: disconnect.rate,
            disconnect_backlog: disconnect.backlog,
            disconnect_backlog_bytes: disconnect.backlog_bytes,
        }
    }
}

/// Encryption towards the app. TLS 1.2 or newer, no client certificate.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// gRPC: use TLS. Implied by `root_ca`.
    pub enabled: bool,
    /// Check the app's certificate. Default true; when false, anybody on the way can read and change everything.
    pub verify: bool,
    /// Certificates that may sign the app's: a path, or PEM text. `None`: the system's store.
    pub root_ca: Option<String>,
}

impl Default for TlsSettings {
    fn default() -> TlsSettings {
        TlsSettings { enabled: false, verify: true, root_ca: None }
    }
}

/// Where the app is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nowhere (`--norpc`): every call is answered with `NoBackend`.
    None,
    /// A gRPC server.
    Grpc(GrpcTarget),
    /// An HTTP server; methods are joined to the path of this URL.
    Http(http::Uri),
}

/// The forms of a gRPC target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrpcTarget {
    /// These servers, in turn: `host:port`, `grpc://host:port` or `grpc-list://a:1,b:2`.
    List(Vec<HostPort>),
    /// Every address behind one name, in turn: `dns:///host:port`.
    Dns(HostPort),
}

/// A name or an address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Without brackets when it is an IPv6 address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostPort { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl HostPort {
    fn parse(text: &str) -> Result<HostPort, BackendError> {
        let bad = || BackendError::Target(text.to_owned());
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or_else(bad)?;
                match rest.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None if rest.is_empty() => (host, None),
                    None => return Err(bad()),
                }
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = port.map_or(Ok(DEFAULT_PORT), |port| port.parse().map_err(|_| bad()))?;
        let target = HostPort { host: host.to_owned(), port };
        // It becomes the `:authority` of every call, so it must be able to.
        let fits = !host.is_empty() && port != 0 && target.to_string().parse::<http::uri::Authority>().is_ok();
        if fits { Ok(target) } else { Err(bad()) }
    }
}

impl Target {
    /// Reads the text of `--rpc_host`; its scheme tells the kind.
    ///
    /// # Errors
    ///
    /// [`BackendError::Target`] when it has none of the forms, or names more than 64 servers.
    pub fn parse(text: &str) -> Result<Target, BackendError> {
        let bad = || BackendError::Target(text.to_owned());
        if text.starts_with("http://") || text.starts_with("https://") {
            let url: http::Uri = text.parse().map_err(|_| bad())?;
            let named = url.host().is_some_and(|host| !host.is_empty()) && url.query().is_none();
            // User information would go into the Host header: there is an option for the secret.
            let plain = url.authority().is_some_and(|authority| !authority.as_str().contains('@'));
            return if named && plain { Ok(Target::Http(url)) } else { Err(bad()) };
        }
        let target = if let Some(list) = text.strip_prefix("grpc-list://") {
            let hosts = list.split(',').map(str::trim).filter(|host| !host.is_empty());
            GrpcTarget::List(hosts.map(HostPort::parse).collect::<Result<_, _>>()?)
        } else if let Some(name) = text.strip_prefix("dns:") {
            // `dns://resolver/name` asks a resolver of its own, which we do not do: only the empty one.
            let name = name.strip_prefix("///").unwrap_or(name);
            GrpcTarget::Dns(HostPort::parse(name)?)
        } else {
            GrpcTarget::List(vec![HostPort::parse(text.strip_prefix("grpc://").unwrap_or(text))?])
        };
        match &target {
            GrpcTarget::List(hosts) if hosts.is_empty() || hosts.len() > ADDRESSES_MAX => Err(bad()),
            _ => Ok(Target::Grpc(target)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::None => f.write_str("none"),
            Target::Http(url) => url.fmt(f),
            Target::Grpc(GrpcTarget::Dns(name)) => write!(f, "dns:///{name}"),
            Target::Grpc(GrpcTarget::List(hosts)) => {
                for (n, host) in hosts.iter().enumerate() {
                    write!(f, "{}{host}", if n == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(hosts: &[(&str, u16)]) -> Target {
        let host = |&(host, port): &(&str, u16)| HostPort { host: host.into(), port };
        Target::Grpc(GrpcTarget::List(hosts.iter().map(host).collect()))
    }

    #[test]
    fn every_form_of_a_target_is_understood() {
        for (text, target) in [
            ("localhost:50051", list(&[("localhost", 50051)])),
            ("app", list(&[("app", 50051)])),
            ("grpc://app:1234", list(&[("app", 1234)])),
            ("[::1]:7", list(&[("::1", 7)])),
            ("grpc-list://a:1, b:2,[::1]:3", list(&[("a", 1), ("b", 2), ("::1", 3)])),
            ("dns:///app.test:5", Target::Grpc(GrpcTarget::Dns(HostPort { host: "app.test".into(), port: 5 }))),
            ("dns:app.test:5", Target::Grpc(GrpcTarget::Dns(HostPort { host: "app.test".into(), port: 5 }))),
            ("https://app.test/_anycable", Target::Http("https://app.test/_anycable".parse().unwrap())),
        ] {
            assert_eq!(Target::parse(text).unwrap(), target, "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let many = format!("grpc-list://{}", vec!["a:1"; ADDRESSES_MAX + 1].join(","));
        for text in [
            "",
            ":1",
            "a:",
            "a:x",
            "a:0",
            "a:70000",
            "a b:1",
            "::1",
            "[::1",
            "[::1]x",
            "ftp://a:1",
            "grpc-list://",
            "dns://8.8.8.8/a:1",
            "http://",
            "http:///x",
            "http://u:p@a/",
            "http://a/?q",
            &many,
        ] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_target_prints_as_it_is_written() {
        for text in ["a:1,[::1]:2", "dns:///a:1", "http://a/b"] {
            let written = if text.contains(',') { format!("grpc-list://{text}") } else { text.to_owned() };
            assert_eq!(Target::parse(&written).unwrap().to_string(), text);
        }
    }
}
