//! Tests of volumes in folders, on loop devices where the tests run as root.

use super::*;
use crate::storage::conformance::{SIZE, every_promise_holds};
use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};
use tempfile::TempDir;
use uuid::Uuid;

fn config(folder: &Path) -> BTreeMap<String, DirectoryConfig> {
    let capacity = Some(ByteQuantity::from_bytes(4 * SIZE));
    BTreeMap::from([(
        "local".to_owned(),
        DirectoryConfig { path: folder.to_owned(), capacity, shared_as: None },
    )])
}

/// A folder with storage on real loop devices, or nothing where they cannot be made.
fn on_loop_devices() -> Option<(TempDir, DirectoryStorage)> {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        eprintln!("skipped: loop devices need root and /dev/loop-control");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let storage = DirectoryStorage::new(config(folder.path())).unwrap();
    Some((folder, storage))
}

/// A folder with storage of a simulated host.
fn files_only() -> (TempDir, DirectoryStorage) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("volumes")).unwrap();
    let markers = folder.path().join("markers");
    let storage = DirectoryStorage::files_only(config(&folder.path().join("volumes")), &markers).unwrap();
    (folder, storage)
}

fn volume() -> VolumeId {
    VolumeId { location: "local".into(), uuid: Uuid::new_v4() }
}

#[tokio::test]
async fn on_loop_devices_it_keeps_every_promise_of_storage() {
    let Some((folder, storage)) = on_loop_devices() else { return };
    every_promise_holds(&storage, "local").await;
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn with_files_only_it_keeps_every_promise_of_storage() {
    let (folder, storage) = files_only();
    every_promise_holds(&storage, "local").await;
    assert_eq!(fs::read_dir(folder.path().join("volumes")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(folder.path().join("markers/local")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_is_written_to_the_device_is_in_the_file_and_survives_a_new_attachment() {
    let Some((folder, storage)) = on_loop_devices() else { return };
    let volume = volume();
    storage.create(&volume, SIZE).await.unwrap();
    let device = storage.attach(&volume, false).await.unwrap();
    let mut node = File::options().write(true).open(device).unwrap();
    node.seek(SeekFrom::Start(4096)).unwrap();
    node.write_all(b"guest data").unwrap();
    node.sync_all().unwrap();
    drop(node);
    storage.detach(&volume).await.unwrap();
    let mut text = [0; 10];
    let mut file = File::open(folder.path().join(format!("{}.raw", volume.uuid))).unwrap();
    file.seek(SeekFrom::Start(4096)).unwrap();
    file.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"guest data");
    let device = storage.attach(&volume, true).await.unwrap();
    let refused = File::options().write(true).open(&device).and_then(|mut node| node.write_all(&[1; 512]));
    assert!(refused.is_err(), "a read-only device was written to");
    storage.detach(&volume).await.unwrap();
    storage.delete(&volume).await.unwrap();
}

#[tokio::test]
async fn a_device_that_is_attached_learns_that_its_volume_grew() {
    let Some((_folder, storage)) = on_loop_devices() else { return };
    let volume = volume();
    storage.create(&volume, SIZE).await.unwrap();
    let device = storage.attach(&volume, false).await.unwrap();
    storage.grow(&volume, 2 * SIZE).await.unwrap();
    let size = File::open(&device).unwrap().seek(SeekFrom::End(0)).unwrap();
    storage.detach(&volume).await.unwrap();
    storage.delete(&volume).await.unwrap();
    assert_eq!(size, 2 * SIZE);
}

#[tokio::test]
async fn a_device_that_somebody_has_open_is_in_use_until_they_let_go() {
    let Some((_folder, storage)) = on_loop_devices() else { return };
    let volume = volume();
    storage.create(&volume, SIZE).await.unwrap();
    let device = storage.attach(&volume, false).await.unwrap();
    let holder = File::open(&device).unwrap();
    let detached = storage.detach(&volume).await;
    let again = storage.attach(&volume, false).await;
    drop(holder);
    storage.detach(&volume).await.unwrap();
    assert!(matches!(detached, Err(StorageError::InUse(_))), "{detached:?}");
    assert!(matches!(again, Err(StorageError::InUse(_))), "{again:?}");
    assert!(storage.attached().await.unwrap().is_empty());
    storage.delete(&volume).await.unwrap();
}

#[tokio::test]
async fn another_agent_finds_what_is_attached_even_if_its_file_was_deleted() {
    let Some((folder, storage)) = on_loop_devices() else { return };
    let volume = volume();
    storage.create(&volume, SIZE).await.unwrap();
    let device = storage.attach(&volume, false).await.unwrap();
    let next = DirectoryStorage::new(config(folder.path())).unwrap();
    assert_eq!(next.attach(&volume, false).await.unwrap(), device);
    fs::remove_file(folder.path().join(format!("{}.raw", volume.uuid))).unwrap();
    assert_eq!(next.attached().await.unwrap(), BTreeSet::from([volume.clone()]));
    next.detach(&volume).await.unwrap();
    assert!(next.attached().await.unwrap().is_empty());
}

#[tokio::test]
async fn many_volumes_attached_at_once_get_a_device_each() {
    let Some((_folder, storage)) = on_loop_devices() else { return };
    let volumes = [volume(), volume(), volume(), volume()];
    for volume in &volumes {
        storage.create(volume, SIZE).await.unwrap();
    }
    let devices = join_all(volumes.iter().map(|volume| storage.attach(volume, false))).await;
    for volume in &volumes {
        storage.detach(volume).await.unwrap();
        storage.delete(volume).await.unwrap();
    }
    let devices: BTreeSet<_> = devices.into_iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(devices.len(), volumes.len());
}

#[tokio::test]
async fn a_volume_is_a_sparse_file_that_its_owner_alone_reads() {
    let (folder, storage) = files_only();
    let volume = volume();
    storage.create(&volume, SIZE).await.unwrap();
    let path = folder.path().join(format!("volumes/{}.raw", volume.uuid));
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (SIZE, 0));
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert_eq!(storage.attach(&volume, false).await.unwrap(), path);
}

#[tokio::test]
async fn what_a_killed_creation_left_is_no_volume_and_goes_with_the_next_one() {
    let (folder, storage) = files_only();
    let volume = volume();
    let left = folder.path().join(format!("volumes/.{}.new", volume.uuid));
    fs::write(&left, "half").unwrap();
    assert_eq!(storage.find(&volume).await.unwrap(), None);
    storage.create(&volume, SIZE).await.unwrap();
    assert!(!left.exists());
    fs::write(&left, "half").unwrap();
    storage.delete(&volume).await.unwrap();
    assert_eq!(fs::read_dir(folder.path().join("volumes")).unwrap().count(), 0);
}

#[tokio::test]
async fn links_in_the_folder_are_not_followed() {
    let (folder, storage) = files_only();
    let volume = volume();
    let (target, link) = (folder.path().join("secret"), format!("volumes/{}.raw", volume.uuid));
    fs::write(&target, vec![0; 512]).unwrap();
    symlink(&target, folder.path().join(link)).unwrap();
    for error in [
        storage.find(&volume).await.err(),
        storage.attach(&volume, false).await.err(),
        storage.grow(&volume, SIZE).await.err(),
    ] {
        assert!(matches!(error, Some(StorageError::Io { .. })), "{error:?}");
    }
    assert_eq!(fs::metadata(&target).unwrap().len(), 512);
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_no_location_and_is_not_made() {
    let (folder, storage) = files_only();
    let path = folder.path().join("volumes");
    fs::remove_dir(&path).unwrap();
    let seen = storage.locations().await;
    assert!(seen.usable.is_empty());
    assert!(seen.unusable[0].reason.contains("No such file"), "{seen:?}");
    assert!(storage.create(&volume(), SIZE).await.is_err());
    assert!(!path.exists());
    assert!(storage.attached().await.unwrap().is_empty());
}

#[tokio::test]
async fn without_a_capacity_it_is_that_of_the_file_system() {
    let folder = tempfile::tempdir().unwrap();
    let config = DirectoryConfig { path: folder.path().to_owned(), capacity: None, shared_as: None };
    let storage = DirectoryStorage::new(BTreeMap::from([("local".to_owned(), config)])).unwrap();
    let facts = storage.locations().await.usable;
    assert!(facts[0].capacity > 0);
    let huge = storage.create(&volume(), 1 << 60).await;
    assert!(matches!(huge, Err(StorageError::NoSpace { .. })), "{huge:?}");
}

#[test]
fn a_configuration_that_nothing_can_follow_is_refused() {
    let refused = |name: &str, path: &str, capacity: Option<&str>| {
        let capacity = capacity.map(|text| ByteQuantity(text.to_owned()));
        let config = DirectoryConfig { path: path.into(), capacity, shared_as: None };
        let result = DirectoryStorage::new(BTreeMap::from([(name.to_owned(), config)]));
        matches!(result, Err(StorageError::BadConfig { .. }))
    };
    assert!(!refused("local", "/srv/volumes", Some("10Gi")));
    assert!(refused("local", "volumes", None));
    assert!(refused("local", "/srv/volumes", Some("lots")));
    assert!(refused("../local", "/srv/volumes", None));
}
