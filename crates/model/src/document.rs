//! Operator documents (YAML or JSON) in, typed objects out, or every mistake at once.
