//! What the kernel of this node shall hold: a pure function of its inputs.
