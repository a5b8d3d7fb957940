//! Whether the guest of a machine has what its spec says.

use super::{live::Held, problem::Problem};
use kubexen_crds::{
    Domain, VirtualMachineStatus,
    condition::{State, Wanted, find},
    virtual_machine::Phase,
};
use kubexen_runtime::events::Severity;

/// Whether the guest has what the machine asks for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Synchronized {
    /// Its Domain asks for all of it, and the agent says whether the guest has it.
    AsTheHostSays,
    /// These fields take effect at the next restart.
    RestartRequired(Vec<String>),
    /// These changes wait for something else.
    Held(Vec<Held>),
    /// The guest is on its way to another host, and is changed when it is there.
    Moving,
    /// What the machine refers to now is not there.
    Unresolved(Problem),
}

impl Synchronized {
    pub(super) fn condition(&self, domain: &Domain) -> Wanted {
        match self {
            Self::AsTheHostSays => said_by_host(domain),
            Self::Held(held) => {
                let messages: Vec<&str> = held.iter().map(|held| held.message.as_str()).collect();
                let reason = held.first().map_or("Held", |held| held.reason);
                Wanted::new("Synchronized", State::False, reason, messages.join("; "))
            }
            Self::Moving => Wanted::new(
                "Synchronized",
                State::False,
                "Migrating",
                "the guest is on its way to another host, and is changed when it is there",
            ),
            Self::RestartRequired(fields) => Wanted::new(
                "Synchronized",
                State::False,
                "RestartRequired",
                format!("{} will take effect at the next restart", fields.join(", ")),
            ),
            Self::Unresolved(problem) => {
                Wanted::new("Synchronized", State::False, problem.reason(), problem.message())
            }
        }
    }
}

/// What the agent says of the guest, if it speaks of the Domain as it is.
fn said_by_host(domain: &Domain) -> Wanted {
    let wanted = |state, reason, message: &str| Wanted::new("Synchronized", state, reason, message);
    let status = domain.status.as_ref();
    if status.and_then(|status| status.observed_generation) != domain.metadata.generation {
        return wanted(State::False, "Applying", "the host of the guest is applying a change");
    }
    let said = status.and_then(|status| find(&status.conditions, "Synchronized"));
    match said.filter(|said| said.status != State::True.as_str()) {
        Some(said) => {
            let known = REASONS.into_iter().find(|reason| *reason == said.reason);
            wanted(State::False, known.unwrap_or("ChangeFailed"), &said.message)
        }
        None => wanted(State::True, "Synchronized", "the guest has the spec as it is"),
    }
}

/// Reasons of the agent that are passed on as they are; the message tells about all others.
const REASONS: [&str; 8] = [
    "Applying",
    "DiskInUse",
    "GuestNotResponding",
    "GuestPaused",
    "UplinkMissing",
    "VolumeInUse",
    "VolumeMissing",
    "VolumeNotReady",
];

/// What people should hear of: a machine that was started has its spec, so only what changes later is told.
pub(super) fn happening(
    before: Option<&VirtualMachineStatus>,
    phase: Phase,
    conditions: &[Wanted],
) -> Option<(Severity, &'static str, String)> {
    let before = before.filter(|before| before.phase == Some(phase))?;
    let said = conditions.iter().find(|condition| condition.type_ == "Synchronized")?;
    let reason_before = find(&before.conditions, "Synchronized")?.reason.as_str();
    if reason_before == said.reason {
        return None;
    }
    let severity = match (said.state, said.reason) {
        (_, "Applying") => return None,
        (State::True, _) | (_, "RestartRequired" | "Migrating" | "GuestPaused") => Severity::Normal,
        (State::False | State::Unknown, _) => Severity::Warning,
    };
    Some((severity, said.reason, said.message.clone()))
}
