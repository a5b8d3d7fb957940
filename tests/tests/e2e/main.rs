//! The end-to-end suite: the real controller and real agents with simulated hypervisors, on a real control plane.
//!
//! The tests of one machine's life share one pool, each in a namespace of its own. Those that do damage, and those that
//! count every write, have a pool and a control plane of their own.

mod boot;
mod cds;
mod changes;
mod cloud_init;
mod cpu_levels;
mod crashes;
mod fixpoint;
mod freeze;
mod guest_facts;
mod guests;
mod life;
mod maintenance;
mod migrations;
mod needs;
mod outages;
mod placement;
mod recovery;
mod reserve;
mod scene;
mod shared_storage;
mod silent_agents;
mod storage_faults;
mod store_faults;
mod storm;
mod suspension;
mod takeovers;
mod traces;
mod world;
