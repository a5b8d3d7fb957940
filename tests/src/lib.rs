//! KubeXen's test bed: everything that tests, the demo and the benchmarks stand on.

pub mod bench;
pub mod control_plane;
pub mod demo;
pub mod lab;
pub mod memory_api;
pub mod pool;
pub mod process;
pub mod programs;
pub mod progress;
pub mod proxy;
pub mod scratch;
pub mod simulation;

/// A schedule of the simulation is millions of small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
