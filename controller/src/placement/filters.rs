//! The filters that do not depend on use: 1 to 8.

use super::{
    DiskNeed, Reason, Rejections, Request,
    condition::{Condition, Conditions, Selector, lacking},
    host_set::HostSet,
};
use kubexen_crds::FeatureSet;

/// Leaves in `left` the hosts that pass filters 1 to 8; counts the others.
pub(super) fn apply<'a>(
    conditions: &mut Conditions<'a>,
    left: &mut HostSet,
    request: &'a Request,
    rejections: &mut Rejections,
) {
    let mut require = |condition, reason: &dyn Fn() -> Reason| {
        rejections.add(left.intersect(conditions.met(condition)), reason);
    };
    require(Condition::InService, &|| Reason::InMaintenance);
    require(Condition::Ready, &|| Reason::NotReady);
    require(Condition::Schedulable, &|| Reason::NotSchedulable);
    apply_lasting(conditions, left, request, rejections);
}

/// Filters 4 to 8: the hosts that are of the kind that the guest needs, whatever state they are in.
pub(super) fn apply_lasting<'a>(
    conditions: &mut Conditions<'a>,
    left: &mut HostSet,
    request: &'a Request,
    rejections: &mut Rejections,
) {
    filter_host(conditions, left, request, rejections);
    if let Some(level) = &request.cpu_level {
        filter_features(conditions, left, request, level, rejections);
    }
    let mut require = |condition, reason: &dyn Fn() -> Reason| {
        rejections.add(left.intersect(conditions.met(condition)), reason);
    };
    if let Some(kernel) = &request.kernel {
        require(Condition::Kernel(kernel), &|| Reason::KernelMissing(kernel.clone()));
    }
    if request.boot_loader {
        let loader = Condition::BootLoader(request.boot);
        require(loader, &|| Reason::BootLoaderMissing(request.boot));
    }
    if let Some(firmware) = request.firmware {
        require(Condition::Firmware(firmware), &|| Reason::FirmwareMissing(firmware));
    }
    for disk in &request.disks {
        match disk {
            DiskNeed::On { disk, host } => {
                require(Condition::Host(host), &|| Reason::DiskElsewhere(disk.clone()));
            }
            DiskNeed::Shared { repository, location, storage, selector } => {
                require(Condition::Storage(location, storage, Selector(selector)), &|| {
                    Reason::RepositoryNotAttached(repository.clone())
                });
            }
            DiskNeed::New { repository, location, shared, size: _, selector } => {
                require(Condition::Location(location, *shared, Selector(selector)), &|| {
                    Reason::RepositoryNotAttached(repository.clone())
                });
            }
        }
    }
    for need in &request.images {
        require(Condition::Image(&need.location, &need.image, Selector(&need.selector)), &|| {
            Reason::ImageMissing(need.image.clone(), need.repository.clone())
        });
    }
    for need in &request.networks {
        require(Condition::Uplink(&need.uplink, Selector(&need.selector)), &|| {
            Reason::NetworkNotAttached(need.network.clone())
        });
    }
}

/// Filters 4 and 5, but for CPU features.
fn filter_host<'a>(
    conditions: &mut Conditions<'a>,
    left: &mut HostSet,
    request: &'a Request,
    rejections: &mut Rejections,
) {
    let mut require = |condition, reason: &dyn Fn() -> Reason| {
        rejections.add(left.intersect(conditions.met(condition)), reason);
    };
    require(Condition::Matches(Selector(&request.selector)), &|| Reason::SelectorMismatch);
    require(Condition::Mode(request.boot), &|| Reason::ModeNotOffered(request.boot));
    if request.moves {
        require(Condition::Receives(request.boot), &|| Reason::DoesNotReceive(request.boot));
        require(Condition::OnMigrationNetwork, &|| Reason::NotOnMigrationNetwork);
    }
}

/// Filter 5, CPU features. Hosts may lack different ones, so each is asked for its own.
fn filter_features<'a>(
    conditions: &mut Conditions<'a>,
    left: &mut HostSet,
    request: &'a Request,
    level: &'a FeatureSet,
    rejections: &mut Rejections,
) {
    let met = conditions.met(Condition::Features(request.boot, level)).clone();
    for host in left.iter().filter(|host| !met.contains(*host)) {
        let lacks = lacking(conditions.hosts()[host], request.boot, level);
        rejections.add(1, || Reason::CpuFeatureMissing(lacks.names().into_iter().next().unwrap_or_default()));
    }
    left.intersect(&met);
}
