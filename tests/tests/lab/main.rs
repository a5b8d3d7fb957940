//! The suite on real Xen: two hosts in the lab, an agent in each dom0, guests that boot a real kernel.

mod adoption;
mod bed;
mod boot;
mod cds;
mod changes;
mod conformance;
mod cpu_levels;
mod faults;
mod life;
mod lun;
mod lvm;
mod maintenance;
mod migrations;
mod recovery;
mod seeds;
mod stops;
mod suspension;
