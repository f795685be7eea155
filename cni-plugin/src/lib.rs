//! Podway's CNI plugin: wires a pod and allocates its addresses (CNI SPEC 1.1.0).
//!
//! One process per call, no daemon asked save the policy agent where policy is required, no async runtime, nothing
//! remote. State is the kernel's, the leases' and the endpoint records'.
//!
//! | module | what |
//! |---|---|
//! | [`env`], [`conf`], [`version`] | what is asked: environment and standard input become types |
//! | [`error`], [`result`] | what is answered |
//! | [`wish`] | which addresses are wanted, and leasing them |
//! | [`delegate`] | address plugins of others, called by us |
//! | [`ipam`] | our addresses for interfaces of other plugins: `podway-ipam` |
//! | [`settings`] | what may be said about one pod's interface |
//! | [`wiring`] | what a wired pod looks like |
//! | [`add`], [`check`], [`gc`], [`status`] | the verbs; DEL is [`teardown::end`] |
//! | [`teardown`] | takes an attachment apart: DEL, GC, undoing an ADD |
//! | [`record`], [`node`], [`netns`], [`tables`] | the node's state, one door each |
//! | [`plugins`] | what other networks chain plugins for, built in |
//! | [`policy`] | the fence: waiting for the policy agent |
//!
//! The plugin answers with exactly one JSON text on standard output, or none where the verb has no result, and
//! with exit code 0 or 1.

pub mod add;
pub mod check;
pub mod conf;
pub mod delegate;
pub mod env;
pub mod error;
pub mod gc;
pub mod ipam;
mod link;
pub mod netns;
pub mod node;
pub mod plugins;
pub mod policy;
pub mod record;
pub mod result;
pub mod settings;
pub mod status;
pub mod tables;
pub mod teardown;
pub mod version;
pub mod wiring;
pub mod wish;

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write as _};
use std::path::Path;

use podway_kern::rtnl::Rtnl;
use podway_model::names::IPAM_PLUGIN;
use serde_json::{Value, json};

use conf::{MAX_INPUT, Network};
use env::Call;
use error::{CniError, Code};
use node::Node;
use version::SpecVersion;

/// What the process prints, and how it ends.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Success, with the result where the verb has one.
    Done(Option<Value>),
    /// An error text.
    Failed(Value),
    /// A person started the program: no variable of the protocol is set.
    About,
}

/// Serves one call of the main plugin.
pub fn run(lookup: impl Fn(&str) -> Option<OsString>, input: impl Read) -> Answer {
    answer(lookup, input, serve)
}

/// Serves one call under the name `podway-ipam`.
pub fn run_ipam(lookup: impl Fn(&str) -> Option<OsString>, input: impl Read) -> Answer {
    answer(lookup, input, ipam::serve)
}

/// Serves one call as the plugin by whose name the program was started.
pub fn run_as(program: &OsStr, lookup: impl Fn(&str) -> Option<OsString>, input: impl Read) -> Answer {
    if Path::new(program).file_name() == Some(IPAM_PLUGIN.as_ref()) {
        return run_ipam(lookup, input);
    }
    match plugins::upstream::Plugin::named(program) {
        Some(plugin) => plugins::upstream::run(plugin, lookup, input),
        None => run(lookup, input),
    }
}

fn answer(
    lookup: impl Fn(&str) -> Option<OsString>,
    input: impl Read,
    serve: impl Fn(&Call, &Network) -> Result<Option<Value>, CniError>,
) -> Answer {
    let call = env::parse(lookup);
    if call == Ok(None) {
        return Answer::About;
    }
    let mut text = Vec::new();
    let read = read_input(input, &mut text);
    let version = conf::peek_version(&text).unwrap_or(SpecVersion::NEWEST);
    let answer = call.and_then(|call| read.map(|()| call)).and_then(|call| match call {
        None => Ok(None),
        Some(Call::Version) => Ok(Some(versions(version))),
        Some(call) => {
            let network = Network::parse(&text)?;
            network.require_verb(&call)?;
            serve(&call, &network)
        }
    });
    match answer {
        Ok(result) => Answer::Done(result),
        Err(error) => Answer::Failed(error.to_json(version.as_str())),
    }
}

/// The answer to VERSION.
fn versions(version: SpecVersion) -> Value {
    json!({
        "cniVersion": version.as_str(),
        "supportedVersions": SpecVersion::ALL.map(SpecVersion::as_str),
    })
}

fn serve(call: &Call, network: &Network) -> Result<Option<Value>, CniError> {
    match call {
        Call::Add(target) => return add::add(network, target).map(Some),
        Call::Del { attachment } => {
            let ended = teardown::end(&Node::here()?, &mut Rtnl::open()?, network, attachment)?;
            if let Some(left) = ended.left {
                // Nothing here can make it better, and the pod must go: whoever reads the log is told.
                let _ = writeln!(std::io::stderr(), "podway: {left}");
            }
        }
        Call::Check(target) => check::check(network, target)?,
        Call::Gc => gc::collect(network)?,
        Call::Status => status::status(network)?,
        // `answer` answers it.
        Call::Version => {}
    }
    Ok(None)
}

/// Reads all of standard input, up to the limit.
fn read_input(input: impl Read, text: &mut Vec<u8>) -> Result<(), CniError> {
    input
        .take(MAX_INPUT + 1)
        .read_to_end(text)
        .map_err(|e| CniError::new(Code::Io, format!("cannot read standard input: {e}")))?;
    if text.len() as u64 > MAX_INPUT {
        let message = format!("standard input: more than {MAX_INPUT} bytes found");
        return Err(CniError::new(Code::Decode, message));
    }
    Ok(())
}
