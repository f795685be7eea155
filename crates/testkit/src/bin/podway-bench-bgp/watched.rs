//! BFD sessions beside a reflector's load: none of them may be lost.
//!
//! Two speakers of ours have 200 sessions with each other, each between addresses of its own and watched by BFD at
//! 3 x 100 ms. Then 1,000 clients connect to the first of them at once, and one goes.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use podway_testkit::lab::Programs;
use podway_testkit::process::Process;
use podway_testkit::wait::wait_until;

use crate::measure::{Load, apply, on_processor, place};
use crate::rows::Row;
use crate::speakers::Found;

/// Sessions that are watched.
pub(crate) const SESSIONS: u32 = 200;
/// What an operator would choose for detection within a third of a second.
const TIMERS: &str = "{intervalMs: 100, multiplier: 3}";

/// What came out.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    /// The load that was there meanwhile.
    pub(crate) load: Load,
    /// Sessions of BFD that went down, told by either side.
    pub(crate) lost: usize,
}

/// The load beside which sessions are watched.
pub(crate) fn row() -> Row {
    Row { clients: 1000, prefixes: 8, storm: true, news: 0, quick: true, budget: None }
}

/// As people say it.
pub(crate) fn name() -> String {
    format!("{} + {SESSIONS} BFD", row().name())
}

/// Measures once.
pub(crate) fn measure(found: &Found) -> Result<Watched> {
    let programs = Programs::find()?;
    let folder = programs.lab_dir().join("bench-bgp").join("bfd");
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let place = place()?;
    let several = std::thread::available_parallelism()?.get() > 1;
    let start = |name: &str, text: String, processor: &str| {
        let (config, log) = (folder.join(format!("{name}.yaml")), folder.join(format!("{name}.log")));
        std::fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        drop(std::fs::remove_file(&log));
        let mut command = Command::new(&found.program);
        command.args(["speaker", "--config"]).arg(&config);
        Process::start(&place, name, on_processor(several.then_some(processor), command), &log)
    };
    let mut reflector = start("reflector", reflector(), "0")?;
    let mut other = start("other", other(), "1")?;
    let count = |process: &Process, what: &str| process.log().lines().filter(|l| l.contains(what)).count();
    wait_until("all sessions are watched", Duration::from_secs(60), || {
        reflector.ensure_running()?;
        other.ensure_running()?;
        let up = [&reflector, &other].iter().all(|one| count(one, "BFD: up") >= SESSIONS as usize);
        Ok(up.then_some(()))
    })?;
    let before: usize = [&reflector, &other].iter().map(|one| count(one, "BFD: down")).sum();
    let load = apply(&programs, &place, &mut reflector, &row())?;
    let after: usize = [&reflector, &other].iter().map(|one| count(one, "BFD: down")).sum();
    reflector.kill()?;
    other.kill()?;
    Ok(Watched { load, lost: after - before })
}

/// Addresses of a pair of neighbours.
fn pair(n: u32) -> (String, String) {
    (format!("10.98.1.{}", n + 1), format!("10.98.2.{}", n + 1))
}

fn reflector() -> String {
    let mut text = "\
asn: 64512
routerId: 10.99.0.1
listen: ['10.99.0.1:1790'"
        .to_owned();
    for n in 0..SESSIONS {
        let _ = write!(text, ", '{}:1790'", pair(n).0);
    }
    text += "]\nranges:\n  - {prefix: 10.99.0.0/16, limit: 10000, options: {role: client, passive: true}}\nneighbours:\n";
    for n in 0..SESSIONS {
        let (own, theirs) = pair(n);
        let _ = writeln!(
            text,
            "  - {{address: {theirs}, options: {{role: client, passive: true, localAddress: {own}, bfd: {TIMERS}}}}}"
        );
    }
    text
}

fn other() -> String {
    let mut text = "asn: 64512\nrouterId: 10.98.2.1\nlisten: ['10.98.2.1:1791']\nneighbours:\n".to_owned();
    for n in 0..SESSIONS {
        let (theirs, own) = pair(n);
        let _ = writeln!(
            text,
            "  - {{address: {theirs}, options: {{role: reflector, port: 1790, localAddress: {own}, bfd: {TIMERS}}}}}"
        );
    }
    text
}
