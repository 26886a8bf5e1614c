//! Publishing over HTTP: one keep-alive connection, one POST at a time, and the answer is waited for.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::{Digest as _, Md5};
use sha2::Sha256;

use crate::http1::{self, Client};
use crate::protocol;

/// Longest part of an answer that an error repeats.
const QUOTED_BYTES_MAX: usize = 200;

/// How a publisher says who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Not at all.
    None,
    /// `Authorization: Bearer KEY`.
    Bearer(String),
    /// Any header, `Name: value`.
    Header(String),
    /// The signature of Pusher's HTTP API: HMAC-SHA256 over method, path and query.
    Pusher {
        /// The app's public key.
        key: String,
        /// The app's secret.
        secret: String,
    },
}

impl Credentials {
    /// Reads `KEY:SECRET`.
    pub fn pusher(pair: &str) -> anyhow::Result<Self> {
        let (key, secret) = pair.split_once(':').context("expected KEY:SECRET")?;
        ensure!(!key.is_empty() && !secret.is_empty(), "expected KEY:SECRET");
        Ok(Self::Pusher { key: key.to_owned(), secret: secret.to_owned() })
    }

    fn headers(&self) -> anyhow::Result<String> {
        let mut headers = String::from("Content-Type: application/json\r\n");
        match self {
            Self::Bearer(key) => headers.push_str(&format!("Authorization: Bearer {key}\r\n")),
            Self::Header(header) => {
                ensure!(header.contains(':'), "{header:?} is not a header: expected \"Name: value\"");
                headers.push_str(&format!("{header}\r\n"));
            }
            Self::None | Self::Pusher { .. } => {}
        }
        ensure!(headers.matches('\n').count() <= 2, "a header cannot have two lines");
        Ok(headers)
    }
}

/// A connection to where a server takes publications.
pub struct Publisher {
    client: Client,
    path: String,
    headers: String,
    credentials: Credentials,
}

impl Publisher {
    /// Connects to `http://HOST:PORT/PATH`.
    pub fn connect(url: &str, credentials: &Credentials) -> anyhow::Result<Self> {
        let (authority, path) = http1::parse_url(url)?;
        let headers = credentials.headers()?;
        Ok(Self { client: Client::connect(&authority)?, path, headers, credentials: credentials.clone() })
    }

    /// Posts a body and waits for the answer. Anything but 2xx is an error, and so is an answer with a key `error`:
    /// Centrifugo refuses with status 200.
    pub fn post(&mut self, body: &str) -> anyhow::Result<()> {
        let signed;
        let path = match &self.credentials {
            Credentials::Pusher { key, secret } => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
                signed = pusher_path(&self.path, key, secret, now.as_secs(), body.as_bytes());
                &signed
            }
            _ => &self.path,
        };
        let answer = self
            .client
            .request("POST", path, &self.headers, body.as_bytes())
            .context("a publication was not answered")?;
        let said = String::from_utf8_lossy(&answer.body[..answer.body.len().min(QUOTED_BYTES_MAX)]);
        if !(200..300).contains(&answer.status) || protocol::has_error(&answer.body) {
            bail!("a publication was answered with status {} {}", answer.status, said.trim());
        }
        Ok(())
    }
}

/// Path and query of a signed POST, as Pusher's HTTP API wants it: all parameters sorted by name, and the signature
/// over them behind.
fn pusher_path(path: &str, key: &str, secret: &str, now_s: u64, body: &[u8]) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut parameters: Vec<(String, String)> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    parameters.extend(
        [
            ("auth_key", key.to_owned()),
            ("auth_timestamp", now_s.to_string()),
            ("auth_version", "1.0".to_owned()),
            ("body_md5", hex(&Md5::digest(body))),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    parameters.sort();
    let query = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of every length");
    mac.update(format!("POST\n{path}\n{query}").as_bytes());
    format!("{path}?{query}&auth_signature={}", hex(&mac.finalize().into_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pusher_request_is_signed_as_in_the_documentation_of_its_api() {
        // The worked example of Pusher's HTTP API reference.
        let body = br#"{"name":"foo","channels":["project-3"],"data":"{\"some\":\"data\"}"}"#;
        assert_eq!(
            pusher_path("/apps/3/events", "278d425bdf160c739803", "7ad3773142a6692b25b8", 1_353_088_179, body),
            "/apps/3/events?auth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0\
             &body_md5=ec365a775a4cd0599faeb73354201b6f\
             &auth_signature=da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c"
        );
    }

    #[test]
    fn parameters_of_the_url_are_signed_too() {
        let path = pusher_path("/apps/3/events?info=x&A=1", "k", "s", 1, b"");
        assert!(path.starts_with("/apps/3/events?a=1&auth_key=k&"), "{path}");
        assert!(path.contains("&info=x&auth_signature="), "{path}");
    }

    #[test]
    fn headers_are_what_was_asked_for_and_never_two() {
        let plain = "Content-Type: application/json\r\n";
        assert_eq!(Credentials::None.headers().unwrap(), plain);
        assert_eq!(Credentials::Bearer("k".into()).headers().unwrap(), format!("{plain}Authorization: Bearer k\r\n"));
        assert_eq!(Credentials::Header("X-API-Key: k".into()).headers().unwrap(), format!("{plain}X-API-Key: k\r\n"));
        assert!(Credentials::Header("no colon".into()).headers().is_err());
        assert!(Credentials::Header("A: b\r\nC: d".into()).headers().is_err());
        assert!(Credentials::pusher("key:secret").is_ok() && Credentials::pusher("key").is_err());
    }
}
