//! Ownership, claims to disks, devices of disks, and seeds, that this host has and does not use.
//!
//! A START that the network delivers very late names this host as the owner of a machine that is long gone. That is safe,
//! but nobody else would ever give it back. A disk stays claimed by a machine that was stolen from a dead host, or resumed no more,
//! and that has been given other disks since. The device of a disk is left behind when the Domain went while the host was silent, and
//! the host needed no boot to be heard again: it was confirmed, or the store that knew of its fence was restored from a backup. A
//! seed is left behind by a Domain whose finalizer was taken off by hand.

use super::{Domains, ReconcileError, cds, resolve};
use kube::{Api, api::ListParams};
use kubexen_crds::{Domain, Volume, names::host_namespace, volume::VolumePhase};
use kubexen_ownership::{DiskUid, Owner, Phase, VmUid};
use kubexen_runtime::write::limited;
use tracing::{info, warn};

impl Domains {
    /// Gives back every ownership of this host, and removes every seed, for which there is neither a Domain nor a domain; gives
    /// back disks of domains here that have them no more, and devices of disks and images that no Domain names.
    ///
    /// # Errors
    /// When the store, the API server or the hypervisor cannot be asked; what was not given back stays as it is.
    pub async fn give_back_strays(&self) -> Result<(), ReconcileError> {
        let used = |owner: &Owner| match owner.phase {
            Phase::Running | Phase::Resuming(_) => owner.host == self.me.host,
            Phase::Saved(_) => false,
        };
        let mut mine = self.ownership.owners().await?;
        mine.retain(|_, owner| used(owner));
        for (vm, owner) in mine.iter().filter(|(vm, _)| !self.is_known(**vm)) {
            self.give_back(*vm, owner).await?;
        }
        self.detach_unused().await?;
        for (disk, vm) in self.ownership.disks().await? {
            if mine.get(&vm).is_some_and(|owner| owner.phase == Phase::Running) {
                self.give_back_disk(disk, vm).await?;
            }
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
            Phase::Running => {
                self.ownership.release(vm, &self.me, owner.token).await?;
                self.fence.forget(vm.0);
            }
            Phase::Resuming(disk) => drop(self.ownership.save(vm, &self.me, owner.token, disk).await?),
            // It waits for whoever resumes it.
            Phase::Saved(_) => return Ok(()),
        }
        info!(%vm, token = %owner.token, "ownership without a domain is given back");
        Ok(())
    }

    /// Takes away devices of disks that no Domain here names, if every domain of ours has its Domain. No domain begins and none is
    /// given a disk meanwhile.
    async fn detach_unused(&self) -> Result<(), ReconcileError> {
        let _no_start = self.starts.write().await;
        let attached = self.storage.attached().await?;
        if attached.is_empty() {
            return Ok(());
        }
        let listed = self.listed_here().await?;
        let has_domain = |vm| listed.iter().any(|domain| is_of(domain, VmUid(vm)));
        let present = self.hypervisor.domains().await?;
        if present.iter().any(|domain| domain.token.is_some() && !has_domain(domain.uuid)) {
            return Ok(());
        }
        let named: Option<Vec<_>> = listed.iter().map(|domain| resolve::all_volumes(self, domain)).collect();
        let Some(named) = named.map(|named| named.concat()) else { return Ok(()) };
        // One that is being made is a device too, while it is blanked.
        let volumes = self.mirrors.volumes.list();
        let in_work = volumes.iter().filter(|volume| !is_ready(volume));
        let in_work: Vec<_> = in_work.filter_map(|volume| resolve::volume_id(volume)).collect();
        for volume in attached.iter().filter(|volume| !named.contains(volume) && !in_work.contains(volume)) {
            match self.storage.detach(volume).await {
                Ok(()) => info!(%volume, "the device of a disk that no Domain names is taken away"),
                Err(error) => warn!(%volume, %error, "no Domain names the disk, and it stays attached"),
            }
        }
        Ok(())
    }

    /// Of a machine whose Domain here does not name the disk. No domain begins and none is given a disk meanwhile.
    async fn give_back_disk(&self, disk: DiskUid, vm: VmUid) -> Result<(), ReconcileError> {
        let names_it = |domain: &Domain| {
            let named = domain.spec.machine.disks.iter().filter_map(resolve::shared_disk);
            named.chain(resolve::saved_disk(domain)).any(|named| named == disk)
        };
        if self.mirrors.domains.list().iter().any(|domain| is_of(domain, vm) && names_it(domain)) {
            return Ok(());
        }
        let _no_start = self.starts.write().await;
        let (of_it, owner) = (self.listed(vm).await?, self.ownership.owner(vm).await?);
        let is_mine = owner.is_some_and(|owner| owner.host == self.me.host && owner.phase == Phase::Running);
        let attached = self.storage.attached().await?.iter().any(|volume| volume.uuid == disk.0);
        if is_mine && !attached && !of_it.is_empty() && !of_it.iter().any(names_it) {
            self.ownership.release_disk(disk, vm).await?;
            info!(%vm, %disk, "a disk that the domain has no more is given back");
        }
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
        Ok(!self.listed(vm).await?.is_empty() || self.hypervisor.find(vm.0).await?.is_some())
    }

    /// The Domains of a machine here, by a read of this moment.
    async fn listed(&self, vm: VmUid) -> Result<Vec<Domain>, ReconcileError> {
        let mut listed = self.listed_here().await?;
        listed.retain(|domain| is_of(domain, vm));
        Ok(listed)
    }

    /// All Domains here, by a read of this moment.
    async fn listed_here(&self) -> Result<Vec<Domain>, ReconcileError> {
        let domains: Api<Domain> =
            Api::namespaced(self.client.clone(), &host_namespace(self.me.host.as_str()));
        Ok(limited(domains.list(&ListParams::default())).await?.items)
    }
}

fn is_ready(volume: &Volume) -> bool {
    volume.status.as_ref().is_some_and(|status| status.phase == Some(VolumePhase::Ready))
}

fn is_of(domain: &Domain, vm: VmUid) -> bool {
    domain.spec.virtual_machine.uid == vm.to_string()
}
