//! Export: what each neighbour is told (RFC 4271 9.1.3 and 9.2, RFC 4456 section 6).
//!
//! Neighbours that must be told the same form an update group. A group decides and encodes once ([`group`]), into an
//! append-only log of immutable segments ([`log`]); a neighbour is a cursor into that log. [`adj_out`] is what it was told,
//! [`policy`] says what a group is told, [`lint`] checks in debug builds that nothing leaves that the rules forbid.

pub(crate) mod adj_out;
pub(crate) mod encoder;
pub(crate) mod group;
pub(crate) mod lint;
pub(crate) mod log;
pub(crate) mod policy;
