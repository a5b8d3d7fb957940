//! What is done to a pool in a schedule, and its text form: a line for each step, with the second at which it is done.
//!
//! ```text
//!      0.000 create kind=VirtualMachine object={"metadata":{"name":"web"}}
//!     60.000 cut-power host=host-a for=120
//! ```

use anyhow::{Context, Result, bail, ensure};
use kubexen_crds::domain::StopReason;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{fmt, str::FromStr, time::Duration};

/// One thing that is done at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// When, counted from the beginning, in whole milliseconds.
    pub at: Duration,
    /// What.
    pub action: Action,
}

/// A time span in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub f64);

impl Seconds {
    fn is_zero(&self) -> bool {
        self.duration().is_zero()
    }

    pub(super) fn duration(self) -> Duration {
        Duration::try_from_secs_f64(self.0).unwrap_or_default()
    }
}

impl From<Duration> for Seconds {
    fn from(duration: Duration) -> Self {
        // One exact division gives the number that is nearest to the decimal one, which is written and read back as it is.
        Self(duration.as_nanos() as f64 / 1e9)
    }
}

/// Kinds of objects that people make.
#[expect(missing_docs, reason = "the names say it")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Host,
    Network,
    Pool,
    Secret,
    StorageRepository,
    VirtualDisk,
    VirtualMachine,
    VirtualMachineMigration,
}

/// What does not get through between two parties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Lost {
    /// Nothing reaches the other side.
    Requests,
    /// Requests are executed, and nothing comes back.
    Answers,
    /// Nothing gets through either way, what the other side sends by itself included.
    Both,
}

/// How a call to a hypervisor goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Failure {
    /// It is refused.
    Refused,
    /// It hangs until its time limit, half done; what has no halves is not done.
    Hangs,
    /// It is done, and nobody is told.
    Untold,
}

/// A call to a hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Call {
    Create,
    Suspend,
    Restore,
    Unpause,
    Pause,
    Claim,
    Resume,
    Destroy,
}

/// What people and faults do. Names of processes are `agent-<host>` and `controller-<number>`; times are in seconds.
#[expect(missing_docs, reason = "fields are named as what they are")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Action {
    /// Somebody makes an object.
    Create { kind: Kind, object: Value },
    /// Somebody changes an object by a merge patch.
    Change { kind: Kind, name: String, change: Value },
    /// Somebody deletes an object.
    Delete { kind: Kind, name: String },
    /// Somebody deletes the copy of a machine's user data in a host's namespace.
    DeleteCopy { host: String, machine: String },
    /// Somebody deletes the Domain of a machine on a host.
    DeleteDomain { host: String, machine: String },
    /// Somebody makes a machine, and a disk for it in this repository, if one is named.
    Machine {
        name: String,
        #[serde(default = "protected")]
        availability: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk: Option<String>,
    },
    /// Somebody says that a host is off, at the boot that it was last seen at.
    ConfirmDead { host: String },
    /// The machine's guest is to run on this host and nowhere else; or nowhere at all, if none is named.
    Expect {
        machine: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        on: Option<String>,
    },
    /// The host's present boot, or its last one, is to be fenced or not.
    ExpectFenced { host: String, fenced: bool },
    /// No disk is to be a device of the host.
    ExpectDetached { host: String },
    /// A process ends, and is started again later.
    Crash { process: String, r#for: Seconds },
    /// A process ends right after one of its next writes to the API server, and is started again later.
    CrashAtWrite { process: String, write: usize, r#for: Seconds },
    /// A process ends right after one of its next calls to the pool's store or its hypervisor has acted, before it has the answer, and
    /// is started again later.
    CrashAtCall { process: String, call: usize, r#for: Seconds },
    /// A process does not run for a while, and notices nothing.
    Pause { process: String, r#for: Seconds },
    /// What a process asks the API server to make of this kind, by plural, is made so much later, whatever became of the process.
    LateCreates { process: String, kind: String, late: Seconds, r#for: Seconds },
    /// What the pool's store answers a process comes so much later.
    SlowStore { process: String, late: Seconds, r#for: Seconds },
    /// A host's dom0 does not run for a while: its agent, its toolstack and its network stand still, and its guests go on.
    PauseHost { host: String, r#for: Seconds },
    /// The API server does not run for a while. What was asked of it meanwhile it does then, whoever waits for it.
    PauseApi { r#for: Seconds },
    /// What a process asks of the API server arrives so much later, whether it still waits for that or not.
    SlowApi { process: String, late: Seconds, r#for: Seconds },
    /// A process and the API server do not hear of each other.
    CutFromApi { process: String, lost: Lost, r#for: Seconds },
    /// A process and the pool's store do not hear of each other.
    CutFromStore { process: String, lost: Lost, r#for: Seconds },
    /// The API server forgets its changes, so that watches begin anew.
    CompactApi {},
    /// A host loses its power, and has it again later.
    CutPower { host: String, r#for: Seconds },
    /// A hypervisor answers nobody.
    HypervisorOutage { host: String, r#for: Seconds },
    /// The next call of this kind goes wrong.
    FailCall { host: String, call: Call, failure: Failure },
    /// Guests do not listen when they are asked to power off.
    DeafGuests { host: String, r#for: Seconds },
    /// A guest stops by itself.
    StopGuest { host: String, machine: String, reason: StopReason },
    /// A host's storage refuses everything.
    StorageOutage { host: String, r#for: Seconds },
    /// A host's storage refuses one change, or does it and tells nobody.
    FailStorage { host: String, failure: Failure },
    /// A host finds no room in its storage: volumes are neither made nor grown, and no guest is saved.
    StorageFull { host: String, r#for: Seconds },
    /// A host's dom0 has no room for what its agent writes.
    Dom0Full { host: String, r#for: Seconds },
    /// The network between two hosts breaks once so many bytes have gone over it.
    CutLink { from: String, to: String, after_bytes: u64, r#for: Seconds },
    /// The pool's store has no quorum.
    StoreOutage { r#for: Seconds },
    /// The pool's store executes one more transaction, and then has no quorum.
    StoreOutageAfterWrite { r#for: Seconds },
    /// The pool's store elects another leader, and the one before acknowledges renewals for a while that have no effect.
    StoreElection {
        #[serde(default, skip_serializing_if = "Seconds::is_zero")]
        deposed: Seconds,
    },
    /// The pool's store has no room: leases are renewed, and nothing is written.
    StoreFull { r#for: Seconds },
    /// The pool's store gets no more of one transaction than its client gets of the answer.
    StoreLoses { lost: Lost },
    /// The pool's store gets one transaction long after its client has lost it, which hears nothing of the store for the silence: if
    /// it lasts, the client does not try again, and goes on.
    StoreDelays {
        r#for: Seconds,
        #[serde(default, skip_serializing_if = "Seconds::is_zero")]
        silence: Seconds,
    },
    /// The pool's store is copied.
    StoreBackup {},
    /// The pool's store is replaced by what its last copy holds, in a cluster of its own or in one that is called as the one before.
    StoreRestore {
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        same_cluster: bool,
    },
    /// Somebody confirms the restored store, if all hosts have put their guests on record in it.
    ConfirmRestore {},
    /// The wall clock of a process is so many seconds ahead of the others', or behind.
    SetClock { process: String, ahead: i64 },
    /// The pool's store counts seconds of leases too fast, by so many percent, or too slowly; or a process does the opposite, whose
    /// leases alone run so then.
    StoreClock {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        process: Option<String>,
        percent_fast: i32,
    },
}

fn protected() -> String {
    "Protected".to_owned()
}

impl Action {
    /// What it is called in scenarios.
    pub(super) fn name(&self) -> String {
        let text = self.to_string();
        text.split(' ').next().unwrap_or_default().to_owned()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>8}.{:03} {}", self.at.as_secs(), self.at.subsec_millis(), self.action)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        let (verb, fields) = value.as_object().and_then(|one| one.iter().next()).ok_or(fmt::Error)?;
        f.write_str(verb)?;
        for (name, value) in fields.as_object().into_iter().flatten() {
            match value {
                Value::String(word) => write!(f, " {name}={word}")?,
                value => write!(f, " {name}={value}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Step {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let (at, action) = line.trim().split_once(' ').context("a step is a second and an action")?;
        let at = at.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Ok(Self { at: at.context("a step begins with its second")?, action: action.parse()? })
    }
}

impl FromStr for Action {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let (verb, mut rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut fields = Map::new();
        while let Some((name, after)) = rest.trim_start().split_once('=') {
            let value = if after.starts_with('{') {
                let mut values = serde_json::Deserializer::from_str(after).into_iter::<Value>();
                let value = values.next().context("a value is missing")??;
                rest = &after[values.byte_offset()..];
                value
            } else {
                let (word, end) = after.split_once(' ').unwrap_or((after, ""));
                rest = end;
                serde_json::from_str(word).unwrap_or_else(|_| Value::String(word.to_owned()))
            };
            ensure!(fields.insert(name.to_owned(), value).is_none(), "{name} is given twice");
        }
        if !rest.trim().is_empty() {
            bail!("{rest:?} is no name=value");
        }
        let action = Value::Object(Map::from_iter([(verb.to_owned(), Value::Object(fields))]));
        serde_json::from_value(action).with_context(|| format!("{text:?} is no action"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_step_is_read_as_it_is_written() {
        let host = "host-a".to_owned();
        let actions = [
            Action::Create { kind: Kind::VirtualMachine, object: json!({"metadata": {"name": "a b = {c}"}}) },
            Action::CutPower { host: host.clone(), r#for: Seconds(60.0) },
            Action::FailCall { host: host.clone(), call: Call::Restore, failure: Failure::Untold },
            Action::StopGuest { host, machine: "vm-1".to_owned(), reason: StopReason::Poweroff },
            Action::StoreElection { deposed: Seconds::default() },
        ];
        for action in actions {
            let step = Step { at: Duration::from_millis(1_234), action };
            assert_eq!(step.to_string().parse::<Step>().unwrap(), step, "{step}");
        }
        assert_eq!(
            Step { at: Duration::from_secs(60), action: "cut-power for=1.5 host=x".parse().unwrap() }
                .to_string(),
            "      60.000 cut-power for=1.5 host=x"
        );
    }

    #[test]
    fn a_line_that_is_no_step_is_refused_with_what_is_wrong() {
        let why = |line: &str| format!("{:#}", line.parse::<Step>().unwrap_err());
        assert!(why("60 fly host=a").contains("unknown variant `fly`"), "{}", why("60 fly host=a"));
        assert!(why("60 cut-power host=a").contains("missing field `for`"));
        assert!(why("60 cut-power host=a for=1 by=me").contains("unknown field `by`"));
        assert!(why("60 store-election now").contains("is no name=value"));
        assert!(why("soon store-election").contains("second"));
    }
}
