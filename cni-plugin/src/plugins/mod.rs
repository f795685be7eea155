//! What other networks chain plugins for, built in: host ports and rates; and the jobs of plugins of other names.
//!
//! | module | what |
//! |---|---|
//! | [`bandwidth`] | capability `bandwidth`: rates of what the pod receives and sends |
//! | [`ports`] | capability `portMappings`: ports of the node that lead to the pod |
//! | [`upstream`] | what the program does when it is called by another plugin's name |

pub mod bandwidth;
pub mod ports;
pub mod upstream;
