//! A place: a network, a mount and a UTS namespace, held by a thread.
//!
//! The holder thread starts the programs of the place, because a child asks to be killed when the *thread* that
//! started it ends (PR_SET_PDEATHSIG): when the lab's process dies, so does everything in all its places.
//! Short-lived code enters by [`Place::enter`] in a thread of its own.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};
use podway_kern::ns::{self, Namespaces, NetNs, OnParentDeath};

type Job = Box<dyn FnOnce() + Send>;

/// A network, a mount and a UTS namespace.
#[derive(Debug)]
pub struct Place {
    name: String,
    tid: i32,
    net: NetNs,
    mnt: OwnedFd,
    uts: OwnedFd,
    /// Closed first on drop, so that the holder thread ends.
    jobs: Option<mpsc::Sender<Job>>,
    holder: Option<JoinHandle<()>>,
}

impl Place {
    /// Makes one; its host name is `name`, its mounts are private to it, and its loopback is up.
    pub fn new(name: &str) -> Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, made) = mpsc::channel();
        let hostname = name.to_owned();
        let holder = std::thread::Builder::new().name(format!("place-{name}")).spawn(move || {
            let start = || -> Result<(i32, NetNs, OwnedFd, OwnedFd)> {
                ns::unshare(true, true, true)?;
                nix::unistd::sethostname(&hostname).context("set the host name")?;
                let open = |kind: &str| File::open(format!("/proc/thread-self/ns/{kind}")).map(OwnedFd::from);
                Ok((nix::unistd::gettid().as_raw(), NetNs::current()?, open("mnt")?, open("uts")?))
            };
            let started = start();
            let failed = started.is_err();
            if ready.send(started).is_err() || failed {
                return;
            }
            while let Ok(job) = inbox.recv() {
                job();
            }
        })?;
        let (tid, net, mnt, uts) = made
            .recv()
            .context("the holder thread ended early")?
            .with_context(|| format!("make the namespaces of {name}"))?;
        let place =
            Self { name: name.to_owned(), tid, net, mnt, uts, jobs: Some(jobs), holder: Some(holder) };
        place.ip("link set lo up")?;
        Ok(place)
    }

    /// Its name, which is also its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Thread id of the holder: `nsenter -t <tid> -n -m -u` steps inside.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Its network namespace.
    pub fn net(&self) -> &NetNs {
        &self.net
    }

    /// Path of its network namespace, for programs that take one.
    pub fn net_path(&self) -> String {
        format!("/proc/{}/ns/net", self.tid)
    }

    /// Runs `f` in a short-lived thread inside all three namespaces.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let joined = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name(format!("in-{}", self.name))
                .spawn_scoped(scope, || -> nix::Result<T> {
                    // A thread that shares its root folder with others may not change its mount namespace.
                    nix::sched::unshare(CloneFlags::CLONE_FS)?;
                    setns(self.mnt.as_fd(), CloneFlags::CLONE_NEWNS)?;
                    setns(self.uts.as_fd(), CloneFlags::CLONE_NEWUTS)?;
                    setns(self.net.as_fd(), CloneFlags::CLONE_NEWNET)?;
                    Ok(f())
                })
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        joined?.with_context(|| format!("enter the namespaces of {}", self.name))
    }

    /// Runs `f` in the holder thread itself and waits for it.
    fn on_holder<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (send, receive) = mpsc::channel();
        let jobs = self.jobs.as_ref().context("the place is closed")?;
        let job: Job = Box::new(move || {
            // The caller waits for the answer; it cannot be gone.
            let _ = send.send(f());
        });
        jobs.send(job).ok().with_context(|| format!("the holder of {} is gone", self.name))?;
        receive.recv().with_context(|| format!("the holder of {} is gone", self.name))
    }

    /// Starts a program inside; it is killed with SIGKILL when the lab ends, however it ends.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        let what = command.get_program().to_string_lossy().into_owned();
        // The child inherits the holder's namespaces; only the death signal is asked for.
        ns::enter_namespaces(&mut command, Namespaces::default(), OnParentDeath::Kill);
        self.on_holder(move || command.spawn())?.with_context(|| format!("start {what} in {}", self.name))
    }

    /// Runs a program inside to its end and returns what it wrote. `stdin` is fed to it.
    pub fn output(&self, mut command: Command, stdin: &[u8]) -> Result<Output> {
        use std::io::Write as _;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(command)?;
        let mut pipe = child.stdin.take().context("stdin was piped")?;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // A program that does not read its input closes the pipe: its answer says why.
                let _ = pipe.write_all(stdin);
            });
            child.wait_with_output().with_context(|| format!("wait for a program in {}", self.name))
        })
    }

    /// Runs a program inside and returns its standard output; an exit code other than 0 is an error that
    /// carries what it said.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(args);
        let output = self.output(command, b"")?;
        if !output.status.success() {
            let args: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
            bail!(
                "{}: {program} {}: {}: {}",
                self.name,
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `ip` commands inside, one per line.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]);
        let output = self.output(command, lines.as_bytes())?;
        if !output.status.success() {
            bail!("{}: ip: {}: in\n{lines}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// What `ip -j <args>` lists.
    pub fn ip_json(&self, args: &[&str]) -> Result<Vec<serde_json::Value>> {
        let args: Vec<&str> = ["-d", "-j"].iter().chain(args).copied().collect();
        let text = self.run("ip", &args)?;
        if text.trim().is_empty() {
            return Ok(vec![]);
        }
        let rows: Vec<serde_json::Value> =
            serde_json::from_str(&text).with_context(|| format!("output of ip {args:?}"))?;
        // `ip` writes an empty object for what a filter left out.
        Ok(rows.into_iter().filter(|row| row.as_object().is_some_and(|o| !o.is_empty())).collect())
    }

    /// Writes a setting below `/proc/sys`, as seen inside.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.net
            .run(|| std::fs::write(&path, value))?
            .with_context(|| format!("{}: set {name} to {value}", self.name))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(holder) = self.holder.take() {
            // It only waits for jobs; a panic in one was reported to the caller already.
            let _ = holder.join();
        }
    }
}
