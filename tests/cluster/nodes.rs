//! Several real nodes, and clients spread over them.

use crate::client::Client;
use crate::server::{Server, Start};

/// Nodes with the same options.
pub struct Nodes(pub Vec<Server>);

impl Nodes {
    /// So many nodes with public streams and these options, each on a port of its own.
    pub fn start(count: usize, options: &[&str]) -> Nodes {
        let nodes = Nodes((0..count).map(|_| Start::with(options).start()).collect());
        nodes.0.iter().for_each(Server::is_ready);
        nodes
    }

    /// Clients that follow a stream, the first on the first node, the second on the second, and so on.
    pub fn followers(&self, count: usize, stream: &str) -> Vec<Client> {
        (0..count).map(|at| Client::following(self.0[at % self.0.len()].address(), stream)).collect()
    }
}

/// Reads of each client as many messages as are expected, and holds that each comes once and in order. That no more comes is
/// seen with a last message of its own, which the caller publishes behind them.
pub fn each_gets(clients: &mut [Client], expected: &[String]) {
    for (at, client) in clients.iter_mut().enumerate() {
        for message in expected {
            let text = client.text();
            let got: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(got["message"].to_string(), *message, "client {at}: {text}");
        }
    }
}
