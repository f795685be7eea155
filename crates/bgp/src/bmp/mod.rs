//! BMP (RFC 7854): what our neighbours tell us, told to a monitoring station.
//!
//! | file | what |
//! |---|---|
//! | `message.rs` | the messages as octets |
//! | `station.rs` | what a station knows, and what it is told next |
//!
//! A station is told what is, not what was: it gets a table when it comes, and from then on the latest state of each prefix
//! that changed. So what waits for a slow one is bounded by a number of prefixes and not by time, and a station that is
//! gone costs nothing.
//!
//! | RFC | state |
//! |---|---|
//! | 7854 | done: Initiation, Termination (0), Peer Up, Peer Down (1 to 5), Route Monitoring before and after policy, Statistics Reports (4, 5, 6, 7, 9, 11). Partly: what loops back to us (RFC 4271 9.1.2, RFC 4456 section 8) never enters the adj-RIB-in, so a station sees it counted only; times are those of the last change, and none in a first table; AS paths have four octets always. Refused: Route Mirroring |
//! | 9069 | done: loc-RIB as a peer of its own, statistics 8 and 10 |
//! | 8671 | refused for now: adj-RIB-out is shown by `podwayctl bgp advertised` |

pub mod message;
mod station;

pub use message::Ended;
pub use station::{Ends, Station, StationOptions, StationStatus};
