//! The yardstick's second port: just enough HTTP that the same publisher drives it and a real server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;

use super::{Publication, ShardHandle};

/// Longest text that is sent to everybody.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Starts the thread that answers, one connection after the other: there is one publisher.
pub(super) fn start(shards: Vec<ShardHandle>, rooms: bool) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    std::thread::Builder::new().name("control".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            // A publisher that breaks off harms only itself.
            let _ = serve(stream, &shards, rooms);
        }
    })?;
    Ok(address)
}

fn serve(stream: TcpStream, shards: &[ShardHandle], rooms: bool) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut answers = stream.try_clone()?;
    let mut requests = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if requests.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut line = String::new();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().unwrap_or(usize::MAX);
                }
                Some(_) => {}
                None => break,
            }
        }
        if length > BODY_BYTES_MAX {
            return answers.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n");
        }
        let mut body = vec![0; length];
        requests.read_exact(&mut body)?;
        if request.starts_with("POST ") {
            let frame = super::text_frame(&String::from_utf8_lossy(&body));
            let room = rooms.then(|| super::dialect::room(&body));
            publish(shards, &Publication { frame, room });
            answers.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")?;
        } else {
            let open: Vec<_> = shards.iter().map(|shard| shard.open.load(Ordering::Relaxed).to_string()).collect();
            let body = format!("{{\"connections_per_shard\":[{}]}}\n", open.join(","));
            write!(answers, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        }
    }
}

/// Wakes only shards that have somebody: the least that a publication can cost.
fn publish(shards: &[ShardHandle], publication: &Publication) {
    for shard in shards.iter().filter(|shard| shard.open.load(Ordering::Relaxed) > 0) {
        if shard.inbox.send(publication.clone()).is_ok() {
            let _ = rustix::io::write(&*shard.wake, &1_u64.to_ne_bytes());
        }
    }
}
