//! What must hold of every storage, so that what is proven on the model holds on real devices.

#![allow(clippy::unwrap_used, reason = "the suite fails by panicking")]

use super::{Storage, StorageError, VolumeId};
use uuid::Uuid;

/// Size of the volumes that the suite makes, in bytes, which the location must not round. It must have room for four of
/// them, and not for five.
pub(super) const SIZE: u64 = 1 << 20;

/// Puts a storage through everything that is promised, on a location that is empty. Afterwards it is empty again.
pub(super) async fn every_promise_holds(storage: &dyn Storage, location: &str) {
    let volume = || VolumeId { location: location.to_owned(), uuid: Uuid::new_v4() };
    names_its_locations(storage, location).await;
    a_volume_is_made_once_and_deleted_twice(storage, &volume()).await;
    a_volume_grows_and_never_shrinks(storage, &volume()).await;
    capacity_bounds_the_sum_of_sizes(storage, [volume(), volume(), volume(), volume()], &volume()).await;
    an_attached_volume_keeps_its_device(storage, &volume()).await;
    what_is_written_and_synced_is_read_after_it_was_attached_anew(storage, &volume()).await;
    what_is_not_there_is_said_so(storage, &volume()).await;
    assert!(storage.attached().await.unwrap().is_empty(), "the suite left something attached");
}

async fn names_its_locations(storage: &dyn Storage, location: &str) {
    let facts = storage.locations().await.usable;
    assert!(facts.is_sorted_by_key(|facts| facts.name.clone()), "{facts:?}");
    let found = facts.iter().find(|facts| facts.name == location).expect("the location can be used");
    assert!((4 * SIZE..5 * SIZE).contains(&found.capacity), "{found:?}");
}

async fn a_volume_is_made_once_and_deleted_twice(storage: &dyn Storage, volume: &VolumeId) {
    assert_eq!(storage.find(volume).await.unwrap(), None);
    storage.create(volume, SIZE).await.unwrap();
    storage.create(volume, SIZE).await.unwrap();
    assert_eq!(storage.find(volume).await.unwrap(), Some(SIZE));
    let other = storage.create(volume, 2 * SIZE).await;
    assert!(matches!(other, Err(StorageError::OtherSize { existing: SIZE, .. })), "{other:?}");
    for size in [0, SIZE + 1] {
        let bad = storage.create(volume, size).await;
        assert!(matches!(bad, Err(StorageError::BadSize { .. })), "{bad:?}");
    }
    storage.delete(volume).await.unwrap();
    storage.delete(volume).await.unwrap();
    assert_eq!(storage.find(volume).await.unwrap(), None);
}

async fn a_volume_grows_and_never_shrinks(storage: &dyn Storage, volume: &VolumeId) {
    storage.create(volume, SIZE).await.unwrap();
    storage.grow(volume, 2 * SIZE).await.unwrap();
    storage.grow(volume, 2 * SIZE).await.unwrap();
    assert_eq!(storage.find(volume).await.unwrap(), Some(2 * SIZE));
    let shrunk = storage.grow(volume, SIZE).await;
    assert!(
        matches!(shrunk, Err(StorageError::WouldShrink { existing, .. }) if existing == 2 * SIZE),
        "{shrunk:?}"
    );
    storage.attach(volume, false).await.unwrap();
    storage.grow(volume, 3 * SIZE).await.unwrap();
    assert_eq!(storage.find(volume).await.unwrap(), Some(3 * SIZE));
    storage.detach(volume).await.unwrap();
    storage.delete(volume).await.unwrap();
}

async fn capacity_bounds_the_sum_of_sizes(storage: &dyn Storage, fitting: [VolumeId; 4], fifth: &VolumeId) {
    for volume in &fitting {
        storage.create(volume, SIZE).await.unwrap();
    }
    let refused = storage.create(fifth, SIZE).await;
    assert!(matches!(refused, Err(StorageError::NoSpace { requested: SIZE, .. })), "{refused:?}");
    assert_eq!(storage.find(fifth).await.unwrap(), None);
    let refused = storage.grow(&fitting[0], 2 * SIZE).await;
    assert!(matches!(refused, Err(StorageError::NoSpace { .. })), "{refused:?}");
    assert_eq!(storage.find(&fitting[0]).await.unwrap(), Some(SIZE));
    storage.delete(&fitting[3]).await.unwrap();
    storage.create(fifth, SIZE).await.unwrap();
    for volume in fitting.iter().chain([fifth]) {
        storage.delete(volume).await.unwrap();
    }
}

async fn an_attached_volume_keeps_its_device(storage: &dyn Storage, volume: &VolumeId) {
    storage.create(volume, SIZE).await.unwrap();
    for read_only in [false, true] {
        let device = storage.attach(volume, read_only).await.unwrap();
        assert_eq!(storage.attach(volume, read_only).await.unwrap(), device);
        assert!(storage.attached().await.unwrap().contains(volume));
        storage.check_readable(volume).await.unwrap();
        let other = storage.attach(volume, !read_only).await;
        assert!(matches!(other, Err(StorageError::InUse(_))), "{other:?}");
        let deleted = storage.delete(volume).await;
        assert!(matches!(deleted, Err(StorageError::InUse(_))), "{deleted:?}");
        storage.detach(volume).await.unwrap();
        storage.detach(volume).await.unwrap();
        assert!(!storage.attached().await.unwrap().contains(volume));
    }
    storage.delete(volume).await.unwrap();
}

async fn what_is_written_and_synced_is_read_after_it_was_attached_anew(
    storage: &dyn Storage,
    volume: &VolumeId,
) {
    storage.create(volume, SIZE).await.unwrap();
    let content = storage.open(volume).await.unwrap();
    assert!(storage.attached().await.unwrap().contains(volume));
    content.write_at(4096, b"what was written".to_vec()).await.unwrap();
    content.sync().await.unwrap();
    assert!(content.write_at(SIZE - 1, b"too long".to_vec()).await.is_err(), "beyond the end");
    drop(content);
    storage.detach(volume).await.unwrap();
    let content = storage.open(volume).await.unwrap();
    assert_eq!(content.read_at(4096, 18).await.unwrap(), b"what was written\0\0");
    assert_eq!(content.read_at(SIZE - 2, 100).await.unwrap(), [0, 0], "the volume ends");
    drop(content);
    storage.detach(volume).await.unwrap();
    storage.delete(volume).await.unwrap();
}

async fn what_is_not_there_is_said_so(storage: &dyn Storage, volume: &VolumeId) {
    let missing = [storage.grow(volume, SIZE).await.err(), storage.attach(volume, false).await.err()];
    assert!(missing.iter().all(|error| matches!(error, Some(StorageError::NoSuchVolume(_)))), "{missing:?}");
    storage.detach(volume).await.unwrap();
    let elsewhere = VolumeId { location: "nowhere".into(), uuid: volume.uuid };
    let unknown = [
        storage.find(&elsewhere).await.err(),
        storage.create(&elsewhere, SIZE).await.err(),
        storage.grow(&elsewhere, SIZE).await.err(),
        storage.delete(&elsewhere).await.err(),
        storage.attach(&elsewhere, false).await.err(),
        storage.detach(&elsewhere).await.err(),
    ];
    assert!(
        unknown.iter().all(|error| matches!(error, Some(StorageError::UnknownLocation(_)))),
        "{unknown:?}"
    );
}
