//! Namespaces: make, pin, open, and run code or a process inside.
//!
//! A thread's namespaces belong to the thread. Code that must run elsewhere runs in a thread of its own that is
//! thrown away afterwards ([`in_netns`]), so a namespace never leaks into a thread pool.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;

use crate::KernelError;

const NO_SOURCE: Option<&str> = None;

/// An open network namespace. It lives at least as long as this handle.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

impl NetNs {
    /// Opens the namespace behind `path` (`/run/netns/x`, `/proc/<pid>/ns/net`).
    ///
    /// Refuses a path that is not a namespace: a leftover mount point is an ordinary empty file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, KernelError> {
        let path = path.as_ref();
        let attempted = || format!("open network namespace {}", path.display());
        let file = File::open(path).map_err(|e| KernelError::io(attempted(), e))?;
        let fs = nix::sys::statfs::fstatfs(&file).map_err(|e| KernelError::refused(attempted(), e))?;
        if fs.filesystem_type() != nix::sys::statfs::NSFS_MAGIC {
            return Err(KernelError::malformed(attempted(), "the path is not a namespace"));
        }
        if namespace_type(file.as_fd()).map_err(|e| KernelError::refused(attempted(), e))?
            != CloneFlags::CLONE_NEWNET
        {
            return Err(KernelError::malformed(attempted(), "the path is not a network namespace"));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// The calling thread's namespace.
    pub fn current() -> Result<Self, KernelError> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Makes a new namespace that nothing but this handle keeps alive.
    pub fn create() -> Result<Self, KernelError> {
        in_new_netns(Self::current).map_err(|e| KernelError::io("make a network namespace", e))?
    }

    /// Makes a new namespace and pins it to `path` by a bind mount; it lives until [`NetNs::unpin`].
    ///
    /// The path's folder must exist; the path itself must not, or be an empty file.
    pub fn create_pinned(path: impl AsRef<Path>) -> Result<Self, KernelError> {
        let path = path.as_ref();
        let attempted = || format!("pin a network namespace to {}", path.display());
        let made = Self::create()?;
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|e| KernelError::io(attempted(), e))?;
        let source = format!("/proc/self/fd/{}", made.file.as_raw_fd());
        mount(Some(source.as_str()), path, NO_SOURCE, MsFlags::MS_BIND, NO_SOURCE)
            .map_err(|e| KernelError::refused(attempted(), e))?;
        Ok(Self { file: made.file, path: path.to_owned() })
    }

    /// Takes away the pin of [`NetNs::create_pinned`], and its mount point. What is gone already is fine.
    pub fn unpin(path: impl AsRef<Path>) -> Result<(), KernelError> {
        let path = path.as_ref();
        let attempted = || format!("unpin network namespace {}", path.display());
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(e) => return Err(KernelError::refused(attempted(), e)),
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(KernelError::io(attempted(), e)),
            _ => Ok(()),
        }
    }

    /// Path under which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Identity: two handles name the same namespace exactly if these are equal (device, inode).
    pub fn identity(&self) -> Result<(u64, u64), KernelError> {
        let meta = self
            .file
            .metadata()
            .map_err(|e| KernelError::io(format!("stat network namespace {}", self.path.display()), e))?;
        Ok((meta.dev(), meta.ino()))
    }

    /// Runs `f` in this namespace, in the calling thread, which then goes back to `home`. Cheaper than a thread of
    /// its own; for one-shot programs with a single thread, which end where they cannot go back.
    pub fn visit<T>(&self, home: &Self, f: impl FnOnce() -> T) -> Result<T, KernelError> {
        let enter = |netns: &Self| {
            setns(&netns.file, CloneFlags::CLONE_NEWNET).map_err(|e| {
                KernelError::refused(format!("enter network namespace {}", netns.path.display()), e)
            })
        };
        enter(self)?;
        let result = f();
        enter(home)?;
        Ok(result)
    }

    /// Runs `f` in this namespace: see [`in_netns`].
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, KernelError> {
        in_netns(self, f)
            .map_err(|e| KernelError::io(format!("enter network namespace {}", self.path.display()), e))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Which kind of namespace an open namespace file is (`NS_GET_NSTYPE`, ioctl_ns(2)).
#[allow(unsafe_code, reason = "an ioctl")]
fn namespace_type(file: BorrowedFd<'_>) -> nix::Result<CloneFlags> {
    /// `_IO(NSIO, 0x3)` of `linux/nsfs.h`.
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument and touches no memory of ours; the descriptor is open.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    nix::errno::Errno::result(kind).map(CloneFlags::from_bits_retain)
}

/// Runs `f` in a short-lived thread that is in the network namespace `netns`. Sockets that `f` opens stay in it.
///
/// # Errors
/// The thread cannot be started or the namespace cannot be entered. A panic of `f` goes on in the caller.
pub fn in_netns<T: Send>(netns: impl AsFd, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    let netns = netns.as_fd();
    in_thread(move || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        Ok(f())
    })
}

/// Whether the calling process is in the machine's own process namespace, whose process 1 is a real init.
pub fn in_initial_pid_namespace() -> bool {
    /// `PROC_PID_INIT_INO` of `linux/proc_ns.h`.
    const INITIAL: &str = "pid:[4026531836]";
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|target| target.as_os_str() == INITIAL)
}

/// Runs `f` in a short-lived thread that is in a network namespace of its own.
pub fn in_new_netns<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    in_thread(move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(f())
    })
}

fn in_thread<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, f)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Gives the calling thread new namespaces: any of mount, network, UTS. New mount namespaces are made private,
/// so that no mount made in them is seen outside.
///
/// In a program with several threads only the calling one moves; a mount namespace needs a thread that shares
/// its file system attributes with nobody, so call this before any thread is started.
pub fn unshare(mount_ns: bool, net: bool, uts: bool) -> Result<(), KernelError> {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNS, mount_ns);
    flags.set(CloneFlags::CLONE_NEWNET, net);
    flags.set(CloneFlags::CLONE_NEWUTS, uts);
    nix::sched::unshare(flags).map_err(|e| KernelError::refused("make namespaces", e))?;
    if mount_ns {
        mount(NO_SOURCE, "/", NO_SOURCE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NO_SOURCE)
            .map_err(|e| KernelError::refused("make mounts private", e))?;
    }
    Ok(())
}

/// Namespaces that a process enters before it runs its program. Absent ones stay as the parent has them.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// Mount namespace.
    pub mnt: Option<OwnedFd>,
    /// Network namespace.
    pub net: Option<OwnedFd>,
    /// UTS namespace: the host name.
    pub uts: Option<OwnedFd>,
}

impl Namespaces {
    /// Mount, network and UTS namespace of a process.
    pub fn of_process(pid: u32) -> Result<Self, KernelError> {
        let open = |name: &str| {
            let path = format!("/proc/{pid}/ns/{name}");
            File::open(&path)
                .map(|file| Some(OwnedFd::from(file)))
                .map_err(|e| KernelError::io(format!("open {path}"), e))
        };
        Ok(Self { mnt: open("mnt")?, net: open("net")?, uts: open("uts")? })
    }

    /// Duplicates the handles.
    pub fn try_clone(&self) -> Result<Self, KernelError> {
        let dup = |fd: &Option<OwnedFd>| {
            fd.as_ref()
                .map(OwnedFd::try_clone)
                .transpose()
                .map_err(|e| KernelError::io("duplicate a namespace handle", e))
        };
        Ok(Self { mnt: dup(&self.mnt)?, net: dup(&self.net)?, uts: dup(&self.uts)? })
    }
}

/// What becomes of a child process when the thread that started it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnParentDeath {
    /// It is killed with SIGKILL (PR_SET_PDEATHSIG). "Parent" is the thread, not the process: start such a child
    /// from a thread that lives as long as it shall.
    Kill,
    /// It lives on.
    LiveOn,
}

/// A command that runs `program` inside `namespaces`. The program's path is looked up after entering them.
///
/// For tokio: `tokio::process::Command::from(command_in(...))`.
pub fn command_in(
    program: impl AsRef<std::ffi::OsStr>,
    namespaces: Namespaces,
    on_parent_death: OnParentDeath,
) -> Command {
    let mut command = Command::new(program);
    enter_namespaces(&mut command, namespaces, on_parent_death);
    command
}

/// Makes `command` enter `namespaces` before its program runs. The working directory becomes `/` of the mount
/// namespace, if there is one.
#[allow(unsafe_code, reason = "CommandExt::pre_exec is unsafe")]
pub fn enter_namespaces(command: &mut Command, namespaces: Namespaces, on_parent_death: OnParentDeath) {
    let parent = std::process::id();
    let hook = move || -> io::Result<()> {
        if on_parent_death == OnParentDeath::Kill {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the line above: then nobody would ever kill us.
            if nix::unistd::getppid().as_raw().unsigned_abs() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        // The mount namespace last: entering it changes the root folder, not the open handles.
        for (fd, kind) in [
            (&namespaces.uts, CloneFlags::CLONE_NEWUTS),
            (&namespaces.net, CloneFlags::CLONE_NEWNET),
            (&namespaces.mnt, CloneFlags::CLONE_NEWNS),
        ] {
            if let Some(fd) = fd {
                setns(fd, kind)?;
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The hook makes prctl, getppid and
    // setns system calls and compares numbers; it takes no lock and allocates nothing (an error is a bare errno).
    unsafe {
        command.pre_exec(hook);
    }
}
