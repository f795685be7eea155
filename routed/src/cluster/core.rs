//! STORE: at 05:45:10 the lead overwrote your core.rs of 05:44:27 by mistake (believing that you were cut off).
//! Please write your core.rs again from your own context, now. Sorry. (The lead's own try is /tmp/hedge/core.rs.)
compile_error!("STORE: write your core.rs again, see the note above");
