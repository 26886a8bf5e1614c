//! Where Redis is, and how to connect to it: one server, the master that sentinels name, or the nodes of a Redis Cluster.
//!
//! Only RESP2 is spoken, and neither `HELLO` nor `CLIENT TRACKING` is sent: managed services and proxies refuse them.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection, PubSub, PubSubSink};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    Pipeline, RedisConnectionInfo, RedisError, RedisFuture, RedisResult, TlsCertificates, Value,
};

use crate::model::ServerUrl;

/// How long connecting may take, TLS and login included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take where nothing is waited for. A Redis that loads its data from disk answers at once, with an
/// error.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a server that has nothing to say is asked whether it is there. It may also close a connection that is idle.
pub const PING_EVERY: Duration = Duration::from_secs(5);

/// Tries of one command in a Redis Cluster, whose slots may move meanwhile. More is the business of whoever has the link.
const CLUSTER_RETRIES: u32 = 4;

/// What a connection to Redis is told by the configuration.
#[derive(Clone, Debug, Default)]
pub struct RedisSettings {
    /// One server; several are nodes of one Redis Cluster. With sentinels, the host of the first is the name of the
    /// master set.
    pub servers: Vec<ServerUrl>,
    /// Sentinels, if the server is found by them.
    pub sentinels: Vec<ServerUrl>,
    /// Number of the database.
    pub database: u32,
    /// TCP keep-alive; zero: none.
    pub keepalive: Duration,
    /// Whether certificates of servers are checked.
    pub tls_verify: bool,
    /// File with the certificates (PEM) to check against; none: those of the system.
    pub tls_ca: Option<String>,
    /// Files with the certificate and the key (PEM) that are shown to servers.
    pub tls_client: Option<(String, String)>,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RedisSettingsError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Certificates, keys or addresses that nobody can use.
    #[error("cannot connect to Redis with these settings")]
    Unusable(#[from] RedisError),
}

/// A Redis that can be connected to.
#[derive(Debug)]
pub struct Redis {
    kind: Kind,
    description: String,
}

#[derive(Debug)]
enum Kind {
    One(ConnectionInfo),
    /// The master that these sentinels name; the rest of what is needed to connect to it.
    Sentinels {
        sentinels: Vec<ConnectionInfo>,
        name: String,
        server: ConnectionInfo,
    },
    /// Nodes of a cluster, and which is to be tried next by who needs any of them.
    Cluster {
        nodes: Vec<ConnectionInfo>,
        next: AtomicUsize,
    },
}

impl Redis {
    /// Reads what the settings name. Nothing is connected yet.
    ///
    /// # Errors
    /// A file cannot be read, or holds nothing that can be used.
    pub fn new(settings: &RedisSettings) -> Result<Redis, RedisSettingsError> {
        let of = |urls: &[ServerUrl], database| {
            urls.iter().map(|url| info(url, database, settings)).collect::<Result<Vec<_>, _>>()
        };
        let mut servers = of(&settings.servers, settings.database)?;
        let listed = |urls: &[ServerUrl]| urls.iter().map(ServerUrl::address).collect::<Vec<_>>().join(", ");
        let mut description = listed(&settings.servers);
        let kind = if !settings.sentinels.is_empty() {
            let name = settings.servers.first().map(|url| url.host.clone()).unwrap_or_default();
            description = format!("the master of {name}, by the sentinels {}", listed(&settings.sentinels));
            Kind::Sentinels { sentinels: of(&settings.sentinels, 0)?, name, server: only(servers)? }
        } else if servers.len() > 1 {
            description = format!("a cluster with {description}");
            Kind::Cluster { nodes: std::mem::take(&mut servers), next: AtomicUsize::new(rand::random_range(..1 << 16)) }
        } else {
            Kind::One(only(servers)?)
        };
        Ok(Redis { kind, description })
    }

    /// Where it is, without secrets, and what to look at when it cannot be reached.
    pub fn advice(&self) -> String {
        format!("that Redis answers at {} (--redis-url)", self.description)
    }

    /// One server to talk to: the master, or any node of a cluster, each time another one.
    ///
    /// # Errors
    /// No sentinel knows a master that is one.
    pub async fn server(&self) -> RedisResult<Client> {
        match &self.kind {
            Kind::One(server) => Client::open(server.clone()),
            Kind::Sentinels { sentinels, name, server } => master(sentinels, name, server).await,
            Kind::Cluster { nodes, next } => Client::open(nodes[next.fetch_add(1, Relaxed) % nodes.len()].clone()),
        }
    }

    /// Waits until `server` is not the one to talk to any more: the sentinels have made another one the master.
    pub async fn until_replaced(&self, server: &Client, ask_every: Duration) -> RedisError {
        let Kind::Sentinels { .. } = &self.kind else { return std::future::pending().await };
        loop {
            tokio::time::sleep(ask_every).await;
            // Sentinels that cannot be asked say nothing against a master that answers.
            if let Ok(master) = self.server().await
                && master.get_connection_info().addr() != server.get_connection_info().addr()
            {
                return (ErrorKind::Client, "the sentinels have made another server the master").into();
            }
        }
    }

    /// A connection for keys, wherever they are. Its answers take no longer than `answer_timeout`.
    ///
    /// # Errors
    /// It cannot be reached, or refuses us.
    pub async fn connection(&self, answer_timeout: Duration) -> RedisResult<Connection> {
        let Kind::Cluster { nodes, .. } = &self.kind else {
            return connect(&self.server().await?, answer_timeout).await.map(Connection::One);
        };
        let builder = ClusterClient::builder(nodes.iter().cloned())
            .retries(CLUSTER_RETRIES)
            .connection_timeout(CONNECT_TIMEOUT)
            .response_timeout(answer_timeout);
        let client = builder.build()?;
        let connecting = client.get_async_connection();
        in_time(CONNECT_TIMEOUT, connecting).await.map(Connection::Cluster)
    }
}

fn only(servers: Vec<ConnectionInfo>) -> Result<ConnectionInfo, RedisError> {
    servers.into_iter().next().ok_or_else(|| (ErrorKind::InvalidClientConfig, "no server is named").into())
}

/// A connection to one server.
///
/// # Errors
/// It cannot be reached, or refuses us.
pub async fn connect(server: &Client, answer_timeout: Duration) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(answer_timeout));
    let mut connection = server.get_multiplexed_async_connection_with_config(&config).await?;
    // One that is loading its data is there and of no use yet.
    redis::cmd("PING").exec_async(&mut connection).await?;
    Ok(connection)
}

/// A connection to one server for what is published there.
///
/// # Errors
/// It cannot be reached, or refuses us.
pub async fn connect_pubsub(server: &Client) -> RedisResult<PubSub> {
    in_time(CONNECT_TIMEOUT, server.get_async_pubsub()).await
}

/// Asks a server again and again whether it is there, until it is not: a connection whose other end has vanished says
/// nothing by itself.
pub async fn until_silent(mut sink: PubSubSink) -> RedisError {
    loop {
        tokio::time::sleep(PING_EVERY).await;
        if let Err(error) = in_time(ANSWER_TIMEOUT, sink.ping::<Value>()).await {
            return error;
        }
    }
}

/// What a connection that was closed is reported as.
pub fn closed() -> RedisError {
    (ErrorKind::Io, "the server has closed the connection").into()
}

/// Lets something take no longer than this.
///
/// # Errors
/// Its own, or that it has taken too long.
pub async fn in_time<T>(time: Duration, work: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    tokio::time::timeout(time, work).await.unwrap_or_else(|_| Err((ErrorKind::Io, "no answer in time").into()))
}

/// Whether an error says that the server cannot work now, as opposed to that it refuses what was asked.
pub fn is_of_link(error: &RedisError) -> bool {
    match error.code() {
        None => true,
        Some(code) => {
            ["LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "UNBLOCKED"].contains(&code)
        }
    }
}

/// Asks the sentinels, one after the other, for the master.
async fn master(sentinels: &[ConnectionInfo], name: &str, server: &ConnectionInfo) -> RedisResult<Client> {
    let mut why = RedisError::from((ErrorKind::EmptySentinelList, "no sentinel is named"));
    for sentinel in sentinels {
        match master_by(sentinel, name, server).await {
            Ok(master) => return Ok(master),
            Err(error) => why = error,
        }
    }
    Err(why)
}

async fn master_by(sentinel: &ConnectionInfo, name: &str, server: &ConnectionInfo) -> RedisResult<Client> {
    let mut asked = connect(&Client::open(sentinel.clone())?, ANSWER_TIMEOUT).await?;
    let mut command = redis::cmd("SENTINEL");
    command.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    let Some((host, port)) = command.query_async::<Option<(String, u16)>>(&mut asked).await? else {
        let why = (ErrorKind::MasterNameNotFoundBySentinel, "no master with this name is known to the sentinel");
        return Err(why.into());
    };
    let addr = match server.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    let master = Client::open(server.clone().set_addr(addr))?;
    // A sentinel that was cut off may name one that is the master no more.
    let mut connection = connect(&master, ANSWER_TIMEOUT).await?;
    match redis::cmd("ROLE").query_async::<Value>(&mut connection).await? {
        Value::Array(role) if role.first() == Some(&Value::BulkString(b"master".to_vec())) => Ok(master),
        _ => Err((ErrorKind::Client, "the sentinel names a server that is no master (yet)").into()),
    }
}

fn info(url: &ServerUrl, database: u32, settings: &RedisSettings) -> Result<ConnectionInfo, RedisSettingsError> {
    let mut login = RedisConnectionInfo::default().set_db(i64::from(database)).set_skip_set_lib_name();
    if let Some(user) = &url.user {
        login = login.set_username(user);
    }
    if let Some(password) = &url.password {
        login = login.set_password(password);
    }
    let mut tcp = TcpSettings::default().set_nodelay(true);
    if !settings.keepalive.is_zero() {
        tcp =
            tcp.set_keepalive(TcpKeepalive::new().with_time(settings.keepalive).with_interval(settings.keepalive / 3));
    }
    let (host, port) = (url.host.clone(), url.port);
    let addr = if url.tls {
        ConnectionAddr::TcpTls { host, port, insecure: !settings.tls_verify, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    };
    let info = addr.into_connection_info()?.set_redis_settings(login).set_tcp_settings(tcp);
    if !url.tls {
        return Ok(info);
    }
    let read = |path: &String| {
        std::fs::read(Path::new(path)).map_err(|source| RedisSettingsError::File { path: path.clone(), source })
    };
    let client_tls = match &settings.tls_client {
        Some((cert, key)) => Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? }),
        None => None,
    };
    let certificates = TlsCertificates { client_tls, root_cert: settings.tls_ca.as_ref().map(read).transpose()? };
    Ok(Client::build_with_tls(info, certificates)?.get_connection_info().clone())
}

/// A connection for keys. Clones share it.
#[derive(Clone)]
pub enum Connection {
    /// To one server.
    One(MultiplexedConnection),
    /// To all nodes of a cluster.
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Connection::One(connection) => connection.req_packed_command(cmd),
            Connection::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Connection::One(connection) => connection.req_packed_commands(pipeline, offset, count),
            Connection::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Connection::One(connection) => connection.get_db(),
            Connection::Cluster(connection) => connection.get_db(),
        }
    }
}
