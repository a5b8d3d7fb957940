//! A store that was restored from a backup is told what is here, before an operator confirms it.
//!
//! Its owner records are older than the guests: one may name a host that a guest has left since, or be missing. What has a
//! domain here is put on record as this host's. A guest that may run at this moment ran here under the store that was, so
//! nobody else's record of it can be right; of any other domain a record of another host stands. A copy that a migration sent
//! here is not the guest before it was handed over, which only a record can say.

use super::{Domains, ReconcileError};
use crate::hypervisor::DomainState;
use kubexen_crds::{Domain, MigrationRole};
use kubexen_ownership::{Reclaim, VmUid, liveness::Standing};
use std::collections::BTreeSet;
use tracing::{info, warn};
use uuid::Uuid;

/// How far it got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reclaimed {
    /// Every guest that is here is on record.
    All,
    /// This one runs here, and another host says the same of itself.
    Contested(Uuid, String),
    /// The store stands otherwise by now.
    Over,
}

impl Domains {
    /// Puts on record what is here, in a store that was seen to stand like this. `mine` are the guests that were put on record
    /// in it by earlier calls.
    ///
    /// # Errors
    /// When the store or the hypervisor cannot be asked.
    pub async fn reclaim(
        &self,
        seen: &Standing,
        mine: &mut BTreeSet<Uuid>,
    ) -> Result<Reclaimed, ReconcileError> {
        // What was begun before has its domain afterwards.
        let _no_start = self.starts.write().await;
        let owners = self.ownership.owners().await?;
        let present = self.hypervisor.domains().await?;
        for domain in self.mirrors.domains.list() {
            let Ok(uuid) = Uuid::parse_str(&domain.spec.virtual_machine.uid) else { continue };
            let Some(here) = present.iter().find(|here| here.uuid == uuid) else { continue };
            if here.state == DomainState::Restored && is_destination(&domain) {
                continue;
            }
            let runs = may_run(here.state);
            let other = owners.get(&VmUid(uuid)).filter(|owner| owner.host != self.me.host);
            if let Some(other) = other.filter(|_| runs && mine.contains(&uuid)) {
                return Ok(Reclaimed::Contested(uuid, other.host.to_string()));
            }
            let guarded = runs && self.fence.guards(uuid);
            match self.ownership.reclaim(VmUid(uuid), &self.me, runs, guarded, seen).await? {
                Reclaim::Reclaimed(token) => {
                    if mine.insert(uuid) {
                        info!(%uuid, %token, "on record in the restored store");
                    }
                    if runs && here.token.is_some_and(|known| known < token.0) {
                        self.hypervisor.claim(uuid, token.0).await?;
                    }
                }
                Reclaim::Refused(owner) => warn!(%uuid, ?owner, "the domain here is not the guest"),
                Reclaim::Over => return Ok(Reclaimed::Over),
            }
        }
        Ok(Reclaimed::All)
    }
}

/// Whether the guest is to come here by a migration.
fn is_destination(domain: &Domain) -> bool {
    domain.spec.migration.as_ref().is_some_and(|part| part.role == MigrationRole::Destination)
}

/// Whether the guest of a domain in this state is where it runs.
fn may_run(state: DomainState) -> bool {
    match state {
        DomainState::Running | DomainState::Paused => true,
        DomainState::HalfBuilt
        | DomainState::Restored
        | DomainState::Suspended
        | DomainState::Shutdown(_)
        | DomainState::Dying => false,
    }
}
