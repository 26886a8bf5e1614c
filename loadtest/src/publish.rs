//! Publishing over HTTP: one keep-alive connection, one POST at a time, and the answer is waited for.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, bail};

/// How long a server may take to answer a POST.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a server's publish door.
pub struct Publisher {
    requests: TcpStream,
    answers: BufReader<TcpStream>,
    head: String,
}

impl Publisher {
    /// Connects to `http://HOST:PORT/PATH`; `key` becomes a bearer token.
    pub fn connect(url: &str, key: Option<&str>) -> anyhow::Result<Self> {
        let uri: http::Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
        if uri.scheme_str() != Some("http") {
            bail!("{url}: only http:// is spoken here");
        }
        let authority = uri.authority().context("the URL names no host")?;
        let address = (authority.host(), authority.port_u16().unwrap_or(80));
        let requests = TcpStream::connect(address).with_context(|| format!("cannot connect to {url}"))?;
        requests.set_nodelay(true)?;
        requests.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let answers = BufReader::new(requests.try_clone()?);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut head = format!("POST {path} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\n");
        if let Some(key) = key {
            head.push_str(&format!("Authorization: Bearer {key}\r\n"));
        }
        Ok(Self { requests, answers, head })
    }

    /// Posts a body and waits for the answer; anything but 2xx is an error.
    pub fn post(&mut self, body: &str) -> anyhow::Result<()> {
        let request = format!("{}Content-Length: {}\r\n\r\n{body}", self.head, body.len());
        self.requests.write_all(request.as_bytes()).context("the server closed the publisher's connection")?;
        let mut line = String::new();
        self.answers.read_line(&mut line).context("no answer to a publication")?;
        let status = line.split_ascii_whitespace().nth(1).and_then(|status| status.parse::<u16>().ok());
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.answers.read_line(&mut line)? == 0 {
                bail!("the answer to a publication broke off");
            }
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().context("bad Content-Length in an answer")?;
                }
                Some(_) => {}
                None => break,
            }
        }
        std::io::copy(&mut self.answers.by_ref().take(length), &mut std::io::sink())?;
        match status {
            Some(200..=299) => Ok(()),
            Some(status) => bail!("a publication was answered with status {status}"),
            None => bail!("a publication was answered with {:?}", line.trim_end()),
        }
    }
}
