//! Starts real Redis and NATS on loopback, with everything they keep in a folder that goes with them, and can kill and
//! restart them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::server::SOON;

/// The sleep between two looks at something that tells nobody when it changes. Every such loop ends at a deadline.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often another port is tried when somebody took the one that was free.
const PORTS_TRIED: usize = 10;
/// The master set that [`Sentinels`] watch.
pub const MASTER_SET: &str = "mymaster";

/// A program of Redis (`server`, `cli`, `sentinel`), or of Valkey where the environment says so.
fn redis_program(which: &str) -> String {
    format!("{}-{which}", std::env::var("CLUSTER_TEST_REDIS").unwrap_or_else(|_| "redis".to_owned()))
}

/// Looks until it is so. `SOON` is for what takes no time; an election takes some.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + 2 * SOON;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

/// A port that is free, and 10000 above too, where a node of a Redis Cluster listens for the others. Not one of those that
/// the kernel gives to clients: a server that is restarted must find it free again.
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(11_000..20_000);
        let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}

/// A program that listens on a port and keeps its things in a folder. Killed when dropped.
struct Process {
    program: String,
    arguments: Vec<String>,
    port: u16,
    child: Option<Child>,
    folder: TempDir,
}

impl Process {
    /// Starts it on a free port; the arguments are made for the port and the folder.
    fn start(program: &str, arguments: impl Fn(u16, &str) -> Vec<String>) -> Process {
        for _ in 0..PORTS_TRIED {
            let folder = tempfile::tempdir().expect("a folder");
            let port = free_port();
            let arguments = arguments(port, &folder.path().display().to_string());
            let program = program.to_owned();
            let mut process = Process { program, arguments, port, child: None, folder };
            if process.begin() {
                return process;
            }
        }
        panic!("{program} ended by itself, again and again");
    }

    /// Starts it and waits until it listens; false when it ends instead.
    fn begin(&mut self) -> bool {
        let log = self.folder.path().join("log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("a log");
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stderr(log.try_clone().expect("twice")).stdout(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{} does not start: {error}", self.program));
        let child = self.child.insert(child);
        let end = Instant::now() + SOON;
        while child.try_wait().expect("a child of ours").is_none() {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            assert!(Instant::now() < end, "{} does not listen", self.program);
            thread::sleep(LOOK_EVERY);
        }
        false
    }

    /// Ends it as a crash does.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on its port, with what it has on its disk. A port is busy for a moment after a crash.
    fn restart(&mut self) {
        self.kill();
        let end = Instant::now() + SOON;
        while !self.begin() {
            assert!(Instant::now() < end, "{} does not start again:\n{}", self.program, self.log());
            thread::sleep(LOOK_EVERY);
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("it runs").id();
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{signal} {pid}")).status();
        assert!(sent.expect("sh runs").success());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An authority for certificates, one certificate for servers on this machine and one for clients, as files (PEM).
pub struct Authority {
    folder: TempDir,
}

impl Authority {
    pub fn new() -> Authority {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).expect("written");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("sound");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        write("ca.pem", params.self_signed(&key).expect("signed").pem());
        let issuer = Issuer::new(params, key);
        for name in ["server", "client"] {
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(names).expect("sound");
            // One with the authority's name would be taken for the authority.
            params.distinguished_name.push(DnType::CommonName, name);
            write(&format!("{name}.pem"), params.signed_by(&key, &issuer).expect("signed").pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Authority { folder }
    }

    /// `ca.pem`, `server.pem`, `server.key`, `client.pem` or `client.key`.
    pub fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// How a Redis is started.
#[derive(Clone, Copy, Default)]
pub struct RedisStart<'a> {
    /// Needed to do anything.
    pub password: Option<&'a str>,
    /// Speaks TLS only, and lets in only who shows a certificate.
    pub tls: Option<&'a Authority>,
    /// Writes each change to its disk before it answers, so that it has everything after a crash.
    pub keeps: bool,
    /// More of its options, as on its command line.
    pub more: &'a [&'a str],
}

/// A Redis.
pub struct Redis {
    process: Process,
    password: Option<String>,
    /// Arguments of `redis-cli` for TLS.
    tls: Vec<String>,
}

impl Redis {
    /// One that forgets everything in a crash.
    pub fn start() -> Redis {
        Redis::start_as(RedisStart::default())
    }

    pub fn start_as(start: RedisStart) -> Redis {
        let arguments = |port: u16, folder: &str| {
            let mut line = format!("--bind 127.0.0.1 --dir {folder} --save  --protected-mode no");
            line.push_str(if start.keeps { " --appendonly yes --appendfsync always" } else { " --appendonly no" });
            match start.tls {
                Some(authority) => line.push_str(&format!(
                    " --port 0 --tls-port {port} --tls-ca-cert-file {} --tls-cert-file {} --tls-key-file {}",
                    authority.file("ca.pem"),
                    authority.file("server.pem"),
                    authority.file("server.key")
                )),
                None => line.push_str(&format!(" --port {port}")),
            }
            if let Some(password) = start.password {
                line.push_str(&format!(" --requirepass {password} --masterauth {password}"));
            }
            line.split(' ').chain(start.more.iter().copied()).map(str::to_owned).collect()
        };
        let tls = start.tls.map(|authority| {
            let file = |name| authority.file(name);
            vec![
                "--tls".into(),
                "--cacert".into(),
                file("ca.pem"),
                "--cert".into(),
                file("client.pem"),
                "--key".into(),
                file("client.key"),
            ]
        });
        let process = Process::start(&redis_program("server"), arguments);
        let redis = Redis { process, password: start.password.map(str::to_owned), tls: tls.unwrap_or_default() };
        redis.answers();
        redis
    }

    fn answers(&self) {
        until("Redis answers", || self.try_cli(&["PING"]).as_deref() == Some("PONG"));
    }

    pub fn port(&self) -> u16 {
        self.process.port
    }

    /// The URL with the password.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_empty() { "redis" } else { "rediss" };
        let login = self.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default();
        format!("{scheme}://{login}127.0.0.1:{}", self.port())
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it on the same port with what is on its disk, and waits until it answers.
    pub fn restart(&mut self) {
        self.process.restart();
        self.answers();
    }

    /// Deletes everything that it has on its disk; it must not run.
    pub fn forget(&self) {
        // A folder of files since 7.0, a file before.
        let of = |name: &str| self.process.folder.path().join(name);
        let deleted = std::fs::remove_dir_all(of("appendonlydir"));
        deleted.or_else(|_| std::fs::remove_file(of("appendonly.aof"))).expect("deleted");
    }

    /// Stops it from doing anything, without closing a connection, until [`Redis::go_on`].
    pub fn freeze(&self) {
        self.process.signal("STOP");
    }

    pub fn go_on(&self) {
        self.process.signal("CONT");
    }

    /// What `redis-cli` prints for a command; panics on an error.
    pub fn cli(&self, arguments: &[&str]) -> String {
        self.try_cli(arguments).unwrap_or_else(|| panic!("redis-cli {arguments:?} failed"))
    }

    fn try_cli(&self, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new(redis_program("cli"));
        command.args(["-h", "127.0.0.1", "-p", &self.port().to_string(), "-e", "--no-auth-warning"]);
        command.args(&self.tls).args(self.password.iter().flat_map(|password| ["-a", password.as_str()]));
        let output = command.args(arguments).stdin(Stdio::null()).output().expect("redis-cli runs");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// A value of `INFO`.
    pub fn info(&self, name: &str) -> Option<String> {
        let info = self.cli(&["INFO", "everything"]);
        info.lines().find_map(|line| Some(line.trim_end().strip_prefix(name)?.strip_prefix(':')?.to_owned()))
    }

    /// How often each command was called so far, by its name in lower case.
    pub fn commands(&self) -> BTreeMap<String, u64> {
        let stats = self.cli(&["INFO", "commandstats"]);
        let counts = stats.lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
        });
        counts.collect()
    }

    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// A Redis, its replica, and three Sentinels that put the replica in its place when it is gone.
pub struct Sentinels {
    /// The first of them is the master at the beginning.
    pub redis: Vec<Redis>,
    sentinels: Vec<Process>,
    login: Option<SentinelLogin>,
}

/// What is needed to do anything, at the Sentinels and at the servers that they watch.
#[derive(Clone, Copy)]
pub struct SentinelLogin {
    /// For the Sentinels; empty: only a password.
    pub user: &'static str,
    pub password: &'static str,
    /// For the servers.
    pub of_servers: &'static str,
}

impl SentinelLogin {
    /// Lines of the configuration of a Sentinel.
    fn lines(self) -> String {
        let SentinelLogin { user, password, of_servers } = self;
        let own = if user.is_empty() {
            format!("requirepass {password}\n")
        } else {
            format!(
                "user default off\nuser {user} on >{password} ~* &* +@all\n\
                 sentinel sentinel-user {user}\nsentinel sentinel-pass {password}\n"
            )
        };
        format!("{own}sentinel auth-pass {MASTER_SET} {of_servers}\n")
    }
}

impl Sentinels {
    pub fn start() -> Sentinels {
        Sentinels::start_as(None)
    }

    pub fn start_as(login: Option<SentinelLogin>) -> Sentinels {
        let password = login.map(|login| login.of_servers);
        let first = Redis::start_as(RedisStart { password, ..RedisStart::default() });
        let port = first.port().to_string();
        let more = ["--replicaof", "127.0.0.1", &port];
        let replica = Redis::start_as(RedisStart { password, more: &more, ..RedisStart::default() });
        until("the replica follows", || replica.info("master_link_status").as_deref() == Some("up"));
        let sentinel = || {
            Process::start(&redis_program("sentinel"), |own, folder| {
                let file = PathBuf::from(folder).join("sentinel.conf");
                let text = format!(
                    "bind 127.0.0.1\nport {own}\ndir {folder}\nprotected-mode no\n\
                     sentinel monitor {MASTER_SET} 127.0.0.1 {port} 2\n\
                     sentinel down-after-milliseconds {MASTER_SET} 1000\nsentinel failover-timeout {MASTER_SET} 3000\n{}",
                    login.map(SentinelLogin::lines).unwrap_or_default()
                );
                std::fs::write(&file, text).expect("written");
                vec![file.display().to_string()]
            })
        };
        let sentinels =
            Sentinels { redis: vec![first, replica], sentinels: vec![sentinel(), sentinel(), sentinel()], login };
        let know_each_other = |name: &str, count: &str| {
            let at = |port: u16| sentinels.ask(port, "MASTER").map(|text| field(&text, name) == Some(count));
            sentinels.sentinels.iter().all(|sentinel| at(sentinel.port).unwrap_or(false))
        };
        until("the Sentinels know each other", || know_each_other("num-other-sentinels", "2"));
        until("the Sentinels know the replica", || know_each_other("num-slaves", "1"));
        sentinels
    }

    /// `--redis-url` and `--redis-sentinels`.
    pub fn arguments(&self) -> Vec<String> {
        let [of_sentinels, of_servers] = match self.login {
            Some(SentinelLogin { user, password, of_servers }) => {
                [format!("{user}:{password}@"), format!(":{of_servers}@")]
            }
            None => Default::default(),
        };
        let sentinels: Vec<String> =
            self.sentinels.iter().map(|sentinel| format!("{of_sentinels}127.0.0.1:{}", sentinel.port)).collect();
        let url = format!("redis://{of_servers}{MASTER_SET}");
        vec!["--redis-url".into(), url, "--redis-sentinels".into(), sentinels.join(",")]
    }

    fn ask(&self, port: u16, what: &str) -> Option<String> {
        let port = port.to_string();
        let mut command = Command::new(redis_program("cli"));
        if let Some(SentinelLogin { user, password, .. }) = self.login {
            let user = if user.is_empty() { "default" } else { user };
            command.args(["--no-auth-warning", "--user", user, "--pass", password]);
        }
        let output = command.args(["-p", &port, "SENTINEL", what, MASTER_SET]).output();
        let output = output.expect("redis-cli runs");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Where the master is by the first Sentinel.
    pub fn master(&self) -> usize {
        let answer = self.ask(self.sentinels[0].port, "GET-MASTER-ADDR-BY-NAME").expect("an answer");
        let port = answer.lines().nth(1).and_then(|port| port.trim().parse::<u16>().ok()).expect("a port");
        self.redis.iter().position(|redis| redis.port() == port).expect("one of ours")
    }

    /// Kills the master, waits until the replica is in its place, and gives which one that is.
    pub fn fail_over(&mut self) -> usize {
        let old = self.master();
        self.redis[old].kill();
        until("another master", || {
            let now = self.master();
            now != old && self.redis[now].info("role").as_deref() == Some("master")
        });
        self.master()
    }
}

/// A value in the answer of a Sentinel, where names and values take turns, one a line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| *line == name)?;
    lines.next()
}

/// A Redis Cluster of three masters with a replica each.
pub struct RedisCluster {
    pub nodes: Vec<Redis>,
}

impl RedisCluster {
    pub fn start() -> RedisCluster {
        let more = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
        let node = |_| Redis::start_as(RedisStart { more: &more, keeps: true, ..RedisStart::default() });
        let cluster = RedisCluster { nodes: (0..6).map(node).collect() };
        let mut command = vec!["--cluster".to_owned(), "create".to_owned()];
        command.extend(cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())));
        command.extend(["--cluster-replicas", "1", "--cluster-yes"].map(str::to_owned));
        cluster.cli(&command);
        cluster.is_whole();
        cluster
    }

    fn cli(&self, command: &[String]) {
        let output =
            Command::new(redis_program("cli")).args(command).stdin(Stdio::null()).output().expect("redis-cli runs");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
    }

    /// Waits until every node that runs sees every slot served.
    pub fn is_whole(&self) {
        until("the cluster is whole", || {
            let mut running = self.nodes.iter().filter(|node| node.process.child.is_some());
            running.all(|node| {
                let info = node.try_cli(&["CLUSTER", "INFO"]).unwrap_or_default();
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:6")
            })
        });
    }

    /// `--redis-url`.
    pub fn url(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|node| format!("redis://127.0.0.1:{}", node.port())).collect();
        nodes.join(",")
    }

    /// Index of the master that holds the slot of a key.
    pub fn master_of(&self, key: &str) -> usize {
        let slot: u32 = self.nodes[0].cli(&["CLUSTER", "KEYSLOT", key]).parse().expect("a number");
        let table = self.nodes[0].cli(&["CLUSTER", "NODES"]);
        let holds = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse().unwrap_or(u32::MAX), last.parse().unwrap_or(0));
            (first..=last).contains(&slot)
        };
        let line = table.lines().find(|line| line.split(' ').skip(8).any(holds)).expect("a master");
        let port = line.split(' ').nth(1).and_then(|place| place.split(['@', ':']).nth(1)).expect("a place");
        self.nodes.iter().position(|node| node.port().to_string() == port).expect("one of ours")
    }

    /// Moves the slot of a key, with everything in it, to another master, and gives which.
    pub fn move_slot_of(&self, key: &str) -> usize {
        let slot = self.nodes[0].cli(&["CLUSTER", "KEYSLOT", key]);
        let from = self.master_of(key);
        let is_other = |at: &usize| *at != from && self.nodes[*at].info("role").as_deref() == Some("master");
        let to = (0..self.nodes.len()).find(is_other).expect("three masters");
        let id = |at: usize| self.nodes[at].cli(&["CLUSTER", "MYID"]);
        let (from_id, to_id) = (id(from), id(to));
        self.nodes[to].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
        self.nodes[from].cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
        loop {
            let keys = self.nodes[from].cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
            let keys: Vec<&str> = keys.lines().filter(|line| !line.is_empty()).collect();
            if keys.is_empty() {
                break;
            }
            let port = self.nodes[to].port().to_string();
            let command = [&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"][..], &keys].concat();
            self.nodes[from].cli(&command);
        }
        // The new owner first, so that the slot always has one.
        for at in [to, from] {
            self.nodes[at].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
        }
        until("all know of the move", || self.master_of(key) == to);
        to
    }
}

/// How a NATS is started.
#[derive(Clone, Copy, Default)]
pub struct NatsStart<'a> {
    /// User and password that are needed.
    pub login: Option<(&'a str, &'a str)>,
    /// Speaks TLS only, and lets in only who shows a certificate.
    pub tls: Option<&'a Authority>,
    /// The public key of the only user that is let in.
    pub nkey: Option<&'a str>,
    /// One server of a cluster, of which it has to know one other, but for the first: the port of that.
    pub cluster: Option<Option<u16>>,
}

/// Where a NATS tells of itself, above its port.
const MONITOR_PORT: u16 = 10_000;

/// Where it listens for the others of its cluster, above its port.
const CLUSTER_PORT: u16 = 20_000;

/// A NATS with JetStream.
pub struct Nats {
    process: Process,
    login: Option<(String, String)>,
    is_tls: bool,
}

impl Nats {
    pub fn start() -> Nats {
        Nats::start_as(NatsStart::default())
    }

    pub fn start_as(start: NatsStart) -> Nats {
        let arguments = |port: u16, folder: &str| {
            let monitor = port + MONITOR_PORT;
            let mut line = format!("-a 127.0.0.1 --port {port} -m {monitor} --jetstream --store_dir {folder}");
            if let Some(key) = start.nkey {
                let file = PathBuf::from(folder).join("nats.conf");
                std::fs::write(&file, format!("authorization {{ users: [ {{ nkey: {key} }} ] }}")).expect("written");
                line.push_str(&format!(" --config {}", file.display()));
            }
            if let Some(other) = start.cluster {
                let own = port + CLUSTER_PORT;
                line.push_str(&format!(" --cluster_name c -n server-{port} --cluster nats://127.0.0.1:{own}"));
                // The first names itself: it has to name somebody.
                let route = other.unwrap_or(port) + CLUSTER_PORT;
                line.push_str(&format!(" --routes nats://127.0.0.1:{route}"));
            }
            if let Some((user, password)) = start.login {
                line.push_str(&format!(" --user {user} --pass {password}"));
            }
            if let Some(authority) = start.tls {
                line.push_str(&format!(
                    " --tlsverify --tlscacert {} --tlscert {} --tlskey {}",
                    authority.file("ca.pem"),
                    authority.file("server.pem"),
                    authority.file("server.key")
                ));
            }
            line.split(' ').map(str::to_owned).collect()
        };
        let process = Process::start("nats-server", arguments);
        let login = start.login.map(|(user, password)| (user.to_owned(), password.to_owned()));
        let nats = Nats { process, login, is_tls: start.tls.is_some() };
        nats.is_ready(1);
        nats
    }

    /// Three that are one cluster.
    pub fn cluster() -> Vec<Nats> {
        let mut servers: Vec<Nats> = Vec::new();
        for _ in 0..3 {
            let other = servers.first().map(Nats::port);
            servers.push(Nats::start_as(NatsStart { cluster: Some(other), ..NatsStart::default() }));
        }
        let routes = |nats: &Nats| nats.ask("/routez")["num_routes"].as_u64().unwrap_or(0);
        until("the servers know each other", || servers.iter().all(|nats| routes(nats) >= 2));
        until("JetStream has a leader", || {
            servers.iter().any(|nats| nats.ask("/jsz")["meta_cluster"]["leader"].is_string())
        });
        servers
    }

    /// It says so in its log each time it has started.
    fn is_ready(&self, times: usize) {
        until("NATS is ready", || self.log().matches("Server is ready").count() >= times);
    }

    pub fn port(&self) -> u16 {
        self.process.port
    }

    /// The URL with user and password.
    pub fn url(&self) -> String {
        let scheme = if self.is_tls { "tls" } else { "nats" };
        let login = self.login.as_ref().map(|(user, password)| format!("{user}:{password}@")).unwrap_or_default();
        format!("{scheme}://{login}127.0.0.1:{}", self.port())
    }

    /// What it tells of itself. One whose cluster is only forming may end the connection instead.
    fn ask(&self, path: &str) -> serde_json::Value {
        let asked = || -> std::io::Result<String> {
            let mut socket = TcpStream::connect(("127.0.0.1", self.port() + MONITOR_PORT))?;
            socket.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let mut told = None;
        until("NATS tells of itself", || {
            told = asked().ok().and_then(|answer| serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok());
            told.is_some()
        });
        told.expect("it was told")
    }

    /// The subjects of all subscriptions, one for each connection that has it.
    pub fn subscriptions(&self) -> Vec<String> {
        let found = self.ask("/subsz?subs=1&limit=100000");
        let list = found["subscriptions_list"].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|one| one["subject"].as_str().map(str::to_owned)).collect()
    }

    /// The subjects that its own clients are subscribed to, one for each client that is.
    pub fn subscriptions_of_clients(&self) -> Vec<String> {
        self.subscriptions_of("connz", "connections")
    }

    /// The subjects that clients of other servers of its cluster are subscribed to, one for each server.
    pub fn subscriptions_of_servers(&self) -> Vec<String> {
        self.subscriptions_of("routez", "routes")
    }

    fn subscriptions_of(&self, what: &str, list: &str) -> Vec<String> {
        let found = self.ask(&format!("/{what}?subs=1&limit=1000"));
        let connections = found[list].as_array().cloned().unwrap_or_default();
        let lists = connections.iter().filter_map(|connection| connection["subscriptions_list"].as_array());
        lists.flatten().filter_map(|subject| subject.as_str().map(str::to_owned)).collect()
    }

    /// Deletes everything that it keeps; it must not run.
    pub fn forget(&self) {
        std::fs::remove_dir_all(self.process.folder.path().join("jetstream")).expect("deleted");
    }

    /// How many messages a store of JetStream has, and has had; none if there is no such store.
    pub fn store(&self, name: &str) -> (u64, u64) {
        let state = self.store_state(name).unwrap_or_default();
        (state["messages"].as_u64().unwrap_or(0), state["last_seq"].as_u64().unwrap_or(0))
    }

    /// Whether there is no such store.
    pub fn is_without(&self, name: &str) -> bool {
        self.store_state(name).is_none()
    }

    fn store_state(&self, name: &str) -> Option<serde_json::Value> {
        let found = self.ask("/jsz?streams=1");
        let accounts = found["account_details"].as_array().cloned().unwrap_or_default();
        let mut stores =
            accounts.iter().flat_map(|account| account["stream_detail"].as_array().cloned().unwrap_or_default());
        stores.find(|one| one["name"] == name).map(|one| one["state"].clone())
    }

    /// Stops it from doing anything, without closing a connection, until [`Nats::go_on`].
    pub fn freeze(&self) {
        self.process.signal("STOP");
    }

    pub fn go_on(&self) {
        self.process.signal("CONT");
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it on the same port with what is on its disk.
    pub fn restart(&mut self) {
        let before = self.log().matches("Server is ready").count();
        self.process.restart();
        self.is_ready(before + 1);
    }

    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// A wire in front of a server, which can be cut without the server's doing.
pub struct Wire {
    address: SocketAddr,
    state: Arc<Mutex<WireState>>,
}

#[derive(Default)]
struct WireState {
    is_cut: bool,
    /// Bytes that were passed on to the server.
    passed: u64,
    ends: Vec<TcpStream>,
}

impl Wire {
    /// Passes on what comes to a port of its own to this port.
    pub fn to(port: u16) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(WireState::default()));
        let wire = Wire { address, state: Arc::clone(&state) };
        thread::spawn(move || {
            // Ends with the test: nobody connects any more.
            for near in listener.incoming().map_while(Result::ok) {
                let counter = Arc::clone(&state);
                let mut state = state.lock().expect("never poisoned");
                let Some(far) = TcpStream::connect(("127.0.0.1", port)).ok().filter(|_| !state.is_cut) else {
                    continue;
                };
                for (from, to, counted) in [(&near, &far, Some(&counter)), (&far, &near, None)] {
                    let (from, to) = (from.try_clone().expect("twice"), to.try_clone().expect("twice"));
                    let counted = counted.cloned();
                    thread::spawn(move || pump(from, to, counted));
                }
                state.ends.extend([near, far]);
            }
        });
        wire
    }

    /// How many bytes were passed on to the server.
    pub fn passed(&self) -> u64 {
        self.state.lock().expect("never poisoned").passed
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Ends every connection and lets nobody through.
    pub fn cut(&self) {
        let mut state = self.state.lock().expect("never poisoned");
        state.is_cut = true;
        for end in state.ends.drain(..) {
            let _ = end.shutdown(std::net::Shutdown::Both);
        }
    }

    pub fn mend(&self) {
        self.state.lock().expect("never poisoned").is_cut = false;
    }
}

/// Ends both sides together, as one connection.
fn pump(mut from: TcpStream, mut to: TcpStream, counted: Option<Arc<Mutex<WireState>>>) {
    let mut piece = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut piece) {
        if to.write_all(&piece[..read]).is_err() {
            break;
        }
        if let Some(counted) = &counted {
            counted.lock().expect("never poisoned").passed += read as u64;
        }
    }
    for end in [from, to] {
        let _ = end.shutdown(std::net::Shutdown::Both);
    }
}
