use super::*;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use kubexen_runtime::clock::VirtualClock;
use serde_json::{Value, json};
use std::{cell::RefCell, convert::Infallible, rc::Rc};

/// One Lease behind the API server's rules of compare-and-swap.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    lease: Option<Value>,
    version: u64,
    /// Requests hang while it is set.
    hangs: bool,
    writes: Vec<(Instant, String)>,
}

impl Server {
    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "kubexen-system")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let method = request.method().clone();
        let bytes = request.into_body().collect().await.expect("a body").to_bytes();
        while self.0.lock().unwrap().hangs {
            sleep(Duration::from_millis(100)).await;
        }
        let mut state = self.0.lock().unwrap();
        let sent: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let present = state.lease.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
        let (code, reason) = match (&method, &present) {
            (&Method::GET, None) => (StatusCode::NOT_FOUND, "NotFound"),
            (&Method::POST, Some(_)) => (StatusCode::CONFLICT, "AlreadyExists"),
            (&Method::PUT, Some(version)) if *version != sent["metadata"]["resourceVersion"] => {
                (StatusCode::CONFLICT, "Conflict")
            }
            (&Method::GET, Some(_)) => return reply(StatusCode::OK, state.lease.as_ref().unwrap()),
            _ => {
                state.version += 1;
                let mut stored = sent;
                stored["metadata"]["resourceVersion"] = json!(state.version.to_string());
                let holder = stored["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
                state.writes.push((Instant::now(), holder));
                state.lease = Some(stored.clone());
                return reply(StatusCode::OK, &stored);
            }
        };
        reply(
            code,
            &json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code.as_u16(), "message": reason}),
        )
    }

    fn hang(&self, hangs: bool) {
        self.0.lock().unwrap().hangs = hangs;
    }

    fn holder(&self) -> String {
        let state = self.0.lock().unwrap();
        state
            .lease
            .as_ref()
            .map(|lease| lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
            .unwrap_or_default()
    }
}

fn reply(code: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string().into_bytes()));
    *response.status_mut() = code;
    response
}

struct Candidate {
    elector: Elector,
    leadership: Leadership,
    shutdown: CancellationToken,
    terms: Rc<RefCell<u32>>,
    running: Rc<RefCell<bool>>,
}

/// Says that a term runs for as long as its future lives.
struct Running(Rc<RefCell<bool>>);

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.borrow_mut() = false;
    }
}

impl Candidate {
    fn new(server: &Server, identity: &str) -> Self {
        let leadership = Leadership::default();
        let clock = Arc::new(VirtualClock::starting_at(jiff::Timestamp::UNIX_EPOCH));
        let elector = Elector::new(
            server.client(),
            "kubexen-system",
            "lease",
            identity.to_owned(),
            clock,
            leadership.clone(),
        );
        Self {
            elector,
            leadership,
            shutdown: CancellationToken::new(),
            terms: Rc::default(),
            running: Rc::default(),
        }
    }

    async fn run(&self) {
        self.elector
            .run(&self.shutdown, || async {
                *self.terms.borrow_mut() += 1;
                *self.running.borrow_mut() = true;
                let _running = Running(Rc::clone(&self.running));
                std::future::pending::<()>().await;
            })
            .await;
    }

    fn leads(&self) -> bool {
        self.leadership.holds()
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(120), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn lease_of(holder: Option<&str>) -> Lease {
    let spec = LeaseSpec {
        holder_identity: holder.map(str::to_owned),
        lease_duration_seconds: Some(15),
        ..LeaseSpec::default()
    };
    Lease { spec: Some(spec), ..Lease::default() }
}

#[test]
fn a_foreign_lease_is_taken_only_when_it_was_seen_unchanged_for_its_duration() {
    let seconds = Duration::from_secs;
    let cases = [
        (None, seconds(0), Step::Create),
        (Some(lease_of(None)), seconds(0), Step::Take),
        (Some(lease_of(Some(""))), seconds(0), Step::Take),
        (Some(lease_of(Some("me"))), seconds(0), Step::Take),
        (Some(lease_of(Some("other"))), seconds(14), Step::Wait),
        (Some(lease_of(Some("other"))), seconds(15), Step::Take),
        (Some(Lease::default()), seconds(0), Step::Take),
    ];
    for (lease, unchanged, expected) in cases {
        assert_eq!(step(lease.as_ref(), "me", unchanged), expected, "{lease:?} after {unchanged:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_two_leads_and_the_other_follows_at_once_after_a_clean_end() {
    let server = Server::default();
    let (one, two) = (Candidate::new(&server, "one"), Candidate::new(&server, "two"));
    let script = async {
        until("one of them leads", || one.leads() || two.leads()).await;
        sleep(Duration::from_secs(60)).await;
        assert!(one.leads() && !two.leads(), "leadership stays where it is");
        one.shutdown.cancel();
        let stopped = Instant::now();
        until("the other leads", || two.leads()).await;
        assert!(stopped.elapsed() <= Duration::from_secs(2), "after {:?}", stopped.elapsed());
        assert!(!*one.running.borrow() && *two.running.borrow());
        two.shutdown.cancel();
    };
    futures::join!(one.run(), two.run(), script);
    assert_eq!(server.holder(), "", "the lease is released in the end");
    assert_eq!((*one.terms.borrow(), *two.terms.borrow()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_another_can_start() {
    let server = Server::default();
    let one = Candidate::new(&server, "one");
    let script = async {
        until("it leads", || one.leads()).await;
        sleep(Duration::from_secs(10)).await;
        server.hang(true);
        let (last, _) = server.0.lock().unwrap().writes.last().cloned().expect("a renewal");
        until("it has given up", || !one.leads()).await;
        let after = last.elapsed();
        assert!(after <= RENEW_DEADLINE + Duration::from_millis(100), "after {after:?}");
        until("its work has ended", || !*one.running.borrow()).await;
        assert!(last.elapsed() < LEASE_DURATION);
        server.hang(false);
        until("it leads again", || one.leads() && *one.running.borrow()).await;
        one.shutdown.cancel();
    };
    futures::join!(one.run(), script);
    assert_eq!(*one.terms.borrow(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_replaced_stops_when_it_sees_that() {
    let server = Server::default();
    let one = Candidate::new(&server, "one");
    let script = async {
        until("it leads", || one.leads()).await;
        {
            let mut state = server.0.lock().unwrap();
            let lease = state.lease.as_mut().unwrap();
            lease["spec"]["holderIdentity"] = json!("two");
            lease["metadata"]["resourceVersion"] = json!("1000");
        }
        until("it has stopped", || !*one.running.borrow()).await;
        assert!(!one.leads());
        assert_eq!(server.holder(), "two", "what another holds is not touched");
        one.shutdown.cancel();
    };
    futures::join!(one.run(), script);
    assert_eq!(server.holder(), "two");
}
