//! Memory that a host gives up for a guest.

use kubexen_crds::BootType;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Memory in bytes that a host needs to run a guest: the guest's own and what Xen keeps for it. Saturates.
///
/// The overhead is
/// - 1 MiB per vCPU and 8 KiB per MiB of the guest, for the tables that translate its addresses. This is
///   `libxl_get_required_shadow_memory()` of `libxl_utils.h`, and XAPI counts the same (`shadow_mib` in its
///   `memory.ml`). libxl from Xen 4.17 on takes 4 KiB per MiB less where the translation is done in hardware; the
///   larger figure holds for every host that a guest may later move to.
/// - 2 MiB for PVH and HVM, 1 MiB for PV, for the domain's structures: `LIBXL_HVM_EXTRA_MEMORY` and
///   `LIBXL_PV_EXTRA_MEMORY` of libxl, XAPI's internal and external extra.
///
/// The sum is rounded up to 2 MiB, as `libxl_domain_need_memory()` does. An HVM guest's device model lives in dom0
/// and its video memory inside the guest's own: neither is counted. Guests with passed-through devices, which need
/// IOMMU tables in addition, do not exist yet.
///
/// ```
/// use kubexen_controller::placement::memory_with_overhead;
/// use kubexen_crds::BootType;
///
/// // 1024 MiB + 1 vCPU × 1 MiB + 1024 × 8 KiB + 2 MiB = 1035 MiB, rounded up.
/// assert_eq!(memory_with_overhead(1024 << 20, 1, BootType::Pvh), 1036 << 20);
/// ```
#[must_use]
pub fn memory_with_overhead(memory: u64, vcpus: u32, boot: BootType) -> u64 {
    let tables = MIB * u64::from(vcpus) + 8 * KIB * memory.div_ceil(MIB);
    let structures = match boot {
        BootType::Pvh | BootType::Hvm => 2 * MIB,
        BootType::Pv => MIB,
    };
    memory.saturating_add(tables + structures).checked_next_multiple_of(2 * MIB).unwrap_or(u64::MAX)
}

/// What a host gives up in addition, in bytes, for a guest of `memory` bytes and `vcpus` that can grow: the tables of
/// [`memory_with_overhead`] are those of what it can grow to. Saturates.
#[must_use]
pub fn growth_overhead(memory: u64, max_memory: u64, vcpus: u32, max_vcpus: u32) -> u64 {
    let memory = max_memory.saturating_sub(memory).div_ceil(MIB);
    MIB * u64::from(max_vcpus.saturating_sub(vcpus)) + 8 * KIB * memory
}
