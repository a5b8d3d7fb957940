//! Which versions of etcd answer linearizable reads with the newest state, whatever happened to the member that is asked.
//!
//! Before these, a member that had been paused could answer with an old state (etcd issue 20418).

/// The first patch of each minor version of etcd 3 that has the mend; later minor versions have it from the beginning.
const FLOOR: [(u64, u64); 3] = [(4, 42), (5, 28), (6, 9)];

/// What this version has to be at least, if it is too old. A text that is no version says nothing.
pub(super) fn floor_of(version: &str) -> Option<String> {
    let mut numbers = version.trim_start_matches('v').split(['.', '-', '+']).map(|part| part.parse().ok());
    let mut next = || numbers.next().flatten();
    let (major, minor, patch): (u64, u64, u64) = (next()?, next()?, next()?);
    let same = FLOOR.iter().find(|(of, _)| (3, *of) == (major, minor));
    match same {
        Some((_, first)) => (patch < *first).then(|| format!("3.{minor}.{first}")),
        // The end of life of those before came without the mend.
        None => ((major, minor) < (3, FLOOR[0].0)).then(|| format!("3.{}.{}", FLOOR[0].0, FLOOR[0].1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_without_the_mend_is_told_from_one_with_it() {
        for (version, floor) in [
            ("3.6.9", None),
            ("3.6.10", None),
            ("3.6.8", Some("3.6.9")),
            ("3.6.0-rc.1", Some("3.6.9")),
            ("3.5.28", None),
            ("v3.5.27", Some("3.5.28")),
            ("3.4.42", None),
            ("3.4.9", Some("3.4.42")),
            ("3.3.27", Some("3.4.42")),
            ("2.3.8", Some("3.4.42")),
            ("3.7.0", None),
            ("4.0.0", None),
            ("", None),
            ("unknown", None),
        ] {
            assert_eq!(floor_of(version).as_deref(), floor, "{version}");
        }
    }
}
