//! The KubeXen controller: turns what users want into what each host is to run, and says how it goes.
//!
//! ```text
//!                 ┌────────────────────────── View: a mirror of every kind, and who refers to whom
//!                 │ what changed, and whom that concerns (watched)
//!                 ▼
//!   API server   queues ─▶ one look per object: observe → decide → apply → status
//!       ▲                    virtual_machine · migration · virtual_disk · network · storage_repository · host · pool
//!       │                         │ ▲
//!       │                     ask │ │ assigned, or rejected with the reason counted
//!       │                         ▼ │
//!       │                     scheduler ─▶ placement (pure)
//!       │   pool store ─▶ recovery: which hosts are dead, and whose turn it is to be started elsewhere
//!       └── every write: only while this process leads (lease), only what differs, guarded by uid or version
//! ```
//!
//! # How it is put together
//! `decide` of every kind is pure, total and synchronous, and what it returns is data: the whole policy can be read and
//! tested without a cluster. A look takes no input but its object's name: what decides is the present state, so a
//! restart, a change of leader and the normal course are one path.
//!
//! # Guarantees
//! - A controller that does not lead writes nothing.
//! - At the fixpoint nothing is written.
//! - What a user wrote in a spec is never changed; what is allocated stands in status.
//! - An object that cannot be decoded is left alone and stops no other.
//!
//! # One future
//! [`run`] is one future that spawns nothing. Time comes from `tokio::time` and from the [`Clock`](kubexen_runtime::Clock)
//! it is given, the cluster from the client it is given, and there is no randomness: under paused time, against an API
//! server in memory, it does the same thing every time.

mod attachment;
mod context;
mod error;
mod evacuation;
pub mod host;
pub mod lease;
mod metrics;
mod migration;
mod network;
mod orphan;
pub mod placement;
mod pool;
pub mod program;
mod recovery;
mod relation;
mod run;
#[cfg(test)]
mod samples;
mod scheduler;
mod storage_repository;
mod view;
mod virtual_disk;
mod virtual_machine;
mod watched;

pub use metrics::Metrics;
pub use recovery::PoolStore;
pub use run::{Dependencies, LEASE, Options, run};
pub use scheduler::Rehearsal;
