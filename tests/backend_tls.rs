//! TLS towards the app, over both transports, with certificates made for the test.

mod backend_app;

use std::sync::Arc;

use backend_app::{Caller, command};
use bytes::Bytes;
use cableway::backend::grpc::messages;
use cableway::backend::{Backend, Settings, Target, TlsSettings};
use cableway::model::CallError;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;

/// An app behind TLS that answers every call with success: in protobuf over HTTP/2, in JSON over HTTP/1.1.
struct App {
    port: u16,
    pem: String,
}

async fn app(alpn: &'static [u8]) -> App {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let pem = made.cert.pem();
    let key = made.signing_key.serialize_der().try_into().unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = if alpn.is_empty() { vec![] } else { vec![alpn.to_vec()] };
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                    let grpc = request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc");
                    Ok::<_, std::convert::Infallible>(if grpc { grpc_success() } else { json_success() })
                });
                let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let io = TokioIo::new(stream);
                if h2 {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(io, service).await;
                } else {
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                }
            });
        }
    });
    App { port, pem }
}

type Answer = hyper::Response<http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>>;

fn json_success() -> Answer {
    use http_body_util::BodyExt;
    hyper::Response::new(Full::new(Bytes::from_static(br#"{"status":1}"#)).boxed())
}

fn grpc_success() -> Answer {
    use http_body_util::BodyExt;
    let message =
        messages::CommandResponse { status: messages::Status::Success as i32, ..Default::default() }.encode_to_vec();
    let mut frame = vec![0, 0, 0, 0, message.len() as u8];
    frame.extend(message);
    let trailers = http::HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        http::HeaderValue::from_static("0"),
    )]);
    let body = Full::new(Bytes::from(frame)).with_trailers(std::future::ready(Some(Ok(trailers))));
    hyper::Response::builder().header("content-type", "application/grpc").body(body.boxed()).unwrap()
}

async fn call(target: String, tls: TlsSettings) -> Result<(), CallError> {
    let mut caller = Caller::new(Settings { target: Target::parse(&target).unwrap(), tls, ..Settings::default() });
    caller.backend.submit(command(1)).unwrap();
    caller.answer().await.result.map(drop)
}

fn trusting(root_ca: &str) -> TlsSettings {
    TlsSettings { root_ca: Some(root_ca.to_owned()), ..TlsSettings::default() }
}

fn unverified() -> TlsSettings {
    TlsSettings { enabled: true, verify: false, root_ca: None }
}

#[tokio::test]
async fn grpc_trusts_a_root_given_as_text_or_as_a_path() {
    let app = app(b"h2").await;
    let target = format!("localhost:{}", app.port);
    assert_eq!(call(target.clone(), trusting(&app.pem)).await, Ok(()));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &app.pem).unwrap();
    assert_eq!(call(target, trusting(file.path().to_str().unwrap())).await, Ok(()));
}

#[tokio::test]
async fn grpc_refuses_a_certificate_of_another_root_or_for_another_name_unless_told_not_to_look() {
    let ours = app(b"h2").await;
    let other = app(b"h2").await;
    for (host, root) in [("localhost", &other.pem), ("127.0.0.1", &ours.pem)] {
        let refused = call(format!("{host}:{}", ours.port), trusting(root)).await;
        assert!(matches!(&refused, Err(CallError::Unavailable(why)) if why.contains("TLS")), "{refused:?}");
    }
    assert_eq!(call(format!("127.0.0.1:{}", ours.port), unverified()).await, Ok(()));
}

#[tokio::test]
async fn grpc_says_so_when_the_app_does_not_offer_http2() {
    let app = app(b"").await;
    let refused = call(format!("localhost:{}", app.port), trusting(&app.pem)).await;
    assert!(matches!(&refused, Err(CallError::Unavailable(why)) if why.contains("HTTP/2")), "{refused:?}");
}

#[tokio::test]
async fn https_works_over_both_versions_of_http() {
    for alpn in [&b"h2"[..], b"http/1.1", b""] {
        let app = app(alpn).await;
        let target = format!("https://localhost:{}/rpc", app.port);
        assert_eq!(call(target.clone(), trusting(&app.pem)).await, Ok(()));
        // The URL says https: `verify` off needs no other option beside it.
        assert_eq!(call(target, TlsSettings { enabled: false, ..unverified() }).await, Ok(()));
    }
}

#[tokio::test]
async fn https_with_a_certificate_of_another_root_is_unauthenticated_and_not_retried() {
    let ours = app(b"http/1.1").await;
    let other = app(b"http/1.1").await;
    let target = Target::parse(&format!("https://localhost:{}/rpc", ours.port)).unwrap();
    let mut caller = Caller::new(Settings { target, tls: trusting(&other.pem), ..Settings::default() });
    caller.backend.submit(command(1)).unwrap();
    let result = caller.answer().await.result;
    assert!(matches!(&result, Err(CallError::Unauthenticated(_))), "{result:?}");
    assert_eq!(caller.backend.metrics().rpc_retries_total.get(), 0);
}

#[tokio::test]
async fn a_root_that_cannot_be_read_is_refused_at_boot() {
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for root in ["/no/such/file", broken, "-----BEGIN nothing"] {
        let settings =
            Settings { target: Target::parse("localhost:1").unwrap(), tls: trusting(root), ..Settings::default() };
        let started = Backend::start(settings, &tokio::runtime::Handle::current(), Arc::new(drop));
        assert!(started.is_err(), "{root}");
    }
}
