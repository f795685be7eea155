//! Podway's CNI plugin: wires a pod and allocates its addresses (CNI SPEC 1.1.0).
//!
//! One process per call, no daemon asked save the policy agent where policy is required, no async runtime, nothing
//! remote. State is the kernel's, the leases' and the endpoint records'.
//!
//! | module | what |
//! |---|---|
//! | [`env`], [`conf`], [`version`] | what is asked: environment and standard input become types |
//! | [`error`], [`result`] | what is answered |
//! | [`wiring`] | what a wired pod looks like |
//! | [`add`], [`check`], [`gc`], [`status`] | the verbs; DEL is [`teardown::detach`] |
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
pub mod env;
pub mod error;
pub mod gc;
pub mod netns;
pub mod node;
pub mod plugins;
pub mod policy;
pub mod record;
pub mod result;
pub mod status;
pub mod tables;
pub mod teardown;
pub mod version;
pub mod wiring;

use std::ffi::{OsStr, OsString};
use std::io::Read;

use podway_kern::rtnl::Rtnl;
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

/// Serves one call.
pub fn run(lookup: impl Fn(&str) -> Option<OsString>, input: impl Read) -> Answer {
    let call = env::parse(lookup);
    if call == Ok(None) {
        return Answer::About;
    }
    let mut text = Vec::new();
    let read = read_input(input, &mut text);
    let version = conf::peek_version(&text).unwrap_or(SpecVersion::NEWEST);
    match call.and_then(|call| read.map(|()| call)).and_then(|call| serve(call.as_ref(), &text, version)) {
        Ok(result) => Answer::Done(result),
        Err(error) => Answer::Failed(error.to_json(version.as_str())),
    }
}

/// Serves one call as the plugin by whose name the program was started.
pub fn run_as(program: &OsStr, lookup: impl Fn(&str) -> Option<OsString>, input: impl Read) -> Answer {
    match plugins::upstream::Plugin::named(program) {
        Some(plugin) => plugins::upstream::run(plugin, lookup, input),
        None => run(lookup, input),
    }
}

/// The answer to VERSION.
fn versions(version: SpecVersion) -> Value {
    json!({
        "cniVersion": version.as_str(),
        "supportedVersions": SpecVersion::ALL.map(SpecVersion::as_str),
    })
}

fn serve(call: Option<&Call>, input: &[u8], version: SpecVersion) -> Result<Option<Value>, CniError> {
    match call {
        None => Ok(None),
        Some(Call::Version) => Ok(Some(versions(version))),
        Some(Call::Add(target)) => add::add(&Network::parse(input)?, target).map(Some),
        Some(Call::Del { attachment }) => {
            let network = Network::parse(input)?;
            teardown::detach(&Node::here()?, &mut Rtnl::open()?, &network.name, attachment)?;
            Ok(None)
        }
        Some(Call::Check(target)) => {
            let network = Network::parse(input)?;
            network.require("CHECK", SpecVersion::V040)?;
            check::check(&network, target).map(|()| None)
        }
        Some(Call::Gc) => {
            let network = Network::parse(input)?;
            network.require("GC", SpecVersion::V110)?;
            gc::collect(&network).map(|()| None)
        }
        Some(Call::Status) => {
            let network = Network::parse(input)?;
            network.require("STATUS", SpecVersion::V110)?;
            status::status(&network).map(|()| None)
        }
    }
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
