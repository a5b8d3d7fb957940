//! A model of a Xen host.
