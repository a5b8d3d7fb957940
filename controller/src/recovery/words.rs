//! What operators say of boots in `spec.fencing` of Hosts, which of that is followed, and why the rest is not: pure.

use std::collections::{BTreeMap, BTreeSet};

use kubexen_crds::Host;
use kubexen_ownership::{
    BootId, HostBoot, HostName, Owner, VmUid,
    liveness::{Proof, Roll},
};
use kubexen_runtime::Key;

use super::decide::boot_of;
use crate::host::{decide::TIMEOUT, heartbeat::Heartbeat};

/// A Host, and what is known of its agent's heartbeat at the API server.
pub(crate) type Heard<'a> = (&'a Host, Heartbeat);

/// What operators say of boots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Words {
    /// Boots that somebody has seen to be off, as far as nothing speaks against it.
    pub(crate) confirmed: BTreeSet<HostBoot>,
    /// Boots that somebody calls off, whatever speaks against it.
    pub(crate) called_dead: BTreeSet<HostBoot>,
    /// Boots that may come back.
    pub(crate) unfenced: BTreeSet<HostBoot>,
    /// Those of them of which the Hosts say that it was followed.
    pub(crate) followed: BTreeSet<HostBoot>,
    /// Words that are not followed, and why.
    pub(crate) refused: Vec<Refused>,
}

/// A word of an operator that is not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The Host that it is about.
    pub(crate) host: HostName,
    /// What it says.
    pub(crate) word: Word,
    /// The boot that it names.
    pub(crate) text: String,
    /// Why it is not followed.
    pub(crate) why: Refusal,
}

/// What an operator can say of a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Word {
    /// `spec.fencing.confirmedDead`.
    ConfirmedDead,
    /// `spec.fencing.unfenced`.
    Unfenced,
}

/// Why a word is not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It can be the id of no boot.
    Unreadable,
    /// The boot has a lease in the pool's store.
    Live,
    /// The boot's agent beats at the API server.
    Beats,
    /// Nobody knows this boot of the host, but these.
    Unknown(BTreeSet<String>),
    /// The operator says of the same boot that it is off.
    CalledDead,
    /// So many guests of it are about to be started elsewhere.
    Guests(usize),
}

impl Words {
    /// What stands in the specs of these Hosts, beside what the pool's store says of them.
    pub(crate) fn of<'a>(
        hosts: impl IntoIterator<Item = Heard<'a>>,
        roll: &Roll,
        owners: &BTreeMap<VmUid, Owner>,
    ) -> Self {
        let mut words = Self::default();
        for heard in hosts {
            let Ok(host) = HostName::new(Key::of(heard.0).name) else { continue };
            let fencing = &heard.0.spec.fencing;
            if let Some(text) = &fencing.confirmed_dead {
                words.take_dead(heard, &host, text, roll, owners);
            }
            if let Some(text) = &fencing.unfenced {
                words.take_unfenced(heard.0, host, text);
            }
        }
        words
    }

    fn take_dead(
        &mut self,
        heard: Heard<'_>,
        host: &HostName,
        text: &str,
        roll: &Roll,
        owners: &BTreeMap<VmUid, Owner>,
    ) {
        let refused =
            |why| Refused { host: host.clone(), word: Word::ConfirmedDead, text: text.to_owned(), why };
        let Some(boot) = boot_named(host.as_str(), text) else {
            self.refused.push(refused(Refusal::Unreadable));
            return;
        };
        self.called_dead.insert(boot.clone());
        let known = known(heard.0, host, roll, owners);
        if roll.live.contains_key(&boot) {
            self.refused.push(refused(Refusal::Live));
        } else if roll.fenced.get(&boot).is_some_and(|record| record.proof == Proof::Confirmed) {
            // It was followed.
            self.confirmed.insert(boot);
        } else if !known.contains(text) {
            self.refused.push(refused(Refusal::Unknown(known)));
        } else if is_silent(heard, &boot) {
            self.confirmed.insert(boot);
        } else if matches!(heard.1, Heartbeat::Beaten(_)) {
            self.refused.push(refused(Refusal::Beats));
        }
    }

    fn take_unfenced(&mut self, object: &Host, host: HostName, text: &str) {
        match boot_named(host.as_str(), text) {
            Some(boot) => {
                let followed = object.status.as_ref().and_then(|status| status.fencing.as_ref());
                if followed.is_some_and(|followed| followed.unfenced.as_deref() == Some(text)) {
                    self.followed.insert(boot.clone());
                }
                self.unfenced.insert(boot);
            }
            None => {
                let (word, why) = (Word::Unfenced, Refusal::Unreadable);
                self.refused.push(Refused { host, word, text: text.to_owned(), why });
            }
        }
    }
}

/// The boot of a host that is called so; none if none can be.
pub(crate) fn boot_named(host: &str, boot_id: &str) -> Option<HostBoot> {
    Some(HostBoot { host: HostName::new(host).ok()?, boot_id: BootId::new(boot_id).ok()? })
}

/// The boot that a Host was last at.
pub(crate) fn last_boot(host: &Host) -> Option<HostBoot> {
    boot_named(&Key::of(host).name, host.status.as_ref()?.boot_id.as_deref()?)
}

/// Boots of the host that somebody knows of: its agent, the owners of guests, and the pool's store.
fn known(object: &Host, host: &HostName, roll: &Roll, owners: &BTreeMap<VmUid, Owner>) -> BTreeSet<String> {
    let boots = owners.values().map(boot_of);
    let boots = boots.chain(roll.live.keys().chain(roll.fenced.keys()).cloned());
    let boots = boots.chain(last_boot(object)).filter(|boot| boot.host == *host);
    boots.map(|boot| boot.boot_id.to_string()).collect()
}

/// Whether the agent of this boot is not heard at the API server. A heartbeat that this process has not watched for long enough
/// may be one.
fn is_silent((host, heartbeat): Heard<'_>, boot: &HostBoot) -> bool {
    match heartbeat {
        Heartbeat::Beaten(age) | Heartbeat::Unwitnessed(age) => {
            age >= TIMEOUT || last_boot(host).as_ref() != Some(boot)
        }
        Heartbeat::Never => true,
    }
}

/// The boots that Hosts were last at and of which an operator says that they are off, as far as nothing speaks against it.
pub(crate) fn off<'a>(hosts: impl IntoIterator<Item = Heard<'a>>, roll: &Roll) -> BTreeSet<HostBoot> {
    let off = hosts.into_iter().filter_map(|heard| {
        let boot = last_boot(heard.0)?;
        let named = heard.0.spec.fencing.confirmed_dead.as_deref() == Some(boot.boot_id.as_str());
        (named && !roll.live.contains_key(&boot) && is_silent(heard, &boot)).then_some(boot)
    });
    off.collect()
}

impl Refused {
    /// One word from a fixed set, for an event.
    pub(crate) fn reason(&self) -> &'static str {
        match self.word {
            Word::ConfirmedDead => "ConfirmedDeadRefused",
            Word::Unfenced => "UnfenceRefused",
        }
    }

    /// What is so, and what to do.
    pub(crate) fn note(&self) -> String {
        let text = &self.text;
        let (field, what) = match self.word {
            Word::ConfirmedDead => ("spec.fencing.confirmedDead", "is not taken for dead"),
            Word::Unfenced => ("spec.fencing.unfenced", "is not unfenced"),
        };
        match &self.why {
            Refusal::Unreadable => {
                format!("`{field}` is {text:?}, which can be no boot: name one as `status.bootID` shows it")
            }
            Refusal::Live => format!(
                "boot {text} {what}: it has a lease in the pool's store, so it is alive; take `{field}` away, or switch the host off \
                 and wait until its lease has ended"
            ),
            Refusal::Beats => format!(
                "boot {text} {what}: its agent reports to the API server, so that its guests may run; take `{field}` away, or switch \
                 the host off: the word is followed once nothing was heard of the agent for {} s",
                TIMEOUT.as_secs()
            ),
            Refusal::Unknown(known) => {
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                let known = if known.is_empty() { "none is".to_owned() } else { known.join(", ") };
                format!("boot {text} {what}: no such boot of this host is known; known: {known}")
            }
            Refusal::CalledDead => {
                format!("boot {text} {what}: `spec.fencing.confirmedDead` names it too; take that away first")
            }
            Refusal::Guests(left) => format!(
                "boot {text} {what}: {left} guests of it are still to be started elsewhere; halt them or wait"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kubexen_crds::{HostFencingStatus, HostSpec, HostStatus};

    use super::*;
    use crate::recovery::tests::{boot, owner, roll};

    const VM: VmUid = VmUid(uuid::Uuid::from_u128(1));
    const FRESH: Heartbeat = Heartbeat::Beaten(Duration::from_secs(5));
    const STALE: Heartbeat = Heartbeat::Beaten(TIMEOUT);

    /// Host `a`, last at `boot-1`.
    fn host(confirmed_dead: Option<&str>, unfenced: Option<&str>) -> Host {
        let mut host = Host::new("a", HostSpec::default());
        host.spec.fencing.confirmed_dead = confirmed_dead.map(str::to_owned);
        host.spec.fencing.unfenced = unfenced.map(str::to_owned);
        host.status = Some(HostStatus { boot_id: Some("boot-1".to_owned()), ..HostStatus::default() });
        host
    }

    fn dead(text: &str, heartbeat: Heartbeat, roll: &Roll) -> Result<BTreeSet<HostBoot>, Refusal> {
        let owners = BTreeMap::from([
            (VM, owner(&boot("a", 2), false)),
            (VmUid(uuid::Uuid::nil()), owner(&boot("b", 9), false)),
        ]);
        let host = host(Some(text), None);
        let mut words = Words::of([(&host, heartbeat)], roll, &owners);
        words.refused.pop().map_or(Ok(words.confirmed), |refused| Err(refused.why))
    }

    #[test]
    fn a_boot_is_taken_for_dead_on_a_word_only_if_nothing_speaks_against_it() {
        let (none, one) = (roll(&[], &[]), |number| Ok(BTreeSet::from([boot("a", number)])));
        assert_eq!(dead("boot-1", STALE, &none), one(1));
        assert_eq!(dead("boot-1", Heartbeat::Never, &none), one(1));
        assert_eq!(dead("boot-1", FRESH, &none), Err(Refusal::Beats));
        let young = Heartbeat::Unwitnessed(Duration::from_secs(5));
        assert_eq!(dead("boot-1", young, &none), Ok(BTreeSet::new()), "nobody knows yet");
        let ended = roll(&[], &[(boot("a", 1), Proof::LeaseEnded)]);
        assert_eq!(dead("boot-1", FRESH, &ended), Err(Refusal::Beats), "what nobody guards may run on");
        let confirmed = roll(&[], &[(boot("a", 1), Proof::Confirmed)]);
        assert_eq!(dead("boot-1", FRESH, &confirmed), one(1), "it was followed");
        assert_eq!(dead("boot-1", STALE, &roll(&[boot("a", 1)], &[])), Err(Refusal::Live));
        assert_eq!(dead("boot-2", FRESH, &none), one(2), "an earlier boot, which owns a guest");
        assert_eq!(dead("no/boot", STALE, &none), Err(Refusal::Unreadable));
        let known = Refusal::Unknown(["boot-1", "boot-2", "boot-3"].map(str::to_owned).into());
        let also = roll(&[boot("a", 3)], &[]);
        assert_eq!(dead("boot-7", STALE, &also), Err(known.clone()));
        let (word, text) = (Word::ConfirmedDead, "boot-7".to_owned());
        let said = Refused { host: boot("a", 1).host, word, text, why: known }.note();
        assert!(
            said.ends_with("no such boot of this host is known; known: boot-1, boot-2, boot-3"),
            "{said}"
        );
    }

    #[test]
    fn a_frozen_store_waits_for_a_host_whose_agent_is_heard_whatever_somebody_says() {
        let host = host(Some("boot-1"), None);
        let off = |heartbeat, roll: &Roll| off([(&host, heartbeat)], roll);
        assert_eq!(off(STALE, &roll(&[], &[])), BTreeSet::from([boot("a", 1)]));
        assert_eq!(off(FRESH, &roll(&[], &[])), BTreeSet::new());
        assert_eq!(off(STALE, &roll(&[boot("a", 1)], &[])), BTreeSet::new());
    }

    #[test]
    fn what_was_followed_stands_in_the_status_and_what_cannot_be_read_is_answered() {
        let words = |host: &Host| Words::of([(host, STALE)], &roll(&[], &[]), &BTreeMap::new());
        let mut asked = host(None, Some("boot-1"));
        assert_eq!((words(&asked).unfenced, words(&asked).followed), ([boot("a", 1)].into(), [].into()));
        if let Some(status) = &mut asked.status {
            status.fencing = Some(HostFencingStatus { unfenced: Some("boot-1".to_owned()) });
        }
        assert_eq!(words(&asked).followed, [boot("a", 1)].into());
        asked.spec.fencing.unfenced = Some("boot-2".to_owned());
        assert_eq!(words(&asked).followed, [].into(), "that was another word");
        let wrong = words(&host(None, Some("no/boot")));
        assert_eq!(
            (wrong.refused[0].reason(), &wrong.refused[0].why),
            ("UnfenceRefused", &Refusal::Unreadable)
        );
    }
}
