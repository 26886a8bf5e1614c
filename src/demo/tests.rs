//! The demo over its routes, and its app over the wire.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use serde_json::Value;

use super::*;

fn facts() -> Facts {
    Facts {
        connections: 7,
        connections_max: 1_000,
        resident_bytes: Some(10_000_000),
        open_files_limit: 1_100,
        open_files: Some(40),
        shards: 2,
        messages_delivered: 12,
        uptime: Duration::from_millis(61_900),
    }
}

fn site() -> Site {
    Site {
        address: (Ipv4Addr::LOCALHOST, 1).into(),
        cable_path: "/cable".to_owned(),
        broadcast_url: "http://127.0.0.1:1/_broadcast".to_owned(),
        broadcast_key: Some("k3y".to_owned()),
    }
}

async fn ask(
    routes: &ExtraRoutes,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Option<(Response<()>, String)> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let reply = routes(&request.body(()).unwrap().into_parts().0)?.await;
    let (head, body) = reply.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Some((Response::from_parts(head, ()), String::from_utf8(body.to_vec()).unwrap()))
}

async fn status(routes: &ExtraRoutes, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
    ask(routes, method, path, headers).await.unwrap().0.status().as_u16()
}

#[tokio::test]
async fn it_answers_under_names_that_no_other_site_can_have() {
    let routes = Demo::bind().unwrap().routes();
    for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080", "[::1]", "192.168.1.7"] {
        assert_eq!(status(&routes, "GET", "/", &[("host", host)]).await, 200, "{host}");
    }
    assert_eq!(status(&routes, "GET", "http://127.0.0.1/", &[("host", "evil.example")]).await, 200);
    for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "", ":80"] {
        for (method, path) in [("GET", "/"), ("GET", "/demo/facts"), ("POST", "/demo/idle-clients?connections=1")] {
            assert_eq!(status(&routes, method, path, &[("host", host)]).await, 421, "{method} {path} {host}");
        }
    }
}

#[tokio::test]
async fn the_page_is_whole_and_asks_nobody_else() {
    let demo = Demo::bind().unwrap();
    let (head, page) = ask(&demo.routes(), "GET", "/", &[]).await.unwrap();
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(head.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
    for id in [
        "name-input",
        "message-input",
        "send-button",
        "cut-button",
        "messages",
        "status",
        "fact-connections",
        "fact-bytes",
        "fact-files",
        "fact-shards",
    ] {
        assert_eq!(page.matches(&format!("data-testid=\"{id}\"")).count(), 1, "{id}");
    }
    // Names of XML namespaces look like addresses and are none.
    let page = page.replace("http://www.w3.org/2000/svg", "");
    for outside in ["src=\"http", "href=\"http", "url(http", "@import", "import("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[tokio::test]
async fn facts_come_from_the_node_once_it_runs() {
    let demo = Demo::bind().unwrap();
    let routes = demo.routes();
    assert_eq!(status(&routes, "GET", "/demo/facts", &[]).await, 503);
    demo.run(&Handle::current(), site(), facts).unwrap();
    let (_, text) = ask(&routes, "GET", "/demo/facts", &[]).await.unwrap();
    let wanted = json!({
        "version": env!("CARGO_PKG_VERSION"), "connections": 7, "connections_max": 1_000,
        "resident_bytes": 10_000_000, "growth": null, "growth_connections_min": 100, "open_files_limit": 1_100,
        "open_files": 40, "shards": 2, "messages_delivered": 12, "uptime_s": 61, "idle_clients": null,
        "cable_path": "/cable", "broadcast_url": "http://127.0.0.1:1/_broadcast", "broadcast_key": "k3y",
        "stream": "chat:lobby",
    });
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), wanted);
}

#[tokio::test]
async fn growth_is_told_against_the_start() {
    let demo = Demo::bind().unwrap();
    let routes = demo.routes();
    let connections = Arc::new(AtomicU64::new(0));
    let now = Arc::clone(&connections);
    demo.run(&Handle::current(), site(), move || {
        let connections = now.load(Relaxed);
        Facts { connections, resident_bytes: Some(10_000_000 + 300 * connections), ..facts() }
    })
    .unwrap();
    connections.store(200, Relaxed);
    let (_, text) = ask(&routes, "GET", "/demo/facts", &[]).await.unwrap();
    let wanted = json!({ "bytes": 60_000, "connections": 200, "bytes_each": 300 });
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["growth"], wanted);
}

#[tokio::test]
async fn other_paths_are_left_to_others_and_other_methods_are_refused() {
    let demo = Demo::bind().unwrap();
    let routes = demo.routes();
    for path in ["/demo", "/demo/", "/cable", "/demo/facts/"] {
        assert!(ask(&routes, "GET", path, &[]).await.is_none(), "{path}");
    }
    let (head, _) = ask(&routes, "GET", "/demo/idle-clients", &[]).await.unwrap();
    assert_eq!((head.status().as_u16(), head.headers()[header::ALLOW].as_bytes()), (405, &b"POST, DELETE"[..]));
    assert_eq!(status(&routes, "POST", "/", &[]).await, 405);
}

#[tokio::test]
async fn idle_clients_are_refused_when_they_do_not_fit_or_another_site_asks() {
    let demo = Demo::bind().unwrap();
    let routes = demo.routes();
    demo.run(&Handle::current(), site(), facts).unwrap();
    for (path, wanted) in [
        ("/demo/idle-clients", 422),
        ("/demo/idle-clients?connections=many", 422),
        ("/demo/idle-clients?connections=0", 422),
        // 1,000 less 7 less those that are left to others.
        ("/demo/idle-clients?connections=930", 409),
    ] {
        assert_eq!(status(&routes, "POST", path, &[]).await, wanted, "{path}");
    }
    let own = [("host", "localhost:8080"), ("origin", "http://localhost:8080")];
    assert_eq!(status(&routes, "DELETE", "/demo/idle-clients", &own).await, 202);
    for foreign in [&[("host", "localhost:8080"), ("origin", "http://evil.test")][..], &[("origin", "null")]] {
        assert_eq!(status(&routes, "POST", "/demo/idle-clients?connections=1", foreign).await, 403);
        assert_eq!(status(&routes, "POST", "/demo/ticks", foreign).await, 403);
    }
}
