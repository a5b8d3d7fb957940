//! The owner's record of a guest says that it is guarded, if its Domain asks for that, and nothing is let run against the record.

use super::{Domains, ReconcileError, observe::Observed};
use crate::{hypervisor::DomainState, migration::Standing};
use kubexen_crds::{Domain, ProtectionState, domain::DomainPhase};
use kubexen_mutants::Mutant;
use kubexen_ownership::{Owner, Phase, VmUid};
use uuid::Uuid;

/// What became of the record of a guest that is here.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Aligned {
    /// Nothing.
    AsItWas,
    /// The guest has another token since.
    Anew,
    /// It names this host, which has the guest from nobody here.
    Taken(String),
}

impl Domains {
    /// Makes the record of a guest that is here say whether it is guarded.
    ///
    /// # Errors
    /// When the store or the hypervisor cannot be asked.
    pub(super) async fn align_guard(
        &self,
        domain: &Domain,
        uuid: Uuid,
        seen: &Observed,
    ) -> Result<Aligned, ReconcileError> {
        let can = self.fence.protection().state == ProtectionState::Ready;
        let wanted = domain.spec.protected && !seen.deleting && can;
        // A session hands over what it was given, so the token stays as it is until it is over.
        let session = seen.saved.as_ref().is_some_and(|saved| saved.session != Standing::None);
        let session = (session || seen.part.is_some()) && !Mutant::GuardDuringSession.is_active();
        if (!domain.spec.protected && !self.fence.guards(uuid)) || session {
            return Ok(Aligned::AsItWas);
        }
        match seen.present.as_ref().map(|present| present.state) {
            Some(DomainState::Running | DomainState::Paused) => {}
            Some(DomainState::Shutdown(_)) | None => return self.end_guard(uuid, seen).await,
            Some(
                DomainState::HalfBuilt | DomainState::Restored | DomainState::Suspended | DomainState::Dying,
            ) => return Ok(Aligned::AsItWas),
        }
        let owner = match self.ownership.owner(VmUid(uuid)).await? {
            Some(owner) if self.is_run_here(&owner) => owner,
            Some(owner) if owner.host != self.me.host && owner.phase == Phase::Running && !seen.deleting => {
                return Ok(Aligned::Taken(owner.host.to_string()));
            }
            Some(_) | None => return Ok(Aligned::AsItWas),
        };
        let guards = self.fence.guards(uuid);
        let token = match (wanted, owner.guarded) {
            (true, true) if guards => return Ok(Aligned::AsItWas),
            (true, _) => self.fence.guard(uuid, owner.token).await?,
            (false, _) if !guards => return Ok(Aligned::AsItWas),
            (false, _) => Some(self.fence.unguard(uuid, owner.token).await?),
        };
        let Some(token) = token.filter(|token| *token != owner.token) else { return Ok(Aligned::AsItWas) };
        self.hypervisor.claim(uuid, token.0).await?;
        Ok(Aligned::Anew)
    }

    /// A guest that has ended needs no watchdog. One that is to stay so is not guarded any more, so that nobody has its memory
    /// taken apart which is kept, and nobody starts it elsewhere.
    async fn end_guard(&self, uuid: Uuid, seen: &Observed) -> Result<Aligned, ReconcileError> {
        let stays = matches!(seen.status.phase, Some(DomainPhase::Halted | DomainPhase::Preserved));
        if !self.fence.guards(uuid) || (seen.present.is_some() && !stays) {
            return Ok(Aligned::AsItWas);
        }
        match self.ownership.owner(VmUid(uuid)).await? {
            Some(owner) if stays && self.is_run_here(&owner) => {
                self.fence.unguard(uuid, owner.token).await?;
            }
            // One that is started again keeps its record until then, so that it is started elsewhere if its host dies meanwhile.
            Some(_) | None => self.fence.forget(uuid),
        }
        Ok(Aligned::AsItWas)
    }

    /// Makes sure that a guest may be let run which stands still: its record names this boot of this host, and the host keeps what
    /// that says. The ladder may have found none of the guarded guests while this one was being built, and let the promise go;
    /// if it cannot be kept, the record says so first.
    ///
    /// # Errors
    /// [`ReconcileError::Unheard`] while guarded guests stand still, or are to. [`ReconcileError::Taken`] when the record names
    /// somebody else. Else when the store or the hypervisor cannot be asked.
    pub(super) async fn permit(&self, domain: &Domain, uuid: Uuid) -> Result<(), ReconcileError> {
        self.expect_no_hold(uuid)?;
        if domain.spec.protected {
            self.fence.may_work()?;
        }
        let owner = match self.ownership.owner(VmUid(uuid)).await? {
            Some(owner) if self.is_run_here(&owner) => owner,
            owner => {
                let owner = owner.map_or_else(|| "nobody".to_owned(), |owner| owner.host.to_string());
                return Err(ReconcileError::Taken { owner, here: self.me.host.to_string() });
            }
        };
        if owner.guarded && !self.fence.guards(uuid) {
            let kept = if domain.spec.protected { self.fence.guard(uuid, owner.token).await? } else { None };
            let token = match kept {
                Some(token) => token,
                None => self.fence.unguard(uuid, owner.token).await?,
            };
            if token != owner.token {
                self.hypervisor.claim(uuid, token.0).await?;
            }
        }
        // The store may have been slow.
        self.expect_no_hold(uuid)
    }

    fn expect_no_hold(&self, uuid: Uuid) -> Result<(), ReconcileError> {
        match self.fence.holds(uuid) {
            true => Err(ReconcileError::Unheard("guests that are guarded stand still".to_owned())),
            false => Ok(()),
        }
    }

    /// Whether this boot of this host runs the guest, by its record.
    fn is_run_here(&self, owner: &Owner) -> bool {
        owner.is(&self.me) && owner.phase == Phase::Running
    }
}
