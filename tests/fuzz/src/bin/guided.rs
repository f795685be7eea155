//! The coverage-guided program: libFuzzer's `main` and options, and the target that `PODWAY_FUZZ_TARGET` names.
//! `cargo xtask fuzz` builds and runs it. Before it begins, it writes the target's seeds into the folder that
//! `PODWAY_FUZZ_SEEDS` names, if that is set.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fn chosen() -> fn(&[u8]) {
    let name = std::env::var("PODWAY_FUZZ_TARGET").unwrap_or_default();
    podway_fuzz::target(&name).expect("PODWAY_FUZZ_TARGET names a target")
}

fuzz_target!(
    init: {
        TARGET.get_or_init(chosen);
        if let Some(folder) = std::env::var_os("PODWAY_FUZZ_SEEDS") {
            let name = std::env::var("PODWAY_FUZZ_TARGET").unwrap_or_default();
            for (number, seed) in podway_fuzz::seeds::seeds(&name).iter().enumerate() {
                let path = std::path::Path::new(&folder).join(format!("seed-{number:02}"));
                std::fs::write(path, seed).expect("the folder of seeds can be written to");
            }
        }
    },
    |bytes: &[u8]| {
        if let Some(run) = TARGET.get() {
            run(bytes);
        }
    }
);
