//! Facts of the host that hold for a boot.

use super::{accounting::HostAccount, xenstore::sanitize};
use crate::hypervisor::HostFacts;
use serde_json::Value;

/// Identity of the boot of dom0's kernel, which is that of the host: dom0 does not restart alone.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Where dom0's kernel names the CPU. Xen hides some features from dom0, so only the name is taken from here.
pub const CPUINFO: &str = "/proc/cpuinfo";

/// Puts facts together from what Xen, libxl (`libxl_version_info` in JSON) and dom0's kernel say.
#[must_use]
pub fn facts(account: &HostAccount, version: &Value, boot_id: &str, cpuinfo: &str) -> HostFacts {
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
        cpu_features: cpu_features(&account.feature_words),
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

/// Names of the features whose bits are set, sorted. The words are Xen's feature set in the order of
/// `xen/arch-x86/cpufeatureset.h`: CPUID leaves 1 edx, 1 ecx, 0x80000001 edx, 0x80000001 ecx, 0xd:1 eax, 7:0 ebx,
/// 7:0 ecx, 0x80000007 edx.
fn cpu_features(words: &[u32; 8]) -> Vec<String> {
    let mut features: Vec<String> = words
        .iter()
        .zip(FEATURES)
        .flat_map(|(word, names)| {
            names.split_whitespace().enumerate().filter(move |(bit, _)| word & (1 << bit) != 0)
        })
        .filter(|(_, name)| *name != "-")
        .map(|(_, name)| name.to_owned())
        .collect();
    features.sort();
    features
}

/// The features of each word from bit 0 on, as Linux names them in `/proc/cpuinfo`; `-` for bits that are reserved
/// or say nothing about what a guest can use.
const FEATURES: [&str; 8] = [
    "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 - clflush - dts acpi mmx fxsr sse \
     sse2 ss ht tm - pbe",
    "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 - - fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 \
     x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c rdrand -",
    "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp \
     fma4 - - nodeid_msr - tbm topoext - - - bpext - - mwaitx - -",
    "xsaveopt xsavec xgetbv1 xsaves",
    "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f avx512dq rdseed adx \
     smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    "- avx512vbmi umip pku - - avx512_vbmi2 - gfni vaes vpclmulqdq avx512_vnni avx512_bitalg - avx512_vpopcntdq - - \
     - - - - - rdpid - - cldemote - movdiri movdir64b enqcmd - -",
    "- - - - - - - hw_pstate constant_tsc cpb",
];

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
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC 7763\nmodel name\t: other\n";
        let facts = facts(&account(), &version, "6e0b\n", cpuinfo);
        assert_eq!((facts.boot_id.as_str(), facts.xen_version.as_str()), ("6e0b", "4.17.7-pre"));
        assert_eq!((facts.sockets, facts.cpu_model.as_str()), (2, "AMD EPYC 7763"));
        assert_eq!(facts.cpu_features, ["avx", "avx2", "fpu", "lm", "svm"]);
        assert!(!facts.simulated);
    }

    #[test]
    fn a_host_that_says_nothing_still_has_a_socket() {
        let account = HostAccount { cpus: 1, cores_per_socket: 0, threads_per_core: 0, ..account() };
        let facts = facts(&account, &Value::Null, "", "");
        assert_eq!((facts.sockets, facts.cores_per_socket, facts.threads_per_core), (1, 1, 1));
        assert_eq!((facts.xen_version.as_str(), facts.cpu_model.as_str()), ("0.0", "unknown"));
    }

    #[test]
    fn every_word_names_at_most_its_32_bits_and_no_feature_twice() {
        let mut names: Vec<&str> = Vec::new();
        for word in FEATURES {
            assert!(word.split_whitespace().count() <= 32, "{word}");
            names.extend(word.split_whitespace().filter(|name| *name != "-"));
        }
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    /// Spot checks against the bit numbers in Xen's header.
    #[test]
    fn the_features_stand_at_their_bits() {
        for (word, bit, name) in [
            (0, 26, "sse2"),
            (1, 23, "popcnt"),
            (2, 20, "nx"),
            (3, 22, "topoext"),
            (5, 31, "avx512vl"),
            (6, 22, "rdpid"),
        ] {
            assert_eq!(FEATURES[word].split_whitespace().nth(bit), Some(name));
        }
    }
}
