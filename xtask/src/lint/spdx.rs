//! Licence expressions as crates declare them (SPDX, and the older form with a slash).

use std::collections::BTreeSet;

/// Whether an expression can be satisfied by licences that are allowed: all sides of an `AND`, one side of an `OR`.
///
/// `X WITH Y` is a licence of its own, to be allowed under that name. What cannot be read is not allowed.
pub fn allowed(expression: &str, licences: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words = spaced.split_whitespace().collect::<Vec<_>>();
    let mut reader = Reader { words: &words, licences };
    reader.either() == Some(true) && reader.words.is_empty()
}

/// Reads an expression from left to right; every method returns nothing where the expression is malformed.
struct Reader<'a> {
    words: &'a [&'a str],
    licences: &'a BTreeSet<String>,
}

impl Reader<'_> {
    fn take(&mut self, expected: &str) -> bool {
        let found = self.words.first() == Some(&expected);
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    fn next(&mut self) -> Option<String> {
        let (word, rest) = self.words.split_first()?;
        self.words = rest;
        Some((*word).to_owned())
    }

    fn either(&mut self) -> Option<bool> {
        let mut allowed = self.all()?;
        while self.take("OR") {
            allowed |= self.all()?;
        }
        Some(allowed)
    }

    fn all(&mut self) -> Option<bool> {
        let mut allowed = self.licence()?;
        while self.take("AND") {
            allowed &= self.licence()?;
        }
        Some(allowed)
    }

    fn licence(&mut self) -> Option<bool> {
        if self.take("(") {
            let allowed = self.either()?;
            return self.take(")").then_some(allowed);
        }
        let mut name = self.next()?;
        if self.take("WITH") {
            name = format!("{name} WITH {}", self.next()?);
        }
        Some(self.licences.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_judged_as_spdx_means_them() {
        let licences = BTreeSet::from(["MIT", "Apache-2.0", "BSD-3-Clause"].map(str::to_owned));
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0-only", false),
            ("GPL-3.0-only OR MIT", true),
            ("Unlicense/MIT", true),
            ("MIT AND BSD-3-Clause", true),
            ("MIT AND GPL-3.0-only", false),
            ("(Apache-2.0 OR GPL-3.0-only) AND BSD-3-Clause", true),
            ("GPL-3.0-only OR MIT AND GPL-2.0-only", false),
            ("Apache-2.0 WITH LLVM-exception", false),
            ("Apache-2.0 WITH LLVM-exception OR MIT", true),
            ("", false),
            ("MIT OR", false),
            ("(MIT", false),
            ("MIT Apache-2.0", false),
        ] {
            assert_eq!(allowed(expression, &licences), expected, "{expression}");
        }
    }
}
