//! What LVM says of a volume group, from `lvm fullreport` (lvmreport(7)), which reads it once for all its parts.

use super::names::{self, LvName};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Arguments of the report, before the group's name.
pub(super) const ARGUMENTS: [&str; 19] = [
    "fullreport",
    "--reportformat=json",
    "--units=b",
    "--nosuffix",
    "--configreport=vg",
    "-o",
    "vg_uuid,vg_name,vg_size,vg_free,vg_extent_size,vg_partial,vg_permissions,vg_exported,vg_tags",
    "--configreport=lv",
    "-o",
    "lv_name,lv_uuid,lv_size,lv_tags,lv_device_open",
    "--configreport=seg",
    "-o",
    "lv_name,seg_start,seg_pe_ranges",
    "--configreport=pv",
    "-o",
    "pv_missing",
    "--configreport=pvseg",
    "-o",
    "pvseg_start",
];

/// A volume group at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupReport {
    /// LVM's identity of the group.
    pub(super) uuid: String,
    /// Bytes in no logical volume.
    pub(super) free: u64,
    /// Sizes are multiples of this, in bytes.
    pub(super) extent: u64,
    /// Why the group must not be used or changed at the moment.
    pub(super) ailment: Option<&'static str>,
    /// The greatest revision of the group's lock that changed it.
    pub(super) revision: u64,
    /// Tags that hold a revision.
    pub(super) revision_tags: Vec<String>,
    /// Our logical volumes.
    pub(super) volumes: BTreeMap<LvName, LogicalVolume>,
}

/// A logical volume of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogicalVolume {
    /// LVM's identity of the volume.
    pub(super) uuid: String,
    /// Bytes.
    pub(super) size: u64,
    /// Whether it is being made.
    pub(super) unfinished: bool,
    /// Whether its deletion has begun.
    pub(super) deleting: bool,
    /// Whether somebody on this host has its device open.
    pub(super) open: bool,
    /// Where it lies, as LVM's commands take it: `/dev/sda:0-7`.
    pub(super) ranges: Vec<String>,
}

impl GroupReport {
    /// Reads the report on the group `name`.
    pub(super) fn parse(name: &str, text: &[u8]) -> Result<Self, String> {
        let report: Report = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let groups = report.report.into_iter().filter(|part| part.vg.iter().any(|vg| vg.vg_name == name));
        let mut groups: Vec<Part> = groups.collect();
        let (Some(part), true) = (groups.pop(), groups.is_empty()) else {
            return Err(format!("it does not speak of exactly one group {name}"));
        };
        let [vg] = part.vg.as_slice() else { return Err("it names a group twice".to_owned()) };
        let revision_tags: Vec<String> =
            tags(&vg.vg_tags).filter(|tag| names::revision_of(tag).is_some()).map(str::to_owned).collect();
        let mut volumes = BTreeMap::new();
        for lv in &part.lv {
            let Some(name) = LvName::parse(&lv.lv_name) else { continue };
            let mut segments: Vec<(u64, &Segment)> = Vec::new();
            for segment in part.seg.iter().filter(|segment| segment.lv_name == lv.lv_name) {
                segments.push((number(&segment.seg_start)?, segment));
            }
            segments.sort_by_key(|(start, _)| *start);
            let ranges = segments.iter().flat_map(|(_, segment)| segment.seg_pe_ranges.split_whitespace());
            let tags: BTreeSet<&str> = tags(&lv.lv_tags).collect();
            let volume = LogicalVolume {
                uuid: lv.lv_uuid.clone(),
                size: number(&lv.lv_size)?,
                unfinished: tags.contains(names::UNFINISHED),
                deleting: tags.contains(names::DELETING),
                open: lv.lv_device_open == "open",
                ranges: ranges.map(str::to_owned).collect(),
            };
            volumes.insert(name, volume);
        }
        let missing = part.pv.iter().any(|pv| !pv.pv_missing.is_empty());
        let extent = number(&vg.vg_extent_size)?;
        if extent == 0 {
            return Err("its extents have no size".to_owned());
        }
        Ok(Self {
            uuid: vg.vg_uuid.clone(),
            free: number(&vg.vg_free)?,
            extent,
            ailment: ailment(vg, missing),
            revision: revision_tags.iter().filter_map(|tag| names::revision_of(tag)).max().unwrap_or(0),
            revision_tags,
            volumes,
        })
    }

    /// A size in bytes, rounded up to whole extents.
    pub(super) fn rounded(&self, size: u64) -> u64 {
        size.div_ceil(self.extent).saturating_mul(self.extent)
    }

    /// What our volumes may have in sum, in bytes: all that nobody else's take.
    pub(super) fn capacity(&self) -> u64 {
        self.volumes.values().map(|volume| volume.size).fold(self.free, u64::saturating_add)
    }
}

fn ailment(vg: &Group, missing: bool) -> Option<&'static str> {
    if missing || !vg.vg_partial.is_empty() {
        Some("a physical volume is missing")
    } else if !vg.vg_exported.is_empty() {
        Some("it is exported")
    } else if vg.vg_permissions != "writeable" {
        Some("it is read-only")
    } else {
        None
    }
}

fn tags(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').filter(|tag| !tag.is_empty())
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

#[derive(Deserialize)]
struct Report {
    report: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    vg: Vec<Group>,
    #[serde(default)]
    pv: Vec<PhysicalVolume>,
    #[serde(default)]
    lv: Vec<Lv>,
    #[serde(default)]
    seg: Vec<Segment>,
}

#[derive(Deserialize)]
struct Group {
    vg_uuid: String,
    vg_name: String,
    vg_free: String,
    vg_extent_size: String,
    vg_partial: String,
    vg_permissions: String,
    vg_exported: String,
    vg_tags: String,
}

#[derive(Deserialize)]
struct PhysicalVolume {
    pv_missing: String,
}

#[derive(Deserialize)]
struct Lv {
    lv_name: String,
    lv_uuid: String,
    lv_size: String,
    lv_tags: String,
    lv_device_open: String,
}

#[derive(Deserialize)]
struct Segment {
    lv_name: String,
    seg_start: String,
    seg_pe_ranges: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    /// As LVM 2.03.16 prints it.
    fn text(vg: &str, pv_missing: &str) -> String {
        let volume = "kubexen-00000000-0000-0000-0000-0000000000ab";
        format!(
            r#"{{"report": [{{"vg": [{{"vg_uuid":"uDTzGi-ql4Y", "vg_name":"vg", "vg_free":"4194304",
            "vg_extent_size":"1048576", {vg}, "vg_tags":"backup,kubexen.lock-revision=7,kubexen.lock-revision=12"}}],
            "pv": [{{"pv_missing":""}}, {{"pv_missing":"{pv_missing}"}}],
            "lv": [
              {{"lv_name":"root", "lv_uuid":"a", "lv_size":"8388608", "lv_tags":"", "lv_device_open":"open"}},
              {{"lv_name":"{volume}", "lv_uuid":"VV1ByL-lT2f", "lv_size":"3145728",
                "lv_tags":"kubexen.deleting,mine", "lv_device_open":""}}],
            "pvseg": [{{"pvseg_start":"0"}}],
            "seg": [
              {{"lv_name":"{volume}", "seg_start":"1048576", "seg_pe_ranges":"/dev/vdb:5-6"}},
              {{"lv_name":"root", "seg_start":"0", "seg_pe_ranges":"/dev/vda:0-7"}},
              {{"lv_name":"{volume}", "seg_start":"0", "seg_pe_ranges":"/dev/vda:9-9"}}]}}]}}"#
        )
    }

    const WELL: &str = r#""vg_partial":"", "vg_permissions":"writeable", "vg_exported":"""#;

    #[test]
    fn a_report_is_read_whole_and_foreign_volumes_are_left_out() {
        let report = GroupReport::parse("vg", text(WELL, "").as_bytes()).unwrap();
        let volume = LogicalVolume {
            uuid: "VV1ByL-lT2f".to_owned(),
            size: 3 << 20,
            unfinished: false,
            deleting: true,
            open: false,
            ranges: vec!["/dev/vda:9-9".to_owned(), "/dev/vdb:5-6".to_owned()],
        };
        let name = LvName::Volume(Uuid::from_u128(0xab));
        assert_eq!(report.volumes, BTreeMap::from([(name, volume)]));
        assert_eq!((report.ailment, report.revision, report.extent), (None, 12, 1 << 20));
        assert_eq!(report.capacity(), 7 << 20);
        assert_eq!((report.rounded(1), report.rounded(1 << 20)), (1 << 20, 1 << 20));
    }

    #[test]
    fn a_group_that_is_not_whole_or_not_ours_to_write_is_ill() {
        let ailment =
            |vg: &str, missing: &str| GroupReport::parse("vg", text(vg, missing).as_bytes()).unwrap().ailment;
        assert_eq!(ailment(WELL, "missing"), Some("a physical volume is missing"));
        for (from, to) in [
            (r#""vg_partial":"""#, r#""vg_partial":"partial""#),
            ("writeable", "read-only"),
            (r#""vg_exported":"""#, r#""vg_exported":"exported""#),
        ] {
            assert!(ailment(&WELL.replace(from, to), "").is_some(), "{to}");
        }
    }

    #[test]
    fn a_report_on_another_group_or_none_is_refused() {
        for (name, text) in
            [("other", text(WELL, "")), ("vg", r#"{"report": []}"#.to_owned()), ("vg", String::new())]
        {
            assert!(GroupReport::parse(name, text.as_bytes()).is_err());
        }
    }
}
