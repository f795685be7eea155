//! The trait through which a dataplane programs routes, for the kernel and for a stateful fake.
