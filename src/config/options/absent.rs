//! Options of AnyCable that have no field here: not there yet, renamed, or without meaning in this server.

use crate::config::definition::Definition;

pub(super) const DEFINITIONS: &[Definition] = &[];
