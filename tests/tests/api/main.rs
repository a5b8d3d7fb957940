//! The suite of the Kubernetes API: what the real API server accepts, refuses, merges and grants.

mod control_plane;
mod fixture;
