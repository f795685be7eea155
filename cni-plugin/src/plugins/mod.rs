//! What other networks chain plugins for, built in: host ports and rates.
//!
//! | module | what |
//! |---|---|
//! | [`ports`] | capability `portMappings`: ports of the node that lead to the pod |

pub mod ports;
