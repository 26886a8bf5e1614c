//! What the admin port answers (`--admin-port`).
//!
//! A page or a question is added by one more [`AdminRoute`] in [`routes`].

use std::sync::Arc;

use ::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use ::http::request::Parts;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;

use crate::http::{self, AdminRoute, ExtraAnswer};

use super::observe::Observer;

/// Every route of the admin port. The key and the address are the business of whoever serves them.
pub(super) fn routes(observer: &Arc<Observer>) -> Vec<AdminRoute> {
    let [metrics, closes, connections] = [(); 3].map(|()| Arc::clone(observer));
    let query = |head: &Parts| head.uri.query().unwrap_or_default().to_owned();
    vec![
        AdminRoute::new("/admin", |_| page()),
        AdminRoute::new("/metrics", move |head| {
            let (metrics, form) = (Arc::clone(&metrics), http::metrics_form(head));
            Box::pin(async move { ready(form.media_type(), metrics.metrics_text(form).await).await })
        }),
        AdminRoute::new("/debug/closes", move |head| Box::pin(Arc::clone(&closes).closes(query(head)))),
        AdminRoute::new("/debug/connections", move |head| Box::pin(Arc::clone(&connections).connections(query(head)))),
    ]
}

/// The page with live charts. It asks for `/metrics` again and again and for nothing else.
fn page() -> ExtraAnswer {
    let mut response = Response::new(Full::new(Bytes::from_static(include_bytes!("admin/page.html"))));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_MAY));
    Box::pin(std::future::ready(response))
}

/// What the page may do: run what stands in it, and ask this port. No other site may show it in a frame.
const PAGE_MAY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                        connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// An answer that is there already.
pub(super) fn ready(kind: &'static str, body: impl Into<Bytes>) -> ExtraAnswer {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Box::pin(std::future::ready(response))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::model::CloseCause;

    #[test]
    fn the_page_knows_which_causes_find_dead_peers() {
        let page = include_str!("admin/page.html");
        let known = page.split_once("const DEAD = [").and_then(|(_, rest)| rest.split_once(']')).expect("a list").0;
        let known: BTreeSet<&str> = known.split(", ").map(|quoted| quoted.trim_matches('\'')).collect();
        let causes = CloseCause::ALL.iter().filter(|cause| cause.finds_dead_peers());
        assert_eq!(known, causes.map(|cause| cause.label()).collect());
    }
}
