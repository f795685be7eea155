//! What changes in the kernel, as an async stream.
