//! BGP speakers of others, against which ours is tested: FRR, OpenBGPD and ExaBGP, each in a folder of its own, since
//! two of them bring a program `bgpd`. BIRD and GoBGP are among the ordinary tools.

use crate::complain;
use crate::tools::Tools;

/// Packages, and what belongs beside them.
const PACKAGES: [(&str, &[&str]); 3] = [("frr", &[]), ("openbgpd", &[]), ("exabgp", &["python3-exabgp"])];

impl Tools {
    /// Gets those that are missing. Without packages the tests that use them are skipped.
    pub(crate) fn prepare_speakers(&self) {
        for (package, beside) in PACKAGES {
            if let Err(error) = self.unpacked(package, beside) {
                complain(&format!("    {package}: {error:#}\n"));
            }
        }
    }
}
