//! The KubeXen controller: places virtual machines on Xen hosts and keeps their objects true.

pub mod placement;
