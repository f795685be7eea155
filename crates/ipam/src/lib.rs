//! Address leases of one node: pure allocator and a thin, crash-safe io shell.
