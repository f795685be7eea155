//! Connection tracking entries, through ctnetlink: listed and deleted by address, original or reply tuple.
//!
//! The kernel filters a dump by tuple only on some versions and only in one direction, so we filter ourselves:
//! one dump per family and batch, however many addresses.
