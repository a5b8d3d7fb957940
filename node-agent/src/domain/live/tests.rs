use super::*;
use crate::hypervisor::CdConfig;
use jiff::Timestamp;
use proptest::prelude::*;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn settings() -> Settings {
    Settings {
        vcpus: 2,
        vcpus_online: 2,
        scheduling: Some(Scheduling::default()),
        memory_target_kib: 1 << 20,
        memory_kib: (1 << 20) + 1300,
        disks: vec![PresentDisk { target: "xvda".to_owned(), link: Link::Attached, device: None }],
        cds: Vec::new(),
        interfaces: vec![interface(0, "lan")],
    }
}

fn interface(index: u32, bridge: &str) -> InterfaceConfig {
    InterfaceConfig {
        bridge: bridge.to_owned(),
        mac: format!("00:16:3e:00:00:0{index}"),
        index,
        rate_limit: None,
    }
}

fn asked() -> Asked {
    Asked {
        vcpus: 2,
        scheduling: Scheduling::default(),
        memory_kib: 1 << 20,
        disks: vec![disk("root", "xvda")],
        cds: Vec::new(),
        interfaces: vec![asked_interface(0, "lan")],
    }
}

fn disk(name: &str, target: &str) -> AskedDisk {
    AskedDisk { name: name.to_owned(), target: target.to_owned(), detach: false, need: None, stored: false }
}

fn asked_interface(index: u32, bridge: &str) -> AskedInterface {
    AskedInterface {
        name: format!("eth{index}"),
        index,
        mac: format!("00:16:3e:00:00:0{index}"),
        bridge: Ok(bridge.to_owned()),
        rate_limit: None,
    }
}

fn live(wanted: Asked, present: Settings) -> Live {
    Live { wanted, present: Some(present), stands_still: false, tried: Tried::default() }
}

fn changed(change: impl FnOnce(&mut Asked)) -> Live {
    let mut wanted = asked();
    change(&mut wanted);
    live(wanted, settings())
}

/// Status and reason of the condition, with a status that is `since` seconds old.
fn said(live: &Live, since: Option<i64>) -> (State, &'static str) {
    let wanted = live.condition(&unsynchronized(since), now()).unwrap();
    (wanted.state, wanted.reason)
}

fn unsynchronized(since: Option<i64>) -> DomainStatus {
    let Some(seconds) = since else { return DomainStatus::default() };
    let then = now() - SignedDuration::from_secs(seconds);
    let wanted = vec![Wanted::new(SYNCHRONIZED, State::False, "Applying", "")];
    DomainStatus { conditions: condition::set(&[], wanted, None, then), ..DomainStatus::default() }
}

#[test]
fn a_guest_that_has_what_it_is_to_have_is_left_alone() {
    let live = live(asked(), settings());
    assert_eq!(live.next_step(), None);
    assert_eq!(live.look_again(&DomainStatus::default(), now()), None);
    assert_eq!(said(&live, None), (State::True, "Synchronized"));
    assert_eq!(live.memory(), Some(ByteQuantity("1Gi".to_owned())));
}

#[test]
fn every_difference_is_one_step() {
    let scheduling = Scheduling { weight: 512, cap_percent: 0 };
    let table = [
        (changed(|wanted| wanted.vcpus = 1), LiveStep::SetVcpus(1)),
        (changed(|wanted| wanted.scheduling = scheduling), LiveStep::SetScheduling(scheduling)),
        (changed(|wanted| wanted.memory_kib = 1 << 19), LiveStep::SetMemory(1 << 19)),
        (changed(|wanted| wanted.disks.push(disk("data", "xvdb"))), LiveStep::AttachDisk("data".to_owned())),
        (changed(|wanted| wanted.disks[0].detach = true), LiveStep::DetachDisk("xvda".to_owned())),
        (
            changed(|wanted| wanted.interfaces.push(asked_interface(1, "lan"))),
            LiveStep::AttachInterface("eth1".to_owned()),
        ),
        (changed(|wanted| wanted.interfaces.clear()), LiveStep::DetachInterface(0)),
        (
            changed(|wanted| wanted.interfaces[0].bridge = Ok("dmz".to_owned())),
            LiveStep::MoveInterface(0, "dmz".to_owned()),
        ),
        (
            changed(|wanted| wanted.interfaces[0].rate_limit = Some(2_000_000)),
            LiveStep::LimitInterface(0, Some(2_000_000)),
        ),
        (changed(|wanted| wanted.interfaces[0].mac = "other".to_owned()), LiveStep::DetachInterface(0)),
    ];
    for (live, step) in table {
        assert_eq!(live.steps(), [step]);
    }
}

#[test]
fn a_step_that_failed_keeps_no_other_and_is_told() {
    let mut live = changed(|wanted| {
        wanted.vcpus = 1;
        wanted.disks.push(disk("data", "xvdb"));
    });
    live.tried.failed.push(Failure {
        step: LiveStep::SetVcpus(1),
        reason: "Refused",
        message: "no".to_owned(),
    });
    assert_eq!(live.next_step(), Some(LiveStep::AttachDisk("data".to_owned())));
    assert_eq!(said(&live, None), (State::False, "Refused"));
    assert!(live.look_again(&DomainStatus::default(), now()).is_some());
}

#[test]
fn a_guest_that_does_not_follow_has_its_time_before_it_is_said_not_to_respond() {
    let mut present = settings();
    present.vcpus_online = 1;
    let slow = live(asked(), present);
    assert_eq!(slow.next_step(), None);
    assert_eq!(said(&slow, None), (State::False, "Applying"));
    assert_eq!(said(&slow, Some(29)), (State::False, "Applying"));
    assert_eq!(said(&slow, Some(30)), (State::False, "GuestNotResponding"));
    assert_eq!(slow.look_again(&unsynchronized(None), now()), Some(SOON));
    assert_eq!(slow.look_again(&unsynchronized(Some(60)), now()), Some(LATER));
    let paused = Live { stands_still: true, ..slow };
    assert_eq!(said(&paused, None), (State::False, "GuestPaused"));
}

#[test]
fn memory_that_the_guest_kept_is_told_in_whole_mebibytes() {
    let kept =
        live(Asked { memory_kib: 1 << 19, ..asked() }, Settings { memory_target_kib: 1 << 19, ..settings() });
    assert_eq!(kept.next_step(), None);
    assert_eq!(kept.memory(), Some(ByteQuantity("1025Mi".to_owned())));
    let lags = kept.lags();
    assert_eq!(lags.len(), 1);
    assert_eq!(lags[0].message, "The guest holds 1025 MiB of memory and is to hold 512 MiB");
}

#[test]
fn a_disk_is_given_back_only_after_the_guest_let_go_of_it() {
    let with = |link: Option<Link>, stored| {
        let mut wanted = asked();
        wanted.disks[0].detach = true;
        wanted.disks[0].stored = stored;
        let disks = link.map(|link| PresentDisk { target: "xvda".to_owned(), link, device: None });
        live(wanted, Settings { disks: disks.into_iter().collect(), ..settings() })
    };
    let detach = Some(LiveStep::DetachDisk("xvda".to_owned()));
    assert_eq!(with(Some(Link::Attached), true).next_step(), detach);
    let held = with(Some(Link::Closing), true);
    assert_eq!(held.next_step(), None);
    assert_eq!(said(&held, Some(60)), (State::False, "DiskInUse"));
    assert!(held.detached().is_empty());
    assert_eq!(with(Some(Link::Closed), true).next_step(), detach);
    let left = with(None, true);
    assert_eq!(left.next_step(), Some(LiveStep::ReleaseVolume("root".to_owned())));
    assert!(left.detached().is_empty(), "its volume is still a device");
    let gone = with(None, false);
    assert_eq!(gone.next_step(), None);
    assert_eq!(gone.detached(), ["root"]);
    assert_eq!(said(&gone, None), (State::True, "Synchronized"));
}

#[test]
fn a_disk_that_is_wanted_again_is_kept_or_attached_again() {
    for (link, step) in [
        (Link::Closing, Some(LiveStep::KeepDisk("xvda".to_owned()))),
        (Link::Closed, Some(LiveStep::DetachDisk("xvda".to_owned()))),
        (Link::Attached, None),
    ] {
        let disks = vec![PresentDisk { target: "xvda".to_owned(), link, device: None }];
        assert_eq!(live(asked(), Settings { disks, ..settings() }).next_step(), step);
    }
    let away = live(asked(), Settings { disks: Vec::new(), ..settings() });
    assert_eq!(away.next_step(), Some(LiveStep::AttachDisk("root".to_owned())));
}

#[test]
fn a_step_that_shows_nothing_is_not_made_again_at_once() {
    let disks = vec![PresentDisk { target: "xvda".to_owned(), link: Link::Closing, device: None }];
    let mut going = live(asked(), Settings { disks, ..settings() });
    let keep = going.next_step().unwrap();
    going.tried.done.push(keep);
    assert_eq!(going.next_step(), None);
    assert_eq!(said(&going, None), (State::False, "Applying"));
    assert_eq!(said(&going, Some(60)), (State::False, "GuestNotResponding"));
}

#[test]
fn what_a_change_needs_is_waited_for_and_named() {
    let mut waiting = changed(|wanted| wanted.disks.push(disk("data", "xvdb")));
    waiting.wanted.disks[1].need = Some(Unmet::VolumeNotReady { volume: "shop.data".to_owned(), why: None });
    assert_eq!(waiting.next_step(), None);
    assert_eq!(said(&waiting, None), (State::False, "VolumeNotReady"));
    let cut_off = changed(|wanted| {
        wanted.interfaces[0].bridge = Err(Unmet::UplinkMissing("dmz".to_owned()));
    });
    assert_eq!(cut_off.next_step(), None, "its interface stays where it is");
    assert_eq!(said(&cut_off, None), (State::False, "UplinkMissing"));
}

#[test]
fn disks_that_others_attached_are_left_alone() {
    let mut present = settings();
    present.disks.push(PresentDisk { target: "xvdz".to_owned(), link: Link::Attached, device: None });
    assert_eq!(live(asked(), present).next_step(), None);
}

/// What a guest that follows has after a step.
fn follow(mut present: Settings, wanted: &mut Asked, step: &LiveStep) -> Settings {
    match step {
        LiveStep::SetVcpus(vcpus) => (present.vcpus, present.vcpus_online) = (*vcpus, *vcpus),
        LiveStep::SetScheduling(scheduling) => present.scheduling = Some(*scheduling),
        LiveStep::SetMemory(kib) => (present.memory_target_kib, present.memory_kib) = (*kib, *kib),
        LiveStep::AttachDisk(name) => {
            let target = wanted.disks.iter().find(|disk| disk.name == *name).unwrap().target.clone();
            present.disks.push(PresentDisk { target, link: Link::Attached, device: None });
        }
        LiveStep::DetachDisk(target) | LiveStep::EjectImage(target) => {
            present.disks.retain(|disk| disk.target != *target);
        }
        LiveStep::InsertImage(name) => {
            let cd = wanted.cds.iter().find(|cd| cd.name == *name).unwrap();
            let device = cd.image.as_ref().and_then(|image| image.device.clone());
            present.disks.push(PresentDisk { target: cd.target.clone(), link: Link::Attached, device });
        }
        LiveStep::ChangeCd(name) => {
            let cd = wanted.cds.iter().find(|cd| cd.name == *name).unwrap();
            let image = cd.image.as_ref().and_then(|image| image.device.clone());
            present.cds = vec![CdConfig { target: cd.target.clone(), image }];
        }
        LiveStep::KeepDisk(target) => {
            let disk = present.disks.iter_mut().find(|disk| disk.target == *target).unwrap();
            disk.link = Link::Attached;
        }
        LiveStep::ReleaseVolume(name) => {
            wanted.disks.iter_mut().find(|disk| disk.name == *name).unwrap().stored = false;
        }
        LiveStep::AttachInterface(name) => {
            let asked = wanted.interfaces.iter().find(|interface| interface.name == *name).unwrap();
            let bridge = asked.bridge.clone().unwrap();
            let (mac, index, rate_limit) = (asked.mac.clone(), asked.index, asked.rate_limit);
            present.interfaces.push(InterfaceConfig { bridge, mac, index, rate_limit });
        }
        LiveStep::DetachInterface(index) => present.interfaces.retain(|one| one.index != *index),
        LiveStep::MoveInterface(index, bridge) => {
            let moved = present.interfaces.iter_mut().find(|one| one.index == *index).unwrap();
            moved.bridge.clone_from(bridge);
        }
        LiveStep::LimitInterface(index, rate) => {
            present.interfaces.iter_mut().find(|one| one.index == *index).unwrap().rate_limit = *rate;
        }
    }
    present
}

prop_compose! {
    fn any_asked()(
        vcpus in 1_u32..4,
        weight in 1_u32..3,
        mib in 1_u64..4,
        disks in proptest::collection::vec((any::<bool>(), any::<bool>()), 3),
        networks in proptest::collection::vec(proptest::option::of((0_u8..2, any::<bool>())), 3),
    ) -> Asked {
        let named = disks.into_iter().zip(["xvda", "xvdb", "xvdc"]);
        Asked {
            vcpus,
            scheduling: Scheduling { weight, cap_percent: 0 },
            memory_kib: mib << 20,
            disks: named
                .map(|((detach, stored), target)| AskedDisk { detach, stored, ..disk(target, target) })
                .collect(),
            cds: Vec::new(),
            interfaces: (0..)
                .zip(networks)
                .filter_map(|(index, network)| {
                    let (bridge, limited) = network?;
                    let rate_limit = limited.then_some(2_000_000);
                    Some(AskedInterface { rate_limit, ..asked_interface(index, ["lan", "dmz"][usize::from(bridge)]) })
                })
                .collect(),
        }
    }
}

proptest! {
    #[test]
    fn a_guest_that_follows_has_all_in_the_end_in_whatever_order_steps_are_taken(
        asked in any_asked(),
        links in proptest::collection::vec(
            proptest::option::of(prop_oneof![Just(Link::Attached), Just(Link::Closed)]), 3),
        picks in proptest::collection::vec(any::<usize>(), 40),
    ) {
        let disks = ["xvda", "xvdb", "xvdc"].into_iter().zip(links);
        let disks = disks.filter_map(|(target, link)| Some(PresentDisk { target: target.to_owned(), link: link?, device: None }));
        let mut seen = live(asked, Settings { disks: disks.collect(), ..settings() });
        for pick in picks {
            let steps = seen.steps();
            if steps.is_empty() {
                prop_assert_eq!(seen.lags(), vec![]);
                return Ok(());
            }
            let step = &steps[pick % steps.len()];
            let present = seen.present.take().unwrap();
            let after = follow(present, &mut seen.wanted, step);
            seen.present = Some(after);
        }
        prop_assert!(false, "no rest: {seen:?}");
    }
}

#[test]
fn an_image_is_ejected_before_another_is_put_in_and_what_a_guest_keeps_is_told() {
    let device = |name: &str| Some(PathBuf::from(name));
    let drive = |image: Option<Option<PathBuf>>| AskedCd {
        name: "drive".to_owned(),
        target: "xvdo".to_owned(),
        emulated: false,
        image: image.map(|device| AskedImage { device }),
    };
    let present = |link, name| Some(PresentDisk { target: "xvdo".to_owned(), link, device: device(name) });
    let insert = || Some(LiveStep::InsertImage("drive".to_owned()));
    let eject = || Some(LiveStep::EjectImage("xvdo".to_owned()));
    let keep = || Some(LiveStep::KeepDisk("xvdo".to_owned()));
    for (cds, present, step) in [
        (vec![drive(None)], None, None),
        (vec![drive(Some(None))], None, insert()),
        (vec![drive(Some(device("one")))], None, insert()),
        (vec![drive(Some(device("one")))], present(Link::Attached, "one"), None),
        (vec![drive(Some(device("one")))], present(Link::Closing, "one"), keep()),
        (vec![drive(Some(device("two")))], present(Link::Attached, "one"), eject()),
        (vec![drive(Some(None))], present(Link::Attached, "one"), eject()),
        (vec![drive(None)], present(Link::Attached, "one"), eject()),
        (vec![drive(None)], present(Link::Closed, "one"), eject()),
        (vec![], present(Link::Attached, "one"), eject()),
        (vec![], present(Link::Closed, "one"), eject()),
        (vec![], None, None),
    ] {
        let mut settings = settings();
        settings.disks.extend(present.clone());
        let live = live(Asked { cds: cds.clone(), ..asked() }, settings);
        assert_eq!(live.next_step(), step, "{cds:?} with {present:?}");
        assert_eq!(live.lags(), [], "{cds:?} with {present:?}");
    }
    for cds in [vec![], vec![drive(None)], vec![drive(Some(device("two")))]] {
        let mut settings = settings();
        settings.disks.extend(present(Link::Closing, "one"));
        let live = live(Asked { cds, ..asked() }, settings);
        assert_eq!(live.next_step(), None);
        let reasons: Vec<_> = live.lags().into_iter().map(|lag| lag.reason).collect();
        assert_eq!(reasons, ["DiskInUse"]);
    }
}

#[test]
fn what_is_in_an_emulated_drive_is_changed_in_one_step_and_a_drive_that_is_so_already_is_left_alone() {
    let file = |name: &str| Some(PathBuf::from(name));
    let drive = |image: Option<Option<PathBuf>>| AskedCd {
        name: "drive".to_owned(),
        target: "hdd".to_owned(),
        emulated: true,
        image: image.map(|device| AskedImage { device }),
    };
    for (image, present, changes) in [
        (None, None, false),
        (None, file("one"), true),
        (Some(file("one")), None, true),
        (Some(file("one")), file("one"), false),
        (Some(file("two")), file("one"), true),
        (Some(None), file("one"), true),
        (Some(None), None, true),
    ] {
        let cds = vec![CdConfig { target: "hdd".to_owned(), image: present.clone() }];
        let wanted = Asked { cds: vec![drive(image.clone())], ..asked() };
        let mut seen = live(wanted, Settings { cds, ..settings() });
        let step = changes.then(|| LiveStep::ChangeCd("drive".to_owned()));
        assert_eq!(seen.next_step(), step, "{image:?} with {present:?}");
        let Some(step) = step else { continue };
        seen.tried.failed.push(Failure { step, reason: "DiskInUse", message: "locked".to_owned() });
        assert_eq!(seen.next_step(), None);
        assert_eq!(seen.lags(), [Lag { reason: "DiskInUse", message: "locked".to_owned(), may_pass: false }]);
    }
}
