//! Who is this client? Tokens and signed stream names; no call to the app.
