//! The CustomResourceDefinitions as text, for `kubectl apply -f` and for the chart.

use crate::{Domain, Host, Network, Pool, StorageRepository, VirtualDisk, VirtualMachine, Volume};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// Every CustomResourceDefinition of the API, user kinds first.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![
        VirtualMachine::crd(),
        VirtualDisk::crd(),
        Network::crd(),
        StorageRepository::crd(),
        Host::crd(),
        Pool::crd(),
        Domain::crd(),
        Volume::crd(),
    ]
}
