//! A real Xen.
