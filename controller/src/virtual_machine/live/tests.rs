mod drives;

use super::*;
use crate::placement::ImageNeed;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubexen_crds::{
    BootType, DomainCd, DomainImage, DomainStatus, Firmware, VirtualDisk, domain::SharedDisk,
    quantity::HostSelector,
};
use serde_json::{Value, json};
use std::sync::Arc;

const GIB: u64 = 1 << 30;

fn spec(more: &Value) -> VirtualMachineSpec {
    let mut spec = json!({
        "cpu": {"count": 2, "max": 4},
        "memory": {"size": "2Gi", "min": "1Gi", "max": "4Gi"},
        "boot": {"type": "PVH", "kernel": {"name": "linux"}},
    });
    for (name, value) in more.as_object().unwrap() {
        spec[name] = value.clone();
    }
    serde_json::from_value(spec).unwrap()
}

fn disk(name: &str, target: &str) -> DomainDisk {
    DomainDisk {
        name: name.to_owned(),
        volume: format!("shop.{name}"),
        shared: None,
        read_only: false,
        target: target.to_owned(),
        detach: false,
    }
}

fn interface(name: &str, index: i32) -> DomainInterface {
    DomainInterface {
        name: name.to_owned(),
        uplink: "lan".to_owned(),
        mac: format!("00:16:3e:00:00:0{index}"),
        index,
        rate_limit: None,
    }
}

fn machine() -> Machine {
    Machine {
        cpus: 2,
        max_cpus: 4,
        cpu_weight: 256,
        cpu_cap_percent: 0,
        memory: ByteQuantity("2Gi".to_owned()),
        max_memory: ByteQuantity("4Gi".to_owned()),
        boot: spec(&json!({})).boot,
        cpu_level: None,
        cloud_init: None,
        cds: Vec::new(),
        disks: vec![disk("root", "xvda"), disk("data", "xvdb")],
        interfaces: vec![interface("eth0", 0), interface("eth1", 1)],
    }
}

fn resolved(machine: Machine) -> Resolved {
    Resolved { machine, disks: Vec::new(), networks: Vec::new(), images: Vec::new(), saved_state: None }
}

fn domain() -> Domain {
    let mut domain = Domain::new(
        "shop.web",
        serde_json::from_value(json!({
            "virtualMachine": {"namespace": "shop", "name": "web", "uid": "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"},
            "machine": machine(),
        }))
        .unwrap(),
    );
    domain.metadata.generation = Some(3);
    domain.status = Some(DomainStatus { observed_generation: Some(3), ..DomainStatus::default() });
    domain
}

/// A host with 8 CPUs and 1 GiB left.
fn room() -> HostRoom {
    HostRoom {
        host: crate::placement::HostView {
            name: "a".to_owned(),
            memory_allocatable: 8 * GIB,
            memory_used: 7 * GIB,
            cpus: 1,
            vcpus_used: 3,
            locations: [
                ("local".to_owned(), Room { capacity: 10 * GIB, used: 9 * GIB, storage: None }),
                ("san".to_owned(), Room { capacity: GIB, used: GIB, storage: Some("vg-1".to_owned()) }),
            ]
            .into(),
            uplinks: ["lan".to_owned(), "dmz".to_owned()].into(),
            ..Default::default()
        },
        overcommit: 4,
        reserved: Reserved::default(),
    }
}

fn changed_with(spec: &VirtualMachineSpec, wanted: &Resolved, domain: &Domain) -> Change {
    let room = room();
    change(spec, wanted, domain, &Surroundings { host: "a", room: Some(&room) })
}

fn changed(spec: &VirtualMachineSpec, edit: impl FnOnce(&mut Machine)) -> Change {
    let mut wanted = machine();
    edit(&mut wanted);
    changed_with(spec, &resolved(wanted), &domain())
}

fn quantity(text: &str) -> ByteQuantity {
    ByteQuantity(text.to_owned())
}

/// Nothing waits, and the Domain is made so.
fn applied(change: &Change, edit: impl FnOnce(&mut Machine)) {
    let mut next = machine();
    edit(&mut next);
    assert_eq!(*change, Change { next, new_disks: Vec::new(), restart: Vec::new(), held: Vec::new() });
}

fn waits_for_restart(change: &Change, fields: &[&str]) {
    assert_eq!(change.restart, fields);
    assert_eq!(change.next, machine(), "it is not done yet");
}

#[test]
fn a_machine_that_asks_for_what_it_has_changes_nothing() {
    applied(&changed(&spec(&json!({})), |_| {}), |_| {});
}

#[test]
fn processors_memory_weight_and_cap_change_within_what_the_domain_is_built_for() {
    let ours = spec(&json!({}));
    applied(&changed(&ours, |wanted| wanted.cpus = 3), |next| next.cpus = 3);
    applied(&changed(&ours, |wanted| wanted.cpus = 1), |next| next.cpus = 1);
    applied(&changed(&ours, |wanted| wanted.cpu_weight = 512), |next| next.cpu_weight = 512);
    applied(&changed(&ours, |wanted| wanted.cpu_cap_percent = 400), |next| next.cpu_cap_percent = 400);
    let memory = quantity("1Gi");
    applied(&changed(&ours, |wanted| wanted.memory = memory.clone()), |next| next.memory = memory.clone());
}

#[test]
fn what_the_domain_is_not_built_for_waits_for_a_restart_and_is_named() {
    let ours = spec(&json!({}));
    waits_for_restart(&changed(&ours, |wanted| wanted.cpus = 5), &["spec.cpu.count"]);
    waits_for_restart(&changed(&ours, |wanted| wanted.cpu_cap_percent = 401), &["spec.cpu.capPercent"]);
    waits_for_restart(&changed(&ours, |wanted| wanted.memory = quantity("5Gi")), &["spec.memory.size"]);
    let larger = spec(&json!({"cpu": {"count": 2, "max": 8}, "memory": {"size": "2Gi", "max": "8Gi"}}));
    waits_for_restart(&changed(&larger, |_| {}), &["spec.cpu.max", "spec.memory.max"]);
    waits_for_restart(
        &changed(&ours, |wanted| {
            wanted.boot.kernel = None;
            wanted.interfaces[1].mac = "00:16:3e:00:00:0f".to_owned();
            wanted.disks[1].read_only = true;
        }),
        &["spec.boot.kernel", "spec.disks[data]", "spec.interfaces[eth1].mac"],
    );
}

#[test]
fn another_firmware_waits_for_a_restart_and_the_default_is_not_another() {
    let hvm = |firmware| Machine {
        boot: kubexen_crds::Boot { type_: kubexen_crds::BootType::Hvm, firmware, kernel: None },
        ..machine()
    };
    let mut present = domain();
    present.spec.machine = hvm(None);
    let change = |firmware| changed_with(&spec(&json!({})), &resolved(hvm(firmware)), &present);
    assert_eq!(change(Some(Firmware::Bios)).restart, Vec::<String>::new());
    assert_eq!(change(Some(Firmware::Uefi)).restart, ["spec.boot.firmware"]);
    assert_eq!(change(Some(Firmware::Uefi)).next, hvm(None), "it is not done yet");
}

#[test]
fn a_guest_without_a_range_keeps_its_memory_until_the_restart() {
    let ours = spec(&json!({"memory": {"size": "1Gi"}}));
    waits_for_restart(&changed(&ours, |wanted| wanted.memory = quantity("1Gi")), &["spec.memory.size"]);
}

#[test]
fn a_maximum_that_is_not_given_asks_for_nothing() {
    let ours = spec(&json!({"cpu": {"count": 2}, "memory": {"size": "2Gi", "min": "1Gi"}}));
    applied(&changed(&ours, |wanted| (wanted.max_cpus, wanted.max_memory) = (2, quantity("2Gi"))), |_| {});
}

#[test]
fn a_host_without_room_holds_one_growth_and_nothing_else() {
    let ours = spec(&json!({}));
    let both = changed(&ours, |wanted| {
        wanted.memory = quantity("4Gi");
        wanted.cpus = 3;
        wanted.cpu_weight = 512;
    });
    assert_eq!((both.next.cpus, both.next.cpu_weight, &both.next.memory), (3, 512, &quantity("2Gi")));
    let reasons: Vec<_> = both.held.iter().map(|held| held.reason).collect();
    assert_eq!(reasons, ["NoRoom"]);
    assert!(both.held[0].message.contains("host a has 1024 MiB left"), "{}", both.held[0].message);
    let processors = changed(&ours, |wanted| wanted.cpus = 4);
    assert_eq!((processors.next.cpus, processors.held[0].reason), (2, "NoRoom"));
}

#[test]
fn what_is_kept_for_guests_of_hosts_that_may_die_is_given_to_no_guest_that_runs() {
    let ours = spec(&json!({}));
    let wanted = Machine { cpus: 3, memory: quantity("2304Mi"), ..machine() };
    for (reserved, cpus, memory, fields) in [
        (Reserved { vcpus: false, memory: false }, 3, "2304Mi", &[][..]),
        (Reserved { vcpus: true, memory: false }, 2, "2304Mi", &["spec.cpu.count"]),
        (Reserved { vcpus: false, memory: true }, 3, "2Gi", &["spec.memory.size"]),
    ] {
        let room = HostRoom { reserved, ..room() };
        let around = Surroundings { host: "a", room: Some(&room) };
        let change = change(&ours, &resolved(wanted.clone()), &domain(), &around);
        assert_eq!((change.next.cpus, &change.next.memory), (cpus, &quantity(memory)));
        assert!(change.held.iter().all(|held| held.reason == "FailureReserve"), "{:?}", change.held);
        assert_eq!(change.held.len(), fields.len());
        assert!(change.held.iter().zip(fields).all(|(held, field)| held.message.contains(field)));
        let less = Machine { cpus: 1, memory: quantity("1Gi"), ..machine() };
        let change = super::change(&ours, &resolved(less), &domain(), &around);
        assert_eq!(change.held, [], "who gives something back takes nothing");
    }
}

#[test]
fn memory_that_a_guest_has_not_given_back_counts_as_its_own() {
    let mut held = domain();
    held.spec.machine.memory = quantity("1Gi");
    held.status.as_mut().unwrap().memory = Some(quantity("3Gi"));
    let wanted = Machine { memory: quantity("3Gi"), ..machine() };
    let change = changed_with(&spec(&json!({})), &resolved(wanted), &held);
    assert_eq!((change.next.memory, change.held), (quantity("3Gi"), Vec::new()));
}

#[test]
fn a_disk_gets_the_first_free_name_and_others_keep_theirs() {
    let ours = spec(&json!({}));
    let mut present = domain();
    present.spec.machine.disks.remove(0);
    let change = changed_with(&ours, &resolved(machine()), &present);
    let targets: Vec<_> =
        change.next.disks.iter().map(|disk| (disk.name.as_str(), disk.target.as_str())).collect();
    assert_eq!(targets, [("data", "xvdb"), ("root", "xvda")]);
    assert_eq!(change.restart, Vec::<String>::new());
}

#[test]
fn a_disk_is_marked_and_stays_until_its_host_says_that_the_guest_let_go() {
    let ours = spec(&json!({}));
    let without = resolved(Machine { disks: vec![disk("root", "xvda")], ..machine() });
    let marked = changed_with(&ours, &without, &domain()).next.disks;
    assert_eq!(marked, [disk("root", "xvda"), DomainDisk { detach: true, ..disk("data", "xvdb") }]);
    let mut present = domain();
    present.spec.machine.disks.clone_from(&marked);
    assert_eq!(changed_with(&ours, &without, &present).next.disks, marked);
    present.status.as_mut().unwrap().detached = vec!["data".to_owned()];
    present.metadata.generation = Some(4);
    assert_eq!(changed_with(&ours, &without, &present).next.disks, marked, "said of an earlier spec");
    present.metadata.generation = Some(3);
    assert_eq!(changed_with(&ours, &without, &present).next.disks, [disk("root", "xvda")]);
    let again = changed_with(&ours, &resolved(machine()), &present).next.disks;
    assert_eq!(again, machine().disks, "it is wanted again");
}

#[test]
fn a_disk_that_is_to_be_detached_comes_back_only_where_it_is() {
    let ours = spec(&json!({}));
    let mut wanted = resolved(machine());
    let mut present = domain();
    present.spec.machine.disks[1].detach = true;
    assert!(needs_room(&wanted.machine, &present.spec.machine));
    for (host, back) in [("a", true), ("b", false)] {
        wanted.disks = vec![virtual_disk("data", Site::On(host.to_owned()), "1Gi")];
        let change = changed_with(&ours, &wanted, &present);
        assert_eq!(change.next.disks[1], DomainDisk { detach: !back, ..disk("data", "xvdb") });
        let held: Vec<_> = change.held.iter().map(|held| held.reason).collect();
        assert_eq!(held, if back { vec![] } else { vec!["DiskElsewhere"] });
    }
}

#[test]
fn the_order_of_the_list_matters_only_at_the_start() {
    let ours = spec(&json!({}));
    let reordered = changed(&ours, |wanted| wanted.disks.reverse());
    waits_for_restart(&reordered, &["spec.disks"]);
    let reordered = changed(&ours, |wanted| wanted.interfaces.reverse());
    waits_for_restart(&reordered, &["spec.interfaces"]);
}

#[test]
fn interfaces_come_go_move_and_are_limited() {
    let ours = spec(&json!({}));
    applied(&changed(&ours, |wanted| drop(wanted.interfaces.remove(0))), |next| {
        next.interfaces.remove(0);
    });
    let edit = |machine: &mut Machine| {
        machine.interfaces[0].uplink = "dmz".to_owned();
        machine.interfaces[1].rate_limit = Some(quantity("10Mi"));
        machine.interfaces.push(interface("eth2", 2));
    };
    applied(&changed(&ours, edit), edit);
    let nowhere = changed(&ours, |wanted| wanted.interfaces[0].uplink = "wan".to_owned());
    assert_eq!((nowhere.next, nowhere.held[0].reason), (machine(), "NetworkNotAttached"));
}

fn virtual_disk(name: &str, site: Site, size: &str) -> Disk {
    let spec_of_disk = json!({"repository": "local", "size": size});
    let disk = VirtualDisk {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("shop".to_owned()),
            ..ObjectMeta::default()
        },
        spec: serde_json::from_value(spec_of_disk).unwrap(),
        status: None,
    };
    Disk { disk: Arc::new(disk), site, shared: None }
}

fn with_new_disk(site: Site, size: &str) -> Change {
    let mut wanted = resolved(machine());
    wanted.machine.disks.push(disk("more", "xvdc"));
    wanted.disks.push(virtual_disk("more", site, size));
    changed_with(&spec(&json!({})), &wanted, &domain())
}

#[test]
fn a_disk_that_is_not_made_yet_is_made_on_the_host_of_the_guest_if_it_has_room() {
    let new = |location: &str| Site::New {
        location: location.to_owned(),
        shared: false,
        selector: HostSelector::default(),
    };
    let made = with_new_disk(new("local"), "1Gi");
    assert_eq!(made.new_disks, [Key::new("shop", "more")]);
    assert_eq!(made.next.disks.last().unwrap().target, "xvdc");
    for (site, size, reason) in [
        (new("local"), "2Gi", "NoRoom"),
        (new("fast"), "1Gi", "RepositoryNotAttached"),
        (Site::On("b".to_owned()), "1Gi", "DiskElsewhere"),
    ] {
        let held = with_new_disk(site, size);
        assert_eq!((held.held[0].reason, held.new_disks.len(), held.next), (reason, 0, machine()));
    }
    assert_eq!(with_new_disk(Site::On("a".to_owned()), "1Gi").next.disks.len(), 3);
}

#[test]
fn a_disk_on_shared_storage_is_attached_where_that_storage_is_reached() {
    let on = |storage: &str| Site::Shared {
        location: "san".to_owned(),
        storage: storage.to_owned(),
        selector: HostSelector::default(),
    };
    assert_eq!(with_new_disk(on("vg-1"), "1Gi").next.disks.len(), 3);
    let elsewhere = with_new_disk(on("vg-2"), "1Gi");
    assert_eq!((elsewhere.held[0].reason, elsewhere.next), ("RepositoryNotAttached", machine()));
}

#[test]
fn a_disk_that_was_made_anew_under_its_name_takes_the_place_of_the_earlier_one() {
    let shared = |uid: &str| Some(SharedDisk { location: "san".to_owned(), uid: uid.to_owned() });
    let mut present = domain();
    present.spec.machine.disks[1].shared = shared("d-1");
    let wanted = |uid: &str, shared: Option<SharedDisk>| {
        let mut wanted = resolved(machine());
        wanted.machine.disks[1].shared = shared.clone();
        let mut disk = virtual_disk("data", Site::On("a".to_owned()), "1Gi");
        Arc::make_mut(&mut disk.disk).metadata.uid = Some(uid.to_owned());
        wanted.disks.push(Disk { shared, ..disk });
        wanted
    };
    let change = |wanted: &Resolved, present: &Domain| changed_with(&spec(&json!({})), wanted, present);
    assert_eq!(change(&wanted("d-1", shared("d-1")), &present).next, present.spec.machine);
    for anew in [wanted("d-2", shared("d-2")), wanted("d-2", None)] {
        let detached = change(&anew, &present).next;
        assert!(detached.disks[1].detach, "{:?}", detached.disks);
        let mut without = domain();
        without.spec.machine = detached;
        without.status.as_mut().unwrap().detached = vec!["data".to_owned()];
        let next = change(&anew, &without).next;
        assert_eq!(next.disks[1], DomainDisk { target: "xvdb".to_owned(), ..anew.machine.disks[1].clone() });
    }
}

fn seed() -> kubexen_crds::DomainCloudInit {
    kubexen_crds::DomainCloudInit {
        secret: "cloud-init.shop.web".to_owned(),
        user_data_secret: "web".to_owned(),
    }
}

#[test]
fn other_user_data_waits_for_a_restart() {
    waits_for_restart(
        &changed(&spec(&json!({})), |machine| machine.cloud_init = Some(seed())),
        &["spec.cloudInit"],
    );
}

#[test]
fn no_disk_gets_the_name_of_the_seed() {
    let all_but_the_last: Vec<DomainDisk> = targets().take(15).map(|target| disk(&target, &target)).collect();
    let seeded = Machine { cloud_init: Some(seed()), ..machine() };
    assert_eq!(free_target(&all_but_the_last, &machine()).as_deref(), Some(SEED_TARGET));
    assert_eq!(free_target(&all_but_the_last, &seeded), None);
    assert_eq!(free_target(&all_but_the_last[1..], &seeded).as_deref(), Some("xvda"));
}
