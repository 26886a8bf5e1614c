//! The Action Cable language: what clients say and what they are told, as JSON.
