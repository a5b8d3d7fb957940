//! Benchmarks of whole pools: what KubeXen costs and how fast it is, always against what is possible without it.

mod bare;
pub mod command;
mod domain;
mod report;
mod storm;
mod watcher;
mod workload;

pub use domain::run as domain;
pub use report::{DomainReport, Latencies, StormReport, WritesByClient};
pub use storm::{Storm, run as storm};
