//! A BGP speaker as a pure core: codec, sessions, RIB, decision process.
