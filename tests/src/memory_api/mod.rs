//! A Kubernetes API server in memory, as far as the controller and the agents use one.
//!
//! ```text
//!   kube::Client ──http──▶ Link (delays, loses, breaks) ──▶ store ──▶ Observer
//!                                                             │
//!                watch streams ◀── Link ◀── log of changes ◀──┘
//! ```
//!
//! It knows KubeXen's kinds with the defaults of their schemas, and of Kubernetes' own those that the two programs
//! touch. Reads are linearizable, as the real server's are without a `resourceVersion`; a watch may be late by as much
//! as its [`Link`] says. A suite compares its answers with the real server's.
//!
//! # What it does not do
//! Validation (schemas, CEL), authorisation, server-side apply, paging, garbage collection by owner references, and
//! watches that do not begin at a resource version. Events are accepted and not kept.
//!
//! # Determinism
//! Uids, versions and answers follow from the requests and their order alone.

pub mod link;
mod object;
mod request;
mod resources;
mod store;
mod watch;

pub use link::{Delivery, Fate, Link, Passage, Passing, Perfect};
pub use object::Object;

use futures::{
    StreamExt,
    future::ready,
    stream::{BoxStream, once},
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, StreamBody};
use kube::{Client, client::Body};
use kubexen_runtime::Clock;
use request::{Place, Refusal, Selection};
use serde_json::{Value, json};
use std::{
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use store::{Change, Store, Written};
use tokio::{sync::Notify, time::sleep};

/// A write that took effect.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Which client wrote.
    pub client: &'a str,
    /// The kind of the object.
    pub kind: &'a str,
    /// The object before; none if it is new.
    pub before: Option<&'a Arc<Object>>,
    /// The object now; for a deletion as it was last.
    pub object: &'a Arc<Object>,
    /// Whether the object is gone.
    pub deleted: bool,
}

/// Is told of every write, while it happens. It must not call the server.
pub trait Observer: Send + Sync {
    /// A write took effect.
    fn wrote(&self, write: Write<'_>);

    /// A client is answered with this object as it is at this moment, which it has asked for by its name.
    fn read(&self, client: &str, object: &Value);
}

/// The server. Clones are handles to the same one.
#[derive(Clone)]
pub struct MemoryApi {
    store: Arc<Mutex<Store>>,
    clock: Arc<dyn Clock>,
    observer: Option<Arc<dyn Observer>>,
    /// Told when an object of the kind with this index was written.
    written: Arc<[Arc<Notify>]>,
}

impl fmt::Debug for MemoryApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryApi").finish_non_exhaustive()
    }
}

/// A body in pieces.
type Lines = BoxStream<'static, Result<Vec<u8>, io::Error>>;

impl MemoryApi {
    /// A server with the namespace `default` and nothing else. Uids follow from `name`.
    #[must_use]
    pub fn new(name: &str, clock: Arc<dyn Clock>, observer: Option<Arc<dyn Observer>>) -> Self {
        let api = Self {
            store: Arc::new(Mutex::new(Store::new(name))),
            clock,
            observer,
            written: (0..resources::Resource::count()).map(|_| Arc::default()).collect(),
        };
        api.add_namespace("default");
        api
    }

    /// A client named `name` behind `link`. Nothing of it tries again. Call it inside a tokio runtime.
    #[must_use]
    pub fn client(&self, name: &str, link: Arc<dyn Link>) -> Client {
        let (api, name): (Self, Arc<str>) = (self.clone(), name.into());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (api, name, link) = (api.clone(), Arc::clone(&name), Arc::clone(&link));
            async move {
                let response = api.pass(&name, link, request).await?;
                Ok::<_, io::Error>(response.map(|lines| {
                    StreamBody::new(lines.filter_map(|line| async {
                        match line {
                            Ok(line) => {
                                Full::from(line).frame().await.map(|frame| frame.map_err(io::Error::other))
                            }
                            Err(error) => Some(Err(error)),
                        }
                    }))
                }))
            }
        });
        Client::new(service, "default")
    }

    /// Makes a namespace.
    pub fn add_namespace(&self, name: &str) {
        let resource = resources::Resource::find("", "v1", "namespaces").expect("it is built in");
        let place = Place { resource, namespace: String::new(), name: None, status: false };
        // That it is there already is as well.
        let made = self.lock().create(&place, json!({"metadata": {"name": name}}), self.clock.now());
        drop(made);
    }

    /// Forgets the changes so far: a watch that has not delivered them yet, or comes back for them, ends with 410.
    pub fn compact(&self) {
        self.lock().compact();
        // Whoever waits looks again.
        self.written.iter().for_each(|kind| kind.notify_waiters());
    }

    /// The object of one of KubeXen's kinds, by plural, namespace (empty for cluster-scoped kinds) and name.
    #[must_use]
    pub fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let resource = resources::Resource::find(kubexen_crds::names::GROUP, "v1alpha1", plural)?;
        self.lock().find(resource, namespace, name).cloned()
    }

    /// All objects of one of KubeXen's kinds, or of a core one, by plural; sorted by namespace and name.
    #[must_use]
    pub fn objects(&self, plural: &str) -> Vec<Arc<Object>> {
        resources::Resource::find(kubexen_crds::names::GROUP, "v1alpha1", plural)
            .or_else(|| resources::Resource::find("", "v1", plural))
            .map(|resource| self.lock().list(resource, &Selection::default()))
            .unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request with what its link does to it.
    async fn pass(
        &self,
        client: &str,
        link: Arc<dyn Link>,
        request: Request<Body>,
    ) -> Result<Response<Lines>, io::Error> {
        let (parts, body) = request.into_parts();
        let query = request::query(&parts.uri);
        let watch = query.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
        let passage = link.request(Passing { method: parts.method.as_str(), path: parts.uri.path(), watch });
        sleep(passage.there).await;
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let broken = || Err(io::Error::from(io::ErrorKind::ConnectionReset));
        let answer = match passage.fate {
            Fate::Failed => {
                let failed = StatusCode::INTERNAL_SERVER_ERROR;
                Ok(refused(&Refusal::new(failed, "InternalError", "failure injected")))
            }
            Fate::RequestLost => broken(),
            Fate::Late(late) => {
                let (api, client) = (self.clone(), client.to_owned());
                tokio::spawn(async move {
                    sleep(late).await;
                    drop(api.answer(&client, &parts.method, &parts.uri, &body));
                });
                broken()
            }
            Fate::AnswerLost => {
                drop(self.answer(client, &parts.method, &parts.uri, &body));
                broken()
            }
            Fate::Answered => {
                let answer = match watch {
                    true => request::place(&parts.uri).and_then(|place| {
                        let watched = watch::Watch::begin(self, &place, &query, Arc::clone(&link))?;
                        Ok(response(StatusCode::OK, watched.lines()))
                    }),
                    false => self.answer(client, &parts.method, &parts.uri, &body),
                };
                Ok(answer.unwrap_or_else(|refusal| refused(&refusal)))
            }
        };
        sleep(passage.back).await;
        answer
    }

    /// What a request that is no watch does.
    fn answer(
        &self,
        client: &str,
        method: &Method,
        uri: &Uri,
        body: &[u8],
    ) -> Result<Response<Lines>, Refusal> {
        let place = request::place(uri)?;
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(body).map_err(|error| Refusal::bad_request(error.to_string()))?
        };
        let selection = Selection::of(&place, &request::query(uri))?;
        self.execute(client, method, &place, &selection, body)
    }

    fn execute(
        &self,
        client: &str,
        method: &Method,
        place: &Place,
        selection: &Selection,
        body: Value,
    ) -> Result<Response<Lines>, Refusal> {
        let now = self.clock.now();
        let mut store = self.lock();
        let written = match (method.as_str(), place.name.is_some()) {
            ("GET", true) => {
                let found = store.get(place)?;
                drop(store);
                if let Some(observer) = &self.observer {
                    observer.read(client, &found);
                }
                return Ok(text(StatusCode::OK, found.text().to_owned()));
            }
            ("GET", false) => {
                let listed = store.list(place.resource, selection);
                let items = listed.iter().map(|object| object.text()).collect::<Vec<_>>().join(",");
                let (version, kind) = (place.resource.api_version(), &place.resource.kind);
                let list = format!(
                    r#"{{"apiVersion":"{version}","kind":"{kind}List","metadata":{{"resourceVersion":"{}"}},"items":[{items}]}}"#,
                    store.revision()
                );
                return Ok(text(StatusCode::OK, list));
            }
            ("POST", false) if place.resource.kind == "Event" => {
                drop(store);
                let event = Arc::new(Object::new(body));
                self.tell(client, "Event", None, &event, false);
                return Ok(text(StatusCode::CREATED, event.text().to_owned()));
            }
            ("POST", false) => Written::Changed(store.create(place, body, now)?),
            ("PUT", true) => store.update(place, body)?,
            ("PATCH", true) => store.patch(place, &body)?,
            ("DELETE", true) if !place.status => store.delete(place, &body, now)?,
            _ => {
                let code = StatusCode::METHOD_NOT_ALLOWED;
                return Err(Refusal::new(code, "MethodNotAllowed", "the server does not allow this method"));
            }
        };
        drop(store);
        let (change, answer) = match written {
            Written::Same(object) => return Ok(text(StatusCode::OK, object.text().to_owned())),
            Written::Changed(change) => (change, None),
            Written::Ended(change, answer) => (change, Some(answer)),
        };
        let Change { resource, before, object, deleted, .. } = &change;
        self.tell(client, &resource.kind, before.as_ref(), object, *deleted);
        self.written[resource.index].notify_waiters();
        let code = if method == Method::POST { StatusCode::CREATED } else { StatusCode::OK };
        if method == Method::DELETE && *deleted && resource.kind != "Namespace" {
            let meta = &object["metadata"];
            let details = json!({"name": meta["name"], "uid": meta["uid"], "kind": resource.plural});
            let done = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
            });
            return Ok(whole(code, &done));
        }
        Ok(answer.map_or_else(|| text(code, object.text().to_owned()), |answer| whole(code, &answer)))
    }

    fn tell(
        &self,
        client: &str,
        kind: &str,
        before: Option<&Arc<Object>>,
        object: &Arc<Object>,
        deleted: bool,
    ) {
        if let Some(observer) = &self.observer {
            observer.wrote(Write { client, kind, before, object, deleted });
        }
    }
}

fn response(code: StatusCode, lines: Lines) -> Response<Lines> {
    let mut response = Response::new(lines);
    *response.status_mut() = code;
    response
}

fn whole(code: StatusCode, body: &Value) -> Response<Lines> {
    text(code, body.to_string())
}

fn text(code: StatusCode, body: String) -> Response<Lines> {
    response(code, once(ready(Ok(body.into_bytes()))).boxed())
}

fn refused(refusal: &Refusal) -> Response<Lines> {
    whole(refusal.code, &refusal.status())
}
