//! A real Prometheus, and an app that can be killed.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{self, Response};
use crate::server::SOON;

/// A running Prometheus, ended when dropped.
pub struct Prometheus {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Prometheus {
    /// Starts it with these files; the first is its configuration. It wants a port by number: one that was free a moment ago,
    /// another when somebody has taken it meanwhile.
    pub fn start(files: &[(&str, String)]) -> Prometheus {
        for _ in 0..5 {
            let folder = tempfile::tempdir().expect("a folder");
            for (name, text) in files {
                fs::write(folder.path().join(name), text).expect("written");
            }
            let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
            let mut command = Command::new("prometheus");
            command.args(["--config.file", files[0].0, "--storage.tsdb.path", "data", "--log.level", "error"]);
            command.arg("--web.listen-address").arg(address.to_string());
            let command = command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
            let process = command.spawn().expect("prometheus starts");
            let mut prometheus = Prometheus { process, address, _folder: folder };
            let until = Instant::now() + SOON;
            while prometheus.process.try_wait().expect("a child of ours").is_none() {
                if TcpStream::connect(address).is_ok() && prometheus.get("/-/ready").status == 200 {
                    return prometheus;
                }
                assert!(Instant::now() < until, "prometheus does not get ready");
                thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("prometheus ended by itself, again and again");
    }

    /// By HTTP/1.0, whose answers end with their connection.
    fn get(&self, path: &str) -> Response {
        let mut socket = client::connect(self.address);
        socket.write_all(format!("GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").as_bytes()).expect("sent");
        client::whole_response(&mut socket).expect("an answer")
    }

    fn api(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{path}: {error}: {answer:?}"))
    }

    /// The first value of an expression now, if it has any.
    pub fn value(&self, expression: &str) -> Option<f64> {
        let query: String = form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        let answer = self.api(&format!("/api/v1/query?query={query}"));
        answer["data"]["result"][0]["value"][1].as_str().map(|value| value.parse().expect("a number"))
    }

    /// Names of the alerts that fire now.
    pub fn firing(&self) -> Vec<String> {
        let answer = self.api("/api/v1/alerts");
        let alerts = answer["data"]["alerts"].as_array().expect("a list");
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().expect("a name").to_owned()).collect()
    }
}

/// An HTTP RPC app that lets everybody in, killed when dropped.
pub struct App {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl App {
    pub fn start() -> App {
        App::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Where another app has been.
    pub fn start_at(address: SocketAddr) -> App {
        let listener = TcpListener::bind(address).expect("the port is free");
        let address = listener.local_addr().expect("an address");
        let (over, connections) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let app = App { address, over: Arc::clone(&over), connections: Arc::clone(&connections) };
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if over.load(Relaxed) {
                    return;
                }
                connections.lock().expect("never poisoned").push(stream.try_clone().expect("a descriptor"));
                thread::spawn(move || answer_all(stream));
            }
        });
        app
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its port is closed and its connections are cut off, as when its process is gone.
    pub fn kill(self) {}
}

impl Drop for App {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        // Who accepts sees that it is over; the port is closed when it has.
        let until = Instant::now() + SOON;
        while TcpStream::connect(self.address).is_ok() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        for connection in self.connections.lock().expect("never poisoned").drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn answer_all(mut stream: TcpStream) {
    let body = r#"{"status":1,"identifiers":"x","transmissions":["{\"type\":\"welcome\"}"]}"#;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        seen.extend_from_slice(&piece[..n]);
        // One call is one object.
        if seen.ends_with(b"}}") {
            seen.clear();
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}
