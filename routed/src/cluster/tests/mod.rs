//! Tests of the cluster part's core: tables of cases against a store in memory, one file per theme, and a
//! simulation of many nodes ([`sim`]).

mod claims;
mod files;
mod flannel;
mod flannel_sim;
mod giving_back;
mod pools;
mod registry;
mod rig;
mod sim;
mod store;
mod together;
