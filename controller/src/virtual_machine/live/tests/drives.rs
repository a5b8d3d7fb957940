//! Emulated CD drives.

use super::*;

fn cd(image: Option<&str>, target: &str) -> DomainCd {
    let image = image.map(|name| DomainImage { location: "isos".to_owned(), name: name.to_owned() });
    DomainCd { name: "drive".to_owned(), target: target.to_owned(), image, before_disks: false }
}

fn with_cds(cds: Vec<DomainCd>, disks: Vec<DomainDisk>) -> Domain {
    let mut domain = domain();
    (domain.spec.machine.cds, domain.spec.machine.disks) = (cds, disks);
    domain
}

/// What becomes of drives on a host that has the image `here.iso`.
fn change_drives(wanted: Vec<DomainCd>, domain: &Domain) -> Change {
    let need = |image: &str| ImageNeed {
        repository: "isos".to_owned(),
        location: "isos".to_owned(),
        image: image.to_owned(),
        selector: HostSelector::default(),
    };
    let mut room = room();
    room.host.images = [("isos".to_owned(), ["here.iso".to_owned()].into())].into();
    let images = wanted.iter().filter_map(|cd| Some(need(&cd.image.as_ref()?.name))).collect();
    let machine = Machine { cds: wanted, ..domain.spec.machine.clone() };
    let wanted = Resolved { machine, disks: Vec::new(), networks: Vec::new(), saved_state: None, images };
    change(&spec(&json!({})), &wanted, domain, &Surroundings { host: "a", room: Some(&room) })
}

#[test]
fn an_image_is_put_in_and_ejected_while_the_guest_runs_if_its_host_has_it() {
    let look = |wanted: Vec<DomainCd>, domain: &Domain| {
        let change = change_drives(wanted, domain);
        let held: Vec<_> = change.held.iter().map(|held| held.reason).collect();
        (change.next.cds, held)
    };
    let disks = machine().disks;
    let empty = with_cds(vec![cd(None, "xvdo")], disks.clone());
    let full = with_cds(vec![cd(Some("gone.iso"), "xvdo")], disks);
    for (wanted, domain, next, held) in [
        (vec![cd(Some("here.iso"), "xvdo")], &empty, vec![cd(Some("here.iso"), "xvdo")], vec![]),
        (vec![cd(Some("gone.iso"), "xvdo")], &empty, vec![cd(None, "xvdo")], vec!["ImageMissing"]),
        (vec![cd(Some("gone.iso"), "xvdo")], &full, vec![cd(Some("gone.iso"), "xvdo")], vec![]),
        (vec![cd(None, "xvdo")], &full, vec![cd(None, "xvdo")], vec![]),
        (vec![], &full, vec![], vec![]),
        (vec![cd(Some("here.iso"), "xvdo")], &domain(), vec![cd(Some("here.iso"), "xvdo")], vec![]),
    ] {
        assert_eq!(look(wanted.clone(), domain), (next, held), "{wanted:?}");
    }
    let sixteen = with_cds(Vec::new(), targets().map(|target| disk(&target, &target)).collect());
    let (next, held) = look(vec![cd(None, "xvdo")], &sixteen);
    assert!(next.is_empty() && held.contains(&"TooManyDisks"), "{next:?} {held:?}");
}

#[test]
fn what_is_in_an_emulated_drive_changes_and_the_drive_itself_waits_for_a_restart() {
    let named = |name: &str, target: &str| DomainCd { name: name.to_owned(), ..cd(None, target) };
    let first = |drive: DomainCd| DomainCd { before_disks: true, ..drive };
    let (empty, full) = (cd(None, "hdd"), cd(Some("here.iso"), "hdd"));
    let (a, b) = (named("a", "hdc"), named("b", "hdd"));
    for (present, wanted, next, restart) in [
        (vec![empty.clone()], vec![full.clone()], vec![full.clone()], vec![]),
        (vec![full.clone()], vec![empty.clone()], vec![empty.clone()], vec![]),
        (vec![full.clone()], vec![], vec![empty.clone()], vec!["spec.cds[drive]"]),
        (vec![], vec![full.clone()], vec![], vec!["spec.cds[drive]"]),
        (vec![empty.clone()], vec![a.clone(), empty.clone()], vec![empty.clone()], vec!["spec.cds[a]"]),
        (
            vec![empty.clone()],
            vec![first(full.clone())],
            vec![full.clone()],
            vec!["spec.cds[drive].bootOrder"],
        ),
        (
            vec![a.clone(), b.clone()],
            vec![named("b", "hdc"), named("a", "hdd")],
            vec![b.clone(), a.clone()],
            vec!["spec.cds"],
        ),
        (vec![cd(None, "xvdo")], vec![full], vec![cd(Some("here.iso"), "xvdo")], vec!["spec.cds[drive]"]),
    ] {
        let mut domain = with_cds(present.clone(), machine().disks);
        domain.spec.machine.boot.type_ = BootType::Hvm;
        let change = change_drives(wanted.clone(), &domain);
        assert_eq!((change.next.cds, change.held), (next, vec![]), "{present:?} to {wanted:?}");
        assert_eq!(change.restart, restart, "{present:?} to {wanted:?}");
    }
}

#[test]
fn no_disk_is_attached_in_the_place_of_an_emulated_drive() {
    let present = [disk("root", "xvda"), disk("data", "xvdb"), disk("more", "xvdc")];
    let machine = Machine { cds: vec![cd(None, "hdd")], ..machine() };
    assert_eq!(free_target(&present, &machine).as_deref(), Some("xvde"));
}
