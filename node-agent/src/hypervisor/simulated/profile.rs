//! What a simulated host is like.

use crate::hypervisor::HostFacts;
use kubexen_crds::{BootType, ByteQuantity, FeatureSet, FeatureSets, Firmware};
use serde::{Deserialize, Deserializer, de::Error};
use std::{num::NonZeroU64, time::Duration};

const GIB: NonZeroU64 = NonZeroU64::new(1 << 30).unwrap();

/// What a simulated host has and how fast it is, from the agent's configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Profile {
    /// Logical CPUs, in one socket with one thread each. Default: 16.
    pub cpus: u32,
    /// All memory, in KiB. `memory` in the file, a quantity such as `64Gi`, which is the default.
    #[serde(rename = "memory", deserialize_with = "kib")]
    pub memory_kib: u64,
    /// Memory that dom0 and Xen take of that, in KiB. `dom0Memory` in the file, a quantity. Default: `2Gi`.
    #[serde(rename = "dom0Memory", deserialize_with = "kib")]
    pub dom0_memory_kib: u64,
    /// CPU model name. Default: `KubeXen simulated CPU`.
    pub cpu_model: String,
    /// CPU features that guests are given, by their names. Default: `avx2`, `lahf_lm`, `lm`, `nx`, `sse4_2`.
    pub cpu_features: Vec<String>,
    /// Modes of guests for which there is a boot loader. Default: `PVH` and `PV`.
    pub boot_loaders: Vec<BootType>,
    /// Firmware for HVM guests. Default: `BIOS` and `UEFI`.
    pub firmware: Vec<Firmware>,
    /// How long it takes to build a domain. `createMillis` in the file; default: 20.
    #[serde(rename = "createMillis", deserialize_with = "millis")]
    pub create_time: Duration,
    /// How long it takes to take a domain apart. `destroyMillis` in the file; default: 10.
    #[serde(rename = "destroyMillis", deserialize_with = "millis")]
    pub destroy_time: Duration,
    /// How long a guest takes to power off when it is asked to; none: it does not listen. `shutdownMillis` in the
    /// file, where `null` means none; default: 50.
    #[serde(rename = "shutdownMillis", deserialize_with = "optional_millis")]
    pub shutdown_time: Option<Duration>,
    /// How many bytes of a guest's memory are copied in a second. Default: 1 GiB.
    pub migration_bytes_per_second: NonZeroU64,
    /// Time limit of each call to the model. `callLimitMillis` in the file; default: 60000.
    #[serde(rename = "callLimitMillis", deserialize_with = "millis")]
    pub call_limit: Duration,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            cpus: 16,
            memory_kib: 64 << 20,
            dom0_memory_kib: 2 << 20,
            cpu_model: "KubeXen simulated CPU".into(),
            cpu_features: ["avx2", "lahf_lm", "lm", "nx", "sse4_2"].map(str::to_owned).into(),
            boot_loaders: vec![BootType::Pv, BootType::Pvh],
            firmware: vec![Firmware::Bios, Firmware::Uefi],
            create_time: Duration::from_millis(20),
            destroy_time: Duration::from_millis(10),
            shutdown_time: Some(Duration::from_millis(50)),
            migration_bytes_per_second: GIB,
            call_limit: Duration::from_mins(1),
        }
    }
}

impl Profile {
    fn features(&self) -> FeatureSet {
        FeatureSet::from_names(self.cpu_features.iter().map(String::as_str))
    }

    /// What guests of each kind are given.
    pub(super) fn feature_sets(&self) -> FeatureSets {
        FeatureSets { hvm: Some(self.features()), pv: Some(self.features()) }
    }

    /// The facts of a host like this in the boot `boot_id`.
    pub(in crate::hypervisor) fn facts(&self, boot_id: &str) -> HostFacts {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        HostFacts {
            boot_id: boot_id.to_owned(),
            xen_version: "4.17.0".into(),
            capabilities: words(&["hap", "hvm", "pv", "pvh"]),
            simulated: true,
            cpus: self.cpus,
            sockets: 1,
            cores_per_socket: self.cpus,
            threads_per_core: 1,
            cpu_model: self.cpu_model.clone(),
            cpu_features: self.features().names(),
            cpu_feature_sets: self.feature_sets(),
            boot_loaders: self.boot_loaders.clone(),
            firmware: self.firmware.clone(),
            device_model_user: None,
            memory_total_kib: self.memory_kib,
        }
    }
}

fn kib<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let bytes = ByteQuantity::deserialize(deserializer)?.bytes().map_err(D::Error::custom)?;
    Ok(bytes / 1024)
}

fn millis<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}

fn optional_millis<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Ok(Option::deserialize(deserializer)?.map(Duration::from_millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Profile, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        assert_eq!(parse("{}").unwrap(), Profile::default());
    }

    #[test]
    fn sizes_are_quantities_and_times_are_milliseconds() {
        let profile =
            parse(r#"{"cpus": 4, "memory": "8Gi", "createMillis": 5, "shutdownMillis": null}"#).unwrap();
        let expected = Profile {
            cpus: 4,
            memory_kib: 8 << 20,
            create_time: Duration::from_millis(5),
            shutdown_time: None,
            ..Profile::default()
        };
        assert_eq!(profile, expected);
    }

    #[test]
    fn what_it_does_not_know_is_refused() {
        assert!(parse(r#"{"memroy": "8Gi"}"#).is_err());
        assert!(parse(r#"{"memory": "lots"}"#).is_err());
    }
}
