//! How many connections a machine holds, and which layer binds first.

use serde::Serialize;

use super::row::Row;

/// A check that binds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// Connections that it allows.
    pub connections: u64,
    /// Name of the check.
    pub by: String,
}

/// The smallest bounds of all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// What binds; `None`: nothing that could be read.
    pub first: Option<Bound>,
    /// What would bind next.
    pub next: Option<Bound>,
}

impl Capacity {
    /// The bounds of these checks.
    pub(super) fn of(rows: &[Row]) -> Capacity {
        let bounds = rows.iter().filter_map(|row| Some(Bound { connections: row.holds?, by: row.name.clone() }));
        let mut bounds: Vec<Bound> = bounds.collect();
        // Stable: of equal ones the earlier layer is named.
        bounds.sort_by_key(|bound| bound.connections);
        let mut bounds = bounds.into_iter();
        Capacity { first: bounds.next(), next: bounds.next() }
    }
}
