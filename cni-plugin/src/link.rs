//! Veth pairs that carry the first packet: what the kernel does by itself after they are made, and when.

use std::time::{Duration, Instant};

use podway_kern::rtnl::{Link, Request, Rtnl};
use podway_kern::{Errno, KernelError, MissingIsFine as _};

use crate::error::{CniError, Code};

/// Index for a pod's end where the kernel's choice would equal the node's end's: far from what it counts up to.
const OTHER_INDEX: u32 = 0x7000_0000;
/// Interfaces of one pod that may have such an index, at least.
const OTHER_INDEX_ATTEMPTS: u32 = 8;

/// The node's end of a pair whose ends have different indexes: `link`, or the one of a pair that `create` makes anew
/// with indexes for the node's end and the pod's.
///
/// Equal indexes at both ends make the kernel take the pair for something stacked on nothing, and hold its carrier event
/// back for up to a second (linkwatch_urgent_event): the first packets would be lost. Both ends count up, so the next
/// pair would have equal ones again. The kernel takes the pod's index from us only if it gets the node's, too: that one
/// is free once the pair is deleted.
pub(crate) fn with_other_index(
    rtnl: &mut Rtnl,
    link: Link,
    mut create: impl FnMut(&mut Rtnl, Option<(u32, u32)>) -> Result<Link, KernelError>,
) -> Result<Link, CniError> {
    if link.link != Some(link.index) {
        return Ok(link);
    }
    // Not handed over to a child: the index is to be used again, and nobody may delete it later.
    rtnl.run(Request::DeleteLink(link.index.into())).missing_is_fine()?;
    for attempt in 0..OTHER_INDEX_ATTEMPTS {
        match create(rtnl, Some((link.index, OTHER_INDEX + attempt))) {
            // Somebody has one of them.
            Err(e) if e.is_exists() || e.errno() == Some(Errno::EBUSY) => {}
            other => return Ok(other?),
        }
    }
    Ok(create(rtnl, None)?)
}

/// The pod's end came up second: the kernel made it ready to send at once, and left the node's end, which has been up
/// without a carrier, to its link watch, which works at its leisure; until then what the node sends to the pod is
/// dropped. Asking for a link has the kernel do it now (since Linux 6.8; before that, asking again waits for it).
pub(crate) fn wait_for_carrier(rtnl: &mut Rtnl, link: &Link) -> Result<(), CniError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let look = || Ok(rtnl.link(link.index)?.is_some_and(|now| now.operational));
    if wait_for(PATIENCE, look)? {
        return Ok(());
    }
    Err(CniError::new(Code::Kernel, format!("{}: has no carrier after {} s", link.name, PATIENCE.as_secs())))
}

/// Waits for what the kernel does by itself in a moment, and says whether it did. The first look is nearly always
/// enough.
pub(crate) fn wait_for(
    patience: Duration,
    mut look: impl FnMut() -> Result<bool, KernelError>,
) -> Result<bool, KernelError> {
    const PAUSE: Duration = Duration::from_micros(200);
    let deadline = Instant::now() + patience;
    while !look()? {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(true)
}
