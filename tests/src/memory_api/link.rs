//! What stands between a client and the server, as a seam: a perfect connection, or one that delays, loses and breaks.

use std::{fmt, time::Duration};

/// A request on its way, as far as a connection may care.
#[derive(Clone, Copy, Debug)]
pub struct Passing<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// The path without its query.
    pub path: &'a str,
    /// Whether it is a watch.
    pub watch: bool,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is executed and answered.
    Answered,
    /// The server answers 500 and does nothing.
    Failed,
    /// It never arrives; the connection breaks.
    RequestLost,
    /// The connection breaks, and so much later it arrives and is executed, whoever sent it.
    Late(Duration),
    /// It is executed, and the connection breaks before the answer.
    AnswerLost,
}

/// How a request passes.
#[derive(Clone, Copy, Debug)]
pub struct Passage {
    /// Time until it arrives.
    pub there: Duration,
    /// What becomes of it.
    pub fate: Fate,
    /// Time until the answer arrives, or the connection breaks.
    pub back: Duration,
}

/// How an event of a watch passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is delivered this long after the write.
    After(Duration),
    /// The connection breaks instead.
    Broken,
}

/// The connection of one client.
pub trait Link: Send + Sync + fmt::Debug {
    /// Asked once for each request.
    fn request(&self, passing: Passing<'_>) -> Passage;

    /// Asked once for each event of a watch.
    fn event(&self) -> Delivery;
}

/// A connection that delivers everything at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Perfect;

impl Link for Perfect {
    fn request(&self, _passing: Passing<'_>) -> Passage {
        Passage { there: Duration::ZERO, fate: Fate::Answered, back: Duration::ZERO }
    }

    fn event(&self) -> Delivery {
        Delivery::After(Duration::ZERO)
    }
}
