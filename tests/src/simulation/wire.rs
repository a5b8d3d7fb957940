//! The connection of one process to the API server: late, lossy, and sometimes cut.

use super::{dice::Dice, effects::Effects, step::Lost};
use crate::memory_api::{Delivery, Fate, Link, Passage, Passing};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Whether faults happen by themselves: shared by all connections.
#[derive(Clone, Debug)]
pub(super) struct Weather {
    bad: Arc<AtomicBool>,
    /// Whether it makes calls slow too.
    slow: Arc<AtomicBool>,
}

impl Weather {
    /// Faults happen, and calls are slow.
    pub(super) fn worse() -> Self {
        let yes = || Arc::new(AtomicBool::new(true));
        Self { bad: yes(), slow: yes() }
    }

    /// From now on none happens.
    pub(super) fn calm_down(&self) {
        self.bad.store(false, Ordering::Relaxed);
    }

    /// From now on calls take no time.
    pub(super) fn hasten_calls(&self) {
        self.slow.store(false, Ordering::Relaxed);
    }

    /// Whether they do.
    pub(super) fn is_bad(&self) -> bool {
        self.bad.load(Ordering::Relaxed)
    }

    /// Whether calls to the pool's store and to hypervisors are slow.
    pub(super) fn is_worse(&self) -> bool {
        self.is_bad() && self.slow.load(Ordering::Relaxed)
    }
}

/// The connection of one process.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    dice: Dice,
    weather: Weather,
    lost: Arc<Mutex<Option<Lost>>>,
    /// The plural of a kind, and how late objects of it are made.
    late: Arc<Mutex<Option<(String, Duration)>>>,
    /// How much later everything arrives.
    slow: Arc<Mutex<Duration>>,
    standstill: Standstill,
    effects: Effects,
}

/// Until when the API server stands still: shared by all connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Standstill(Arc<Mutex<Option<Instant>>>);

impl Standstill {
    /// From now on, until then; or not any more.
    pub(super) fn set(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// For how long it still does.
    pub(super) fn left(&self) -> Duration {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }
}

/// How long a client waits for an answer that does not come, where it sets no limit of its own.
const SILENCE: Duration = Duration::from_secs(30);

impl Wire {
    pub(super) fn new(dice: Dice, weather: Weather, standstill: Standstill, effects: Effects) -> Self {
        let (lost, late, slow) = Default::default();
        Self { dice, weather, lost, late, slow, standstill, effects }
    }

    /// Lets everything arrive so much later.
    pub(super) fn set_slow(&self, late: Duration) {
        *self.slow.lock().unwrap_or_else(PoisonError::into_inner) = late;
    }

    /// How much later something arrives that is sent now.
    fn behind(&self) -> Duration {
        let (slow, standstill) =
            (*self.slow.lock().unwrap_or_else(PoisonError::into_inner), self.standstill.left());
        for (late, fault) in [(slow, "slow-api"), (standstill, "pause-api")] {
            if !late.is_zero() {
                self.effects.had(fault);
            }
        }
        slow.max(standstill)
    }

    /// Cuts the connection in one direction, or mends it. Watches notice when they have something to deliver.
    pub(super) fn set_cut(&self, lost: Option<Lost>) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = lost;
    }

    /// Lets requests that make objects of this kind, by plural, arrive so much later than their client gives up.
    pub(super) fn delay_creates(&self, late: Option<(String, Duration)>) {
        *self.late.lock().unwrap_or_else(PoisonError::into_inner) = late;
    }

    fn late(&self, passing: Passing<'_>) -> Option<Duration> {
        let late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        let (plural, late) = late.as_ref()?;
        let makes = passing.method == "POST" && passing.path.rsplit('/').next() == Some(plural.as_str());
        makes.then_some(*late)
    }

    fn cut(&self) -> Option<Lost> {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn silence(&self) -> Duration {
        if self.dice.chance(50) { SILENCE } else { self.dice.millis(0..100) }
    }
}

impl Link for Wire {
    fn request(&self, passing: Passing<'_>) -> Passage {
        let (passage, behind) = (self.passage(passing), self.behind());
        match passage.fate {
            _ if behind.is_zero() => passage,
            // Half of the time it has long left the client, which may have given up when it takes effect.
            Fate::Answered if passing.method != "GET" && self.dice.chance(50) => {
                Passage { fate: Fate::Late(behind), back: behind + passage.back, ..passage }
            }
            _ => Passage { there: passage.there + behind, ..passage },
        }
    }

    fn event(&self) -> Delivery {
        match (self.delivery(), self.behind()) {
            (Delivery::After(time), behind) => Delivery::After(time + behind),
            (Delivery::Broken, _) => Delivery::Broken,
        }
    }
}

impl Wire {
    /// How a request passes, apart from what makes everything late.
    fn passage(&self, passing: Passing<'_>) -> Passage {
        let there = self.dice.millis(0..5);
        if let Some(late) = self.late(passing) {
            self.effects.had("late-creates");
            return Passage { there, fate: Fate::Late(late), back: Duration::ZERO };
        }
        let cut = self.cut();
        if cut.is_some() {
            self.effects.had("cut-from-api");
        }
        match cut {
            None => {}
            Some(Lost::Requests | Lost::Both) => {
                return Passage { there, fate: Fate::RequestLost, back: self.silence() };
            }
            Some(Lost::Answers) => return Passage { there, fate: Fate::AnswerLost, back: self.silence() },
        }
        let back = self.dice.millis(1..6);
        if !self.weather.is_bad() {
            return Passage { there, fate: Fate::Answered, back };
        }
        let there = if self.dice.chance(10) { self.dice.millis(0..3_000) } else { there };
        let fate = match self.dice.below(100) {
            0..4 => Fate::Failed,
            4..7 => Fate::RequestLost,
            7..12 if passing.method != "GET" => Fate::AnswerLost,
            _ => Fate::Answered,
        };
        let back = match fate {
            Fate::Answered | Fate::Failed => back,
            Fate::RequestLost | Fate::AnswerLost | Fate::Late(_) => self.silence(),
        };
        Passage { there, fate, back }
    }

    fn delivery(&self) -> Delivery {
        match self.cut() {
            Some(Lost::Answers | Lost::Both) => return Delivery::Broken,
            // What the server sends by itself still arrives.
            None | Some(Lost::Requests) => {}
        }
        if !self.weather.is_bad() {
            return Delivery::After(self.dice.millis(0..10));
        }
        match self.dice.below(100) {
            0..2 => Delivery::Broken,
            2..6 => Delivery::After(self.dice.millis(0..15_000)),
            6..30 => Delivery::After(self.dice.millis(0..2_000)),
            _ => Delivery::After(self.dice.millis(0..20)),
        }
    }
}
