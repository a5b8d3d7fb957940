//! Ownership, and seeds, that this host has and does not use.
//!
//! A START that the network delivers very late names this host as the owner of a machine that is long gone. That is safe,
//! but nobody else would ever give it back. A seed is left behind by a Domain whose finalizer was taken off by hand.

use super::{Domains, ReconcileError, cds};
use kube::{Api, api::ListParams};
use kubexen_crds::{Domain, names::host_namespace};
use kubexen_ownership::{Owner, Phase, VmUid};
use kubexen_runtime::write::limited;
use tracing::info;

impl Domains {
    /// Gives back every ownership of this host, and removes every seed, for which there is neither a Domain nor a domain; and
    /// gives back images that no Domain names.
    ///
    /// # Errors
    /// When the store, the API server or the hypervisor cannot be asked; what was not given back stays as it is.
    pub async fn give_back_strays(&self) -> Result<(), ReconcileError> {
        let used = |owner: &Owner| match owner.phase {
            Phase::Running | Phase::Resuming(_) => owner.host == self.me.host,
            Phase::Saved(_) => false,
        };
        let mine = self.ownership.owners().await?.into_iter().filter(|(_, owner)| used(owner));
        for (vm, owner) in mine.filter(|(vm, _)| !self.is_known(*vm)) {
            self.give_back(vm, &owner).await?;
        }
        let seeds = self.seeds.present().await?.into_iter().map(VmUid);
        for vm in seeds.filter(|vm| !self.is_known(*vm)) {
            self.remove_seed(vm).await?;
        }
        cds::release_unused(self, None).await
    }

    fn is_known(&self, vm: VmUid) -> bool {
        self.mirrors.domains.list().iter().any(|domain| is_of(domain, vm))
    }

    /// No domain begins meanwhile: a start that comes later takes the ownership anew.
    async fn give_back(&self, vm: VmUid, owner: &Owner) -> Result<(), ReconcileError> {
        let _no_start = self.starts.write().await;
        if self.is_there(vm).await? {
            return Ok(());
        }
        match owner.phase {
            Phase::Running => drop(self.ownership.release(vm, &self.me, owner.token).await?),
            Phase::Resuming(disk) => drop(self.ownership.save(vm, &self.me, owner.token, disk).await?),
            // It waits for whoever resumes it.
            Phase::Saved(_) => return Ok(()),
        }
        info!(%vm, token = %owner.token, "ownership without a domain is given back");
        Ok(())
    }

    /// No domain begins meanwhile: a start that comes later makes the seed anew.
    async fn remove_seed(&self, vm: VmUid) -> Result<(), ReconcileError> {
        let _no_start = self.starts.write().await;
        if !self.is_there(vm).await? {
            self.seeds.remove(vm.0).await?;
            info!(%vm, "a seed without a domain is removed");
        }
        Ok(())
    }

    /// Whether there is a Domain or a domain, by reads of this moment.
    async fn is_there(&self, vm: VmUid) -> Result<bool, ReconcileError> {
        let domains: Api<Domain> =
            Api::namespaced(self.client.clone(), &host_namespace(self.me.host.as_str()));
        let listed = limited(domains.list(&ListParams::default())).await?;
        Ok(listed.items.iter().any(|domain| is_of(domain, vm)) || self.hypervisor.find(vm.0).await?.is_some())
    }
}

fn is_of(domain: &Domain, vm: VmUid) -> bool {
    domain.spec.virtual_machine.uid == vm.to_string()
}
