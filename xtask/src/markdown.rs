//! Links in Markdown files: those that lead to files or headings that do not exist.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

/// The broken relative links of all files, each as `file:line: what is wrong`.
///
/// # Errors
/// When a file cannot be read.
pub fn broken_links(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for file in files {
        for (number, link) in links(&read(file)?) {
            if let Some(problem) = problem(file, &link)? {
                problems.push(format!("{}:{number}: {problem}", file.display()));
            }
        }
    }
    Ok(problems)
}

/// All Markdown files below a folder, sorted; the book that mdBook writes there is left out.
///
/// # Errors
/// When a folder cannot be read.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if !path.ends_with("docs/book") {
                files.extend(files_below(&path)?);
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The local files that a Markdown file links to, as absolute paths, whether they exist or not.
///
/// # Errors
/// When the file cannot be read.
pub fn linked_files(file: &Path) -> Result<BTreeSet<PathBuf>> {
    let links = links(&read(file)?);
    Ok(links.iter().filter_map(|(_, link)| Target::of(file, link)).map(|target| target.file).collect())
}

/// Where a relative link leads.
struct Target {
    file: PathBuf,
    heading: Option<String>,
}

impl Target {
    /// The target of a link in `file`; none for links that leave this tree.
    fn of(file: &Path, link: &str) -> Option<Self> {
        if link.contains("://") || link.starts_with("mailto:") {
            return None;
        }
        let (path, heading) = match link.split_once('#') {
            Some((path, heading)) => (path, Some(heading.to_owned())),
            None => (link, None),
        };
        let folder = file.parent().unwrap_or(Path::new("."));
        let target = if path.is_empty() { file.to_owned() } else { normal(&folder.join(path)) };
        Some(Self { file: target, heading })
    }
}

fn problem(file: &Path, link: &str) -> Result<Option<String>> {
    let Some(Target { file: target, heading }) = Target::of(file, link) else {
        return Ok(None);
    };
    if !target.exists() {
        return Ok(Some(format!("the link {link} leads to no file")));
    }
    let Some(heading) = heading.filter(|_| target.extension().is_some_and(|extension| extension == "md"))
    else {
        return Ok(None);
    };
    let missing = !headings(&read(&target)?).contains(&heading);
    Ok(missing.then(|| format!("the link {link} leads to no heading of {}", target.display())))
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut normal, component| {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => normal.push(component),
        }
        normal
    })
}

/// The lines outside fenced code, with their numbers from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        (!in_code && !fence).then_some((index + 1, line))
    })
}

/// The targets of inline links, `[text](target)`, with their lines' numbers. Code spans are left out.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        let outside_code = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        for rest in outside_code.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or(rest);
            // A title may follow the target.
            links.push((number, target.split(' ').next().unwrap_or(target).to_owned()));
        }
    }
    links
}

/// The anchors of the headings, as mdBook and GitHub make them: lower case, spaces to hyphens, punctuation dropped.
fn headings(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for (_, line) in prose(text).filter(|(_, line)| line.starts_with('#')) {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let anchor = title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect::<String>();
        // A second heading of the same text has a number appended.
        let free = (0..).map(|n| if n == 0 { anchor.clone() } else { format!("{anchor}-{n}") });
        anchors.extend(free.into_iter().find(|candidate| !anchors.contains(candidate)));
    }
    anchors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_code_are_not_links() {
        let text = "see [a](one.md) and `[b](no.md)`\n```\n[c](no.md)\n```\n[d](two.md#x \"title\")\n";
        assert_eq!(links(text), [(1, "one.md".to_owned()), (5, "two.md#x".to_owned())]);
    }

    #[test]
    fn headings_become_anchors_as_mdbook_makes_them() {
        let anchors = headings("# What it is, and for whom?\n## Twice\n## Twice\n### `spec.cpu`\n");
        let expected = ["speccpu", "twice", "twice-1", "what-it-is-and-for-whom"];
        assert_eq!(anchors.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn links_to_missing_files_and_headings_are_reported_with_their_line() {
        let folder = std::env::temp_dir().join(format!("kubexen-markdown-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (one, two) = (folder.join("one.md"), folder.join("two.md"));
        std::fs::write(
            &one,
            "# One\n[fine](two.md#two) [fine](https://example.org) [fine](#one)\n[bad](three.md)\n",
        )
        .unwrap();
        std::fs::write(&two, "# Two\n\n[bad](./one.md#none)\n").unwrap();
        let problems = broken_links(&files_below(&folder).unwrap());
        std::fs::remove_dir_all(&folder).unwrap();
        let problems = problems.unwrap();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].ends_with("one.md:3: the link three.md leads to no file"), "{problems:?}");
        assert!(
            problems[1].contains("two.md:3: the link ./one.md#none leads to no heading of"),
            "{problems:?}"
        );
    }
}
