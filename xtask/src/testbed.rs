//! `cargo xtask demo`, `lab`, `bench`, `simulate` and `control-plane`: build what they need, then become `kubexen-testbed`;
//! and `mutants`, which becomes `kubexen-mutants`.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::build::{self, Profile};
use crate::repository::{become_program, tools};

/// Handed on to `kubexen-testbed`, which knows what they mean.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Options; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// A subcommand of `kubexen-testbed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The demo.
    Demo,
    /// The Xen lab.
    Lab,
    /// The benchmarks.
    Bench,
    /// Whole pools under virtual time.
    Simulate,
    /// A control plane for people who develop.
    ControlPlane,
}

/// What has to be built before a part runs.
#[derive(Debug, PartialEq, Eq)]
struct Needs {
    /// The control plane's programs.
    tools: bool,
    /// The node agent with the feature `xen`.
    xen_agent: bool,
    profile: Profile,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Lab => "lab",
            Self::Bench => "bench",
            Self::Simulate => "simulate",
            Self::ControlPlane => "control-plane",
        }
    }

    fn needs(self, arguments: &[OsString]) -> Needs {
        // An option's value may stand in the same word: --seeds=0..200.
        let names = |argument: &OsString, word: &str| {
            argument.to_str().is_some_and(|text| text.split('=').next() == Some(word))
        };
        let has = |word: &str| arguments.iter().any(|argument| names(argument, word));
        if has("--help") || has("-h") {
            return Needs { tools: false, xen_agent: false, profile: Profile::Dev };
        }
        match self {
            Self::Demo => Needs { tools: true, xen_agent: has("--xen"), profile: Profile::Dev },
            // Thousands of schedules are worth a build that takes longer.
            Self::Simulate if has("--seeds") => {
                Needs { tools: false, xen_agent: false, profile: Profile::Release }
            }
            Self::Lab | Self::Simulate => Needs { tools: false, xen_agent: false, profile: Profile::Dev },
            Self::Bench => {
                Needs { tools: true, xen_agent: has("domain") || has("migrate"), profile: Profile::Release }
            }
            Self::ControlPlane => Needs { tools: true, xen_agent: false, profile: Profile::Dev },
        }
    }
}

/// Runs the part; it does not return but where it cannot be started.
pub fn run(part: Part, arguments: &Arguments) -> Result<()> {
    let needs = part.needs(&arguments.arguments);
    if needs.tools {
        build::everything(needs.profile, needs.xen_agent, &[])?;
    } else {
        build::programs(needs.profile, &[])?;
    }
    let mut testbed = Command::new(needs.profile.folder().join("kubexen-testbed"));
    testbed.arg(part.name()).args(&arguments.arguments).env("KUBEXEN_TOOLS", tools());
    become_program(&mut testbed)
}

/// Runs the mutants; it does not return but where they cannot be started.
pub fn run_mutants(arguments: &Arguments) -> Result<()> {
    become_program(Command::new(build::mutants()?).args(&arguments.arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(part: Part, words: &[&str]) -> Needs {
        part.needs(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn only_what_runs_on_xen_needs_the_agent_for_xen() {
        assert!(needs(Part::Demo, &["--xen", "--exit"]).xen_agent);
        assert!(needs(Part::Bench, &["domain", "--json"]).xen_agent);
        assert!(needs(Part::Bench, &["migrate"]).xen_agent);
        assert!(!needs(Part::Demo, &["--exit"]).xen_agent);
        assert!(!needs(Part::Bench, &["storm", "--vms", "10"]).xen_agent);
    }

    #[test]
    fn many_schedules_are_worth_a_release_build_however_they_are_asked_for() {
        for words in [["--seeds", "0..200"].as_slice(), &["--seeds=0..200"], &["--json", "--seeds=0..200"]] {
            assert_eq!(needs(Part::Simulate, words).profile, Profile::Release, "{words:?}");
        }
        for words in [["--seed", "7"].as_slice(), &["--seed=7"]] {
            assert_eq!(needs(Part::Simulate, words).profile, Profile::Dev, "{words:?}");
        }
    }

    #[test]
    fn help_needs_no_control_plane() {
        assert!(!needs(Part::Demo, &["--help"]).tools);
    }
}
