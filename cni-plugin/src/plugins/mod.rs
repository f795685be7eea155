//! What other networks chain plugins for, built in: host ports and rates.
//!
//! | module | what |
//! |---|---|
//! | [`bandwidth`] | capability `bandwidth`: rates of what the pod receives and sends |
//! | [`ports`] | capability `portMappings`: ports of the node that lead to the pod |

pub mod bandwidth;
pub mod ports;
