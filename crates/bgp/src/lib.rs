//! A BGP speaker as a pure core: codec, sessions, RIB, decision process, export. It reaches no socket, no clock and no
//! source of randomness: bytes, connections and time come in as [`Event`]s, bytes and route changes go out as
//! [`Action`]s, so the same code runs under virtual time with many speakers in one test and under real sockets in
//! `routed`.
//!
//! ```text
//!            connections, bytes                                   bytes
//!  shell ──▶ [session] slots, FSM ──▶ [message] decode        [export] groups, log, cursors ──▶ shell
//!                    │ up, down            │ UPDATE                  ▲ best paths
//!                    ▼                     ▼                         │
//!                 [speaker] stale routes, import rule ──▶ [rib] decision process ──▶ RouteChanged
//! ```
//!
//! What is implemented, by RFC:
//!
//! | RFC | state |
//! |---|---|
//! | 4271 | all messages, all (state, event) pairs, collisions, decision process; no aggregation, no MRAI, no DelayOpen |
//! | 2918, 5492, 6793, 7606, 7607, 6286, 6608, 4486, 8203, 9003 | done |
//! | 4760, 2545 | IPv4 and IPv6 unicast |
//! | 4456 | done |
//! | 4724 | both roles |
//! | 1997 | well-known communities are honoured, none is set; 4360, 8092: passed on |
//! | 8212 | by [`config::Import::None`] and [`config::Export::None`]; there are no filters yet |
//! | 7911, 8950, 8654, 8538, 9494, 7313, 9234, 9687, 5082, 2385 | not yet |

pub mod config;
pub mod event;
mod export;
pub mod message;
mod rib;
pub mod session;
mod speaker;
pub mod types;

pub use event::{Action, AfterStop, ConnId, Event};
pub use speaker::Speaker;
