//! Storage in memory: a model for simulation and tests, with faults to inject.

use super::{Content, LocationFacts, LocationsSeen, Obstacle, Storage, StorageError, VolumeId, check_size};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use uuid::Uuid;

/// Storage in memory. What is stored outlives the agent as long as one clone of this is kept.
///
/// A clone is the same host again, as after a restart of its agent. Hosts that were given clones of one
/// [`SharedLocation`] see the same volumes there, each with attachments of its own. Each call yields to the executor once
/// before it acts, so that concurrent calls interleave as they do with real storage.
#[derive(Clone, Debug)]
pub struct MemoryStorage {
    places: BTreeMap<String, Arc<Mutex<Place>>>,
    host: Arc<Mutex<Host>>,
}

/// A location that several hosts reach.
#[derive(Clone, Debug)]
pub struct SharedLocation(Arc<Mutex<Place>>);

impl SharedLocation {
    /// An empty location that is called `id`, with room for `capacity` bytes.
    #[must_use]
    pub fn new(id: &str, capacity: u64) -> Self {
        Self(Arc::new(Mutex::new(Place { capacity, id: Some(id.to_owned()), ..Place::default() })))
    }

    /// All volumes with their sizes in bytes.
    #[must_use]
    pub fn volumes(&self) -> BTreeMap<Uuid, u64> {
        lock(&self.0).volumes.clone()
    }
}

#[derive(Debug, Default)]
struct Place {
    /// Bytes.
    capacity: u64,
    /// What it is called, if several hosts reach it.
    id: Option<String>,
    /// Size in bytes.
    volumes: BTreeMap<Uuid, u64>,
    /// What was written to volumes and synced; beyond that they read as zeroes.
    contents: BTreeMap<Uuid, Vec<u8>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Host {
    /// Attached volumes and whether they are read-only.
    attached: BTreeMap<VolumeId, bool>,
    /// Devices that somebody holds open.
    held: BTreeSet<VolumeId>,
    outage: bool,
    full: bool,
    refusals: u32,
    lost_answers: u32,
}

/// How long a call whose answer is lost keeps its caller waiting.
const LOST_ANSWER: Duration = Duration::from_secs(60);

impl MemoryStorage {
    /// Empty storage with these locations of its own and their capacities in bytes.
    #[must_use]
    pub fn new(locations: BTreeMap<String, u64>) -> Self {
        let place = |capacity| Place { capacity, ..Place::default() };
        let places = locations
            .into_iter()
            .map(|(name, capacity)| (name, Arc::new(Mutex::new(place(capacity)))))
            .collect();
        Self { places, host: Arc::default() }
    }

    /// Storage that has a shared location too.
    #[must_use]
    pub fn reaching(mut self, name: &str, location: &SharedLocation) -> Self {
        self.places.insert(name.to_owned(), Arc::clone(&location.0));
        self
    }

    /// Begins or ends an outage on this host: during it every call fails and no location can be used.
    pub fn set_outage(&self, outage: bool) {
        self.host().outage = outage;
    }

    /// From now on this host finds no room in any location, or does again: volumes are neither made nor grown, and what is new in
    /// them is not written.
    pub fn set_full(&self, full: bool) {
        self.host().full = full;
    }

    /// Refuses each of the next `calls` changes on this host.
    pub fn refuse_next(&self, calls: u32) {
        self.host().refusals = calls;
    }

    /// Does each of the next `calls` changes on this host, but answers `TimedOut` a minute later.
    pub fn lose_answers(&self, calls: u32) {
        self.host().lost_answers = calls;
    }

    /// Opens an attached volume's device, or closes it: while it is open it cannot be detached.
    pub fn hold(&self, volume: &VolumeId, held: bool) {
        let mut host = self.host();
        if held {
            host.held.insert(volume.clone());
        } else {
            host.held.remove(volume);
        }
    }

    /// Reboots this host: nothing is attached to it any more.
    pub fn reboot(&self) {
        let mut host = self.host();
        host.attached.clear();
        host.held.clear();
    }

    /// The volumes in locations of this host's own, with their sizes in bytes.
    #[must_use]
    pub fn volumes(&self) -> BTreeMap<VolumeId, u64> {
        let mut all = BTreeMap::new();
        for (name, place) in &self.places {
            let place = lock(place);
            if place.id.is_none() {
                let volume =
                    |(uuid, size): (&Uuid, &u64)| (VolumeId { location: name.clone(), uuid: *uuid }, *size);
                all.extend(place.volumes.iter().map(volume));
            }
        }
        all
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        lock(&self.host)
    }

    fn place(&self, location: &str) -> Result<MutexGuard<'_, Place>, StorageError> {
        let unknown = || StorageError::UnknownLocation(location.to_owned());
        self.places.get(location).map(|place| lock(place)).ok_or_else(unknown)
    }

    fn reach(&self, call: &'static str) -> Result<(), StorageError> {
        if self.host().outage { Err(injected(call, "outage injected")) } else { Ok(()) }
    }

    /// A change, with the faults that were injected.
    async fn change<T>(
        &self,
        call: &'static str,
        volume: &VolumeId,
        change: impl FnOnce(&mut Place, &mut Host) -> Result<T, StorageError> + Send,
    ) -> Result<T, StorageError> {
        tokio::task::yield_now().await;
        self.reach(call)?;
        let (result, lost) = {
            let mut host = self.host();
            if host.refusals > 0 {
                host.refusals -= 1;
                return Err(injected(call, "refusal injected"));
            }
            let result = self.place(&volume.location).and_then(|mut place| change(&mut place, &mut host));
            let lost = host.lost_answers > 0;
            host.lost_answers = host.lost_answers.saturating_sub(1);
            (result, lost)
        };
        if lost {
            tokio::time::sleep(LOST_ANSWER).await;
            return Err(StorageError::TimedOut { call, limit: LOST_ANSWER });
        }
        result
    }
}

fn injected(call: &'static str, reason: &'static str) -> StorageError {
    StorageError::Io { call, source: io::Error::other(reason) }
}

impl Place {
    /// Refuses unless `more` bytes fit into the location, as the host finds it.
    fn reserve(&self, host: &Host, location: &str, more: u64) -> Result<(), StorageError> {
        let left = self.capacity.saturating_sub(self.volumes.values().sum());
        let available = if host.full { 0 } else { left };
        if more <= available {
            Ok(())
        } else {
            Err(StorageError::NoSpace { location: location.to_owned(), available, requested: more })
        }
    }
}

#[async_trait]
impl Storage for MemoryStorage {
    async fn locations(&self) -> LocationsSeen {
        tokio::task::yield_now().await;
        let facts = |(name, place): (&String, &Arc<Mutex<Place>>)| {
            let name = name.clone();
            if let Err(error) = self.reach("look at the location") {
                return Err(Obstacle { name, reason: error.to_string() });
            }
            let Place { capacity, id, .. } = &*lock(place);
            let (shared, id) = (id.is_some(), id.clone());
            Ok(LocationFacts { name, capacity: *capacity, shared, id, images: Vec::new() })
        };
        LocationsSeen::collect(self.places.iter().map(facts))
    }

    async fn find(&self, volume: &VolumeId) -> Result<Option<u64>, StorageError> {
        tokio::task::yield_now().await;
        self.reach("find")?;
        Ok(self.place(&volume.location)?.volumes.get(&volume.uuid).copied())
    }

    async fn create(&self, volume: &VolumeId, size: u64) -> Result<(), StorageError> {
        check_size(size)?;
        self.change("create", volume, |place, host| match place.volumes.get(&volume.uuid) {
            Some(existing) if *existing == size => Ok(()),
            Some(&existing) => {
                Err(StorageError::OtherSize { volume: volume.clone(), existing, requested: size })
            }
            None => {
                place.reserve(host, &volume.location, size)?;
                place.volumes.insert(volume.uuid, size);
                Ok(())
            }
        })
        .await
    }

    async fn grow(&self, volume: &VolumeId, size: u64) -> Result<(), StorageError> {
        check_size(size)?;
        self.change("grow", volume, |place, host| {
            let existing =
                *place.volumes.get(&volume.uuid).ok_or_else(|| StorageError::NoSuchVolume(volume.clone()))?;
            let Some(more) = size.checked_sub(existing) else {
                return Err(StorageError::WouldShrink { volume: volume.clone(), existing, requested: size });
            };
            place.reserve(host, &volume.location, more)?;
            place.volumes.insert(volume.uuid, size);
            Ok(())
        })
        .await
    }

    async fn delete(&self, volume: &VolumeId) -> Result<(), StorageError> {
        self.change("delete", volume, |place, host| {
            if host.attached.contains_key(volume) {
                return Err(StorageError::InUse(volume.clone()));
            }
            place.volumes.remove(&volume.uuid);
            place.contents.remove(&volume.uuid);
            Ok(())
        })
        .await
    }

    async fn attach(&self, volume: &VolumeId, read_only: bool) -> Result<PathBuf, StorageError> {
        self.change("attach", volume, |place, host| {
            if !place.volumes.contains_key(&volume.uuid) {
                return Err(StorageError::NoSuchVolume(volume.clone()));
            }
            if *host.attached.entry(volume.clone()).or_insert(read_only) != read_only {
                return Err(StorageError::InUse(volume.clone()));
            }
            Ok(PathBuf::from(format!("/dev/simulated/{}/{}", volume.location, volume.uuid)))
        })
        .await
    }

    async fn open(&self, volume: &VolumeId) -> Result<Box<dyn Content>, StorageError> {
        self.attach(volume, false).await?;
        let place = self.places.get(&volume.location).map(Arc::clone);
        let place = place.ok_or_else(|| StorageError::UnknownLocation(volume.location.clone()))?;
        let written = lock(&place).contents.get(&volume.uuid).cloned().unwrap_or_default();
        let host = Arc::clone(&self.host);
        Ok(Box::new(MemoryContent { volume: volume.clone(), place, host, written: Mutex::new(written) }))
    }

    async fn detach(&self, volume: &VolumeId) -> Result<(), StorageError> {
        self.change("detach", volume, |_, host| {
            if host.held.contains(volume) {
                return Err(StorageError::InUse(volume.clone()));
            }
            host.attached.remove(volume);
            Ok(())
        })
        .await
    }

    async fn wait_until_quiet(&self, _: &VolumeId) -> Result<(), StorageError> {
        tokio::task::yield_now().await;
        self.reach("look at the volume's traffic")
    }

    async fn check_readable(&self, volume: &VolumeId) -> Result<(), StorageError> {
        tokio::task::yield_now().await;
        self.reach("read from the volume")?;
        match self.host().attached.contains_key(volume) {
            true => Ok(()),
            false => Err(StorageError::NoSuchVolume(volume.clone())),
        }
    }

    async fn attached(&self) -> Result<BTreeSet<VolumeId>, StorageError> {
        tokio::task::yield_now().await;
        self.reach("attached")?;
        Ok(self.host().attached.keys().cloned().collect())
    }
}

/// What a volume holds. Nothing of what is written is there for others, or after this is dropped, before it is synced.
#[derive(Debug)]
struct MemoryContent {
    volume: VolumeId,
    place: Arc<Mutex<Place>>,
    host: Arc<Mutex<Host>>,
    written: Mutex<Vec<u8>>,
}

impl MemoryContent {
    async fn reach(&self) -> io::Result<u64> {
        tokio::task::yield_now().await;
        let host = lock(&self.host);
        if host.outage || !host.attached.contains_key(&self.volume) {
            return Err(io::Error::other("the device is gone"));
        }
        let size = lock(&self.place).volumes.get(&self.volume.uuid).copied();
        size.ok_or_else(|| io::Error::other("the volume is gone"))
    }
}

#[async_trait]
impl Content for MemoryContent {
    async fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.reach().await?.saturating_sub(offset)).unwrap_or(usize::MAX);
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let mut bytes = vec![0; length.min(left)];
        let written = lock(&self.written);
        if let Some(there) = written.get(offset..) {
            let known = there.len().min(bytes.len());
            bytes[..known].copy_from_slice(&there[..known]);
        }
        Ok(bytes)
    }

    async fn write_at(&self, offset: u64, bytes: Vec<u8>) -> io::Result<()> {
        if offset + bytes.len() as u64 > self.reach().await? || lock(&self.host).full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let mut written = lock(&self.written);
        let end = offset + bytes.len();
        if written.len() < end {
            written.resize(end, 0);
        }
        written[offset..end].copy_from_slice(&bytes);
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        self.reach().await?;
        let written = lock(&self.written).clone();
        lock(&self.place).contents.insert(self.volume.uuid, written);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance::{SIZE, every_promise_holds};

    fn storage() -> (MemoryStorage, VolumeId) {
        let storage = MemoryStorage::new(BTreeMap::from([("local".to_owned(), 4 * SIZE)]));
        (storage, VolumeId { location: "local".into(), uuid: Uuid::from_u128(1) })
    }

    #[tokio::test(start_paused = true)]
    async fn it_keeps_every_promise_of_storage() {
        every_promise_holds(&storage().0, "local").await;
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_share_volumes_and_not_attachments() {
        let san = SharedLocation::new("san-1", 4 * SIZE);
        let host = || MemoryStorage::new(BTreeMap::new()).reaching("san", &san);
        let (one, two) = (host(), host());
        let volume = VolumeId { location: "san".into(), uuid: Uuid::from_u128(1) };
        one.create(&volume, SIZE).await.unwrap();
        one.attach(&volume, false).await.unwrap();
        assert_eq!(two.find(&volume).await.unwrap(), Some(SIZE));
        assert!(two.attached().await.unwrap().is_empty());
        one.reboot();
        assert!(one.attached().await.unwrap().is_empty());
        assert!(one.locations().await.usable[0].shared);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_leaves_the_work_done() {
        let (storage, volume) = storage();
        storage.lose_answers(1);
        let lost = storage.create(&volume, SIZE).await;
        assert!(matches!(lost, Err(StorageError::TimedOut { .. })), "{lost:?}");
        assert_eq!(storage.find(&volume).await.unwrap(), Some(SIZE));
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_and_outages_change_nothing() {
        let (storage, volume) = storage();
        storage.refuse_next(1);
        assert!(storage.create(&volume, SIZE).await.is_err());
        assert_eq!(storage.find(&volume).await.unwrap(), None);
        storage.set_outage(true);
        assert!(storage.find(&volume).await.is_err());
        assert!(storage.locations().await.usable.is_empty());
        assert_eq!(storage.locations().await.unusable[0].name, "local");
        storage.set_outage(false);
        storage.create(&volume, SIZE).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_without_room_keeps_what_it_has() {
        let (storage, volume) = storage();
        storage.create(&volume, SIZE).await.unwrap();
        storage.set_full(true);
        let other = VolumeId { uuid: Uuid::from_u128(2), ..volume.clone() };
        assert!(matches!(storage.create(&other, SIZE).await, Err(StorageError::NoSpace { .. })));
        assert!(matches!(storage.grow(&volume, 2 * SIZE).await, Err(StorageError::NoSpace { .. })));
        storage.grow(&volume, SIZE).await.unwrap();
        let content = storage.open(&volume).await.unwrap();
        assert_eq!(content.write_at(0, vec![1]).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
        storage.set_full(false);
        content.write_at(0, vec![1]).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_is_held_open_is_not_detached() {
        let (storage, volume) = storage();
        storage.create(&volume, SIZE).await.unwrap();
        storage.attach(&volume, false).await.unwrap();
        storage.hold(&volume, true);
        assert!(matches!(storage.detach(&volume).await, Err(StorageError::InUse(_))));
        storage.hold(&volume, false);
        storage.detach(&volume).await.unwrap();
    }
}
