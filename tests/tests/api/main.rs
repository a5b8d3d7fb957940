//! The suite of the Kubernetes API: what the real API server accepts, refuses, merges and grants.

mod agent_access;
mod chart;
mod control_plane;
mod explain;
mod fixture;
mod installed;
mod memory_api;
mod merge;
mod rules;
