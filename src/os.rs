//! The machine: system calls and what the kernel says about itself. No protocol, no policy.
//!
//! The only module that may contain `unsafe`; everything else uses safe wrappers.

pub mod allocator;
pub mod clock;
pub mod control_socket;
pub mod facts;
pub mod family;
pub mod faults;
pub mod hand_over;
pub mod limits;
pub mod listener;
pub mod notify;
pub mod orphan;
pub mod passed;
pub mod pidfd;
pub mod poll;
pub mod process;
pub mod renew;
pub mod signals;
pub mod tcp;
