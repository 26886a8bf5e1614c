//! The parent of several processes that are one server to everybody outside.

mod relay;

pub use relay::{CHILDREN_MAX, ChildLink, Relay};
