//! What must hold of every hypervisor when domains change while their guests run.

use super::{
    Bench, Case, DomainConfig, POLL, Stop, Verdict,
    cases::{cases, check},
};
use crate::hypervisor::{
    BootType, CdConfig, Change, DomainState, Hypervisor, HypervisorError, Link, Scheduling, Settings,
};
use futures::FutureExt;
use kubexen_crds::Firmware;
use std::{io, path::PathBuf, time::Duration};
use tokio::time::Instant;

cases![
    a_domain_is_built_with_the_settings_that_were_asked_for,
    a_guest_runs_on_more_vcpus_and_on_fewer,
    weight_and_cap_are_set_and_read_back,
    a_guest_gives_memory_back_and_takes_it_again,
    a_domain_never_gets_more_than_it_was_built_for,
    a_disk_is_attached_and_given_back,
    a_guest_that_stands_still_keeps_its_disk,
    what_is_in_an_emulated_cd_drive_is_changed_and_ejected,
    an_interface_is_added_limited_and_removed,
];

/// How long a guest may take to follow.
async fn settles(
    bench: &Bench,
    config: &DomainConfig,
    what: &str,
    so: impl Fn(&Settings) -> bool,
) -> Verdict {
    let deadline = Instant::now() + bench.patience;
    loop {
        let settings = bench.hypervisor.settings(config.uuid).await?;
        if so(&settings) {
            return Ok(());
        }
        check!(Instant::now() < deadline, "{what}: {settings:?}");
        tokio::time::sleep(POLL).await;
    }
}

/// What Xen counts beside what the guest was asked to hold, and what a balloon driver rounds.
fn is_near(held: u64, wanted: u64) -> bool {
    held.abs_diff(wanted) <= wanted / 64 + 8 * 1024
}

async fn a_domain_is_built_with_the_settings_that_were_asked_for(bench: &Bench) -> Verdict {
    let mut config = bench.guest("");
    (config.max_vcpus, config.vcpus) = (2, 1);
    config.max_memory_kib = config.memory_kib * 3 / 2;
    config.scheduling = Scheduling { weight: 512, cap_percent: 50 };
    (config.disks, config.interfaces) = bench.guests.devices();
    for interface in &mut config.interfaces {
        interface.rate_limit = Some(10 << 20);
    }
    bench.hypervisor.create(&config).await?;
    check!(bench.seen(config.uuid).await?.vcpus == 2, "built for other than two vCPUs");
    let settings = bench.hypervisor.settings(config.uuid).await?;
    check!(settings.vcpus == 1, "{settings:?}");
    check!(settings.scheduling == Some(config.scheduling), "{settings:?}");
    check!(settings.memory_target_kib == config.memory_kib, "{settings:?} for {}", config.memory_kib);
    check!(is_near(settings.memory_kib, config.memory_kib), "{settings:?} for {}", config.memory_kib);
    check!(settings.interfaces == config.interfaces, "{settings:?} for {:?}", config.interfaces);
    let disks: Vec<_> = settings.disks.iter().map(|disk| (disk.target.as_str(), disk.link)).collect();
    let wanted: Vec<_> = config.disks.iter().map(|disk| (disk.target.as_str(), Link::Attached)).collect();
    check!(disks == wanted, "{settings:?}");
    Ok(())
}

async fn a_guest_runs_on_more_vcpus_and_on_fewer(bench: &Bench) -> Verdict {
    let mut config = bench.guest("");
    config.max_vcpus = 2;
    bench.start(&config).await?;
    bench.speaks(config.uuid).await?;
    settles(bench, &config, "it starts on one", |settings| settings.vcpus_online == 1).await?;
    for vcpus in [2, 1, 2] {
        bench.hypervisor.change(config.uuid, &Change::Vcpus(vcpus)).await?;
        bench.hypervisor.change(config.uuid, &Change::Vcpus(vcpus)).await?;
        settles(bench, &config, "it follows", |settings| {
            (settings.vcpus, settings.vcpus_online) == (vcpus, vcpus)
        })
        .await?;
    }
    Ok(())
}

async fn weight_and_cap_are_set_and_read_back(bench: &Bench) -> Verdict {
    let config = bench.guest("");
    bench.start(&config).await?;
    let before = bench.hypervisor.settings(config.uuid).await?.scheduling;
    check!(before == Some(Scheduling::default()), "{before:?}");
    let wanted = Scheduling { weight: 1024, cap_percent: 75 };
    bench.hypervisor.change(config.uuid, &Change::Scheduling(wanted)).await?;
    let after = bench.hypervisor.settings(config.uuid).await?.scheduling;
    check!(after == Some(wanted), "{after:?}");
    Ok(())
}

async fn a_guest_gives_memory_back_and_takes_it_again(bench: &Bench) -> Verdict {
    let mut config = bench.guest("");
    let full = config.memory_kib;
    config.max_memory_kib = full * 5 / 4;
    bench.start(&config).await?;
    bench.speaks(config.uuid).await?;
    for wanted in [full * 7 / 8, full * 5 / 4, full] {
        bench.hypervisor.change(config.uuid, &Change::Memory(wanted)).await?;
        settles(bench, &config, "it follows", |settings| {
            settings.memory_target_kib == wanted && is_near(settings.memory_kib, wanted)
        })
        .await?;
    }
    bench.reaches(config.uuid, DomainState::Running).await
}

async fn a_domain_never_gets_more_than_it_was_built_for(bench: &Bench) -> Verdict {
    let config = bench.guest("");
    bench.start(&config).await?;
    for change in [Change::Vcpus(2), Change::Memory(config.memory_kib * 2)] {
        let result = bench.hypervisor.change(config.uuid, &change).await;
        check!(matches!(result, Err(HypervisorError::Refused { .. })), "{change:?}: {result:?}");
    }
    let settings = bench.hypervisor.settings(config.uuid).await?;
    check!((settings.vcpus, settings.memory_target_kib) == (1, config.memory_kib), "{settings:?}");
    Ok(())
}

async fn a_disk_is_attached_and_given_back(bench: &Bench) -> Verdict {
    let Some(disk) = bench.guests.devices().0.pop() else {
        return Err(Stop::Skip("no disk to give to a guest"));
    };
    let config = bench.guest("");
    bench.start(&config).await?;
    bench.speaks(config.uuid).await?;
    for _ in 0..2 {
        bench.hypervisor.change(config.uuid, &Change::AttachDisk(disk.clone())).await?;
        let disks = bench.hypervisor.settings(config.uuid).await?.disks;
        check!(disks.len() == 1 && disks[0].target == disk.target, "{disks:?}");
        detaches(bench, &config, &disk.target).await?;
        bench.hypervisor.change(config.uuid, &Change::DetachDisk(disk.target.clone())).await?;
    }
    Ok(())
}

/// Asks again until the guest has let go: it may not even have taken the disk yet.
async fn detaches(bench: &Bench, config: &DomainConfig, target: &str) -> Verdict {
    let deadline = Instant::now() + bench.patience;
    loop {
        bench.hypervisor.change(config.uuid, &Change::DetachDisk(target.to_owned())).await?;
        let disks = bench.hypervisor.settings(config.uuid).await?.disks;
        if disks.is_empty() {
            return Ok(());
        }
        check!(Instant::now() < deadline, "it is not given back: {disks:?}");
        tokio::time::sleep(POLL).await;
    }
}

async fn a_guest_that_stands_still_keeps_its_disk(bench: &Bench) -> Verdict {
    let (disks, _) = bench.guests.devices();
    let Some(target) = disks.first().map(|disk| disk.target.clone()) else {
        return Err(Stop::Skip("no disk to give to a guest"));
    };
    let mut config = bench.guest("");
    config.disks = disks;
    bench.start(&config).await?;
    bench.speaks(config.uuid).await?;
    // It has the disk a moment after it speaks.
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.hypervisor.pause(config.uuid).await?;
    bench.hypervisor.change(config.uuid, &Change::DetachDisk(target.clone())).await?;
    let link = |settings: &Settings| settings.disks.first().map(|disk| disk.link);
    settles(bench, &config, "it was asked", |settings| link(settings) == Some(Link::Closing)).await?;
    bench.hypervisor.change(config.uuid, &Change::KeepDisk(target.clone())).await?;
    settles(bench, &config, "it keeps it", |settings| link(settings) == Some(Link::Attached)).await?;
    bench.hypervisor.unpause(config.uuid).await?;
    bench.reaches(config.uuid, DomainState::Running).await?;
    detaches(bench, &config, &target).await
}

async fn what_is_in_an_emulated_cd_drive_is_changed_and_ejected(bench: &Bench) -> Verdict {
    if !bench.hypervisor.facts().await?.firmware.contains(&Firmware::Bios) {
        return Err(Stop::Skip("no HVM guests on this host"));
    }
    let folder = &bench.guests.folder;
    let file = |name: &str| -> io::Result<PathBuf> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join(name);
        std::fs::write(&path, [0; 4096])?;
        Ok(path)
    };
    let image = |name: &str| file(name).map_err(|error| Stop::Fail(format!("{}: {error}", folder.display())));
    let (one, two) = (image("one.iso")?, image("two.iso")?);
    let drive =
        |target: &str, image: Option<&PathBuf>| CdConfig { target: target.to_owned(), image: image.cloned() };
    let mut config = bench.guest("");
    (config.boot, config.firmware, config.kernel) = (BootType::Hvm, Some(Firmware::Bios), None);
    config.cds = vec![drive("hdc", None), drive("hdd", Some(&one))];
    bench.hypervisor.create(&config).await?;
    let present = bench.hypervisor.settings(config.uuid).await?.cds;
    check!(present == config.cds, "{present:?}");
    for image in [Some(&two), None, None, Some(&one), Some(&one)] {
        bench.hypervisor.change(config.uuid, &Change::Cd(drive("hdd", image))).await?;
        let present = bench.hypervisor.settings(config.uuid).await?.cds;
        check!(present == [drive("hdc", None), drive("hdd", image)], "{present:?} for {image:?}");
    }
    let none = bench.hypervisor.change(config.uuid, &Change::Cd(drive("hdb", None))).await;
    check!(matches!(none, Err(HypervisorError::Refused { .. })), "{none:?}");
    bench.hypervisor.unpause(config.uuid).await?;
    bench.reaches(config.uuid, DomainState::Running).await
}

async fn an_interface_is_added_limited_and_removed(bench: &Bench) -> Verdict {
    let Some(interface) = bench.guests.devices().1.pop() else {
        return Err(Stop::Skip("no bridge to plug a guest into"));
    };
    let config = bench.guest("");
    bench.start(&config).await?;
    bench.speaks(config.uuid).await?;
    let hypervisor: &dyn Hypervisor = &*bench.hypervisor;
    hypervisor.change(config.uuid, &Change::AttachInterface(interface.clone())).await?;
    let present = hypervisor.settings(config.uuid).await?.interfaces;
    check!(present == [interface.clone()], "{present:?}");
    let moved = Change::MoveInterface { index: 0, bridge: interface.bridge.clone() };
    hypervisor.change(config.uuid, &moved).await?;
    for rate_limit in [Some(2_000_000), Some(10_000_000), None] {
        hypervisor.change(config.uuid, &Change::LimitInterface { index: 0, rate_limit }).await?;
        let present = hypervisor.settings(config.uuid).await?.interfaces;
        check!(present.iter().all(|one| one.rate_limit == rate_limit), "{present:?}");
    }
    hypervisor.change(config.uuid, &Change::DetachInterface(0)).await?;
    let left = hypervisor.settings(config.uuid).await?.interfaces;
    check!(left.is_empty(), "{left:?}");
    Ok(())
}
