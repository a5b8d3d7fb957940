//! The connection of one process to the API server: late, lossy, and sometimes cut.

use super::{dice::Dice, step::Lost};
use crate::memory_api::{Delivery, Fate, Link, Passage, Passing};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Whether faults happen by themselves: shared by all connections.
#[derive(Clone, Debug)]
pub(super) struct Weather(Arc<AtomicBool>);

impl Weather {
    /// Faults happen.
    pub(super) fn bad() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// From now on none happens.
    pub(super) fn calm_down(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether they do.
    pub(super) fn is_bad(&self) -> bool {
        self.0.load(Ordering::Relaxed)
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
}

/// How long a client waits for an answer that does not come, where it sets no limit of its own.
const SILENCE: Duration = Duration::from_secs(30);

impl Wire {
    pub(super) fn new(dice: Dice, weather: Weather) -> Self {
        Self { dice, weather, lost: Arc::default(), late: Arc::default() }
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
        let there = self.dice.millis(0..5);
        if let Some(late) = self.late(passing) {
            return Passage { there, fate: Fate::Late(late), back: Duration::ZERO };
        }
        match self.cut() {
            None => {}
            Some(Lost::Requests) => {
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

    fn event(&self) -> Delivery {
        match self.cut() {
            Some(Lost::Answers) => return Delivery::Broken,
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
