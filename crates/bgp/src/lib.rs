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
//! What is implemented, by RFC. The tests are those of this crate's `tests/` unless said otherwise.
//!
//! | RFC | state | tests |
//! |---|---|---|
//! | 4271 | done: all messages, all (state, event) pairs, collisions, decision process. Refused: DelayOpen (an OPEN is sent at once), MRAI (flushes are paced by their cost), aggregation of paths (AS_SET), interior costs in step (e) | `fsm.rs`, `codec.rs`, `wire.rs`, `rib/decision_tests.rs` |
//! | 1997, 4360, 5701, 8092 | done: passed on, well-known ones honoured, set and matched by [`filter`] (5701: passed on only) | `policy.rs` |
//! | 2385, 5082 | done, by the shell (`routed/src/bgp/transport.rs`); 2385 3.x: a key changes with the next connection | `routed/src/bgp/transport_tests.rs` |
//! | 2918, 7313 | done: answered in every combination, asked by [`Event::Refresh`], EoRR sweeps | `wire.rs` |
//! | 4456 | done | `policy.rs`, `simulation.rs` |
//! | 4486, 8203, 9003, 9384 | done: every close of ours says why first | `wire.rs`, `restart.rs` |
//! | 4724 | done, both roles; partly 4.1: who is waited for, see `speaker/deferral.rs` | `restart.rs`, `simulation.rs` |
//! | 4760, 2545 | IPv4 and IPv6 unicast; a link-local next hop is read and not used | `codec.rs` |
//! | 5880, 5881, 5883, 5882 | [`bfd`], see its own table; 5882: AdminDown is no failure | `bfd.rs` |
//! | 5065 | refused: nobody is in a confederation with us, such segments are malformed | `codec.rs` |
//! | 5492, 6793, 9072 | done (9072: read, never needed on our side) | `codec.rs`, `wire.rs` |
//! | 6286, 7607, 6608 | done | `wire.rs` |
//! | 7606 | done, attribute by attribute | `codec.rs`, `wire.rs` |
//! | 7854, 9069 | [`bmp`], see its own table | `bmp.rs` |
//! | 7911 | done, receive and send (the best N) | `wire.rs` |
//! | 7947 | partly: attributes pass as they are; no table per client | `policy.rs` |
//! | 8212 | [`config::Import::None`] and [`config::Export::None`] | `policy.rs` |
//! | 8326 | done, both sides | `policy.rs` |
//! | 8538 | done; dead or restarted is the shell's to find out with [`fate`] | `restart.rs`, `fate.rs` |
//! | 8654 | done | `wire.rs` |
//! | 8950 | done for IPv4 unicast | `wire.rs` |
//! | 9234 | done | `wire.rs`, `policy.rs` |
//! | 9494 | done as helper and towards peers; stale routes are not told to peers without the capability | `restart.rs` |
//! | 9687 | done | `wire.rs` |

pub mod bfd;
pub mod bmp;
pub mod config;
pub mod event;
mod export;
pub mod fate;
pub mod filter;
pub mod message;
mod rib;
pub mod session;
pub(crate) mod speaker;
mod timers;
pub mod topology;
pub mod types;

pub use event::{Action, AfterStop, ConnId, Event};
pub use speaker::Speaker;
