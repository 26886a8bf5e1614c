//! The protocols seen from outside: against another implementation, and under the checks of the fuzz targets.

mod fuzz;
mod streams;
mod tungstenite_peer;
