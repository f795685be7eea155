//! Sessions: the state machine of RFC 4271 section 8 and its driver for one connection.

pub mod fsm;

pub use fsm::State;
