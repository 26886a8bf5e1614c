//! Real proxies in front of the real program: nginx and HAProxy keep connections to us and send ordinary requests and
//! upgrades over the same ones.
//!
//! The Debian packages `nginx-light` and `haproxy` hold them; `cargo xtask test` installs both and runs this.

#![allow(
    clippy::disallowed_methods,
    reason = "these tests wait for processes of their own, which have their own clock"
)]
#![allow(dead_code, reason = "the harness is that of `limits`, which uses more of it")]

#[path = "limits/client.rs"]
mod client;
#[path = "limits/server.rs"]
mod server;

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use client::{http, try_upgrade};
use server::{SOON, Server, Start};

/// A proxy, ended when dropped.
struct Proxy {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Proxy {
    /// Starts `program` with a configuration that is made for a folder and a port. The port was free a moment ago; when
    /// somebody has taken it meanwhile, another one is tried.
    fn start(
        program: &str,
        arguments: impl Fn(&str) -> Vec<String>,
        configuration: impl Fn(&str, u16) -> String,
    ) -> Proxy {
        for _ in 0..5 {
            let folder = tempfile::tempdir().expect("a folder");
            let place = folder.path().display().to_string();
            let free = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = free.local_addr().expect("an address");
            drop(free);
            let file = folder.path().join("configuration");
            fs::write(&file, configuration(&place, address.port())).expect("written");
            let mut command = Command::new(program);
            command.args(arguments(&file.display().to_string())).stdin(Stdio::null());
            let process = command.spawn().unwrap_or_else(|error| panic!("{program} does not start: {error}"));
            let mut proxy = Proxy { process, address, _folder: folder };
            let until = Instant::now() + SOON;
            while proxy.process.try_wait().expect("a child of ours").is_none() {
                if TcpStream::connect(address).is_ok() {
                    return proxy;
                }
                assert!(Instant::now() < until, "{program} does not listen");
                thread::sleep(Duration::from_millis(10));
            }
        }
        panic!("{program} ended by itself, again and again");
    }

    fn nginx(behind: SocketAddr) -> Proxy {
        let configuration = |folder: &str, port: u16| {
            format!(
                "daemon off; master_process off; pid {folder}/pid; error_log stderr warn;\n\
                 events {{ worker_connections 256; }}\n\
                 http {{\n\
                 access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;\n\
                 fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n\
                 map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}\n\
                 upstream cableway {{ server {behind}; keepalive 1; }}\n\
                 server {{ listen 127.0.0.1:{port}; location / {{\n\
                 proxy_pass http://cableway; proxy_http_version 1.1; proxy_set_header Host $host;\n\
                 proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;\n\
                 }} }} }}\n"
            )
        };
        let arguments = |file: &str| ["-c", file, "-e", "stderr"].map(str::to_owned).to_vec();
        Proxy::start("nginx", arguments, configuration)
    }

    fn haproxy(behind: SocketAddr) -> Proxy {
        let configuration = |_: &str, port: u16| {
            format!(
                // With several threads one may open a connection although another has an idle one.
                "global\n nbthread 1\n\
                 defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n timeout tunnel 60s\n \
                 http-reuse always\n\
                 frontend door\n bind 127.0.0.1:{port}\n default_backend cableway\n\
                 backend cableway\n server one {behind} pool-max-conn 1\n"
            )
        };
        Proxy::start("haproxy", |file| ["-db", "-f", file].map(str::to_owned).to_vec(), configuration)
    }
}

/// Aim: an upgrade that the proxy sends over a connection on which it has had answers becomes a WebSocket. Each round asks
/// for something ordinary and then upgrades, as a page and its socket do.
fn page_then_socket(server: &Server, proxy: &Proxy) {
    let rounds = 5;
    for round in 0..rounds {
        for (path, status) in [("/favicon.ico", 404), ("/health", 200)] {
            assert_eq!(http(proxy.address, "GET", path, "").expect("an answer").status, status, "round {round}");
        }
        let mut client =
            try_upgrade(proxy.address, "/cable").unwrap_or_else(|answer| panic!("round {round}: {answer:?}"));
        assert!(client.text().starts_with("{\"type\":\"welcome\""));
        client.follow("news");
        server.broadcast("news", &format!("{round}"));
        assert!(client.text().ends_with(&format!("\"message\":{round}}}")));
        client.leave();
    }
    // The proxy did keep its connections.
    assert_eq!(server.metrics().get("http_upgrades_total"), rounds);
}

#[test]
#[ignore = "needs nginx (Debian package nginx-light)"]
fn an_upgrade_over_a_kept_connection_of_nginx_becomes_a_websocket() {
    let server = Start::with(&[]).start();
    page_then_socket(&server, &Proxy::nginx(server.address()));
}

#[test]
#[ignore = "needs haproxy (Debian package haproxy)"]
fn an_upgrade_over_a_kept_connection_of_haproxy_becomes_a_websocket() {
    let server = Start::with(&[]).start();
    page_then_socket(&server, &Proxy::haproxy(server.address()));
}
