//! Benchmarks of whole pools: what KubeXen costs and how fast it is, always against what is possible without it.

mod bare;
pub mod command;
mod domain;
mod evacuate;
mod failover;
mod heartbeat;
mod measure;
mod migrate;
mod migrate_report;
mod report;
mod reserve;
mod storm;
mod watcher;
mod workload;

pub use domain::run as domain;
pub use evacuate::{Evacuate, run as evacuate};
pub use migrate::run as migrate;
pub use migrate_report::{GuestMoves, MigrateReport};
pub use report::{DomainReport, EvacuateReport, Latencies, StormReport, WritesByClient};
pub use reserve::{PoolFigures, ReserveBench, ReserveReport, run as reserve};
pub use storm::{Storm, run as storm};
