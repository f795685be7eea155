//! A BGP speaker as a pure core.

pub mod config;
pub mod event;
pub mod message;
pub mod session;
pub mod types;
