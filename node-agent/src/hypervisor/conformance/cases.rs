//! What must hold of every hypervisor, one function each.

use super::{Bench, Case, POLL, Stop, Verdict};
use crate::hypervisor::{BootType, Change, DomainState, HypervisorError, KernelImage, SuspendMode};
use futures::{FutureExt, future::try_join_all};
use kubexen_crds::{Firmware, domain::StopReason};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

/// Fails the case with a text unless the condition holds.
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(Stop::Fail(format!($($text)+)));
        }
    };
}

/// The table of cases from the names of their functions.
macro_rules! cases {
    ($($name:ident),+ $(,)?) => {
        pub(in crate::hypervisor::conformance) static CASES: &[Case] = &[$(Case { name: stringify!($name), run: |bench| $name(bench).boxed() }),+];
    };
}

pub(super) use {cases, check};

cases![
    facts_name_the_host_and_stay,
    a_created_domain_is_whole_paused_and_found_by_its_uuid,
    domains_are_listed_sorted_by_uuid,
    a_uuid_is_taken_once,
    one_of_two_concurrent_creates_of_a_uuid_wins,
    pausing_and_unpausing_twice_is_as_once,
    a_guest_that_powers_off_is_seen_so_and_stays_until_destroyed,
    a_guest_that_reboots_is_seen_so,
    a_guest_that_crashes_is_seen_so,
    a_willing_guest_powers_off_when_asked,
    what_a_guest_writes_is_kept_until_it_is_destroyed,
    a_running_domain_is_destroyed_and_its_memory_given_back,
    destroying_what_is_not_there_succeeds,
    a_uuid_can_be_used_again_after_destroy,
    other_calls_on_an_unknown_uuid_say_so,
    a_domain_that_does_not_fit_is_refused_for_memory_and_leaves_nothing,
    a_refused_domain_leaves_nothing,
    a_create_that_nobody_waits_for_is_undone_by_destroy,
    changes_are_told_when_a_domain_comes_stops_and_goes,
    a_guest_with_a_disk_and_an_interface_starts,
    a_guest_with_emulated_devices_starts_and_leaves_nothing,
    a_paravirtualised_guest_starts,
    a_guest_without_a_kernel_is_started_by_the_boot_loader_for_its_mode,
    a_guest_starts_with_the_firmware_that_it_wants,
];

async fn facts_name_the_host_and_stay(bench: &Bench) -> Verdict {
    let facts = bench.hypervisor.facts().await?;
    check!(!facts.boot_id.is_empty(), "no boot id");
    check!(facts.xen_version.split('.').count() >= 2, "version {:?}", facts.xen_version);
    check!(facts.cpus >= 1 && facts.sockets >= 1, "no CPUs: {facts:?}");
    check!(facts.cores_per_socket >= 1 && facts.threads_per_core >= 1, "no cores: {facts:?}");
    check!(!facts.cpu_model.is_empty(), "no CPU model");
    check!(facts.capabilities.is_sorted() && !facts.capabilities.is_empty(), "{:?}", facts.capabilities);
    check!(facts.cpu_features.is_sorted() && !facts.cpu_features.is_empty(), "{:?}", facts.cpu_features);
    check!(facts.cpu_feature_sets.hvm.is_some(), "no CPU features of guests: {facts:?}");
    let free = bench.hypervisor.free_memory_kib().await?;
    check!(free > 0 && free < facts.memory_total_kib, "{free} of {} KiB free", facts.memory_total_kib);
    check!(bench.hypervisor.facts().await? == facts, "facts changed within a boot");
    Ok(())
}

async fn a_created_domain_is_whole_paused_and_found_by_its_uuid(bench: &Bench) -> Verdict {
    let config = bench.guest("");
    let domid = bench.hypervisor.create(&config).await?;
    let info = bench.seen(config.uuid).await?;
    check!(info.domid == domid, "created as {domid}, found as {}", info.domid);
    check!(info.state == DomainState::Paused, "state {:?}", info.state);
    check!(info.token == Some(config.token), "token {:?}", info.token);
    check!(info.vcpus == config.vcpus, "{} vCPUs", info.vcpus);
    let expected = config.memory_kib * 9 / 10..=config.memory_kib * 6 / 5;
    check!(expected.contains(&info.memory_kib), "{} KiB for {}", info.memory_kib, config.memory_kib);
    let listed = bench.hypervisor.domains().await?;
    check!(listed.iter().any(|other| other.uuid == config.uuid), "found, but not listed");
    Ok(())
}

async fn domains_are_listed_sorted_by_uuid(bench: &Bench) -> Verdict {
    let configs = [bench.guest(""), bench.guest(""), bench.guest("")];
    let domids = try_join_all(configs.iter().map(|config| bench.hypervisor.create(config))).await?;
    let listed = bench.hypervisor.domains().await?;
    check!(listed.is_sorted_by_key(|info| info.uuid), "not sorted: {listed:?}");
    for (config, domid) in configs.iter().zip(&domids) {
        let found = listed.iter().find(|info| info.uuid == config.uuid).map(|info| info.domid);
        check!(found == Some(*domid), "{} is {domid}, listed as {found:?}", config.uuid);
    }
    Ok(())
}

async fn a_uuid_is_taken_once(bench: &Bench) -> Verdict {
    let config = bench.guest("");
    let first = bench.hypervisor.create(&config).await?;
    let second = bench.hypervisor.create(&config).await;
    check!(
        matches!(second, Err(HypervisorError::AlreadyExists(uuid)) if uuid == config.uuid),
        "the second create: {second:?}"
    );
    let info = bench.seen(config.uuid).await?;
    check!(info.domid == first && info.state == DomainState::Paused, "the first was touched: {info:?}");
    Ok(())
}

async fn one_of_two_concurrent_creates_of_a_uuid_wins(bench: &Bench) -> Verdict {
    let config = bench.guest("");
    let (one, two) = futures::join!(bench.hypervisor.create(&config), bench.hypervisor.create(&config));
    let refused = |result| matches!(result, &Err(HypervisorError::AlreadyExists(_)));
    check!((one.is_ok() && refused(&two)) || (two.is_ok() && refused(&one)), "{one:?} and {two:?}");
    check!(bench.seen(config.uuid).await?.token == Some(config.token), "the winner's domain is not whole");
    Ok(())
}

async fn pausing_and_unpausing_twice_is_as_once(bench: &Bench) -> Verdict {
    let config = bench.guest("");
    bench.start(&config).await?;
    bench.hypervisor.unpause(config.uuid).await?;
    bench.reaches(config.uuid, DomainState::Running).await?;
    bench.hypervisor.pause(config.uuid).await?;
    bench.hypervisor.pause(config.uuid).await?;
    bench.reaches(config.uuid, DomainState::Paused).await?;
    bench.hypervisor.unpause(config.uuid).await?;
    bench.reaches(config.uuid, DomainState::Running).await
}

async fn a_guest_that_powers_off_is_seen_so_and_stays_until_destroyed(bench: &Bench) -> Verdict {
    let config = bench.guest("kubexen.exit=poweroff kubexen.exit-after=1");
    bench.start(&config).await?;
    bench.reaches(config.uuid, DomainState::Shutdown(StopReason::Poweroff)).await?;
    check!(bench.seen(config.uuid).await?.token == Some(config.token), "the token went with the guest");
    bench.hypervisor.destroy(config.uuid).await?;
    check!(bench.hypervisor.find(config.uuid).await?.is_none(), "still there after destroy");
    Ok(())
}

async fn a_guest_that_reboots_is_seen_so(bench: &Bench) -> Verdict {
    let config = bench.guest("kubexen.exit=reboot kubexen.exit-after=1");
    bench.start(&config).await?;
    bench.reaches(config.uuid, DomainState::Shutdown(StopReason::Reboot)).await
}

async fn a_guest_that_crashes_is_seen_so(bench: &Bench) -> Verdict {
    let config = bench.guest("kubexen.exit=crash kubexen.exit-after=1");
    bench.start(&config).await?;
    bench.reaches(config.uuid, DomainState::Shutdown(StopReason::Crash)).await
}

async fn a_willing_guest_powers_off_when_asked(bench: &Bench) -> Verdict {
    let config = bench.guest("");
    bench.start(&config).await?;
    bench.speaks(config.uuid).await?;
    bench.hypervisor.request_shutdown(config.uuid).await?;
    bench.reaches(config.uuid, DomainState::Shutdown(StopReason::Poweroff)).await
}

async fn what_a_guest_writes_is_kept_until_it_is_destroyed(bench: &Bench) -> Verdict {
    let config = bench.guest("kubexen.exit=poweroff kubexen.exit-after=1");
    bench.hypervisor.create(&config).await?;
    check!(bench.hypervisor.console(config.uuid).await?.is_empty(), "it spoke before it ran");
    bench.hypervisor.unpause(config.uuid).await?;
    bench.reaches(config.uuid, DomainState::Shutdown(StopReason::Poweroff)).await?;
    let text = bench.speaks(config.uuid).await?;
    check!(text.len() <= 128 * 1024, "{} bytes", text.len());
    bench.hypervisor.destroy(config.uuid).await?;
    let gone = bench.hypervisor.console(config.uuid).await;
    check!(matches!(gone, Err(HypervisorError::NoSuchDomain(_))), "after destroy: {gone:?}");
    Ok(())
}

async fn a_running_domain_is_destroyed_and_its_memory_given_back(bench: &Bench) -> Verdict {
    let before = bench.hypervisor.free_memory_kib().await?;
    let config = bench.guest("");
    bench.start(&config).await?;
    let during = bench.hypervisor.free_memory_kib().await?;
    check!(during + config.memory_kib * 9 / 10 <= before, "free memory {before} KiB, then {during}");
    bench.hypervisor.destroy(config.uuid).await?;
    check!(bench.hypervisor.find(config.uuid).await?.is_none(), "still there after destroy");
    let deadline = Instant::now() + bench.patience;
    let slack = config.memory_kib / 10;
    loop {
        let after = bench.hypervisor.free_memory_kib().await?;
        if after + slack >= before {
            return Ok(());
        }
        check!(Instant::now() < deadline, "free memory {before} KiB before, {after} KiB after");
        tokio::time::sleep(POLL).await;
    }
}

async fn destroying_what_is_not_there_succeeds(bench: &Bench) -> Verdict {
    Ok(bench.hypervisor.destroy(Uuid::new_v4()).await?)
}

async fn a_uuid_can_be_used_again_after_destroy(bench: &Bench) -> Verdict {
    let mut config = bench.guest("");
    let first = bench.hypervisor.create(&config).await?;
    bench.hypervisor.destroy(config.uuid).await?;
    config.token += 1;
    let second = bench.hypervisor.create(&config).await?;
    check!(first != second, "the number {first} was given twice in a row");
    check!(bench.seen(config.uuid).await?.token == Some(config.token), "the token is not the new one");
    Ok(())
}

async fn other_calls_on_an_unknown_uuid_say_so(bench: &Bench) -> Verdict {
    let uuid = Uuid::new_v4();
    check!(bench.hypervisor.find(uuid).await?.is_none(), "a domain that nobody made was found");
    let stream = Box::new(tokio::io::sink());
    let suspend = bench.hypervisor.suspend(uuid, SuspendMode::Still, stream, Arc::new(|_| {})).await;
    let results = [
        ("pause", bench.hypervisor.pause(uuid).await),
        ("unpause", bench.hypervisor.unpause(uuid).await),
        ("request_shutdown", bench.hypervisor.request_shutdown(uuid).await),
        ("console", bench.hypervisor.console(uuid).await.map(|_| ())),
        ("guest", bench.hypervisor.guest(uuid).await.map(|_| ())),
        ("resume", bench.hypervisor.resume(uuid).await),
        ("claim", bench.hypervisor.claim(uuid, 7).await),
        ("settings", bench.hypervisor.settings(uuid).await.map(|_| ())),
        ("change", bench.hypervisor.change(uuid, &Change::Vcpus(1)).await),
        ("suspend", suspend.map(|_| ())),
    ];
    for (call, result) in results {
        check!(
            matches!(result, Err(HypervisorError::NoSuchDomain(other)) if other == uuid),
            "{call}: {result:?}"
        );
    }
    Ok(())
}

async fn a_domain_that_does_not_fit_is_refused_for_memory_and_leaves_nothing(bench: &Bench) -> Verdict {
    let mut config = bench.guest("");
    config.max_memory_kib = bench.hypervisor.facts().await?.memory_total_kib * 2;
    config.memory_kib = config.max_memory_kib;
    let result = bench.hypervisor.create(&config).await;
    check!(matches!(result, Err(HypervisorError::OutOfMemory(_))), "{result:?}");
    check!(bench.hypervisor.find(config.uuid).await?.is_none(), "something of it is left");
    Ok(())
}

async fn a_refused_domain_leaves_nothing(bench: &Bench) -> Verdict {
    if !bench.guests.checks_kernel_file {
        return Err(Stop::Skip("kernel files are not looked at"));
    }
    let mut config = bench.guest("");
    config.kernel = Some(KernelImage {
        kernel: PathBuf::from("/nonexistent/vmlinux"),
        ramdisk: None,
        command_line: String::new(),
    });
    let result = bench.hypervisor.create(&config).await;
    check!(matches!(result, Err(HypervisorError::Refused { .. })), "{result:?}");
    check!(bench.hypervisor.find(config.uuid).await?.is_none(), "something of it is left");
    Ok(())
}

async fn a_create_that_nobody_waits_for_is_undone_by_destroy(bench: &Bench) -> Verdict {
    let config = bench.guest("");
    let waited = timeout(Duration::from_millis(50), bench.hypervisor.create(&config)).await;
    if let Ok(result) = waited {
        result?;
    }
    bench.hypervisor.destroy(config.uuid).await?;
    // Whatever the abandoned call may still have been doing would show up now.
    for _ in 0..10 {
        check!(bench.hypervisor.find(config.uuid).await?.is_none(), "it came back after destroy");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

async fn changes_are_told_when_a_domain_comes_stops_and_goes(bench: &Bench) -> Verdict {
    let mut changes = bench.hypervisor.changes();
    let config = bench.guest("kubexen.exit=poweroff kubexen.exit-after=1");
    for step in ["comes", "stops", "goes"] {
        changes.borrow_and_update();
        match step {
            "comes" => bench.start(&config).await?,
            "stops" => bench.reaches(config.uuid, DomainState::Shutdown(StopReason::Poweroff)).await?,
            _ => bench.hypervisor.destroy(config.uuid).await?,
        }
        let told = timeout(bench.patience, changes.changed()).await;
        check!(matches!(told, Ok(Ok(()))), "no change was told when the domain {step}");
    }
    Ok(())
}

async fn a_guest_with_a_disk_and_an_interface_starts(bench: &Bench) -> Verdict {
    let (disks, interfaces) = bench.guests.devices();
    if disks.is_empty() || interfaces.is_empty() {
        return Err(Stop::Skip("no disk and bridge to give to a guest"));
    }
    let mut config = bench.guest("");
    (config.disks, config.interfaces) = (disks, interfaces);
    bench.start(&config).await?;
    bench.speaks(config.uuid).await?;
    bench.hypervisor.request_shutdown(config.uuid).await?;
    bench.reaches(config.uuid, DomainState::Shutdown(StopReason::Poweroff)).await?;
    bench.hypervisor.destroy(config.uuid).await?;
    // The devices were given back: the same ones serve the next guest.
    bench.start(&config).await
}

async fn a_guest_with_emulated_devices_starts_and_leaves_nothing(bench: &Bench) -> Verdict {
    let Some(kernel) = bench.guests.hvm_kernel.clone() else {
        return Err(Stop::Skip("no HVM guests on this host"));
    };
    let mut config = bench.guest("");
    (config.boot, config.firmware) = (BootType::Hvm, Some(Firmware::Bios));
    config.kernel = Some(kernel);
    (config.disks, config.interfaces) = bench.guests.devices();
    bench.start(&config).await?;
    bench.speaks(config.uuid).await?;
    bench.hypervisor.pause(config.uuid).await?;
    bench.reaches(config.uuid, DomainState::Paused).await?;
    bench.hypervisor.unpause(config.uuid).await?;
    bench.reaches(config.uuid, DomainState::Running).await?;
    bench.hypervisor.request_shutdown(config.uuid).await?;
    bench.hypervisor.destroy(config.uuid).await?;
    check!(bench.hypervisor.find(config.uuid).await?.is_none(), "still there after destroy");
    Ok(())
}

async fn a_paravirtualised_guest_starts(bench: &Bench) -> Verdict {
    if !bench.guests.pv {
        return Err(Stop::Skip("no PV guests on this host"));
    }
    let mut config = bench.guest("");
    config.boot = BootType::Pv;
    bench.start(&config).await?;
    bench.speaks(config.uuid).await.map(|_| ())
}

async fn a_guest_without_a_kernel_is_started_by_the_boot_loader_for_its_mode(bench: &Bench) -> Verdict {
    let loaders = bench.hypervisor.facts().await?.boot_loaders;
    if loaders.is_empty() {
        return Err(Stop::Skip("no boot loader on this host"));
    }
    for boot in loaders.into_iter().filter(|boot| *boot != BootType::Pv || bench.guests.pv) {
        let mut config = bench.guest("");
        (config.boot, config.kernel) = (boot, None);
        (config.disks, config.interfaces) = bench.guests.devices();
        bench.start(&config).await?;
        bench.reaches(config.uuid, DomainState::Running).await?;
        bench.speaks(config.uuid).await?;
        bench.hypervisor.destroy(config.uuid).await?;
        check!(bench.hypervisor.find(config.uuid).await?.is_none(), "still there after destroy");
    }
    Ok(())
}

async fn a_guest_starts_with_the_firmware_that_it_wants(bench: &Bench) -> Verdict {
    if bench.guests.hvm_kernel.is_none() {
        return Err(Stop::Skip("no HVM guests on this host"));
    }
    for firmware in bench.hypervisor.facts().await?.firmware {
        let mut config = bench.guest("");
        (config.boot, config.firmware, config.kernel) = (BootType::Hvm, Some(firmware), None);
        (config.disks, config.interfaces) = bench.guests.devices();
        bench.start(&config).await?;
        bench.reaches(config.uuid, DomainState::Running).await?;
        match firmware {
            // It finds nothing to start, and no screen to say so on.
            Firmware::Bios => {}
            Firmware::Uefi => drop(bench.speaks(config.uuid).await?),
        }
        bench.hypervisor.destroy(config.uuid).await?;
    }
    Ok(())
}
