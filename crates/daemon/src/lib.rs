//! Process shell of the daemons: everything about being a process, nothing about networks.
//!
//! ```text
//! run(program, start)
//!  ├─ args, configuration file ── mistakes ──▶ exit 64
//!  ├─ logging, panic hook (a panic is logged and aborts)
//!  ├─ pid lock ── held by another process ──▶ exit 75, naming its pid
//!  ├─ start(process): the daemon opens what it needs and spawns its named tasks
//!  ├─ health server (optional), systemd readiness
//!  └─ waits for the first of: a signal ──▶ orderly end, exit 0
//!                             a task that ended or failed ──▶ exit 1
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`process`] | [`run`] and what it hands to the daemon |
//! | [`tasks`] | named tasks of which none may end |
//! | [`shutdown`] | the wish to end, as a value that tasks watch |
//! | [`health`] | `/healthz`, `/readyz`, `/metrics` |
//! | [`admin`] | server of a unix socket with the messages of [`podway_model::socket`] |
//! | [`client`] | blocking client of such a socket |
//! | [`pidlock`] | one process of a kind per node |
//! | [`logging`] | log lines and the panic hook |
//! | [`notify`] | readiness for systemd |
//! | [`files`] | whole files, replaced atomically |
//!
//! The shell owns signals, the pid file and the runtime. It does not reload configuration.

pub mod admin;
pub mod client;
pub mod files;
pub mod health;
pub mod logging;
pub mod notify;
pub mod pidlock;
pub mod process;
pub mod shutdown;
pub mod tasks;

pub use process::{Action, Process, Program, run, run_with};
pub use shutdown::Shutdown;
pub use tasks::Tasks;

/// Exit code when a task ended, or the daemon could not start for a reason outside its input.
pub const EXIT_FAILED: u8 = 1;
/// Exit code when another process of this kind runs on the node (`EX_TEMPFAIL` of `sysexits.h`).
pub const EXIT_ALREADY_RUNNING: u8 = 75;
