//! The owner's record of a guest says that it is guarded, if its Domain asks for that.

use super::{Domains, ReconcileError, observe::Observed};
use crate::{hypervisor::DomainState, migration::Standing};
use kubexen_crds::{Domain, ProtectionState};
use kubexen_mutants::Mutant;
use kubexen_ownership::{Phase, VmUid};
use uuid::Uuid;

impl Domains {
    /// Makes the record of a guest that is here say whether it is guarded; true if it did not, and the guest has another token
    /// since.
    ///
    /// # Errors
    /// When the store or the hypervisor cannot be asked.
    pub(super) async fn align_guard(
        &self,
        domain: &Domain,
        uuid: Uuid,
        seen: &Observed,
    ) -> Result<bool, ReconcileError> {
        let can = self.fence.protection().state == ProtectionState::Ready;
        let wanted = domain.spec.protected && !seen.deleting && can;
        // A session hands over what it was given, so the token stays as it is until it is over.
        let session = seen.saved.as_ref().is_some_and(|saved| saved.session != Standing::None);
        let session = (session || seen.part.is_some()) && !Mutant::GuardDuringSession.is_active();
        if (!wanted && !self.fence.guards(uuid)) || session {
            return Ok(false);
        }
        match seen.present.as_ref().map(|present| present.state) {
            Some(DomainState::Running | DomainState::Paused) => {}
            Some(
                DomainState::HalfBuilt
                | DomainState::Restored
                | DomainState::Suspended
                | DomainState::Shutdown(_)
                | DomainState::Dying,
            )
            | None => return Ok(false),
        }
        let owner = self.ownership.owner(VmUid(uuid)).await?;
        let Some(owner) = owner.filter(|owner| owner.is(&self.me) && owner.phase == Phase::Running) else {
            return Ok(false);
        };
        let token = match (wanted, owner.guarded) {
            (true, true) if self.fence.guards(uuid) => return Ok(false),
            (true, _) => self.fence.guard(uuid, owner.token).await?,
            (false, _) => Some(self.fence.unguard(uuid, owner.token).await?),
        };
        let Some(token) = token.filter(|token| *token != owner.token) else { return Ok(false) };
        self.hypervisor.claim(uuid, token.0).await?;
        Ok(true)
    }

    /// Makes the host keep what the record of a guest says that was built and does not run yet: the ladder may have found none of
    /// the guarded guests while it was being built, and let the promise go. If it cannot be kept, the record says so first.
    ///
    /// # Errors
    /// When the store or the hypervisor cannot be asked, or the guest is not this host's.
    pub(super) async fn keep_promise(&self, uuid: Uuid) -> Result<(), ReconcileError> {
        if self.fence.guards(uuid) {
            return Ok(());
        }
        let Some(owner) = self.ownership.owner(VmUid(uuid)).await?.filter(|owner| owner.is(&self.me)) else {
            return Err(ReconcileError::Outdated);
        };
        if !owner.guarded {
            return Ok(());
        }
        let token = match self.fence.guard(uuid, owner.token).await? {
            Some(token) => token,
            None => self.fence.unguard(uuid, owner.token).await?,
        };
        if token != owner.token {
            self.hypervisor.claim(uuid, token.0).await?;
        }
        Ok(())
    }
}
