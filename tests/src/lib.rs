//! Integration suites live in the folders beside this file.
