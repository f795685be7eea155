//! The pod's network namespace, and sysctls that may not exist.

use std::os::fd::{AsFd, BorrowedFd};

use podway_kern::KernelError;
use podway_kern::ns::NetNs;
use podway_kern::sysctl::Sysctl;

use crate::env::Target;
use crate::error::{CniError, Code};

/// The pod's namespace and the plugin's own.
#[derive(Debug)]
pub struct PodNetNs {
    pod: NetNs,
    own: NetNs,
}

/// Opens the namespace that the runtime names. The plugin's own is refused, unless `CNI_NETNS_OVERRIDE` is set.
pub fn open(target: &Target) -> Result<PodNetNs, CniError> {
    let refuse = |e: &dyn std::fmt::Display| CniError::new(Code::Netns, format!("CNI_NETNS: {e}"));
    let pod = NetNs::open(&target.netns).map_err(|e| refuse(&e))?;
    let own = NetNs::current()?;
    if own.identity()? == pod.identity()? && !target.own_netns_allowed {
        return Err(refuse(&format_args!("{} is the plugin's own namespace", target.netns.display())));
    }
    Ok(PodNetNs { pod, own })
}

impl PodNetNs {
    /// Runs `f` in the pod's namespace.
    pub fn visit<T>(&self, f: impl FnOnce() -> Result<T, CniError>) -> Result<T, CniError> {
        self.pod.visit(&self.own, f)?
    }
}

impl AsFd for PodNetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pod.as_fd()
    }
}

/// Writes a sysctl. Where the kernel has no IPv6, its sysctls are missing, and that is fine.
pub fn write_sysctl(sysctl: &Sysctl, value: &str) -> Result<(), KernelError> {
    match sysctl.write(value) {
        Err(e) if e.is_missing() && sysctl.path().starts_with("/proc/sys/net/ipv6") => Ok(()),
        other => other,
    }
}
