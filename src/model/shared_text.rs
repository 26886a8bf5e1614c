//! temporary
use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Immutable text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedText(Arc<str>);

impl<T: AsRef<str>> From<T> for SharedText {
    fn from(t: T) -> Self {
        SharedText(t.as_ref().into())
    }
}
impl Deref for SharedText {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}
impl fmt::Debug for SharedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}
impl fmt::Display for SharedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&*self.0, f)
    }
}
