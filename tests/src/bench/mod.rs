//! Benchmarks of whole pools: what KubeXen costs and how fast it is, always against what is possible without it.

mod bare;
pub mod command;
mod domain;
mod evacuate;
mod measure;
mod report;
mod storm;
mod watcher;
mod workload;

pub use domain::run as domain;
pub use evacuate::{Evacuate, run as evacuate};
pub use report::{DomainReport, EvacuateReport, Latencies, StormReport, WritesByClient};
pub use storm::{Storm, run as storm};
