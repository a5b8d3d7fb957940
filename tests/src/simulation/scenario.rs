//! Schedules that were written down: one step on a line, and what they show in comments above.
//!
//! ```text
//! # A host loses its power, and its protected guest runs on another.
//!   0 create kind=Pool object={"metadata":{"name":"default"},"spec":{}}
//!   0 machine name=web disk=san
//!  30 cut-power host=host-a for=600
//!  90 expect machine=web on=host-b
//! 120 end
//! ```
//!
//! `seed N` gives another seed than 1, and `weather bad` lets connections to the API server be late and lossy; in `weather
//! worse` calls to the pool's store and to hypervisors take time too, and links between hosts are slow. At `end` all
//! faults end, and the pool is judged as after every schedule.

use super::{
    Outcome, Schedule,
    step::{Action, Step},
};
use anyhow::{Context, Result, ensure};
use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

impl FromStr for Schedule {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut schedule = Self::default();
        let mut end = None;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            schedule.read(line, &mut end).with_context(|| format!("line {}", index + 1))?;
        }
        schedule.end = end.context("the last line says when it ends, as in \"120 end\"")?;
        ensure!(schedule.steps.is_sorted_by_key(|step| step.at), "the steps are not in the order of time");
        Ok(schedule)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        match (self.bad_weather, self.slow_calls) {
            (_, true) => writeln!(f, "weather worse")?,
            (true, false) => writeln!(f, "weather bad")?,
            (false, false) => {}
        }
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        writeln!(f, "{:>8}.{:03} end", self.end.as_secs(), self.end.subsec_millis())
    }
}

/// All scenarios of a folder with their names, in the order of these.
///
/// # Errors
/// When the folder or one of them cannot be read, with its name.
pub fn read_all(folder: &Path) -> Result<Vec<(String, Schedule)>> {
    let entries = fs::read_dir(folder).with_context(|| format!("Cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "scenario"));
    paths.sort();
    let read = |path: &PathBuf| -> Result<(String, Schedule)> {
        let text = fs::read_to_string(path)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, text.parse()?))
    };
    paths.iter().map(|path| read(path).with_context(|| path.display().to_string())).collect()
}

/// What a person wants to know of how a scenario went: steps, what became of hosts and guests, and what was told about
/// them, by the second and without what the next version may do otherwise.
#[must_use]
pub fn story(outcome: &Outcome) -> String {
    let names = names(&outcome.trace);
    let mut story = String::new();
    for line in &outcome.trace {
        let Some((at, said)) = line.trim_start().split_once(' ') else { continue };
        if said == "faults end" {
            break;
        }
        let Some(said) = told(said) else { continue };
        let said = names.iter().fold(said, |said, (uid, name)| said.replace(uid, name));
        let second = at.split_once('.').map_or(at, |(second, _)| second);
        story.push_str(&format!("{second:>5} {said}\n"));
    }
    match outcome.violations.as_slice() {
        [] => story.push_str("      every promise was kept\n"),
        broken => broken.iter().for_each(|how| story.push_str(&format!("      BROKEN {how}\n"))),
    }
    story
}

/// A line of the trace as it stands in the story, if it does.
fn told(said: &str) -> Option<String> {
    let words: Vec<&str> = said.split_whitespace().collect();
    match words.as_slice() {
        ["step:", ..] | ["VIOLATION", ..] => Some(said.replacen("step: ", "* ", 1)),
        [_, "was", "reset", ..] | [_, "crashes"] | ["the", "late", ..] => Some(said.to_owned()),
        [host, verb @ ("create" | "unpause" | "pause" | "restore" | "suspend" | "resume"), guest, ..]
        | [host, verb @ ("abort" | "shutdown"), guest] => Some(format!("{host}: {verb} {guest}")),
        [host, "destroy", guest, state] => Some(format!("{host}: destroy {guest}, which is {state}")),
        [client, "creates", "Event", of, .., reason] if client.starts_with("controller") => {
            let of = of.split('.').next().unwrap_or(of);
            Some(format!("event {reason} of {of}"))
        }
        _ => None,
    }
}

/// The names of virtual machines by their uids.
fn names(trace: &[String]) -> BTreeMap<String, String> {
    let named = trace.iter().filter_map(|line| {
        let (_, said) = line.split_once(" machine ")?;
        let (name, uid) = said.split_once(" has the uid ")?;
        Some((uid.to_owned(), name.to_owned()))
    });
    named.collect()
}

impl Schedule {
    fn read(&mut self, line: &str, end: &mut Option<Duration>) -> Result<()> {
        match line.split_once(' ').context("a line is a second and an action")? {
            ("seed", seed) => self.seed = seed.trim().parse()?,
            ("weather", "bad") => self.bad_weather = true,
            ("weather", "worse") => (self.bad_weather, self.slow_calls) = (true, true),
            (at, "end") => *end = Some(Duration::try_from_secs_f64(at.parse()?)?),
            _ => self.steps.push(line.parse::<Step>()?),
        }
        Ok(())
    }

    /// The steps that check something.
    #[must_use]
    pub fn expectations(&self) -> usize {
        let checks = |step: &&Step| {
            matches!(
                step.action,
                Action::Expect { .. } | Action::ExpectFenced { .. } | Action::ExpectDetached { .. }
            )
        };
        self.steps.iter().filter(checks).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_read_as_it_is_written() {
        let text = "# Why.\nseed 3\nweather bad\n\n  0 store-election\n 1.5 compact-api\n  60 end\n";
        let schedule: Schedule = text.parse().unwrap();
        assert_eq!((schedule.seed, schedule.bad_weather, schedule.steps.len()), (3, true, 2));
        assert_eq!(schedule.to_string().parse::<Schedule>().unwrap(), schedule);
        let worse: Schedule = text.replace("bad", "worse").parse().unwrap();
        assert!(worse.bad_weather && worse.slow_calls && !schedule.slow_calls);
        assert_eq!(worse.to_string().parse::<Schedule>().unwrap(), worse);
    }

    #[test]
    fn a_line_that_is_no_step_is_refused_with_its_number() {
        let why = |text: &str| format!("{:#}", text.parse::<Schedule>().unwrap_err());
        assert!(why("# Why.\n 0 fly\n 1 end").starts_with("line 2: "));
        assert!(why(" 0 store-election").contains("120 end"));
        assert!(why(" 5 store-election\n 1 store-election\n 9 end").contains("order of time"));
    }
}
