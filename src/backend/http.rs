//! Calls the app over HTTP (`contracts/rpc-http.md`).

use std::time::Duration;

use bytes::Bytes;

use super::attempt::{Failure, Outcome, Prepared, Transport};
use super::{BackendError, Settings};
use crate::model::Request;

pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) struct Http;

impl Http {
    pub fn new(_: &http::Uri, _: &Settings) -> Result<Http, BackendError> {
        todo!()
    }
    pub async fn ready(&self) -> Result<(), String> {
        todo!()
    }
}
impl Transport for Http {
    fn encode(&self, _: &Request) -> Bytes {
        todo!()
    }
    async fn attempt(&self, _: &Prepared, _: Duration) -> Result<Outcome, Failure> {
        todo!()
    }
}
