//! The pod's network namespace, and sysctls that may not exist.

use podway_kern::KernelError;
use podway_kern::ns::NetNs;
use podway_kern::sysctl::Sysctl;

use crate::env::Target;
use crate::error::{CniError, Code};

/// Opens the namespace that the runtime names. Its own is refused, unless `CNI_NETNS_OVERRIDE` is set.
pub fn open(target: &Target) -> Result<NetNs, CniError> {
    let refuse = |e: &dyn std::fmt::Display| CniError::new(Code::Netns, format!("CNI_NETNS: {e}"));
    let netns = NetNs::open(&target.netns).map_err(|e| refuse(&e))?;
    let own = NetNs::current()?.identity()? == netns.identity()?;
    if own && !target.own_netns_allowed {
        return Err(refuse(&format_args!("{} is the plugin's own namespace", target.netns.display())));
    }
    Ok(netns)
}

/// Writes a sysctl. Where the kernel has no IPv6, its sysctls are missing, and that is fine.
pub fn write_sysctl(sysctl: &Sysctl, value: &str) -> Result<(), KernelError> {
    match sysctl.write(value) {
        Err(e) if e.is_missing() && sysctl.path().starts_with("/proc/sys/net/ipv6") => Ok(()),
        other => other,
    }
}
