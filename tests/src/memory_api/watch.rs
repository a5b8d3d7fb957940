//! Watches: the log of changes as a stream of lines, as late as the link delivers them.

use super::{
    Lines, MemoryApi,
    link::{Delivery, Link},
    request::{Place, Refusal, Selection},
    resources::Resource,
    store::{Change, Next},
};
use futures::{StreamExt, stream::unfold};
use http::StatusCode;
use serde_json::json;
use std::{collections::BTreeMap, io, sync::Arc, time::Duration};
use tokio::{
    sync::futures::OwnedNotified,
    time::{Instant, sleep_until},
};

/// How long a watch lasts if the client names no time.
const LONGEST: Duration = Duration::from_secs(1800);
/// Time between two bookmarks.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// A watch under way.
pub(super) struct Watch {
    api: MemoryApi,
    resource: &'static Resource,
    selection: Selection,
    link: Arc<dyn Link>,
    seen: u64,
    /// Whether what it is to begin with was forgotten before it began.
    expired: bool,
    ends: Instant,
    bookmark: Option<Instant>,
    over: bool,
}

impl Watch {
    /// The watch that a request asks for.
    pub(super) fn begin(
        api: &MemoryApi,
        place: &Place,
        query: &BTreeMap<String, String>,
        link: Arc<dyn Link>,
    ) -> Result<Self, Refusal> {
        let seen = query.get("resourceVersion").and_then(|version| version.parse().ok()).filter(|&v| v > 0);
        let seen = seen.ok_or_else(|| Refusal::bad_request("a watch begins at a resourceVersion here"))?;
        let lasts = query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok());
        let now = Instant::now();
        Ok(Self {
            api: api.clone(),
            resource: place.resource,
            selection: Selection::of(place, query)?,
            link,
            seen,
            expired: api.lock().has_forgotten(seen),
            ends: now + lasts.map_or(LONGEST, Duration::from_secs),
            bookmark: query.contains_key("allowWatchBookmarks").then(|| now + BOOKMARKS),
            over: false,
        })
    }

    /// Its lines, each one event.
    pub(super) fn lines(self) -> Lines {
        unfold(self, |mut watch| async move {
            let line = watch.next().await?;
            Some((line, watch))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Result<Vec<u8>, io::Error>> {
        while !self.over {
            // Heard from here on, so that nothing is missed that is written after the look.
            let written = Arc::clone(&self.api.written[self.resource.index]).notified_owned();
            let next = match self.expired {
                true => Next::Expired,
                false => self.api.lock().after(self.seen, self.resource, &self.selection),
            };
            match next {
                Next::Change(revision, change) => {
                    let Delivery::After(delay) = self.link.event() else {
                        self.over = true;
                        return Some(Err(io::ErrorKind::ConnectionReset.into()));
                    };
                    sleep_until(change.at + delay).await;
                    self.seen = revision;
                    return Some(Ok(self.shown(&change)));
                }
                Next::Expired => {
                    self.over = true;
                    let why = "The resourceVersion for the provided watch is too old.";
                    let gone = Refusal::new(StatusCode::GONE, "Expired", why).status();
                    return Some(Ok(line("ERROR", &gone.to_string())));
                }
                Next::Nothing(revision) => {
                    self.seen = revision;
                    if let Some(bookmark) = self.wait(written).await {
                        return Some(Ok(bookmark));
                    }
                }
            }
        }
        None
    }

    /// Waits until there is something to look for; answers a bookmark if one is due.
    async fn wait(&mut self, written: OwnedNotified) -> Option<Vec<u8>> {
        let bookmark_due = self.bookmark.unwrap_or(self.ends);
        tokio::select! {
            biased;
            () = written => None,
            () = sleep_until(self.ends) => {
                self.over = true;
                None
            }
            () = sleep_until(bookmark_due) => {
                self.bookmark = Some(Instant::now() + BOOKMARKS);
                Some(line("BOOKMARK", &json!({
                    "apiVersion": self.resource.api_version(),
                    "kind": self.resource.kind,
                    "metadata": {"resourceVersion": self.seen.to_string()},
                }).to_string()))
            }
        }
    }

    /// The change as this selection shows it: what enters it is added, what leaves it is deleted.
    fn shown(&self, change: &Change) -> Vec<u8> {
        let before = change.before.as_ref().is_some_and(|before| self.selection.shows(before));
        let word = match (before, !change.deleted && self.selection.shows(&change.object)) {
            (false, _) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        line(word, change.object.text())
    }
}

fn line(word: &str, object: &str) -> Vec<u8> {
    format!("{{\"type\":\"{word}\",\"object\":{object}}}\n").into_bytes()
}
