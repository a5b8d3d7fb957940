//! CPU feature sets: which instructions and registers a guest may use.
//!
//! A set is a row of 32-bit words, each of which is a register that the instruction CPUID returns, in the order of Xen's
//! `xen/arch-x86/cpufeatureset.h`. Words that Xen may add are registers that this module does not know; they are left out.

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, collections::BTreeMap, fmt, sync::LazyLock};

/// A set of CPU features. As text: its words in hexadecimal, joined by `-`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(try_from = "String", into = "String")]
pub struct FeatureSet([u32; WORDS]);

/// The feature sets that guests of each kind are given.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeatureSets {
    /// Features of PVH and HVM guests, as words in hexadecimal; none where there can be no such guests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hvm: Option<FeatureSet>,
    /// Features of PV guests, as words in hexadecimal; none where there can be no such guests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pv: Option<FeatureSet>,
}

/// Where CPUID returns a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// What EAX is set to.
    pub leaf: u32,
    /// What ECX is set to, where that matters.
    pub subleaf: Option<u32>,
    /// `eax`, `ebx`, `ecx` or `edx`.
    pub register: &'static str,
}

/// Number of words.
pub const WORDS: usize = 16;

/// Where CPUID returns each word.
pub const LEAVES: [Leaf; WORDS] = [
    leaf(1, None, "edx"),
    leaf(1, None, "ecx"),
    leaf(0x8000_0001, None, "edx"),
    leaf(0x8000_0001, None, "ecx"),
    leaf(0xd, Some(1), "eax"),
    leaf(7, Some(0), "ebx"),
    leaf(7, Some(0), "ecx"),
    leaf(0x8000_0007, None, "edx"),
    leaf(0x8000_0008, None, "ebx"),
    leaf(7, Some(0), "edx"),
    leaf(7, Some(1), "eax"),
    leaf(0x8000_0021, None, "eax"),
    leaf(7, Some(1), "ebx"),
    leaf(7, Some(2), "edx"),
    leaf(7, Some(1), "ecx"),
    leaf(7, Some(1), "edx"),
];

const fn leaf(leaf: u32, subleaf: Option<u32>, register: &'static str) -> Leaf {
    Leaf { leaf, subleaf, register }
}

/// The features of each word from bit 0 on, as Linux names them in `/proc/cpuinfo` where it does; `-` for bits without a
/// name.
const NAMES: [&str; WORDS] = [
    "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 - clflush - dts acpi mmx fxsr sse \
     sse2 ss ht tm - pbe",
    "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 - - fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 \
     x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp \
     fma4 - - nodeid_msr - tbm topoext - - - bpext - - mwaitx - -",
    "xsaveopt xsavec xgetbv1 xsaves",
    "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a \
     avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni \
     avx512bw avx512vl",
    "prefetchwt1 avx512vbmi umip pku ospke - avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg - \
     avx512_vpopcntdq - - - - - - - rdpid - - cldemote - movdiri movdir64b enqcmd - -",
    "- - - - - - - hw_pstate constant_tsc cpb aperfmperf",
    "clzero - xsaveerptr - - - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp ibrs_always stibp_always ibrs_fast \
     ibrs_same_mode no_lmsl - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no - amd_psfd btc_no ibpb_ret -",
    "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - \
     tsx_force_abort serialize hybrid tsxldtrk - - - ibt - - avx512_fp16 - - spec_ctrl intel_stibp flush_l1d \
     arch_capabilities core_capabilities ssbd",
    "- - - - avx_vnni avx512_bf16 - - - - fzrm fsrs fsrcs",
    "- - lfence_rdtsc - - verw_clear null_seg_clr_base - auto_ibrs - - - - - - - - - - - - - - - - - - sbpb \
     ibpb_brtype srso_no srso_user_kernel_no srso_msr_fix",
    "intel_ppin",
    "intel_psfd ipred_ctrl rrsba_ctrl - bhi_ctrl mcdt_no",
    "",
    "- - - - - - - - - - - - - - - - - - cet_sss",
];

/// A text that is no feature set, or a name of no feature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` must be a feature set: at most {WORDS} words of 8 hexadecimal digits, joined by `-`")]
pub struct Malformed(String);

impl FeatureSet {
    /// The set of these words, as Xen returns them; words that are not known are left out.
    #[must_use]
    pub fn from_words(words: &[u32]) -> Self {
        let mut set = Self::default();
        for (word, given) in set.0.iter_mut().zip(words) {
            *word = *given;
        }
        set
    }

    /// The set of the features with these names; a name of no feature is left out.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        static PLACES: LazyLock<BTreeMap<&str, (usize, usize)>> = LazyLock::new(|| {
            let words = NAMES.iter().enumerate();
            let places = words.flat_map(|(word, names)| {
                names.split_whitespace().enumerate().map(move |(bit, name)| (name, (word, bit)))
            });
            places.filter(|(name, _)| *name != "-").collect()
        });
        let mut set = Self::default();
        for (word, bit) in names.into_iter().filter_map(|name| PLACES.get(name)) {
            set.0[*word] |= 1 << bit;
        }
        set
    }

    /// Its words with where CPUID returns each.
    pub fn words(&self) -> impl Iterator<Item = (Leaf, u32)> {
        LEAVES.into_iter().zip(self.0)
    }

    /// The features that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    /// The features that are not in the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    /// Names of the features, sorted. One without a name is told by where CPUID returns it, as in `cpuid.7.0.edx.12`.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for ((leaf, word), known) in self.words().zip(NAMES).filter(|((_, word), _)| *word != 0) {
            let mut known = known.split_whitespace();
            for bit in 0..32 {
                let name = known.next().filter(|name| *name != "-");
                if word & (1 << bit) != 0 {
                    names.push(name.map_or_else(|| leaf.name_of(bit), str::to_owned));
                }
            }
        }
        names.sort();
        names
    }
}

impl Leaf {
    fn name_of(self, bit: u32) -> String {
        let Self { leaf, subleaf, register } = self;
        match subleaf {
            Some(subleaf) => format!("cpuid.{leaf:x}.{subleaf}.{register}.{bit}"),
            None => format!("cpuid.{leaf:x}.{register}.{bit}"),
        }
    }
}

impl FeatureSets {
    /// What both have, for each kind of guest. Where one of them can have no guests of a kind, the other alone counts.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let both = |one: &Option<FeatureSet>, other: &Option<FeatureSet>| match (one, other) {
            (Some(one), Some(other)) => Some(one.intersection(other)),
            (one, other) => one.clone().or_else(|| other.clone()),
        };
        Self { hvm: both(&self.hvm, &other.hvm), pv: both(&self.pv, &other.pv) }
    }

    /// The set for guests of this boot type.
    #[must_use]
    pub fn of(&self, boot: crate::BootType) -> Option<&FeatureSet> {
        match boot {
            crate::BootType::Pvh | crate::BootType::Hvm => self.hvm.as_ref(),
            crate::BootType::Pv => self.pv.as_ref(),
        }
    }
}

impl fmt::Display for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in self.0.iter().enumerate() {
            write!(f, "{}{word:08x}", if index == 0 { "" } else { "-" })?;
        }
        Ok(())
    }
}

impl From<FeatureSet> for String {
    fn from(set: FeatureSet) -> Self {
        set.to_string()
    }
}

impl TryFrom<String> for FeatureSet {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        let word = |word: &str| {
            let digits = word.len() == 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
            u32::from_str_radix(word, 16).ok().filter(|_| digits)
        };
        match text.split('-').map(word).collect::<Option<Vec<u32>>>() {
            Some(words) if words.len() <= WORDS => Ok(Self::from_words(&words)),
            Some(_) | None => Err(Malformed(text)),
        }
    }
}

impl JsonSchema for FeatureSet {
    fn schema_name() -> Cow<'static, str> {
        "FeatureSet".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": WORDS * 9 - 1,
            "pattern": format!("^[0-9a-f]{{8}}(-[0-9a-f]{{8}}){{0,{}}}$", WORDS - 1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_names_at_most_its_32_bits_and_no_feature_twice() {
        let mut names: Vec<&str> = Vec::new();
        for word in NAMES {
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
            (1, 31, "hypervisor"),
            (2, 20, "nx"),
            (3, 22, "topoext"),
            (5, 31, "avx512vl"),
            (6, 22, "rdpid"),
            (8, 12, "amd_ibpb"),
            (9, 26, "spec_ctrl"),
            (9, 31, "ssbd"),
            (10, 5, "avx512_bf16"),
            (11, 31, "srso_msr_fix"),
            (15, 18, "cet_sss"),
        ] {
            let mut words = [0; WORDS];
            words[word] = 1 << bit;
            assert_eq!(FeatureSet::from_words(&words).names(), [name]);
        }
    }

    #[test]
    fn a_set_is_read_back_from_its_text_and_its_names() {
        let set = FeatureSet::from_names(["avx2", "sse4_2", "no-such-feature"]);
        assert_eq!(set.names(), ["avx2", "sse4_2"]);
        assert_eq!(FeatureSet::try_from(set.to_string()), Ok(set.clone()));
        assert_eq!(set.to_string().len(), WORDS * 9 - 1);
        assert_eq!(FeatureSet::try_from("00000001".to_owned()), Ok(FeatureSet::from_names(["fpu"])));
        for text in ["", "1", "0000000g", "00000001-", "+0000001", &"00000000-".repeat(WORDS + 1)] {
            assert!(FeatureSet::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bit_without_a_name_is_told_by_its_place() {
        let mut words = [0; WORDS];
        (words[0], words[9]) = (1 << 10, 1 << 12);
        assert_eq!(FeatureSet::from_words(&words).names(), ["cpuid.1.edx.10", "cpuid.7.0.edx.12"]);
    }

    #[test]
    fn sets_are_intersected_and_subtracted() {
        let (one, other) = (FeatureSet::from_names(["avx", "avx2"]), FeatureSet::from_names(["avx", "fma"]));
        assert_eq!(one.intersection(&other).names(), ["avx"]);
        assert_eq!(one.without(&other).names(), ["avx2"]);
        assert!(one.without(&one).is_empty());
        let sets = |hvm: Option<&FeatureSet>| FeatureSets { hvm: hvm.cloned(), pv: None };
        assert_eq!(sets(Some(&one)).intersection(&sets(None)), sets(Some(&one)));
    }
}
