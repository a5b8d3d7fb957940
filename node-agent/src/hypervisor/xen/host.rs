//! Facts of the host that hold for a boot.

use super::{accounting::HostAccount, config::BuildOptions, xenstore::sanitize};
use crate::hypervisor::HostFacts;
use kubexen_crds::{FeatureSet, FeatureSets};
use serde_json::Value;

/// Identity of the boot of dom0's kernel, which is that of the host: dom0 does not restart alone.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Where dom0's kernel names the CPU. Xen hides some features from dom0, so only the name is taken from here.
pub const CPUINFO: &str = "/proc/cpuinfo";

/// Puts facts together from what Xen, libxl (`libxl_version_info` in JSON) and dom0's kernel say, and from what is
/// installed.
#[must_use]
pub fn facts(
    account: &HostAccount,
    feature_sets: &FeatureSets,
    options: &BuildOptions,
    version: &Value,
    boot_id: &str,
    cpuinfo: &str,
) -> HostFacts {
    let cpus_per_socket = (account.cores_per_socket * account.threads_per_core).max(1);
    HostFacts {
        boot_id: boot_id.trim().to_owned(),
        xen_version: xen_version(version),
        capabilities: account.capabilities.clone(),
        simulated: false,
        cpus: account.cpus,
        sockets: (account.cpus / cpus_per_socket).max(1),
        cores_per_socket: account.cores_per_socket.max(1),
        threads_per_core: account.threads_per_core.max(1),
        cpu_model: cpu_model(cpuinfo),
        cpu_features: FeatureSet::from_words(&account.feature_words).names(),
        cpu_feature_sets: feature_sets.clone(),
        boot_loaders: options.boot_files.installed_boot_loaders(),
        firmware: options.boot_files.installed_firmware(),
        device_model_user: options.device_model_user.map(str::to_owned),
        memory_total_kib: account.memory_total_kib,
    }
}

/// `4.17.4` from major 4, minor 17 and extra `.4`. Distributions append their own to extra (`.5-pre`), which stays.
fn xen_version(version: &Value) -> String {
    let number = |key: &str| version[key].as_u64().unwrap_or_default();
    let extra = version["xen_version_extra"].as_str().unwrap_or_default();
    sanitize(format!("{}.{}{extra}", number("xen_version_major"), number("xen_version_minor")).as_bytes(), 64)
}

fn cpu_model(cpuinfo: &str) -> String {
    let model = cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "model name")
        .map_or("unknown", |(_, value)| value.trim());
    sanitize(model.as_bytes(), 128)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn account() -> HostAccount {
        HostAccount {
            cpus: 16,
            cores_per_socket: 4,
            threads_per_core: 2,
            memory_total_kib: 1 << 20,
            memory_free_kib: 1 << 19,
            capabilities: vec!["hap".into(), "hvm".into()],
            feature_words: [1, 1 << 28, 1 << 29, 1 << 2, 0, 1 << 5, 0, 0],
        }
    }

    #[test]
    fn facts_come_from_three_sources() {
        let version = json!({"xen_version_major": 4, "xen_version_minor": 17, "xen_version_extra": ".7-pre"});
        let sets = FeatureSets { hvm: Some(FeatureSet::from_names(["lm"])), pv: None };
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC 7763\nmodel name\t: other\n";
        let facts = facts(&account(), &sets, &BuildOptions::default(), &version, "6e0b\n", cpuinfo);
        assert_eq!((facts.boot_id.as_str(), facts.xen_version.as_str()), ("6e0b", "4.17.7-pre"));
        assert_eq!((facts.sockets, facts.cpu_model.as_str()), (2, "AMD EPYC 7763"));
        assert_eq!(facts.cpu_features, ["avx", "avx2", "fpu", "lm", "svm"]);
        assert_eq!(facts.cpu_feature_sets, sets);
        assert!(!facts.simulated);
    }

    #[test]
    fn a_host_that_says_nothing_still_has_a_socket() {
        let account = HostAccount { cpus: 1, cores_per_socket: 0, threads_per_core: 0, ..account() };
        let facts = facts(&account, &FeatureSets::default(), &BuildOptions::default(), &Value::Null, "", "");
        assert_eq!((facts.sockets, facts.cores_per_socket, facts.threads_per_core), (1, 1, 1));
        assert_eq!((facts.xen_version.as_str(), facts.cpu_model.as_str()), ("0.0", "unknown"));
    }
}
