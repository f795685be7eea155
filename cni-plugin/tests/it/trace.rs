//! Runs the real binary under ptrace: counts its system calls, and kills it with -9 at the entry of the n-th.
//!
//! A shell stops itself, is seized, goes on and becomes the plugin; counting begins with the plugin's first system
//! call. What the plugin forks is not traced and lives on, as it does under a runtime.

use std::fs::File;
use std::io::Write as _;
use std::process::{Command, Stdio};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::host::{Call, Host};

/// How a traced run ended.
#[derive(Debug)]
pub(crate) struct Traced {
    /// Numbers of its system calls, in order.
    pub(crate) calls: Vec<i64>,
    /// Exit code; none: it was killed.
    pub(crate) code: Option<i32>,
    /// What it wrote.
    pub(crate) stdout: Option<Value>,
    /// Its largest resident set in KiB, as of its last system call.
    peak_rss: usize,
}

/// Runs a call to its end, or kills it at the entry of system call `kill_at` (counted from 1).
pub(crate) fn run(host: &Host, call: &Call<'_>, kill_at: Option<usize>) -> Traced {
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(call.stdin().as_bytes()).unwrap();
    std::io::Seek::rewind(&mut input).unwrap();
    let output = tempfile::NamedTempFile::new().unwrap();
    let plugin = call.command();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "kill -STOP $$; exec \"$0\""]).arg(plugin.get_program()).env_clear();
    shell.envs(plugin.get_envs().filter_map(|(key, value)| Some((key, value?))));
    shell.stdin(input).stdout(output.reopen().unwrap()).stderr(Stdio::null());
    let mut child = host.place.spawn(shell).unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert!(matches!(status, WaitStatus::Stopped(_, Signal::SIGSTOP)), "{status:?}");
    use ptrace::Options;
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).unwrap();
    kill(pid, Signal::SIGCONT).unwrap();
    let Followed { calls, code, peak_rss } = follow(pid, kill_at);
    // It was waited for already.
    let _ = child.wait();
    let text = std::io::read_to_string(File::open(output.path()).unwrap()).unwrap();
    Traced { calls, code, stdout: serde_json::from_str(&text).ok(), peak_rss }
}

#[derive(Default)]
struct Followed {
    calls: Vec<i64>,
    code: Option<i32>,
    peak_rss: usize,
}

fn follow(pid: Pid, kill_at: Option<usize>) -> Followed {
    let (mut calls, mut peak_rss) = (vec![], 0);
    // `None` until the shell has become the plugin; then whether the next stop is the entry of a system call.
    let mut entry: Option<bool> = None;
    loop {
        let resume = |signal: Option<Signal>| match entry {
            None => ptrace::cont(pid, signal),
            Some(_) => ptrace::syscall(pid, signal),
        };
        let resumed = match waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::Exited(_, code) => return Followed { calls, code: Some(code), peak_rss },
            WaitStatus::Signaled(..) => return Followed { calls, code: None, peak_rss },
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => {
                // Next is the end of execve itself.
                entry = Some(false);
                ptrace::syscall(pid, None)
            }
            WaitStatus::PtraceSyscall(_) => {
                let enters = entry.expect("system calls are asked for after exec only");
                if enters {
                    calls.push(number(pid));
                    if calls.last() == Some(&libc::SYS_exit_group) {
                        peak_rss = high_water(pid);
                    }
                }
                entry = Some(!enters);
                if enters && kill_at == Some(calls.len()) {
                    kill(pid, Signal::SIGKILL)
                } else {
                    ptrace::syscall(pid, None)
                }
            }
            WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(_, Signal::SIGTRAP | Signal::SIGSTOP) => {
                resume(None)
            }
            WaitStatus::Stopped(_, signal) => resume(Some(signal)),
            other => panic!("{other:?}"),
        };
        resumed.unwrap();
    }
}

/// Number of the system call at whose entry the process stands (proc(5), `/proc/<pid>/syscall`).
fn number(pid: Pid) -> i64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
    text.split(' ').next().unwrap().parse().unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// `VmHWM` of proc(5): the largest resident set so far, in KiB.
fn high_water(pid: Pid) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Largest resident set of a run in KiB.
pub(crate) fn peak_rss(host: &Host, call: &Call<'_>) -> usize {
    let whole = run(host, call, None);
    assert_eq!(whole.code, Some(0), "{:?}", whole.stdout);
    whole.peak_rss
}
