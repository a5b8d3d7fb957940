//! Changes to the metadata of a volume group: by one host at a time, under a lock in the pool etcd.
//!
//! A tag of the group keeps the revision of the lock under which the group was changed last. A holder that finds a
//! greater one than its own came too late, and changes nothing.

use super::{command, names, report::GroupReport};
use crate::storage::StorageError;
use kubexen_ownership::lock::{Guard, LockError, LockName, Locks};
use std::{io, time::Duration};
use tracing::warn;

/// Time limit of each command. LVM's commands take a tenth of a second on a healthy host.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// How long before the end of a lock whatever is done under it must have ended.
pub(super) const MARGIN: Duration = Duration::from_secs(5);
/// How long a lock lasts without a renewal.
const LOCK_TTL: Duration = Duration::from_secs(45);
/// How long a lock is waited for at a time, and how often: in all until the holder's lease has run out twice.
const PATIENCE: Duration = Duration::from_secs(10);
const PATIENT_TRIES: u32 = 10;

/// Takes a lock, waiting for other holders. Meanwhile `hold` is kept, if there is one.
pub(super) async fn take(
    locks: &dyn Locks,
    name: String,
    mut hold: Option<&mut Guard>,
) -> Result<Guard, StorageError> {
    let name = lock_name(name)?;
    let mut tries = 0;
    loop {
        if let Some(hold) = &mut hold {
            hold.last_for(COMMAND_LIMIT + MARGIN).await?;
        }
        tries += 1;
        match locks.acquire(&name, LOCK_TTL, PATIENCE).await {
            Err(LockError::Held { .. }) if tries < PATIENT_TRIES => {}
            result => return Ok(result?),
        }
    }
}

/// Takes a lock if nobody holds it.
pub(super) async fn take_if_free(locks: &dyn Locks, name: String) -> Result<Option<Guard>, StorageError> {
    match locks.acquire(&lock_name(name)?, LOCK_TTL, Duration::ZERO).await {
        Ok(guard) => Ok(Some(guard)),
        Err(LockError::Held { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn lock_name(name: String) -> Result<LockName, StorageError> {
    LockName::new(name).map_err(|error| unlocked(io::Error::other(error)))
}

/// Gives a lock up, unless what was done under it may still be going on: then the lock runs out.
pub(super) async fn let_go<T>(guard: Guard, result: &Result<T, StorageError>) {
    if matches!(result, Err(StorageError::TimedOut { .. })) {
        return;
    }
    if let Err(error) = guard.release().await {
        warn!(%error, "a lock was left to run out");
    }
}

/// A lock that did not do its part. The whole chain of causes is told.
impl From<LockError> for StorageError {
    fn from(error: LockError) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        unlocked(io::Error::other(text))
    }
}

fn unlocked(source: io::Error) -> StorageError {
    StorageError::Io { call: "lock the storage", source }
}

/// Reads a volume group.
pub(super) async fn look(group: &str) -> Result<GroupReport, StorageError> {
    const CALL: &str = "read the volume group";
    let arguments = [&super::report::ARGUMENTS[..], &[group]].concat();
    let text = command::lvm(CALL, &arguments, "", COMMAND_LIMIT).await?;
    let invalid = |reason| StorageError::Io { call: CALL, source: io::Error::other(reason) };
    GroupReport::parse(group, &text).map_err(invalid)
}

/// The right to change the metadata of a volume group, of somebody who holds the lock of a volume.
#[derive(Debug)]
pub(super) struct Metadata<'a> {
    group: String,
    hold: &'a mut Guard,
    guard: Guard,
    /// The group when the lock was taken.
    pub(super) report: GroupReport,
    stamped: bool,
}

impl<'a> Metadata<'a> {
    /// Waits for the lock of the group of this name and identity.
    pub(super) async fn lock(
        locks: &dyn Locks,
        hold: &'a mut Guard,
        group: &str,
        uuid: &str,
    ) -> Result<Self, StorageError> {
        let mut guard = take(locks, format!("lvm.{uuid}"), Some(&mut *hold)).await?;
        match read_under(&mut guard, group, uuid).await {
            Ok(report) => Ok(Self { group: group.to_owned(), hold, guard, report, stamped: false }),
            Err(error) => {
                let result = Err(error);
                let_go(guard, &result).await;
                result
            }
        }
    }

    /// Runs a command of LVM that changes the group, and ends it before the locks do.
    pub(super) async fn change(
        &mut self,
        call: &'static str,
        arguments: &[&str],
        config: &str,
    ) -> Result<(), StorageError> {
        if !self.stamped {
            self.stamp().await?;
        }
        self.run(call, arguments, config).await
    }

    /// Writes down under which revision of the lock the group is changed.
    async fn stamp(&mut self) -> Result<(), StorageError> {
        let tag = names::revision_tag(self.guard.revision());
        let mut arguments = vec!["vgchange", "--addtag", &tag];
        let earlier = self.report.revision_tags.clone();
        for tag in &earlier {
            arguments.extend(["--deltag", tag]);
        }
        let group = self.group.clone();
        arguments.push(&group);
        self.run("write the lock's revision", &arguments, "").await?;
        self.stamped = true;
        Ok(())
    }

    async fn run(
        &mut self,
        call: &'static str,
        arguments: &[&str],
        config: &str,
    ) -> Result<(), StorageError> {
        for guard in [&mut *self.hold, &mut self.guard] {
            guard.last_for(COMMAND_LIMIT + MARGIN).await?;
        }
        command::lvm(call, arguments, config, COMMAND_LIMIT).await.map(drop)
    }

    /// Gives the lock up after work that ended so.
    pub(super) async fn unlock<T>(self, result: &Result<T, StorageError>) {
        let_go(self.guard, result).await;
    }
}

/// Reads the group under its lock, and checks that it may be changed by this holder.
async fn read_under(guard: &mut Guard, group: &str, uuid: &str) -> Result<GroupReport, StorageError> {
    let refused = |reason: String| {
        Err(StorageError::Io { call: "change the volume group", source: io::Error::other(reason) })
    };
    guard.last_for(COMMAND_LIMIT + MARGIN).await?;
    let report = look(group).await?;
    if report.uuid != uuid {
        return refused(format!("{group} is another group than before"));
    }
    if let Some(ailment) = report.ailment {
        return refused(ailment.to_owned());
    }
    if report.revision > guard.revision() {
        return refused(format!(
            "it was changed under revision {} of its lock, and this host holds an older one, {}",
            report.revision,
            guard.revision()
        ));
    }
    Ok(report)
}
