//! What the operator types.
//!
//! | command | uses | module |
//! |---|---|---|
//! | `apply`, `get`, `delete` | the cluster store | [`apply`], [`get`], [`delete`] |
//! | `status` | this node's daemons and the store | [`status`] |
//! | `bgp peers`, `routes`, `received`, `advertised`, `refresh`, `reset` | this node's `routed` | [`bgp`] |
//! | `bgp reflector`, `bgp filter test` | the store | [`bgp`] |
//! | `policy trace`, `policy list`, `policy check` | this node's `policy-agent` | [`policy`] |
//! | `ipam show`, `ipam check`, `ipam release` | the store, and this node's `routed` | [`ipam`] |
//! | `node list`, `node release` | the store | [`node`] |
//! | `node drain`, `node undrain` | the store | [`drain`] |
//! | `topology` | the store | [`topology`] |
//! | `node install` | this node's files | [`install`] |
//!
//! A command returns what to print and how it went; nothing here ends the process but [`main`]. There is no
//! state: every call reads what it needs and decides from that.

mod apply;
mod args;
mod bgp;
mod cluster;
mod delete;
mod drain;
mod flannel;
mod get;
mod install;
mod ipam;
mod node;
mod objects;
mod outcome;
mod output;
mod policy;
mod references;
mod status;
mod table;
mod topology;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use podway_model::mistakes::EXIT_BAD_INPUT;

use args::{Args, BgpCommand, Command, FilterCommand, IpamCommand, NodeCommand, PolicyCommand};
use outcome::Failure;
use output::Output;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_BAD_INPUT) } else { ExitCode::SUCCESS };
        }
    };
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(run(&args)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough (`podwayctl get pods | head`).
        Err(Failure::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{failure}");
            ExitCode::from(failure.code())
        }
    }
}

async fn run(args: &Args) -> Result<(), Failure> {
    let output = Output::new(args.output);
    match &args.command {
        Command::Apply(command) => apply::run(&args.store, command, &output).await,
        Command::Get(command) => get::run(&args.store, command, &output).await,
        Command::Delete(command) => delete::run(&args.store, command, &output).await,
        Command::Status(command) => status::run(&args.store, command, &output).await,
        Command::Bgp(BgpCommand::Peers(command)) => bgp::peers(command, &output),
        Command::Bgp(BgpCommand::Routes(command)) => bgp::routes(command, &output),
        Command::Bgp(BgpCommand::Stations(command)) => bgp::stations::show(command, &output),
        Command::Bgp(BgpCommand::Received(command)) => bgp::paths::received(command, &output),
        Command::Bgp(BgpCommand::Advertised(command)) => bgp::paths::advertised(command, &output),
        Command::Bgp(BgpCommand::Refresh(command)) => bgp::paths::refresh(command, &output),
        Command::Bgp(BgpCommand::Reset(command)) => bgp::paths::reset(command, &output),
        Command::Bgp(BgpCommand::Reflector(command)) => {
            bgp::reflector::run(&args.store, command, &output).await
        }
        Command::Bgp(BgpCommand::Filter(FilterCommand::Test(command))) => {
            bgp::filter::test(&args.store, command, &output).await
        }
        Command::Policy(PolicyCommand::Trace(command)) => policy::trace(command, &output),
        Command::Policy(PolicyCommand::List(command)) => policy::list(command, &output),
        Command::Policy(PolicyCommand::Check(command)) => policy::check(command, &output),
        Command::Ipam(IpamCommand::Show) => ipam::show(&args.store, &output).await,
        Command::Ipam(IpamCommand::Check(command)) => ipam::check(&args.store, command, &output).await,
        Command::Ipam(IpamCommand::Release(command)) => ipam::release(&args.store, command, &output).await,
        Command::Node(NodeCommand::List) => node::list(&args.store, &output).await,
        Command::Node(NodeCommand::Release(command)) => node::release(&args.store, command, &output).await,
        Command::Node(NodeCommand::Drain(command)) => drain::drain(&args.store, command, &output).await,
        Command::Node(NodeCommand::Undrain(command)) => drain::undrain(&args.store, command, &output).await,
        Command::Topology(command) => topology::run(&args.store, command, &output).await,
        Command::Node(NodeCommand::Install(command)) => install::run(command, &output),
        Command::Version => output.version(),
    }
}
