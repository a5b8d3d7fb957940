//! Benchmarks of whole pools: what KubeXen costs and how fast it is, always against what is possible without it.

mod bare;
pub mod command;
mod report;
mod storm;
mod watcher;
mod workload;

pub use report::{Latencies, StormReport};
pub use storm::{Storm, run as storm};
