//! Licences of all dependencies against `deny.toml`, and GPL code nowhere but below the node agent's feature `xen`.
//!
//! cargo-deny judges the first from the same file where it is installed; it cannot express the second.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::spdx;
use crate::build::XEN;
use crate::repository::{cargo, output, root};

/// What `deny.toml` says about licences.
#[derive(Debug, PartialEq, Eq)]
struct Policy {
    allowed: BTreeSet<String>,
    /// Further licences that are allowed for one crate.
    exceptions: BTreeMap<String, BTreeSet<String>>,
}

/// Checks both; the feature `xen` alone may bring in what `deny.toml` lists as exceptions.
///
/// # Errors
/// When a crate's licence is not allowed; all of them are listed.
pub fn check() -> Result<()> {
    let path = root().join("deny.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let policy = Policy::read(&text)?;
    let mut problems = violations(&licences(&[])?, &policy.allowed, &BTreeMap::new());
    problems.extend(violations(&licences(&["--features", XEN])?, &policy.allowed, &policy.exceptions));
    if problems.is_empty() {
        return Ok(());
    }
    let problems = problems.into_iter().collect::<Vec<_>>();
    bail!("licences that deny.toml does not allow there:\n{}", problems.join("\n"))
}

impl Policy {
    /// Reads the lists `allow` and `exceptions` of the section `[licenses]`; for the rest of the file there is cargo-deny.
    fn read(text: &str) -> Result<Self> {
        let section =
            text.split("\n[").find_map(|section| section.trim_start_matches('[').strip_prefix("licenses]\n"));
        let section = section.ok_or_else(|| anyhow!("deny.toml has no section [licenses]"))?;
        let lines = section.lines().map(|line| line.split('#').next().unwrap_or(line)).collect::<Vec<_>>();
        let list = |key: &str| {
            let start = lines.iter().position(|line| line.trim() == format!("{key} = ["))?;
            let length = lines[start..].iter().position(|line| line.trim() == "]")?;
            Some(&lines[start + 1..start + length])
        };
        let missing = |key: &str| anyhow!("deny.toml has no list `{key} = [` in [licenses]");
        let allowed =
            list("allow").ok_or_else(|| missing("allow"))?.iter().flat_map(|line| quoted(line)).collect();
        let mut exceptions = BTreeMap::new();
        for line in list("exceptions").ok_or_else(|| missing("exceptions"))? {
            let mut words = quoted(line);
            if let Some(name) = words.next() {
                exceptions.insert(name, words.collect());
            }
        }
        Ok(Self { allowed, exceptions })
    }
}

/// The quoted words of a line.
fn quoted(line: &str) -> impl Iterator<Item = String> {
    line.split('"').skip(1).step_by(2).map(str::to_owned)
}

/// Name and licence of every package that cargo takes part of with these features.
fn licences(features: &[&str]) -> Result<BTreeMap<String, Option<String>>> {
    let text = output(cargo()?.args(["metadata", "--format-version", "1", "--locked"]).args(features))?;
    let metadata: Value =
        serde_json::from_str(&text).context("cargo metadata printed something else than JSON")?;
    let packages =
        metadata["packages"].as_array().ok_or_else(|| anyhow!("cargo metadata names no packages"))?;
    let word = |package: &Value, key: &str| package[key].as_str().map(str::to_owned);
    packages
        .iter()
        .map(|package| {
            let (name, version) = (word(package, "name"), word(package, "version"));
            let (name, version) =
                name.zip(version).ok_or_else(|| anyhow!("a package without a name: {package}"))?;
            Ok((format!("{name} {version}"), word(package, "license")))
        })
        .collect()
}

fn violations(
    licences: &BTreeMap<String, Option<String>>,
    allowed: &BTreeSet<String>,
    exceptions: &BTreeMap<String, BTreeSet<String>>,
) -> BTreeSet<String> {
    let fine = |package: &str, expression: &str| {
        let name = package.split(' ').next().unwrap_or(package);
        let further = exceptions.get(name).into_iter().flatten();
        spdx::allowed(expression, &allowed.iter().chain(further).cloned().collect())
    };
    licences
        .iter()
        .filter(|(package, licence)| !licence.as_ref().is_some_and(|licence| fine(package, licence)))
        .map(|(package, licence)| format!("{package}: {}", licence.as_deref().unwrap_or("none declared")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENY: &str = "\
[graph]
all-features = true

[licenses]
allow = [
    \"MIT\", # permissive
    \"Apache-2.0\",
]
exceptions = [
    { crate = \"xenctrl\", allow = [\"GPL-3.0-only\"] },
]

[bans]
allow = [
    \"GPL-2.0-only\",
]
";

    fn strings<const N: usize>(words: [&str; N]) -> BTreeSet<String> {
        BTreeSet::from(words.map(str::to_owned))
    }

    #[test]
    fn the_policy_is_that_of_the_section_licenses() {
        let policy = Policy::read(DENY).unwrap();
        assert_eq!(policy.allowed, strings(["Apache-2.0", "MIT"]));
        assert_eq!(policy.exceptions, BTreeMap::from([("xenctrl".to_owned(), strings(["GPL-3.0-only"]))]));
        assert!(Policy::read("[bans]\n").is_err());
    }

    #[test]
    fn an_exception_covers_its_own_crate_alone() {
        let policy = Policy::read(DENY).unwrap();
        let licences =
            [("xenctrl 0.9.0", "GPL-3.0-only"), ("other 1.0.0", "GPL-3.0-only"), ("fine 1.0.0", "MIT")]
                .map(|(package, licence)| (package.to_owned(), Some(licence.to_owned())))
                .into();
        let problems = violations(&licences, &policy.allowed, &policy.exceptions);
        assert_eq!(problems, strings(["other 1.0.0: GPL-3.0-only"]));
        assert_eq!(violations(&licences, &policy.allowed, &BTreeMap::new()).len(), 2);
    }
}
