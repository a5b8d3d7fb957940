use super::*;
use crate::samples;

#[test]
fn a_disk_of_a_domain_has_a_successor_when_another_has_its_name() {
    let disk = |uid: &str| {
        let spec = serde_json::json!({"repository": "san", "size": "1Gi"});
        let spec = serde_json::from_value(spec).unwrap();
        VirtualDisk { metadata: samples::named("shop", "root", uid), spec, status: None }
    };
    let entry = |shared_uid: Option<&str>| DomainDisk {
        name: "root".to_owned(),
        volume: "shop.root".to_owned(),
        shared: shared_uid.map(|uid| SharedDisk { location: "san".to_owned(), uid: uid.to_owned() }),
        read_only: false,
        target: "xvda".to_owned(),
        detach: false,
    };
    let domain = samples::domain("web", "m-1", "a", "d-1");
    let view = View::default();
    assert!(!has_successor(&view, &domain, &entry(Some("old"))), "there is none of that name");
    view.disks.learn(disk("new"));
    assert!(has_successor(&view, &domain, &entry(Some("old"))));
    assert!(!has_successor(&view, &domain, &entry(Some("new"))));
    assert!(!has_successor(&view, &domain, &entry(None)), "nobody knows which one the host has");
    let spec = serde_json::json!({
        "virtualDisk": {"namespace": "shop", "name": "root", "uid": "old"}, "location": "local", "size": "1Gi",
    });
    let spec = serde_json::from_value(spec).unwrap();
    let metadata = samples::named("kubexen-host-a", "shop.root", "v-1");
    view.volumes.learn(Volume { metadata, spec, status: None });
    assert!(has_successor(&view, &domain, &entry(None)));
}

#[test]
fn disks_with_a_boot_order_come_first_and_the_others_stay_in_their_order() {
    let disk = |name: &str, boot_order| MachineDisk {
        name: name.to_owned(),
        disk: name.to_owned(),
        read_only: false,
        boot_order,
    };
    let disks = [disk("a", None), disk("b", Some(7)), disk("c", None), disk("d", Some(2))];
    let names: Vec<_> = in_boot_order(&disks).map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["d", "b", "a", "c"]);
}

#[test]
fn an_image_is_in_the_drive_that_names_it_whichever_drives_are_empty() {
    let spec = serde_json::json!({"type": "Directory", "directory": {"location": "isos"}});
    let spec = serde_json::from_value(spec).unwrap();
    let view = View::default();
    view.repositories.learn(StorageRepository {
        metadata: samples::named("", "isos", "r-1"),
        spec,
        status: None,
    });
    let image = serde_json::json!({"repository": "isos", "name": "install.iso"});
    let spec = serde_json::json!({
        "cpu": {"count": 1}, "memory": {"size": "1Gi"}, "boot": {"type": "HVM"},
        "cds": [{"name": "empty"}, {"name": "full", "image": image}],
    });
    let spec = serde_json::from_value(spec).unwrap();
    let machine = VirtualMachine { metadata: samples::named("shop", "web", "m-1"), spec, status: None };
    let resolved = resolve(&view, &machine).unwrap();
    let image_in = |name: &str| {
        let cd = resolved.machine.cds.iter().find(|cd| cd.name == name).unwrap();
        cd.image.as_ref().map(|image| (image.location.as_str(), image.name.as_str()))
    };
    assert_eq!((image_in("empty"), image_in("full")), (None, Some(("isos", "install.iso"))));
}
