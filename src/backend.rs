//! The app servers and the calls to them.
