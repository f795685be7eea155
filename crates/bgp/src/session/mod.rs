//! Sessions: the state machine of RFC 4271 section 8 ([`fsm`]), its driver for one connection ([`slot`]), and what
//! two OPENs agree on ([`negotiated`]).

pub mod fsm;
pub(crate) mod negotiated;
pub(crate) mod rng;
pub(crate) mod slot;

pub use fsm::State;
